//! The crate behind a C interface: `include/inducer_attention.h`, which says what every function and struct is.
//!
//! Three steps, as in Rust: [`tensor`] makes views of DLPack's tensors, [`call`] a problem and a call of the structs, which the
//! crate validates, and the functions here and in module `cuda` (feature `cuda`) run it. A mistake becomes [`Status::Invalid`] and a
//! message; so does nothing else.

#![allow(clippy::missing_safety_doc, reason = "each names the header's promises")]

pub mod call;
#[cfg_attr(not(feature = "cuda"), path = "no_cuda.rs")]
pub mod cuda;
mod error;
pub mod tensor;

use std::ffi::{CString, c_char};
use std::sync::{LazyLock, OnceLock};

use inducer_attention::cpu::{Engine, Workspace};
use inducer_attention::{Memory, Problem};
use rayon::{ThreadPool, ThreadPoolBuilder};

use call::{AttentionCall, GradientTensors, OutputTensors, checked};
pub use error::Status;
use error::{Error, Result, guard};

/// `IA_ABI_VERSION`.
pub const ABI_VERSION: u32 = 2;

/// More threads are a mistake, such as a negative number.
const MAX_THREADS: usize = 4096;

/// `ia_abi_version`.
#[unsafe(no_mangle)]
pub extern "C" fn ia_abi_version() -> u32 {
    ABI_VERSION
}

/// `ia_description`.
#[unsafe(no_mangle)]
pub extern "C" fn ia_description() -> *const c_char {
    static TEXT: LazyLock<CString> = LazyLock::new(|| {
        let set = Engine::detect().instruction_set();
        #[cfg(feature = "cuda")]
        let kernels = if inducer_attention::cuda::fatbins().next().is_some() { ", CUDA kernels" } else { "" };
        #[cfg(not(feature = "cuda"))]
        let kernels = "";
        let version = env!("CARGO_PKG_VERSION");
        CString::new(format!("inducer-attention {version}, {set:?}{kernels}")).unwrap_or_default()
    });
    TEXT.as_ptr()
}

/// `ia_last_error`.
#[unsafe(no_mangle)]
pub extern "C" fn ia_last_error() -> *const c_char {
    error::last()
}

/// `ia_set_threads`.
#[unsafe(no_mangle)]
pub extern "C" fn ia_set_threads(threads: usize) -> Status {
    guard(|| {
        if !(1..=MAX_THREADS).contains(&threads) {
            return Err(Error::Threads { got: threads, expected: MAX_THREADS });
        }
        let mut first = false;
        let pool = POOL.get_or_init(|| {
            first = true;
            Pool::start(threads)
        });
        pool.as_ref().map_err(|reason| Error::Pool(reason.clone()))?;
        if first { Ok(()) } else { Err(Error::Pool("already set, or started by a call".into())) }
    })
}

/// The threads that calls work on, and the process that started them.
struct Pool {
    threads: ThreadPool,
    process: u32,
}

static POOL: OnceLock<std::result::Result<Pool, String>> = OnceLock::new();

impl Pool {
    /// With 0 threads, as many as there are processors.
    fn start(threads: usize) -> std::result::Result<Self, String> {
        let threads = ThreadPoolBuilder::new().num_threads(threads).build().map_err(|e| e.to_string())?;
        Ok(Self { threads, process: std::process::id() })
    }
}

/// Runs `f` on the pool.
fn on_pool<R: Send>(f: impl FnOnce() -> Result<R> + Send) -> Result<R> {
    let pool = POOL.get_or_init(|| Pool::start(0)).as_ref().map_err(|reason| Error::Pool(reason.clone()))?;
    if pool.process != std::process::id() {
        return Err(Error::Forked);
    }
    pool.threads.install(f)
}

/// `ia_workspace_new`.
#[unsafe(no_mangle)]
pub extern "C" fn ia_workspace_new() -> *mut Workspace {
    Box::into_raw(Box::new(Workspace::new()))
}

/// `ia_workspace_free`.
///
/// # Safety
/// Null, or what [`ia_workspace_new`] returned, once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ia_workspace_free(workspace: *mut Workspace) {
    if !workspace.is_null() {
        // SAFETY: the caller's promise.
        drop(unsafe { Box::from_raw(workspace) });
    }
}

/// `ia_forward_workspace`.
///
/// # Safety
/// As the header says: `attention` is null or begins with its size and is that large, its tensors are null or readable; `bytes`
/// is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ia_forward_workspace(attention: *const AttentionCall, bytes: *mut usize) -> Status {
    // SAFETY: the caller's promise.
    unsafe { measure(attention, bytes, Engine::forward_workspace) }
}

/// `ia_backward_workspace`.
///
/// # Safety
/// As [`ia_forward_workspace`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ia_backward_workspace(attention: *const AttentionCall, bytes: *mut usize) -> Status {
    // SAFETY: the caller's promise.
    unsafe { measure(attention, bytes, Engine::backward_workspace) }
}

unsafe fn measure(
    attention: *const AttentionCall,
    bytes: *mut usize,
    size: impl FnOnce(&Engine, &Problem<'_>) -> usize + Send,
) -> Status {
    guard(|| {
        // SAFETY: the caller's promise.
        let problem = unsafe { checked(attention)?.problem(Memory::Host)? };
        if bytes.is_null() {
            return Err(Error::Null { argument: "bytes" });
        }
        // SAFETY: the caller's promise; not null.
        unsafe { bytes.write(on_pool(|| Ok(size(&Engine::detect(), &problem)))?) };
        Ok(())
    })
}

/// `ia_forward`.
///
/// # Safety
/// As the header says: structs are null or begin with their size and are that large; tensors are null or what DLPack says, those
/// read are written by nobody during the call, those written are used by nobody else; `workspace` is null or one of
/// [`ia_workspace_new`], which no other thread uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ia_forward(
    attention: *const AttentionCall,
    outputs: *const OutputTensors,
    workspace: *mut Workspace,
) -> Status {
    guard(|| {
        // SAFETY: the caller's promise.
        let (problem, outputs) =
            unsafe { (checked(attention)?.problem(Memory::Host)?, checked(outputs)?.outputs(Memory::Host)?) };
        let call = problem.forward(outputs)?;
        // SAFETY: as above.
        let workspace = unsafe { workspace.as_mut() };
        on_pool(|| {
            let engine = Engine::detect();
            with(workspace, engine.forward_workspace(&problem), |workspace| {
                Ok(engine.forward(call, workspace)?)
            })
        })
    })
}

/// `ia_backward`.
///
/// # Safety
/// As [`ia_forward`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ia_backward(
    attention: *const AttentionCall,
    gradients: *const GradientTensors,
    workspace: *mut Workspace,
) -> Status {
    guard(|| {
        // SAFETY: the caller's promise.
        let problem = unsafe { checked(attention)?.problem(Memory::Host)? };
        // SAFETY: as above.
        let (saved, upstream, gradients) = unsafe { checked(gradients)?.parts(Memory::Host, &problem)? };
        let call = problem.backward(saved, upstream, gradients)?;
        // SAFETY: as above.
        let workspace = unsafe { workspace.as_mut() };
        on_pool(|| {
            let engine = Engine::detect();
            with(workspace, engine.backward_workspace(&problem), |workspace| {
                Ok(engine.backward(call, workspace)?)
            })
        })
    })
}

/// Runs `f` with the caller's workspace, grown to at least `bytes` bytes, or with one of its own.
fn with(
    workspace: Option<&mut Workspace>,
    bytes: usize,
    f: impl FnOnce(&mut Workspace) -> Result<()>,
) -> Result<()> {
    let mut own = Workspace::new();
    let workspace = workspace.unwrap_or(&mut own);
    workspace.try_reserve(bytes)?;
    f(workspace)
}
