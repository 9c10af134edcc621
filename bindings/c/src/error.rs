//! What can be wrong with a call, and how its caller hears of it.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use inducer_attention::Memory;

use crate::tensor::{DLDataType, DLDevice};

pub(crate) type Result<T> = std::result::Result<T, Error>;

/// A mistake in the arguments. Where the crate itself finds it, its own error.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{argument}: null")]
    Null { argument: &'static str },
    #[error("{argument}.struct_size: {got}, expected {expected}; is the header that of this library?")]
    StructSize { argument: &'static str, got: usize, expected: usize },
    #[error("{argument}: {got}, expected {expected}")]
    Number { argument: &'static str, got: u32, expected: &'static str },
    #[error("{argument}: {got} dimensions, expected {expected}")]
    Dimensions { argument: &'static str, got: i32, expected: usize },
    #[error("{argument}: sizes and strides {got:?}, expected none below 0")]
    Negative { argument: &'static str, got: Vec<i64> },
    #[error("{argument}: on {}, expected {}", place(*.got), wanted(*.expected))]
    Device { argument: &'static str, got: DLDevice, expected: Memory },
    #[cfg(feature = "cuda")]
    #[error("{argument}: on {}, expected a CUDA device (DLPack's type 2)", place(*.got))]
    NotCuda { argument: &'static str, got: DLDevice },
    #[cfg(feature = "cuda")]
    #[error("device: {got}, expected the number of a CUDA device, 0 to 65535")]
    DeviceNumber { got: i32 },
    #[cfg(feature = "cuda")]
    #[error("{argument}: {got}, expected 0 (not known) or more")]
    Length { argument: &'static str, got: i64 },
    #[cfg(not(feature = "cuda"))]
    #[error("this library was built without its feature cuda, and computes in host memory alone")]
    NoCuda,
    #[error("{argument}: DLPack's type code {}, {} bits, {} lanes, expected {expected}", got.code, got.bits, got.lanes)]
    Type { argument: &'static str, got: DLDataType, expected: &'static str },
    #[error("{argument}: address {address:#x}, expected a multiple of {size}")]
    Misaligned { argument: &'static str, address: usize, size: usize },
    #[error("{argument}: expected a contiguous list")]
    Strided { argument: &'static str },
    #[error("{argument}: shape {got:?} is more than memory can hold")]
    TooLong { argument: &'static str, got: Vec<usize> },
    #[error("{argument}: shape {got:?}, expected {expected:?}")]
    Shape { argument: &'static str, got: [usize; 2], expected: [usize; 2] },
    #[error("{argument}: given, but {reason}")]
    Unexpected { argument: &'static str, reason: &'static str },
    #[error("{argument}: {error}")]
    Tensor { argument: &'static str, error: inducer_attention::Error },
    #[error("{}", in_c(.0))]
    Call(#[from] inducer_attention::Error),
    #[error(
        "this process was forked after the first call, and has none of its threads; start processes anew instead"
    )]
    Forked,
    #[error("threads: {got}, expected 1 to {expected}")]
    Threads { got: usize, expected: usize },
    #[error("threads: {0}")]
    Pool(String),
}

/// What a tensor is on.
fn place(device: DLDevice) -> String {
    match device.memory() {
        Some(Memory::Host) => "the host".into(),
        Some(Memory::Cuda { device }) => format!("CUDA device {device}"),
        None => {
            format!("a device of DLPack's type {}, number {}", device.device_type, device.device_id)
        }
    }
}

/// What it should be on.
fn wanted(memory: Memory) -> String {
    match memory {
        Memory::Host => "the host (DLPack's types 1 and 3); ia_cuda_forward and ia_cuda_backward take tensors of CUDA devices".into(),
        Memory::Cuda { device } => format!("CUDA device {device}, as q is (DLPack's type 2)"),
    }
}

impl Error {
    /// What a function returns for it.
    fn status(&self) -> Status {
        use inducer_attention::Error as Core;
        match self {
            Self::Call(
                Core::NoKernels
                | Core::NoDriver
                | Core::NoDevice { .. }
                | Core::DeviceTooOld { .. }
                | Core::DriverTooOld { .. }
                | Core::NoKernelImage { .. }
                | Core::Driver { .. },
            ) => Status::Device,
            #[cfg(not(feature = "cuda"))]
            Self::NoCuda => Status::Device,
            _ => Status::Invalid,
        }
    }
}

/// What functions return: `ia_status` of the header.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// All went well.
    Ok = 0,
    /// A mistake in the arguments; nothing was written.
    Invalid = 1,
    /// A bug in the library.
    Internal = 2,
    /// No GPU, no driver or no kernels to use, or an error of the driver's.
    Device = 3,
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

fn keep(message: String) {
    // A message has no zero; if it had one, what is before it would do.
    let text = CString::new(message).unwrap_or_else(|e| {
        let end = e.nul_position();
        CString::new(&e.into_vec()[..end]).unwrap_or_default()
    });
    // While a thread ends there is no place for it any more.
    _ = LAST.try_with(|last| *last.borrow_mut() = text);
}

/// A message with the header's names for what the crate names otherwise.
fn in_c(error: &inducer_attention::Error) -> String {
    const NAMES: [(&str, &str); 13] = [
        ("key.logit", "logit"),
        ("key.", "key_adapter."),
        ("value.", "value_adapter."),
        ("prefix.k", "prefix_k"),
        ("prefix.v", "prefix_v"),
        ("dropout.p", "dropout_p"),
        ("saved.output", "o or attn"),
        ("saved.lse", "lse"),
        ("d_key.logit", "d_logit"),
        ("d_key.", "d_key_adapter."),
        ("d_value.", "d_value_adapter."),
        ("d_prefix.k", "d_prefix_k"),
        ("d_prefix.v", "d_prefix_v"),
    ];
    let message = error.to_string();
    let renamed =
        NAMES.iter().find_map(|(rust, c)| message.strip_prefix(rust).map(|rest| format!("{c}{rest}")));
    renamed.unwrap_or(message)
}

/// The message of this thread's last error.
pub(crate) fn last() -> *const c_char {
    LAST.try_with(|last| CStr::as_ptr(&last.borrow())).unwrap_or(c"".as_ptr())
}

/// Runs `f`; an error or panic becomes a status and a message.
pub(crate) fn guard(f: impl FnOnce() -> Result<()>) -> Status {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(())) => Status::Ok,
        Ok(Err(error)) => {
            keep(error.to_string());
            error.status()
        }
        Err(panic) => {
            keep(format!("a bug in inducer-attention: {}", panic_text(panic.as_ref())));
            Status::Internal
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked without a message")
}
