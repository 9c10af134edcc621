//! Calls whose tensors are on a CUDA device: enqueued on a stream of the caller's.
//!
//! Frameworks work in a device's primary context, and so does this. Kernels are loaded once per device and stay.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use inducer_attention::cuda::cudarc::driver::{CudaStream, result, sys};
use inducer_attention::cuda::{Engine, context};
use inducer_attention::{Memory, Problem};

use crate::call::{AttentionCall, GradientTensors, OutputTensors, checked};
use crate::error::{Error, Result, Status, guard};

/// Engines of devices' primary contexts that calls have come for.
static ENGINES: Mutex<Vec<Arc<Engine>>> = Mutex::new(Vec::new());

/// The kernels of a device, loaded when they are first asked for. An error is forgotten: the next call tries again.
fn engine(device: u16) -> Result<Arc<Engine>> {
    let mut engines = ENGINES.lock().unwrap_or_else(PoisonError::into_inner);
    let ordinal = usize::from(device);
    if let Some(engine) = engines.iter().find(|engine| engine.context().ordinal() == ordinal) {
        return Ok(engine.clone());
    }
    let engine = Arc::new(Engine::new(&context(ordinal)?)?);
    engines.push(engine.clone());
    Ok(engine)
}

/// Makes an engine the one of its device; for tests, where no kernels were compiled.
#[doc(hidden)]
pub fn share(engine: Engine) {
    ENGINES.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::new(engine));
}

/// Leaves the thread's current context as it was: frameworks take the current one for theirs.
struct CurrentContext(Option<sys::CUcontext>);

impl CurrentContext {
    /// The driver is there, and was initialised by whoever made an engine.
    fn keep() -> Result<Self> {
        let current = result::ctx::get_current().map_err(|e| inducer_attention::Error::Driver {
            call: "cuCtxGetCurrent",
            message: format!("{:?}", e.0),
        })?;
        Ok(Self(current))
    }
}

impl Drop for CurrentContext {
    fn drop(&mut self) {
        // SAFETY: what was current before the call, or none. An error has nowhere to go.
        let _ = unsafe { result::ctx::set_current(self.0.unwrap_or(std::ptr::null_mut())) };
    }
}

/// Runs `f` with the device's engine, with the thread's context as it was before and after.
fn on_device<R>(device: u16, f: impl FnOnce(&Engine) -> Result<R>) -> Result<R> {
    // Before there is an engine, the driver may be missing or not yet initialised, and asking it for a context panics or fails.
    inducer_attention::cuda::device_count()?;
    let _current = CurrentContext::keep()?;
    f(&*engine(device)?)
}

/// A stream of the engine's context.
///
/// # Safety
/// The stream lives until the call returns.
unsafe fn borrowed(engine: &Engine, stream: *mut c_void) -> Arc<CudaStream> {
    // SAFETY: the caller's promise. If it is another context's, the driver refuses the launch.
    unsafe { engine.context().wrap_borrowed_stream(stream.cast()) }
}

/// `ia_cuda_load`.
#[unsafe(no_mangle)]
pub extern "C" fn ia_cuda_load(device: i32) -> Status {
    guard(|| {
        let device = u16::try_from(device).map_err(|_| Error::DeviceNumber { got: device })?;
        on_device(device, |_| Ok(()))
    })
}

/// `ia_cuda_backward_workspace`.
///
/// # Safety
/// As [`ia_forward_workspace`](crate::ia_forward_workspace).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ia_cuda_backward_workspace(
    attention: *const AttentionCall,
    bytes: *mut usize,
) -> Status {
    guard(|| {
        // SAFETY: the caller's promise, here and below.
        let (device, attention, problem) = unsafe { problem(attention)? };
        // SAFETY: as above.
        let lists = unsafe { attention.device_lists(&problem)? };
        if bytes.is_null() {
            return Err(Error::Null { argument: "bytes" });
        }
        let needed = on_device(device, |engine| Ok(engine.backward_workspace(&problem, &lists)))?;
        // SAFETY: the caller's promise; not null.
        unsafe { bytes.write(needed) };
        Ok(())
    })
}

/// The device of a call's tensors, the call and its problem.
///
/// # Safety
/// As [`ia_cuda_forward`].
unsafe fn problem<'a>(attention: *const AttentionCall) -> Result<(u16, &'a AttentionCall, Problem<'a>)> {
    // SAFETY: the caller's promise.
    unsafe {
        let attention = checked(attention)?;
        let device = attention.device()?;
        Ok((device, attention, attention.problem(Memory::Cuda { device })?))
    }
}

/// `ia_cuda_forward`.
///
/// # Safety
/// As the header says: structs are null or begin with their size and are that large; tensors are null or what DLPack says; until
/// `stream` has come past the call, their memory stays allocated, nothing else writes those that are read, and nothing else uses those
/// that are written; `stream` is one of the device's primary context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ia_cuda_forward(
    attention: *const AttentionCall,
    outputs: *const OutputTensors,
    stream: *mut c_void,
) -> Status {
    guard(|| {
        // SAFETY: the caller's promise, here and below.
        let (device, attention, problem) = unsafe { problem(attention)? };
        // SAFETY: as above.
        let (lists, outputs) =
            unsafe { (attention.device_lists(&problem)?, checked(outputs)?.outputs(problem.memory())?) };
        let call = problem.forward(outputs)?;
        on_device(device, |engine| {
            // SAFETY: as above; lists were checked against the problem.
            unsafe { Ok(engine.forward(call, &lists, &borrowed(engine, stream))?) }
        })
    })
}

/// `ia_cuda_backward`.
///
/// # Safety
/// As [`ia_cuda_forward`]; `workspace` is `bytes` bytes of the device's memory, which nothing else uses until the stream has come past
/// the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ia_cuda_backward(
    attention: *const AttentionCall,
    gradients: *const GradientTensors,
    workspace: *mut c_void,
    bytes: usize,
    stream: *mut c_void,
) -> Status {
    guard(|| {
        // SAFETY: the caller's promise, here and below.
        let (device, attention, problem) = unsafe { problem(attention)? };
        // SAFETY: as above.
        let lists = unsafe { attention.device_lists(&problem)? };
        // SAFETY: as above.
        let (saved, upstream, gradients) = unsafe { checked(gradients)?.parts(problem.memory(), &problem)? };
        let call = problem.backward(saved, upstream, gradients)?;
        // The driver would only find out when a kernel writes there, and the context would be lost.
        if workspace.is_null() && bytes > 0 {
            return Err(Error::Null { argument: "workspace" });
        }
        let workspace = workspace.addr() as u64;
        on_device(device, |engine| {
            // SAFETY: as above; lists were checked against the problem.
            unsafe { Ok(engine.backward(call, &lists, workspace, bytes, &borrowed(engine, stream))?) }
        })
    })
}
