//! candle's memory: borrowed inputs, and buffers for results.

use candle_core::backend::BackendDevice;
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, DType, Device, Error, Layout, Result, Shape, Storage, StorageRef, Tensor, bail,
};
use half::{bf16, f16};
use inducer_attention::{TensorMut, TensorRef};

use crate::layout::{parts, wrong_rank};

/// The prefix of every error message of this crate.
pub(crate) const CONTEXT: &str = "inducer_attention";

/// A core error as candle's.
pub(crate) fn wrap(error: inducer_attention::Error) -> Error {
    Error::wrap(error).context(CONTEXT)
}

/// A read lock on a tensor's memory.
pub(crate) struct Locked<'t> {
    name: &'static str,
    storage: StorageRef<'t>,
    layout: &'t Layout,
}

impl<'t> Locked<'t> {
    pub(crate) fn new(name: &'static str, tensor: &'t Tensor) -> Self {
        let (storage, layout) = tensor.storage_and_layout();
        Self { name, storage, layout }
    }

    /// The elements from the tensor's first on, and how they are laid out.
    pub(crate) fn view(&self) -> Result<View<'_>> {
        let elements = match &*self.storage {
            Storage::Cpu(storage) => Elements::Cpu(storage),
            #[cfg(feature = "cuda")]
            Storage::Cuda(storage) => {
                Elements::Cuda(crate::cuda::Elements::new(self.name, storage, self.layout.start_offset())?)
            }
            _ => bail!("{CONTEXT}: {} is where this build cannot read it", self.name),
        };
        Ok(View { name: self.name, layout: self.layout, elements })
    }
}

/// A tensor's elements and layout.
pub(crate) struct View<'b> {
    pub(crate) name: &'static str,
    pub(crate) layout: &'b Layout,
    pub(crate) elements: Elements<'b>,
}

/// Elements where they are.
pub(crate) enum Elements<'b> {
    /// All of a tensor's memory.
    Cpu(&'b CpuStorage),
    /// From the tensor's first on.
    #[cfg(feature = "cuda")]
    Cuda(crate::cuda::Elements<'b>),
}

/// A view of `R` dimensions in CPU memory.
pub(crate) fn read<'b, const R: usize>(
    storage: &'b CpuStorage,
    name: &'static str,
    layout: &Layout,
) -> Result<TensorRef<'b, R>> {
    let (shape, strides) = parts(name, layout)?;
    let start = layout.start_offset();
    match storage {
        CpuStorage::F32(data) => TensorRef::strided(tail(data, start), shape, strides),
        CpuStorage::F16(data) => TensorRef::strided(tail(data, start), shape, strides),
        CpuStorage::BF16(data) => TensorRef::strided(tail(data, start), shape, strides),
        _ => bail!("{CONTEXT}: {name}: dtype not supported"),
    }
    .map_err(wrap)
}

fn tail<T>(data: &[T], start: usize) -> &[T] {
    data.get(start..).unwrap_or(&[])
}

/// Row-major memory for a result.
pub(crate) struct Buffer {
    pub(crate) storage: Storage,
    shape: Shape,
}

impl Buffer {
    /// Memory that a call will overwrite.
    pub(crate) fn new(device: &Device, dtype: DType, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        let n = shape.elem_count();
        let storage = match (device, dtype) {
            (Device::Cpu, DType::F32) => Storage::Cpu(CpuStorage::F32(vec![0.0; n])),
            (Device::Cpu, DType::F16) => Storage::Cpu(CpuStorage::F16(vec![f16::ZERO; n])),
            (Device::Cpu, DType::BF16) => Storage::Cpu(CpuStorage::BF16(vec![bf16::ZERO; n])),
            (Device::Cuda(device), DType::F32 | DType::F16 | DType::BF16) => {
                // CUDA has no allocations of 0 bytes.
                // SAFETY: results become tensors only after a call that overwrites all of their elements; the host reads
                // none.
                Storage::Cuda(unsafe { device.alloc_uninit(&n.max(1).into(), dtype) }?)
            }
            (_, dtype) => bail!("{CONTEXT}: dtype {dtype:?}, expected f32, f16 or bf16"),
        };
        Ok(Self { storage, shape })
    }

    /// Its shape, of `R` dimensions.
    pub(crate) fn shape<const R: usize>(&self) -> Result<[usize; R]> {
        self.shape.dims().try_into().map_err(|_| wrong_rank("result", &self.shape, R))
    }

    pub(crate) fn into_parts(self) -> (Storage, Shape) {
        (self.storage, self.shape)
    }

    /// A tensor outside of every graph.
    pub(crate) fn into_tensor(self) -> Tensor {
        Tensor::from_storage(self.storage, self.shape, BackpropOp::none(), false)
    }
}

/// An exclusive view of `R` dimensions in CPU memory.
pub(crate) fn write<const R: usize>(storage: &mut CpuStorage, shape: [usize; R]) -> Result<TensorMut<'_, R>> {
    match storage {
        CpuStorage::F32(data) => TensorMut::new(data, shape),
        CpuStorage::F16(data) => TensorMut::new(data, shape),
        CpuStorage::BF16(data) => TensorMut::new(data, shape),
        _ => bail!("{CONTEXT}: dtype not supported"),
    }
    .map_err(wrap)
}
