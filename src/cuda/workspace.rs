//! Scratch memory of the device.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream};

use super::driver::checked;
use crate::error::Result;

/// Scratch memory of backward calls, allocated in advance: [`Scope::backward_workspace`](super::Scope::backward_workspace) says
/// how much. Contents between calls do not matter; calls on one stream can share it.
#[derive(Debug)]
pub struct Workspace {
    pub(super) memory: CudaSlice<u8>,
}

impl Workspace {
    /// Allocates at least `bytes` bytes.
    ///
    /// # Errors
    /// [`Error::Driver`](crate::Error::Driver), if there is not enough memory for one.
    pub fn new(stream: &Arc<CudaStream>, bytes: usize) -> Result<Self> {
        // SAFETY: kernels write what they read of it.
        let memory = unsafe { stream.alloc(bytes.max(1)) };
        Ok(Self { memory: checked("cuMemAllocAsync", memory)? })
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> usize {
        self.memory.len()
    }
}
