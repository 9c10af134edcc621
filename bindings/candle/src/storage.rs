//! Views of candle's CPU memory.

use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, DType, Error, Layout, Result, Shape, Storage, StorageRef, Tensor, bail};
use half::{bf16, f16};
use inducer_attention::{TensorMut, TensorRef};

/// The prefix of every error message of this crate.
pub(crate) const CONTEXT: &str = "inducer_attention";

/// A core error as candle's.
pub(crate) fn wrap(error: inducer_attention::Error) -> Error {
    Error::wrap(error).context(CONTEXT)
}

/// Fails unless the tensor lies in CPU memory and has an element type that the engine reads.
pub(crate) fn check_supported(name: &str, tensor: &Tensor) -> Result<()> {
    if !tensor.device().is_cpu() {
        bail!(
            "{CONTEXT}: {name} is on {:?}; only CPU tensors are supported yet, move it with `to_device(&Device::Cpu)`",
            tensor.device().location()
        );
    }
    if !matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16) {
        bail!("{CONTEXT}: {name}: dtype {:?}, expected f32, f16 or bf16", tensor.dtype());
    }
    Ok(())
}

/// A read lock on a tensor's memory.
pub(crate) struct Borrowed<'t> {
    name: &'static str,
    storage: StorageRef<'t>,
    layout: &'t Layout,
}

impl<'t> Borrowed<'t> {
    pub(crate) fn new(name: &'static str, tensor: &'t Tensor) -> Self {
        let (storage, layout) = tensor.storage_and_layout();
        Self { name, storage, layout }
    }

    /// The tensor as a view of `R` dimensions.
    pub(crate) fn view<const R: usize>(&self) -> Result<TensorRef<'_, R>> {
        let Storage::Cpu(storage) = &*self.storage else {
            bail!("{CONTEXT}: {} is not in CPU memory", self.name)
        };
        let dims = self.layout.dims();
        let (Ok(shape), Ok(strides)) = (dims.try_into(), self.layout.stride().try_into()) else {
            return Err(wrap(inducer_attention::Error::Shape {
                argument: self.name,
                got: dims.to_vec(),
                expected: format!("{R} dimensions"),
            }));
        };
        let start = self.layout.start_offset();
        match storage {
            CpuStorage::F32(data) => TensorRef::strided(tail(data, start), shape, strides),
            CpuStorage::F16(data) => TensorRef::strided(tail(data, start), shape, strides),
            CpuStorage::BF16(data) => TensorRef::strided(tail(data, start), shape, strides),
            _ => bail!("{CONTEXT}: {}: dtype not supported", self.name),
        }
        .map_err(wrap)
    }
}

fn tail<T>(data: &[T], start: usize) -> &[T] {
    data.get(start..).unwrap_or(&[])
}

/// Memory for a result.
pub(crate) struct Buffer {
    storage: CpuStorage,
    shape: Shape,
}

impl Buffer {
    pub(crate) fn zeros(dtype: DType, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        let n = shape.elem_count();
        let storage = match dtype {
            DType::F32 => CpuStorage::F32(vec![0.0; n]),
            DType::F16 => CpuStorage::F16(vec![f16::ZERO; n]),
            DType::BF16 => CpuStorage::BF16(vec![bf16::ZERO; n]),
            other => bail!("{CONTEXT}: dtype {other:?}, expected f32, f16 or bf16"),
        };
        Ok(Self { storage, shape })
    }

    /// The row-major buffer as an exclusive view of `R` dimensions.
    pub(crate) fn view<const R: usize>(&mut self) -> Result<TensorMut<'_, R>> {
        let Ok(shape) = self.shape.dims().try_into() else {
            bail!("{CONTEXT}: {:?} has not {R} dimensions", self.shape)
        };
        match &mut self.storage {
            CpuStorage::F32(data) => TensorMut::new(data, shape),
            CpuStorage::F16(data) => TensorMut::new(data, shape),
            CpuStorage::BF16(data) => TensorMut::new(data, shape),
            _ => bail!("{CONTEXT}: dtype not supported"),
        }
        .map_err(wrap)
    }

    pub(crate) fn into_parts(self) -> (CpuStorage, Shape) {
        (self.storage, self.shape)
    }

    /// A tensor outside of every graph.
    pub(crate) fn into_tensor(self) -> Tensor {
        Tensor::from_storage(Storage::Cpu(self.storage), self.shape, BackpropOp::none(), false)
    }
}
