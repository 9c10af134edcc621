//! DLPack's tensors as the crate's views.

use std::ffi::c_void;

use inducer_attention::{DType, Memory, TensorMut, TensorRef};

use crate::error::{Error, Result};

/// `DLDevice` of dlpack.h.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DLDevice {
    /// 1 for the CPU, 2 for a CUDA device, 3 for host memory that CUDA has pinned.
    pub device_type: i32,
    /// Of several of a type.
    pub device_id: i32,
}

/// `DLDataType` of dlpack.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DLDataType {
    /// 0 integer, 2 float, 4 bfloat.
    pub code: u8,
    /// Of one lane.
    pub bits: u8,
    /// 1.
    pub lanes: u16,
}

/// `DLTensor` of dlpack.h.
#[repr(C)]
#[derive(Debug)]
pub struct DLTensor {
    /// The allocation.
    pub data: *mut c_void,
    /// Where it is.
    pub device: DLDevice,
    /// Number of dimensions.
    pub ndim: i32,
    /// Element type.
    pub dtype: DLDataType,
    /// `ndim` sizes.
    pub shape: *mut i64,
    /// `ndim` distances in elements, or null for row-major.
    pub strides: *mut i64,
    /// From `data` to the first element.
    pub byte_offset: u64,
}

const HOST: [i32; 2] = [1, 3];
const CUDA: i32 = 2;
const I32: DLDataType = DLDataType { code: 0, bits: 32, lanes: 1 };
const F32: DLDataType = DLDataType { code: 2, bits: 32, lanes: 1 };

impl DLDevice {
    /// The memory that is meant.
    pub(crate) fn memory(self) -> Option<Memory> {
        match (self.device_type, u16::try_from(self.device_id)) {
            (kind, _) if HOST.contains(&kind) => Some(Memory::Host),
            (CUDA, Ok(device)) => Some(Memory::Cuda { device }),
            _ => None,
        }
    }
}

/// A tensor of the call, with its name for messages, and where it must be.
#[derive(Clone, Copy)]
pub(crate) struct Named<'a> {
    name: &'static str,
    tensor: &'a DLTensor,
    memory: Memory,
}

/// What a view is made of.
struct Parts<const R: usize> {
    ptr: *mut u8,
    shape: [usize; R],
    strides: [usize; R],
}

impl<'a> Named<'a> {
    /// None for null.
    ///
    /// # Safety
    /// Not null, `tensor` points to a `DLTensor` whose shape and strides are as long as it says; nobody writes any of them for
    /// `'a`.
    pub(crate) unsafe fn optional(
        memory: Memory,
        name: &'static str,
        tensor: *const DLTensor,
    ) -> Option<Self> {
        // SAFETY: the caller's promise.
        unsafe { tensor.as_ref() }.map(|tensor| Self { name, tensor, memory })
    }

    /// An error for null.
    ///
    /// # Safety
    /// As for [`optional`](Self::optional).
    pub(crate) unsafe fn required(
        memory: Memory,
        name: &'static str,
        tensor: *const DLTensor,
    ) -> Result<Self> {
        // SAFETY: the caller's promise.
        unsafe { Self::optional(memory, name, tensor) }.ok_or(Error::Null { argument: name })
    }

    fn dtype(&self) -> Result<DType> {
        let DLDataType { code, bits, lanes } = self.tensor.dtype;
        match (code, bits, lanes) {
            (2, 32, 1) => Ok(DType::F32),
            (2, 16, 1) => Ok(DType::F16),
            (4, 16, 1) => Ok(DType::BF16),
            _ => Err(self.wrong_type("float 32, float 16 or bfloat 16")),
        }
    }

    fn wrong_type(&self, expected: &'static str) -> Error {
        Error::Type { argument: self.name, got: self.tensor.dtype, expected }
    }

    /// # Safety
    /// As for [`optional`](Self::optional).
    unsafe fn parts<const R: usize>(&self, size: usize) -> Result<Parts<R>> {
        let (argument, t) = (self.name, self.tensor);
        if t.device.memory() != Some(self.memory) {
            return Err(Error::Device { argument, got: t.device, expected: self.memory });
        }
        if t.ndim != R as i32 {
            return Err(Error::Dimensions { argument, got: t.ndim, expected: R });
        }
        if t.shape.is_null() {
            return Err(Error::Null { argument });
        }
        let sizes = |numbers: [i64; R]| -> Result<[usize; R]> {
            let mut result = [0; R];
            for (size, n) in result.iter_mut().zip(numbers) {
                *size =
                    usize::try_from(n).map_err(|_| Error::Negative { argument, got: numbers.to_vec() })?;
            }
            Ok(result)
        };
        // SAFETY: the caller promises `ndim`, which is R, numbers, here and below.
        let shape = sizes(unsafe { t.shape.cast::<[i64; R]>().read() })?;
        let mut row_major = [1i64; R];
        for i in (1..R).rev() {
            row_major[i - 1] = row_major[i].saturating_mul(shape[i].max(1) as i64);
        }
        let mut strides = row_major;
        if !t.strides.is_null() && !shape.contains(&0) {
            // SAFETY: as above.
            strides = unsafe { t.strides.cast::<[i64; R]>().read() };
            // The stride of a dimension of one entry means nothing, and frameworks put anything there.
            for i in (0..R).filter(|&i| shape[i] == 1) {
                strides[i] = row_major[i];
            }
        }
        let strides = sizes(strides)?;
        let ptr = t.data.cast::<u8>().wrapping_add(usize::try_from(t.byte_offset).unwrap_or(usize::MAX));
        if !shape.contains(&0) {
            if t.data.is_null() {
                return Err(Error::Null { argument });
            }
            if !ptr.addr().is_multiple_of(size) {
                return Err(Error::Misaligned { argument, address: ptr.addr(), size });
            }
        }
        Ok(Parts { ptr, shape, strides })
    }

    /// A view to read.
    ///
    /// # Safety
    /// As for [`optional`](Self::optional), and the elements are readable and written by nobody for `'a`.
    pub(crate) unsafe fn view<const R: usize>(&self) -> Result<TensorRef<'a, R>> {
        let dtype = self.dtype()?;
        // SAFETY: the caller's promise; the address was checked.
        unsafe {
            let Parts { ptr, shape, strides } = self.parts(dtype.size())?;
            match self.memory {
                Memory::Host => TensorRef::from_raw_parts(ptr, dtype, shape, strides),
                Memory::Cuda { device } => {
                    TensorRef::from_device_parts(ptr.addr() as u64, device, dtype, shape, strides)
                }
            }
            .map_err(|e| self.error(e))
        }
    }

    /// A view to write.
    ///
    /// # Safety
    /// As for [`optional`](Self::optional), and the elements are used by nobody else for `'a`. (Overlaps with the call's other
    /// tensors and lists are found later, before anything is written.)
    pub(crate) unsafe fn view_mut<const R: usize>(&self) -> Result<TensorMut<'a, R>> {
        let dtype = self.dtype()?;
        // SAFETY: the caller's promise; the address was checked.
        unsafe {
            let Parts { ptr, shape, strides } = self.parts(dtype.size())?;
            match self.memory {
                Memory::Host => TensorMut::from_raw_parts(ptr, dtype, shape, strides),
                Memory::Cuda { device } => {
                    TensorMut::from_device_parts(ptr.addr() as u64, device, dtype, shape, strides)
                }
            }
            .map_err(|e| self.error(e))
        }
    }

    /// The address of a contiguous list, its length, and its shape.
    ///
    /// # Safety
    /// As for [`optional`](Self::optional).
    unsafe fn contiguous<const R: usize>(
        &self,
        dtype: DLDataType,
        expected: &'static str,
    ) -> Result<(*mut u8, usize, [usize; R])> {
        if self.tensor.dtype != dtype {
            return Err(self.wrong_type(expected));
        }
        let size = usize::from(dtype.bits / 8);
        // SAFETY: the caller's promise.
        let Parts { ptr, shape, strides } = unsafe { self.parts::<R>(size)? };
        if shape.contains(&0) {
            return Ok((ptr, 0, shape));
        }
        let mut len = 1usize;
        for i in (0..R).rev() {
            if strides[i] != len && shape[i] != 1 {
                return Err(Error::Strided { argument: self.name });
            }
            len = len.saturating_mul(shape[i]);
        }
        if len.checked_mul(size).is_none_or(|bytes| isize::try_from(bytes).is_err()) {
            return Err(Error::TooLong { argument: self.name, got: shape.to_vec() });
        }
        Ok((ptr, len, shape))
    }

    /// The numbers of a contiguous list in host memory, and its shape.
    ///
    /// # Safety
    /// As for [`view`](Self::view), T being what `dtype` says.
    unsafe fn list<T, const R: usize>(
        &self,
        dtype: DLDataType,
        expected: &'static str,
    ) -> Result<(&'a [T], [usize; R])> {
        // SAFETY: the caller's promise.
        let (ptr, len, shape) = unsafe { self.contiguous(dtype, expected)? };
        if len == 0 {
            return Ok((&[], shape));
        }
        // SAFETY: in host memory, not null, aligned and no larger than an allocation can be, as checked; the caller promises as
        // many elements, and that nobody writes them.
        Ok((unsafe { std::slice::from_raw_parts(ptr.cast_const().cast(), len) }, shape))
    }

    /// A list in device memory.
    ///
    /// # Safety
    /// As for [`optional`](Self::optional).
    #[cfg(feature = "cuda")]
    unsafe fn raw_list<const R: usize>(
        &self,
        dtype: DLDataType,
        expected: &'static str,
    ) -> Result<(inducer_attention::cuda::RawList, [usize; R])> {
        // SAFETY: the caller's promise.
        let (ptr, len, shape) = unsafe { self.contiguous::<R>(dtype, expected)? };
        Ok((inducer_attention::cuda::RawList { address: ptr.addr() as u64, len }, shape))
    }

    /// A list of integers in device memory.
    ///
    /// # Safety
    /// As for [`optional`](Self::optional).
    #[cfg(feature = "cuda")]
    pub(crate) unsafe fn raw_integers(&self) -> Result<inducer_attention::cuda::RawList> {
        // SAFETY: the caller's promise.
        Ok(unsafe { self.raw_list::<1>(I32, "int 32")? }.0)
    }

    /// Integers of that shape in device memory.
    ///
    /// # Safety
    /// As for [`optional`](Self::optional).
    #[cfg(feature = "cuda")]
    pub(crate) unsafe fn raw_integers_of(
        &self,
        expected: [usize; 2],
    ) -> Result<inducer_attention::cuda::RawList> {
        // SAFETY: the caller's promise.
        let (list, shape) = unsafe { self.raw_list(I32, "int 32")? };
        self.expect_shape(shape, expected)?;
        Ok(list)
    }

    /// Floats of that shape, or of its last dimension alone, in device memory.
    ///
    /// # Safety
    /// As for [`optional`](Self::optional).
    #[cfg(feature = "cuda")]
    pub(crate) unsafe fn raw_floats_of(
        &self,
        expected: [usize; 2],
    ) -> Result<inducer_attention::cuda::RawList> {
        if self.tensor.ndim == 1 {
            // SAFETY: the caller's promise.
            return Ok(unsafe { self.raw_list::<1>(F32, "float 32")? }.0);
        }
        // SAFETY: as above.
        let (list, shape) = unsafe { self.raw_list(F32, "float 32")? };
        self.expect_shape(shape, expected)?;
        Ok(list)
    }

    /// A list of integers.
    ///
    /// # Safety
    /// As for [`view`](Self::view).
    pub(crate) unsafe fn integers(&self) -> Result<&'a [i32]> {
        // SAFETY: the caller's promise.
        Ok(unsafe { self.list::<i32, 1>(I32, "int 32")? }.0)
    }

    /// Integers of that shape.
    ///
    /// # Safety
    /// As for [`view`](Self::view).
    pub(crate) unsafe fn integers_of(&self, expected: [usize; 2]) -> Result<&'a [i32]> {
        // SAFETY: the caller's promise.
        let (numbers, shape) = unsafe { self.list(I32, "int 32")? };
        self.expect_shape(shape, expected)?;
        Ok(numbers)
    }

    /// Floats of that shape, or of its last dimension alone.
    ///
    /// # Safety
    /// As for [`view`](Self::view).
    pub(crate) unsafe fn floats_of(&self, expected: [usize; 2]) -> Result<&'a [f32]> {
        if self.tensor.ndim == 1 {
            // SAFETY: the caller's promise.
            return Ok(unsafe { self.list::<f32, 1>(F32, "float 32")? }.0);
        }
        // SAFETY: as above.
        let (numbers, shape) = unsafe { self.list(F32, "float 32")? };
        self.expect_shape(shape, expected)?;
        Ok(numbers)
    }

    fn expect_shape(&self, got: [usize; 2], expected: [usize; 2]) -> Result<()> {
        if got == expected { Ok(()) } else { Err(Error::Shape { argument: self.name, got, expected }) }
    }

    fn error(&self, error: inducer_attention::Error) -> Error {
        Error::Tensor { argument: self.name, error }
    }
}
