//! Scratch memory of the device.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut};

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
        let mut memory = checked("cuMemAllocAsync", unsafe { stream.alloc(bytes.max(1)) })?;
        // The memory is there when the stream has come so far. Calls on other streams wait for that as they do for a write.
        drop(memory.device_ptr_mut(stream));
        Ok(Self { memory })
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> usize {
        self.memory.len()
    }
}
