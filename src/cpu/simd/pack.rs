//! Between the rows of the caller's tensors and the layouts of the kernels.
//!
//! A *natural* matrix has rows of adjacent elements of some [`DType`], any distance apart. The kernels' own matrices are
//! `f32` (or pairs of bfloat16, one per `f32`) in padded rows of `ld` elements. Whatever pads a row is written as zeros.

#![allow(unsafe_op_in_unsafe_fn, reason = "vector and pointer operations under the functions' contracts")]

use super::gemm::LINE_BYTES;
use super::vector::Vector;
use crate::tensor::DType;

/// A natural matrix to read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Natural {
    /// Type of an element.
    pub dtype: DType,
    /// The first element, aligned to its type.
    pub data: *const u8,
    /// Bytes from one row to the next.
    pub stride: isize,
    /// Number of rows.
    pub rows: usize,
    /// Elements per row.
    pub cols: usize,
}

/// A natural matrix to write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NaturalMut {
    /// Type of an element.
    pub dtype: DType,
    /// The first element, aligned to its type.
    pub data: *mut u8,
    /// Bytes from one row to the next.
    pub stride: isize,
    /// Number of rows.
    pub rows: usize,
    /// Elements per row.
    pub cols: usize,
}

/// How elements of a type are read and written, in vectors.
trait Storage {
    const SIZE: usize;
    unsafe fn load<V: Vector>(p: *const u8) -> V;
    unsafe fn store<V: Vector>(x: V, p: *mut u8);
}

struct F32;
struct F16;
struct Bf16;

#[allow(clippy::cast_ptr_alignment, reason = "rows are aligned to their element type")]
impl Storage for F32 {
    const SIZE: usize = 4;
    #[inline(always)]
    unsafe fn load<V: Vector>(p: *const u8) -> V {
        V::load(p.cast())
    }
    #[inline(always)]
    unsafe fn store<V: Vector>(x: V, p: *mut u8) {
        x.store(p.cast());
    }
}

#[allow(clippy::cast_ptr_alignment, reason = "rows are aligned to their element type")]
impl Storage for F16 {
    const SIZE: usize = 2;
    #[inline(always)]
    unsafe fn load<V: Vector>(p: *const u8) -> V {
        V::load_f16(p.cast())
    }
    #[inline(always)]
    unsafe fn store<V: Vector>(x: V, p: *mut u8) {
        x.store_f16(p.cast());
    }
}

#[allow(clippy::cast_ptr_alignment, reason = "rows are aligned to their element type")]
impl Storage for Bf16 {
    const SIZE: usize = 2;
    #[inline(always)]
    unsafe fn load<V: Vector>(p: *const u8) -> V {
        V::load_bf16(p.cast())
    }
    #[inline(always)]
    unsafe fn store<V: Vector>(x: V, p: *mut u8) {
        x.store_bf16(p.cast());
    }
}

/// Calls a function generic over [`Storage`] with the one for a [`DType`].
macro_rules! by_dtype {
    ($dtype:expr, $function:ident::<$($generic:tt),*>($($arg:expr),*)) => {
        match $dtype {
            DType::F32 => $function::<$($generic,)* F32>($($arg),*),
            DType::F16 => $function::<$($generic,)* F16>($($arg),*),
            DType::BF16 => $function::<$($generic,)* Bf16>($($arg),*),
        }
    };
}

/// Most lanes of any vector.
const MAX_LANES: usize = 16;

/// The first `count` elements at `p`, then zeros.
#[inline(always)]
unsafe fn load_some<V: Vector, S: Storage>(p: *const u8, count: usize) -> V {
    if count >= V::LANES {
        return S::load(p);
    }
    let mut buffer = [0.0_f32; MAX_LANES];
    p.copy_to_nonoverlapping(buffer.as_mut_ptr().cast(), count * S::SIZE);
    S::load(buffer.as_ptr().cast())
}

/// The first `count` lanes to `p`.
#[inline(always)]
unsafe fn store_some<V: Vector, S: Storage>(x: V, p: *mut u8, count: usize) {
    if count >= V::LANES {
        return S::store(x, p);
    }
    let mut buffer = [0.0_f32; MAX_LANES];
    S::store(x, buffer.as_mut_ptr().cast());
    p.copy_from_nonoverlapping(buffer.as_ptr().cast(), count * S::SIZE);
}

/// A square block of a natural matrix, from its row `row` and column `col`, times `scale`, transposed; zeros outside.
#[inline(always)]
unsafe fn load_transposed<V: Vector, S: Storage>(
    src: &Natural,
    row: usize,
    col: usize,
    scale: V,
) -> V::Block {
    let mut block = V::zero_block();
    let from = src.data.offset(row as isize * src.stride).add(col * S::SIZE);
    if row + V::LANES <= src.rows && col + V::LANES <= src.cols {
        for i in 0..V::LANES {
            block.as_mut()[i] = S::load::<V>(from.offset(i as isize * src.stride)).mul(scale);
        }
    } else {
        // Indices that are not constants would keep the block out of registers: go through memory instead.
        let mut rows = [[0.0_f32; MAX_LANES]; MAX_LANES];
        for i in 0..V::LANES.min(src.rows - row) {
            let x = load_some::<V, S>(from.offset(i as isize * src.stride), src.cols - col);
            x.mul(scale).store(rows[i].as_mut_ptr());
        }
        for i in 0..V::LANES {
            block.as_mut()[i] = V::load(rows[i].as_ptr());
        }
    }
    V::transpose(&mut block);
    block
}

/// Asks for the cache lines that begin at column `col` of the block of rows behind that at `row`. Rows are too short for
/// the processor to see where reading them goes on.
#[inline(always)]
unsafe fn fetch_next_rows<V: Vector, S: Storage>(data: *const u8, stride: isize, row: usize, col: usize) {
    if (col * S::SIZE).is_multiple_of(LINE_BYTES) {
        let next = data.wrapping_offset((row + V::LANES) as isize * stride).wrapping_add(col * S::SIZE);
        for i in 0..V::LANES {
            V::prefetch(next.wrapping_offset(i as isize * stride));
        }
    }
}

/// Row `j` of `dst` becomes column `j` of `src` times `scale`, followed by zeros up to `ld`.
///
/// # Safety
///
/// The contract of [`Vector`]; `src` is readable, `dst` writable for `src.cols` rows of `ld`; `ld` is a multiple of
/// [`Vector::LANES`] and at least `src.rows`.
#[inline(always)]
pub(super) unsafe fn pack_transposed<V: Vector>(src: &Natural, dst: *mut f32, ld: usize, scale: f32) {
    by_dtype!(src.dtype, pack_transposed_from::<V>(src, dst, ld, scale));
}

#[inline(always)]
unsafe fn pack_transposed_from<V: Vector, S: Storage>(src: &Natural, dst: *mut f32, ld: usize, scale: f32) {
    let scale = V::splat(scale);
    let mut row = 0;
    while row < ld {
        if row >= src.rows {
            for col in 0..src.cols {
                V::zero().store(dst.add(col * ld + row));
            }
        } else {
            let mut col = 0;
            while col < src.cols {
                fetch_next_rows::<V, S>(src.data, src.stride, row, col);
                let block = load_transposed::<V, S>(src, row, col, scale);
                for i in 0..V::LANES {
                    if col + i < src.cols {
                        block.as_ref()[i].store(dst.add((col + i) * ld + row));
                    }
                }
                col += V::LANES;
            }
        }
        row += V::LANES;
    }
}

/// Row `t` of `dst` becomes the pairs (column `2t`, column `2t + 1`) of `src` times `scale`, rounded to bfloat16, followed
/// by zeros up to `ld`. An odd last column is paired with zeros.
///
/// # Safety
///
/// As for [`pack_transposed`], with ⌈`src.cols` / 2⌉ rows of `dst`.
#[inline(always)]
pub(super) unsafe fn pack_transposed_pairs_bf16<V: Vector>(
    src: &Natural,
    dst: *mut f32,
    ld: usize,
    scale: f32,
) {
    by_dtype!(src.dtype, pack_transposed_pairs_from::<V>(src, dst, ld, scale));
}

#[inline(always)]
unsafe fn pack_transposed_pairs_from<V: Vector, S: Storage>(
    src: &Natural,
    dst: *mut f32,
    ld: usize,
    scale: f32,
) {
    let scale = V::splat(scale);
    let mut row = 0;
    while row < ld {
        if row >= src.rows {
            for pair in 0..src.cols.div_ceil(2) {
                V::zero().store(dst.add(pair * ld + row));
            }
        } else {
            let mut col = 0;
            while col < src.cols {
                let block = load_transposed::<V, S>(src, row, col, scale);
                let block = block.as_ref();
                for i in 0..V::LANES / 2 {
                    if col + 2 * i < src.cols {
                        let pairs = V::pack_bf16(block[2 * i], block[2 * i + 1]);
                        pairs.store(dst.add((col / 2 + i) * ld + row));
                    }
                }
                col += V::LANES;
            }
        }
        row += V::LANES;
    }
}

/// Column `j` of `dst` becomes the first `dst.rows` elements of row `j` of `src`, times `scale`.
///
/// # Safety
///
/// The contract of [`Vector`]; `dst` is writable, `src` readable for `dst.cols` rows of `ld`; `ld` is a multiple of
/// [`Vector::LANES`] and at least `dst.rows`.
#[inline(always)]
pub(super) unsafe fn unpack_transposed<V: Vector>(src: *const f32, ld: usize, dst: &NaturalMut, scale: f32) {
    by_dtype!(dst.dtype, unpack_transposed_to::<V, false>(src, ld, dst, scale));
}

/// As [`unpack_transposed`], added to what `dst` holds (and rounded to its type).
///
/// # Safety
///
/// As for [`unpack_transposed`]; `dst` is readable, too.
#[inline(always)]
pub(super) unsafe fn unpack_transposed_add<V: Vector>(
    src: *const f32,
    ld: usize,
    dst: &NaturalMut,
    scale: f32,
) {
    by_dtype!(dst.dtype, unpack_transposed_to::<V, true>(src, ld, dst, scale));
}

#[inline(always)]
unsafe fn unpack_transposed_to<V: Vector, const ADD: bool, S: Storage>(
    src: *const f32,
    ld: usize,
    dst: &NaturalMut,
    scale: f32,
) {
    let scale = V::splat(scale);
    let mut row = 0;
    while row < dst.rows {
        let mut col = 0;
        while col < dst.cols {
            fetch_next_rows::<V, S>(dst.data.cast_const(), dst.stride, row, col);
            let mut block = V::zero_block();
            for i in 0..V::LANES {
                if col + i < dst.cols {
                    block.as_mut()[i] = V::load(src.add((col + i) * ld + row)).mul(scale);
                }
            }
            V::transpose(&mut block);
            let to = dst.data.offset(row as isize * dst.stride).add(col * S::SIZE);
            for i in 0..V::LANES {
                if row + i < dst.rows {
                    let p = to.offset(i as isize * dst.stride);
                    let mut x = block.as_ref()[i];
                    if ADD {
                        x = x.add(load_some::<V, S>(p, dst.cols - col));
                    }
                    store_some::<V, S>(x, p, dst.cols - col);
                }
            }
            col += V::LANES;
        }
        row += V::LANES;
    }
}

/// Row `i` of `dst` becomes row `i` of `src` times `scale`, followed by zeros up to `ld`.
///
/// # Safety
///
/// The contract of [`Vector`]; `src` is readable, `dst` writable for `src.rows` rows of `ld`; `ld` is a multiple of
/// [`Vector::LANES`] and at least `src.cols`.
#[inline(always)]
pub(super) unsafe fn widen_rows<V: Vector>(src: &Natural, dst: *mut f32, ld: usize, scale: f32) {
    by_dtype!(src.dtype, widen_rows_from::<V>(src, dst, ld, scale));
}

#[inline(always)]
unsafe fn widen_rows_from<V: Vector, S: Storage>(src: &Natural, dst: *mut f32, ld: usize, scale: f32) {
    let scale = V::splat(scale);
    for row in 0..src.rows {
        let from = src.data.offset(row as isize * src.stride);
        let to = dst.add(row * ld);
        let mut col = 0;
        while col < ld {
            let x = if col < src.cols {
                load_some::<V, S>(from.add(col * S::SIZE), src.cols - col).mul(scale)
            } else {
                V::zero()
            };
            x.store(to.add(col));
            col += V::LANES;
        }
    }
}

/// Row `i` of `dst` becomes the first `dst.cols` elements of row `i` of `src` times `scale`, rounded to its type.
///
/// # Safety
///
/// The contract of [`Vector`]; `dst` is writable, `src` readable for `dst.rows` rows of `dst.cols`, `ld` apart.
#[inline(always)]
pub(super) unsafe fn narrow_rows<V: Vector>(src: *const f32, ld: usize, dst: &NaturalMut, scale: f32) {
    by_dtype!(dst.dtype, narrow_rows_to::<V>(src, ld, dst, scale));
}

#[inline(always)]
unsafe fn narrow_rows_to<V: Vector, S: Storage>(src: *const f32, ld: usize, dst: &NaturalMut, scale: f32) {
    let scale = V::splat(scale);
    for row in 0..dst.rows {
        let from = src.add(row * ld);
        let to = dst.data.offset(row as isize * dst.stride);
        let mut col = 0;
        while col < dst.cols {
            let left = dst.cols - col;
            let x = load_some::<V, F32>(from.add(col).cast(), left).mul(scale);
            store_some::<V, S>(x, to.add(col * S::SIZE), left);
            col += V::LANES;
        }
    }
}

/// Row `t` of `dst` becomes the pairs (row `2t`, row `2t + 1`) of `src`, rounded to bfloat16, followed by zeros up to `ld`.
/// An odd last row is paired with zeros.
///
/// # Safety
///
/// As for [`widen_rows`], with ⌈`src.rows` / 2⌉ rows of `dst`.
#[inline(always)]
pub(super) unsafe fn interleave_rows_bf16<V: Vector>(src: &Natural, dst: *mut f32, ld: usize) {
    by_dtype!(src.dtype, interleave_rows_from::<V>(src, dst, ld));
}

#[inline(always)]
#[allow(clippy::cast_ptr_alignment, reason = "rows are aligned to their element type")]
unsafe fn interleave_rows_from<V: Vector, S: Storage>(src: &Natural, dst: *mut f32, ld: usize) {
    let mut row = 0;
    while row < src.rows {
        let low = src.data.offset(row as isize * src.stride);
        let paired = row + 1 < src.rows;
        let to = dst.add(row / 2 * ld);
        let mut col = 0;
        while col < ld {
            let left = src.cols.saturating_sub(col);
            let offset = col * S::SIZE;
            let pairs = if src.dtype == DType::BF16 && paired && left >= V::LANES {
                V::interleave_bf16(low.add(offset).cast(), low.offset(src.stride).add(offset).cast())
            } else if left > 0 {
                let high = if paired {
                    load_some::<V, S>(low.offset(src.stride).add(offset), left)
                } else {
                    V::zero()
                };
                V::pack_bf16(load_some::<V, S>(low.add(offset), left), high)
            } else {
                V::zero()
            };
            pairs.store(to.add(col));
            col += V::LANES;
        }
        row += 2;
    }
}
