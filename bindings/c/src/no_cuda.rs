//! The functions for CUDA devices where the library was built without them.

use std::ffi::c_void;

use crate::call::{AttentionCall, GradientTensors, OutputTensors};
use crate::error::{Error, Status, guard};

/// `ia_cuda_load`.
#[unsafe(no_mangle)]
pub extern "C" fn ia_cuda_load(_device: i32) -> Status {
    guard(|| Err(Error::NoCuda))
}

/// `ia_cuda_backward_workspace`.
#[unsafe(no_mangle)]
pub extern "C" fn ia_cuda_backward_workspace(_attention: *const AttentionCall, _bytes: *mut usize) -> Status {
    guard(|| Err(Error::NoCuda))
}

/// `ia_cuda_forward`.
#[unsafe(no_mangle)]
pub extern "C" fn ia_cuda_forward(
    _attention: *const AttentionCall,
    _outputs: *const OutputTensors,
    _stream: *mut c_void,
) -> Status {
    guard(|| Err(Error::NoCuda))
}

/// `ia_cuda_backward`.
#[unsafe(no_mangle)]
pub extern "C" fn ia_cuda_backward(
    _attention: *const AttentionCall,
    _gradients: *const GradientTensors,
    _workspace: *mut c_void,
    _bytes: usize,
    _stream: *mut c_void,
) -> Status {
    guard(|| Err(Error::NoCuda))
}
