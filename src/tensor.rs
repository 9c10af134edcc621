//! Borrowed strided views: how tensors of any framework reach this crate.
//!
//! A view is a pointer, an element type, a shape and strides in elements. Constructors check that every element lies
//! inside the borrowed buffer, so holding a view proves that reading it is sound; a mutable view proves besides that no
//! two of its elements share memory. The dimensions of attention tensors are named in the order `[B, H, N, d]`,
//! whatever their order in memory: [`TensorRef::bnhd`] views a `[B, N, H, d]` buffer so.

use std::fmt;
use std::marker::PhantomData;

use bytemuck::Pod;
use half::{bf16, f16};

use crate::error::{Error, Result};

/// Element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum DType {
    /// IEEE single precision, 4 bytes.
    F32,
    /// IEEE half precision, 2 bytes.
    F16,
    /// bfloat16: the upper half of a single, 2 bytes.
    BF16,
}

impl DType {
    /// Size of one element in bytes.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
        })
    }
}

/// Where a tensor's elements are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Memory {
    /// In this process's address space.
    #[default]
    Host,
    /// In the memory of a CUDA device; addresses mean nothing to the processor.
    Cuda {
        /// The device's ordinal.
        device: u16,
    },
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host memory"),
            Self::Cuda { device } => write!(f, "memory of CUDA device {device}"),
        }
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// A Rust type that tensors can hold: `f32`, [`half::f16`] or [`half::bf16`].
pub trait Element: Pod + Send + Sync + sealed::Sealed {
    /// The corresponding [`DType`].
    const DTYPE: DType;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
}
impl Element for f16 {
    const DTYPE: DType = DType::F16;
}
impl Element for bf16 {
    const DTYPE: DType = DType::BF16;
}

/// Elements between the first and one past the last that a view reaches, or `None` where that overflows.
fn extent(shape: &[usize], strides: &[usize]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    let mut last = 0usize;
    for (&n, &s) in shape.iter().zip(strides) {
        last = last.checked_add((n - 1).checked_mul(s)?)?;
    }
    last.checked_add(1)
}

/// Checks that a view's byte range fits the address type, and returns its extent in elements.
fn checked_extent(dtype: DType, shape: &[usize], strides: &[usize]) -> Result<usize> {
    // The product of the shape is what loops count to; a stride of 0 can make it larger than the extent.
    let count = shape.iter().try_fold(1usize, |n, &s| n.checked_mul(s.max(1)));
    extent(shape, strides)
        .filter(|n| n.checked_mul(dtype.size()).is_some_and(|bytes| isize::try_from(bytes).is_ok()))
        .filter(|_| count.is_some_and(|n| isize::try_from(n).is_ok()))
        .ok_or_else(|| Error::SizeOverflow {
            argument: "tensor",
            sizes: shape.to_vec(),
            expected: "the view's size in bytes must fit the address type",
        })
}

/// True if no two index tuples of a view name the same element.
///
/// Sufficient and, for views made by slicing and permuting, necessary: every stride steps over all that the smaller
/// ones reach.
fn is_injective(shape: &[usize], strides: &[usize]) -> bool {
    if shape.contains(&0) {
        return true;
    }
    let mut dims = [(0usize, 1usize); 8];
    let dims = &mut dims[..shape.len()];
    for (d, (&n, &s)) in dims.iter_mut().zip(shape.iter().zip(strides)) {
        *d = (s, n);
    }
    dims.sort_unstable();
    let mut reach = 1usize;
    for &(stride, size) in dims.iter().filter(|d| d.1 > 1) {
        if stride < reach {
            return false;
        }
        // No overflow: the extent was checked when the view was made.
        reach += (size - 1) * stride;
    }
    true
}

pub(crate) fn row_major<const R: usize>(shape: [usize; R]) -> Result<[usize; R]> {
    let mut strides = [1usize; R];
    for i in (0..R.saturating_sub(1)).rev() {
        strides[i] = strides[i + 1].checked_mul(shape[i + 1].max(1)).ok_or_else(|| Error::SizeOverflow {
            argument: "tensor",
            sizes: shape.to_vec(),
            expected: "the number of elements must fit the address type",
        })?;
    }
    Ok(strides)
}

pub(crate) fn check_buffer(dtype: DType, shape: &[usize], strides: &[usize], len: usize) -> Result<()> {
    let needed = checked_extent(dtype, shape, strides)?;
    if needed > len {
        return Err(Error::BufferTooSmall {
            argument: "tensor",
            shape: shape.to_vec(),
            strides: strides.to_vec(),
            needed,
            len,
        });
    }
    Ok(())
}

/// Heads of a packed Q, K, V projection.
fn packed_heads(query_heads: usize, kv_heads: usize) -> Result<usize> {
    kv_heads.checked_mul(2).and_then(|h| h.checked_add(query_heads)).ok_or_else(|| Error::SizeOverflow {
        argument: "qkv",
        sizes: vec![query_heads, kv_heads, kv_heads],
        expected: "the number of heads must fit the address type",
    })
}

macro_rules! common_view_methods {
    () => {
        /// Element type.
        pub fn dtype(&self) -> DType {
            self.dtype
        }

        /// Sizes of the dimensions.
        pub fn shape(&self) -> [usize; R] {
            self.shape
        }

        /// Distances between neighbours of each dimension, in elements.
        pub fn strides(&self) -> [usize; R] {
            self.strides
        }

        /// Number of elements.
        pub fn len(&self) -> usize {
            self.shape.iter().product()
        }

        /// True if the view has no element.
        pub fn is_empty(&self) -> bool {
            self.shape.contains(&0)
        }

        /// The same elements with the dimensions in another order: dimension `i` of the result is dimension
        /// `order[i]` of this view.
        ///
        /// # Errors
        /// [`Error::Shape`] if `order` is not a permutation of `0..R`.
        pub fn permute(self, order: [usize; R]) -> Result<Self> {
            let mut seen = [false; R];
            for &i in &order {
                if i >= R || std::mem::replace(&mut seen[i], true) {
                    return Err(Error::Shape {
                        argument: "order",
                        got: order.to_vec(),
                        expected: format!("a permutation of 0..{R}"),
                    });
                }
            }
            Ok(Self { shape: order.map(|i| self.shape[i]), strides: order.map(|i| self.strides[i]), ..self })
        }

        /// The part of the view whose index along `dimension` lies in `start..end`.
        ///
        /// # Errors
        /// [`Error::OutOfRange`] if the range is reversed or reaches past the dimension.
        pub fn narrow(self, dimension: usize, start: usize, end: usize) -> Result<Self> {
            let size = self.shape.get(dimension).copied().unwrap_or(0);
            if dimension >= R || start > end || end > size {
                return Err(Error::OutOfRange { argument: "narrow", dimension, start, end, size });
            }
            let mut shape = self.shape;
            shape[dimension] = end - start;
            // An empty view keeps the pointer: its start may lie outside the buffer.
            let ptr = if shape.contains(&0) {
                self.ptr
            } else {
                self.ptr.wrapping_add(start * self.strides[dimension] * self.dtype.size())
            };
            Ok(Self { ptr, shape, ..self })
        }

        /// Where the elements are.
        pub fn memory(&self) -> Memory {
            self.memory
        }

        /// Address range in bytes, for overlap checks.
        pub(crate) fn layout(&self) -> Layout<'_> {
            Layout {
                memory: self.memory,
                start: self.ptr as usize,
                size: self.dtype.size(),
                shape: &self.shape,
                strides: &self.strides,
            }
        }

        /// Stride of dimension `i` in bytes.
        pub(crate) fn stride_bytes(&self, i: usize) -> usize {
            self.strides[i] * self.dtype.size()
        }
    };
}

/// A shared view of a tensor with `R` dimensions.
///
/// Strides may be 0 (a broadcast dimension).
#[derive(Clone, Copy)]
pub struct TensorRef<'a, const R: usize> {
    ptr: *const u8,
    dtype: DType,
    shape: [usize; R],
    strides: [usize; R],
    memory: Memory,
    lifetime: PhantomData<&'a [u8]>,
}

// SAFETY: a shared view only reads, and its elements are plain numbers.
unsafe impl<const R: usize> Send for TensorRef<'_, R> {}
// SAFETY: as above.
unsafe impl<const R: usize> Sync for TensorRef<'_, R> {}

impl<'a, const R: usize> TensorRef<'a, R> {
    /// Views a buffer as a row-major tensor.
    ///
    /// # Errors
    /// [`Error::BufferTooSmall`], [`Error::SizeOverflow`].
    ///
    /// ```
    /// # use inducer_attention::TensorRef;
    /// let data = [0f32; 2 * 3 * 5 * 8];
    /// let q = TensorRef::new(&data, [2, 3, 5, 8])?; // [B, H, N, d]
    /// assert_eq!(q.strides(), [120, 40, 8, 1]);
    /// # Ok::<(), inducer_attention::Error>(())
    /// ```
    pub fn new<T: Element>(data: &'a [T], shape: [usize; R]) -> Result<Self> {
        Self::strided(data, shape, row_major(shape)?)
    }

    /// Views a buffer with the given strides (in elements).
    ///
    /// # Errors
    /// [`Error::BufferTooSmall`], [`Error::SizeOverflow`].
    pub fn strided<T: Element>(data: &'a [T], shape: [usize; R], strides: [usize; R]) -> Result<Self> {
        check_buffer(T::DTYPE, &shape, &strides, data.len())?;
        let ptr = data.as_ptr().cast();
        Ok(Self { ptr, dtype: T::DTYPE, shape, strides, memory: Memory::Host, lifetime: PhantomData })
    }

    /// Views raw memory, as handed over by a framework.
    ///
    /// # Errors
    /// [`Error::SizeOverflow`].
    ///
    /// # Safety
    /// For `'a`, every element that shape and strides reach from `ptr` must be readable memory, aligned to the element
    /// type, and not be written by anyone.
    pub unsafe fn from_raw_parts(
        ptr: *const u8,
        dtype: DType,
        shape: [usize; R],
        strides: [usize; R],
    ) -> Result<Self> {
        checked_extent(dtype, &shape, &strides)?;
        Ok(Self { ptr, dtype, shape, strides, memory: Memory::Host, lifetime: PhantomData })
    }

    /// Views memory of a CUDA device by its address there.
    ///
    /// # Errors
    /// [`Error::SizeOverflow`].
    ///
    /// # Safety
    /// For `'a`, and until all work that was enqueued with the view is done, every element that shape and strides reach from
    /// `address` must be memory of that device, aligned to the element type, and not be written by anyone.
    pub unsafe fn from_device_parts(
        address: u64,
        device: u16,
        dtype: DType,
        shape: [usize; R],
        strides: [usize; R],
    ) -> Result<Self> {
        checked_extent(dtype, &shape, &strides)?;
        let ptr = std::ptr::without_provenance(address as usize);
        Ok(Self { ptr, dtype, shape, strides, memory: Memory::Cuda { device }, lifetime: PhantomData })
    }

    common_view_methods!();

    /// Address of the first element.
    pub fn as_ptr(&self) -> *const u8 {
        self.ptr
    }

    /// Address of the element at `index`, which must be in range.
    pub(crate) fn at(&self, index: [usize; R]) -> *const u8 {
        debug_assert!(index.iter().zip(&self.shape).all(|(i, n)| i < n));
        let offset: usize = index.iter().zip(&self.strides).map(|(i, s)| i * s).sum();
        self.ptr.wrapping_add(offset * self.dtype.size())
    }

    /// The element at `index`, widened. For setup and checks, not for inner loops.
    ///
    /// # Panics
    /// If `index` is out of range, or the elements are not in host memory.
    pub fn get(&self, index: [usize; R]) -> f32 {
        assert!(self.memory == Memory::Host, "elements in the {} cannot be read here", self.memory);
        assert!(
            index.iter().zip(&self.shape).all(|(i, n)| i < n),
            "index {index:?} is out of range for shape {:?}",
            self.shape
        );
        // SAFETY: the index was checked, and the view's elements are readable and aligned.
        unsafe { read(self.dtype, self.at(index)) }
    }
}

/// Reads one element.
///
/// # Safety
/// `ptr` points to a readable element of type `dtype`.
pub(crate) unsafe fn read(dtype: DType, ptr: *const u8) -> f32 {
    // SAFETY: the caller's promise; unaligned reads cost nothing here.
    unsafe {
        match dtype {
            DType::F32 => ptr.cast::<f32>().read_unaligned(),
            DType::F16 => ptr.cast::<f16>().read_unaligned().to_f32(),
            DType::BF16 => ptr.cast::<bf16>().read_unaligned().to_f32(),
        }
    }
}

impl<'a> TensorRef<'a, 4> {
    /// Views a row-major `[B, N, H, d]` buffer as `[B, H, N, d]`.
    ///
    /// # Errors
    /// [`Error::BufferTooSmall`], [`Error::SizeOverflow`].
    pub fn bnhd<T: Element>(data: &'a [T], [b, n, h, d]: [usize; 4]) -> Result<Self> {
        Self::new(data, [b, n, h, d])?.permute([0, 2, 1, 3])
    }

    /// Views packed sequences, a row-major `[total, H, d]` buffer, as `[1, H, total, d]`: the form in which
    /// [`Lengths::Packed`](crate::Lengths::Packed) expects them.
    ///
    /// # Errors
    /// [`Error::BufferTooSmall`], [`Error::SizeOverflow`].
    pub fn packed<T: Element>(data: &'a [T], [total, h, d]: [usize; 3]) -> Result<Self> {
        Self::bnhd(data, [1, total, h, d])
    }

    /// Splits a packed projection, a row-major `[B, N, (Hq + 2·Hkv)·d]` buffer with Q's heads first, then K's, then
    /// V's, into three views `[B, H, N, d]`.
    ///
    /// # Errors
    /// [`Error::BufferTooSmall`], [`Error::SizeOverflow`].
    pub fn split_packed_qkv<T: Element>(
        data: &'a [T],
        [b, n]: [usize; 2],
        query_heads: usize,
        kv_heads: usize,
        head_dim: usize,
    ) -> Result<[Self; 3]> {
        let heads = packed_heads(query_heads, kv_heads)?;
        let all = Self::bnhd(data, [b, n, heads, head_dim])?;
        Ok([
            all.narrow(1, 0, query_heads)?,
            all.narrow(1, query_heads, query_heads + kv_heads)?,
            all.narrow(1, query_heads + kv_heads, heads)?,
        ])
    }
}

impl<const R: usize> fmt::Debug for TensorRef<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TensorRef({} {:?} strides {:?})", self.dtype, self.shape, self.strides)
    }
}

/// An exclusive view of a tensor with `R` dimensions, no two elements of which share memory.
pub struct TensorMut<'a, const R: usize> {
    ptr: *mut u8,
    dtype: DType,
    shape: [usize; R],
    strides: [usize; R],
    memory: Memory,
    lifetime: PhantomData<&'a mut [u8]>,
}

// SAFETY: the view is exclusive, and its elements are plain numbers.
unsafe impl<const R: usize> Send for TensorMut<'_, R> {}
// SAFETY: `&TensorMut` gives no access to the elements except by the engine's own disjoint writes.
unsafe impl<const R: usize> Sync for TensorMut<'_, R> {}

impl<'a, const R: usize> TensorMut<'a, R> {
    /// Views a buffer as a row-major tensor.
    ///
    /// # Errors
    /// [`Error::BufferTooSmall`], [`Error::SizeOverflow`].
    pub fn new<T: Element>(data: &'a mut [T], shape: [usize; R]) -> Result<Self> {
        Self::strided(data, shape, row_major(shape)?)
    }

    /// Views a buffer with the given strides (in elements).
    ///
    /// # Errors
    /// [`Error::BufferTooSmall`], [`Error::SizeOverflow`], [`Error::SelfOverlap`].
    pub fn strided<T: Element>(data: &'a mut [T], shape: [usize; R], strides: [usize; R]) -> Result<Self> {
        check_buffer(T::DTYPE, &shape, &strides, data.len())?;
        let ptr = data.as_mut_ptr().cast();
        let view = Self { ptr, dtype: T::DTYPE, shape, strides, memory: Memory::Host, lifetime: PhantomData };
        view.check_injective("tensor")?;
        Ok(view)
    }

    /// Views raw memory, as handed over by a framework.
    ///
    /// # Errors
    /// [`Error::SizeOverflow`], [`Error::SelfOverlap`].
    ///
    /// # Safety
    /// For `'a`, every element that shape and strides reach from `ptr` must be writable memory, aligned to the element
    /// type, and be read and written through this view alone.
    pub unsafe fn from_raw_parts(
        ptr: *mut u8,
        dtype: DType,
        shape: [usize; R],
        strides: [usize; R],
    ) -> Result<Self> {
        checked_extent(dtype, &shape, &strides)?;
        let view = Self { ptr, dtype, shape, strides, memory: Memory::Host, lifetime: PhantomData };
        view.check_injective("tensor")?;
        Ok(view)
    }

    /// Views memory of a CUDA device by its address there.
    ///
    /// # Errors
    /// [`Error::SizeOverflow`], [`Error::SelfOverlap`].
    ///
    /// # Safety
    /// For `'a`, and until all work that was enqueued with the view is done, every element that shape and strides reach from
    /// `address` must be memory of that device, aligned to the element type, and be read and written through this view alone.
    pub unsafe fn from_device_parts(
        address: u64,
        device: u16,
        dtype: DType,
        shape: [usize; R],
        strides: [usize; R],
    ) -> Result<Self> {
        checked_extent(dtype, &shape, &strides)?;
        let ptr = std::ptr::without_provenance_mut(address as usize);
        let view =
            Self { ptr, dtype, shape, strides, memory: Memory::Cuda { device }, lifetime: PhantomData };
        view.check_injective("tensor")?;
        Ok(view)
    }

    common_view_methods!();

    pub(crate) fn check_injective(&self, argument: &'static str) -> Result<()> {
        if is_injective(&self.shape, &self.strides) {
            return Ok(());
        }
        Err(Error::SelfOverlap { argument, shape: self.shape.to_vec(), strides: self.strides.to_vec() })
    }

    /// Address of the first element.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.ptr
    }

    /// Address of the element at `index`, which must be in range. Who writes there must own that element.
    pub(crate) fn at(&self, index: [usize; R]) -> *mut u8 {
        debug_assert!(index.iter().zip(&self.shape).all(|(i, n)| i < n));
        let offset: usize = index.iter().zip(&self.strides).map(|(i, s)| i * s).sum();
        self.ptr.wrapping_add(offset * self.dtype.size())
    }

    /// The same view for a shorter time.
    pub fn reborrow(&mut self) -> TensorMut<'_, R> {
        TensorMut {
            ptr: self.ptr,
            dtype: self.dtype,
            shape: self.shape,
            strides: self.strides,
            memory: self.memory,
            lifetime: PhantomData,
        }
    }

    /// A shared view of the same elements.
    pub fn as_ref(&self) -> TensorRef<'_, R> {
        TensorRef {
            ptr: self.ptr,
            dtype: self.dtype,
            shape: self.shape,
            strides: self.strides,
            memory: self.memory,
            lifetime: PhantomData,
        }
    }

    /// Two exclusive views: the indices below `at` along `dimension`, and the rest.
    ///
    /// This is how `[attn | U]`, or dQ, dK and dV of a packed projection, are written into one buffer.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if `at` is past the dimension.
    pub fn split_at(self, dimension: usize, at: usize) -> Result<(Self, Self)> {
        let size = self.shape.get(dimension).copied().unwrap_or(0);
        let second = Self { ptr: self.ptr, lifetime: PhantomData, ..self };
        // The two halves name different elements, because no two index tuples of the whole name the same one.
        Ok((self.narrow(dimension, 0, at)?, second.narrow(dimension, at.min(size), size)?))
    }
}

impl<'a> TensorMut<'a, 4> {
    /// Views a row-major `[B, N, H, d]` buffer as `[B, H, N, d]`.
    ///
    /// # Errors
    /// [`Error::BufferTooSmall`], [`Error::SizeOverflow`].
    pub fn bnhd<T: Element>(data: &'a mut [T], [b, n, h, d]: [usize; 4]) -> Result<Self> {
        Self::new(data, [b, n, h, d])?.permute([0, 2, 1, 3])
    }

    /// Views packed sequences, a row-major `[total, H, d]` buffer, as `[1, H, total, d]`.
    ///
    /// # Errors
    /// [`Error::BufferTooSmall`], [`Error::SizeOverflow`].
    pub fn packed<T: Element>(data: &'a mut [T], [total, h, d]: [usize; 3]) -> Result<Self> {
        Self::bnhd(data, [1, total, h, d])
    }

    /// Splits a packed projection's gradient, a row-major `[B, N, (Hq + 2·Hkv)·d]` buffer, into dQ, dK and dV.
    ///
    /// # Errors
    /// [`Error::BufferTooSmall`], [`Error::SizeOverflow`].
    pub fn split_packed_qkv<T: Element>(
        data: &'a mut [T],
        [b, n]: [usize; 2],
        query_heads: usize,
        kv_heads: usize,
        head_dim: usize,
    ) -> Result<[Self; 3]> {
        let heads = packed_heads(query_heads, kv_heads)?;
        let (q, kv) = Self::bnhd(data, [b, n, heads, head_dim])?.split_at(1, query_heads)?;
        let (k, v) = kv.split_at(1, kv_heads)?;
        Ok([q, k, v])
    }

    /// Splits a row-major `[B, N, Hq·d + Hq·r]` buffer into `attn [B, Hq, N, d]` and `U [B, Hq, N, r]`: the input of
    /// the extended value's single output projection.
    ///
    /// # Errors
    /// [`Error::BufferTooSmall`], [`Error::SizeOverflow`].
    pub fn split_attn_u<T: Element>(
        data: &'a mut [T],
        [b, n]: [usize; 2],
        heads: usize,
        head_dim: usize,
        rank: usize,
    ) -> Result<[Self; 2]> {
        let overflow = || Error::SizeOverflow {
            argument: "attn_u",
            sizes: vec![b, n, heads, head_dim, rank],
            expected: "the number of elements must fit the address type",
        };
        let left = heads.checked_mul(head_dim).ok_or_else(overflow)?;
        let width = heads.checked_mul(rank).and_then(|u| u.checked_add(left)).ok_or_else(overflow)?;
        let (attn, u) = TensorMut::<3>::new(data, [b, n, width])?.split_at(2, left)?;
        let heads_apart = |t: TensorMut<'a, 3>, size: usize| TensorMut {
            ptr: t.ptr,
            dtype: t.dtype,
            shape: [b, heads, n, size],
            strides: [t.strides[0], size, t.strides[1], 1],
            memory: t.memory,
            lifetime: PhantomData,
        };
        Ok([heads_apart(attn, head_dim), heads_apart(u, rank)])
    }
}

impl<const R: usize> fmt::Debug for TensorMut<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TensorMut({} {:?} strides {:?})", self.dtype, self.shape, self.strides)
    }
}

/// Where a view's elements lie.
#[derive(Clone, Copy)]
pub(crate) struct Layout<'a> {
    pub(crate) memory: Memory,
    start: usize,
    size: usize,
    shape: &'a [usize],
    strides: &'a [usize],
}

impl<'a> Layout<'a> {
    /// Of a list in host memory, whose length is also its shape.
    pub(crate) fn of_list<T>(list: &[T], shape: &'a [usize; 1]) -> Self {
        Self { memory: Memory::Host, start: list.as_ptr().addr(), size: size_of::<T>(), shape, strides: &[1] }
    }

    /// Bytes from the first element to past the last.
    fn bytes(&self) -> usize {
        extent(self.shape, self.strides).unwrap_or(usize::MAX / 8) * self.size
    }

    /// The addresses from the first element to past the last.
    #[cfg(feature = "cuda")]
    pub(crate) fn range(&self) -> (usize, usize) {
        (self.start, self.start + self.bytes())
    }

    /// Strides in bytes and sizes of the dimensions that move at all.
    fn moving(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.shape
            .iter()
            .zip(self.strides)
            .filter(|&(&n, &s)| n > 1 && s > 0)
            .map(|(&n, &s)| (s * self.size, n))
    }

    /// Every element lies in `[0, reach)` modulo `period` bytes from the start: the dimensions whose strides are multiples of
    /// the period do not count.
    fn reach_within(&self, period: usize) -> usize {
        self.moving()
            .filter(|(stride, _)| stride % period != 0)
            .map(|(stride, n)| (n - 1) * stride)
            .sum::<usize>()
            + self.size
    }

    /// True if it can be shown that two views share no byte: their ranges do not meet, or their rows interleave with
    /// a common period without touching.
    pub(crate) fn disjoint(&self, other: &Self) -> bool {
        if self.shape.contains(&0) || other.shape.contains(&0) {
            return true;
        }
        let (a, b) = if self.start <= other.start { (self, other) } else { (other, self) };
        let distance = b.start - a.start;
        if distance >= a.bytes() {
            return true;
        }
        a.moving().chain(b.moving()).any(|(period, _)| {
            let phase = distance % period;
            phase >= a.reach_within(period) && phase + b.reach_within(period) <= period
        })
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "elements are small integers")]
mod tests {
    use super::*;

    #[test]
    fn a_view_must_lie_inside_its_buffer() {
        let data = [0f32; 24];
        assert!(TensorRef::new(&data, [1, 2, 3, 4]).is_ok());
        assert!(matches!(
            TensorRef::new(&data, [1, 2, 3, 5]),
            Err(Error::BufferTooSmall { needed: 30, len: 24, .. })
        ));
        assert!(matches!(
            TensorRef::strided(&data, [2, 2], [23, 1]),
            Err(Error::BufferTooSmall { needed: 25, .. })
        ));
        assert!(matches!(TensorRef::new(&data, [usize::MAX, 2, 2]), Err(Error::SizeOverflow { .. })));
        // A broadcast dimension keeps the extent small, but its loops would never end.
        assert!(matches!(
            TensorRef::strided(&data, [usize::MAX / 2, 4], [0, 1]),
            Err(Error::SizeOverflow { .. })
        ));
        assert!(TensorRef::new(&[] as &[f32], [0, 7]).is_ok());
    }

    #[test]
    fn a_mutable_view_must_not_overlap_itself() {
        let mut data = [0f32; 64];
        assert!(TensorMut::strided(&mut data, [4, 3], [5, 1]).is_ok());
        assert!(matches!(TensorMut::strided(&mut data, [4, 3], [2, 1]), Err(Error::SelfOverlap { .. })));
        assert!(matches!(TensorMut::strided(&mut data, [2, 3], [0, 1]), Err(Error::SelfOverlap { .. })));
        assert!(TensorMut::strided(&mut data, [1, 3], [0, 1]).is_ok());
    }

    #[test]
    fn packed_qkv_splits_into_disjoint_views() {
        let mut data: Vec<f32> = (0..2 * 3 * (4 + 2 + 2) * 5).map(|i| i as f32).collect();
        let [q, k, v] = TensorRef::split_packed_qkv(&data, [2, 3], 4, 2, 5).unwrap();
        assert_eq!(q.get([1, 3, 2, 4]), ((5 * 8 + 3) * 5 + 4) as f32);
        assert_eq!(k.get([0, 1, 0, 0]), (5 * 5) as f32);
        assert_eq!(v.get([0, 0, 1, 2]), ((8 + 6) * 5 + 2) as f32);
        let [q, k, v] = TensorMut::split_packed_qkv(&mut data, [2, 3], 4, 2, 5).unwrap();
        assert!(q.layout().disjoint(&k.layout()));
        assert!(v.layout().disjoint(&k.layout()));
        assert!(v.layout().disjoint(&q.layout()));
        assert!(!q.layout().disjoint(&q.layout()));
    }

    #[test]
    fn attn_and_u_share_a_buffer() {
        let mut data = vec![0f32; 2 * 3 * 4 * (8 + 5)];
        let [attn, u] = TensorMut::split_attn_u(&mut data, [2, 3], 4, 8, 5).unwrap();
        assert_eq!((attn.shape(), u.shape()), ([2, 4, 3, 8], [2, 4, 3, 5]));
        assert!(attn.layout().disjoint(&u.layout()));
        let distance = u.at([0, 0, 0, 0]) as usize - attn.at([0, 0, 0, 0]) as usize;
        assert_eq!(distance, 4 * 8 * 4);
    }

    #[test]
    fn interleaved_rows_that_touch_are_not_disjoint() {
        let mut data = [0f32; 40];
        let ptr = data.as_mut_ptr().cast::<u8>();
        // SAFETY: both views lie inside `data`, and nothing is read or written through them.
        let (a, b, c) = unsafe {
            (
                TensorMut::from_raw_parts(ptr, DType::F32, [4, 6], [10, 1]).unwrap(),
                TensorMut::from_raw_parts(ptr.add(20), DType::F32, [4, 5], [10, 1]).unwrap(),
                TensorMut::from_raw_parts(ptr.add(24), DType::F32, [4, 4], [10, 1]).unwrap(),
            )
        };
        assert!(!a.layout().disjoint(&b.layout()));
        assert!(!b.layout().disjoint(&a.layout()));
        assert!(a.layout().disjoint(&c.layout()));
        assert!(c.layout().disjoint(&a.layout()));
    }

    #[test]
    fn heads_with_padding_between_them_are_disjoint() {
        let mut data = [0f32; 3 * 6 * 5];
        let all = TensorMut::strided(&mut data, [1, 6, 3, 4], [1, 5, 30, 1]).unwrap();
        let (q, kv) = all.split_at(1, 4).unwrap();
        let (k, v) = kv.split_at(1, 1).unwrap();
        assert!(q.layout().disjoint(&k.layout()));
        assert!(v.layout().disjoint(&k.layout()));
        assert!(v.layout().disjoint(&q.layout()));
    }

    #[test]
    fn narrow_and_permute_check_their_arguments() {
        let data = [0f32; 24];
        let t = TensorRef::new(&data, [2, 3, 4]).unwrap();
        assert!(matches!(t.narrow(1, 2, 4), Err(Error::OutOfRange { size: 3, .. })));
        assert!(matches!(t.narrow(3, 0, 0), Err(Error::OutOfRange { .. })));
        assert!(matches!(t.permute([0, 0, 1]), Err(Error::Shape { .. })));
        assert_eq!(t.permute([2, 0, 1]).unwrap().strides(), [1, 12, 4]);
        assert_eq!(t.narrow(2, 4, 4).unwrap().len(), 0);
    }
}
