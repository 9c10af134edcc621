//! Views of candle's CUDA memory.

use candle_core::cuda_backend::CudaStorageSlice;
use candle_core::{CudaStorage, Result, bail};
use half::{bf16, f16};
use inducer_attention::cuda::cudarc::driver::{CudaSlice, CudaView};

use crate::storage::CONTEXT;

/// The elements of a tensor's memory from its first on.
pub(crate) enum Elements<'b> {
    F32(CudaView<'b, f32>),
    F16(CudaView<'b, f16>),
    BF16(CudaView<'b, bf16>),
}

impl<'b> Elements<'b> {
    /// What follows the first `start` elements.
    pub(crate) fn new(name: &'static str, storage: &'b CudaStorage, start: usize) -> Result<Self> {
        match &storage.slice {
            CudaStorageSlice::F32(slice) => Ok(Self::F32(tail(slice, start))),
            CudaStorageSlice::F16(slice) => Ok(Self::F16(tail(slice, start))),
            CudaStorageSlice::BF16(slice) => Ok(Self::BF16(tail(slice, start))),
            _ => bail!("{CONTEXT}: {name}: dtype not supported"),
        }
    }
}

fn tail<T>(slice: &CudaSlice<T>, start: usize) -> CudaView<'_, T> {
    slice.slice(start.min(slice.len())..)
}
