//! What can be wrong with a call, and how its caller hears of it.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::tensor::DLDataType;

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
    #[error(
        "{argument}: on a device of DLPack's type {got}; this library computes in host memory (types 1 and 3). Kernels for CUDA \
         devices are in the Rust crate, behind its feature cuda"
    )]
    Device { argument: &'static str, got: i32 },
    #[error("{argument}: DLPack's type code {}, {} bits, {} lanes, expected {expected}", got.code, got.bits, got.lanes)]
    Type { argument: &'static str, got: DLDataType, expected: &'static str },
    #[error("{argument}: address {address:#x}, expected a multiple of {size}")]
    Misaligned { argument: &'static str, address: usize, size: usize },
    #[error("{argument}: expected a contiguous list")]
    Strided { argument: &'static str },
    #[error("{argument}: given, but {reason}")]
    Unexpected { argument: &'static str, reason: &'static str },
    #[error("{argument}: {error}")]
    Tensor { argument: &'static str, error: inducer_attention::Error },
    #[error(transparent)]
    Call(#[from] inducer_attention::Error),
    #[error("threads: {got}, expected 1 to {expected}")]
    Threads { got: usize, expected: usize },
    #[error("threads: {0}")]
    Pool(#[from] rayon::ThreadPoolBuildError),
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
    LAST.set(text);
}

/// The message of this thread's last error.
pub(crate) fn last() -> *const c_char {
    LAST.with_borrow(|text| CStr::as_ptr(text))
}

/// Runs `f`; an error or panic becomes a status and a message.
pub(crate) fn guard(f: impl FnOnce() -> Result<()>) -> Status {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(())) => Status::Ok,
        Ok(Err(error)) => {
            keep(error.to_string());
            Status::Invalid
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
