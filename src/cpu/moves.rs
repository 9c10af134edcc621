//! Moving rows between the caller's tensors and tiles.

use super::simd::Kernels;
use super::simd::gemm::Ahead;
use super::simd::pack::{Natural, NaturalMut};
use crate::tensor::DType;

/// Rows of a tensor: row j begins `stride` bytes after row j − 1.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) ptr: *const u8,
    pub(super) stride: usize,
    pub(super) dtype: DType,
}

impl Rows {
    /// The rows from row `j` on.
    pub(super) fn from(self, j: usize) -> Self {
        Self { ptr: self.ptr.wrapping_add(j * self.stride), ..self }
    }

    /// `rows` rows of `cols` elements, to be fetched while a product computes.
    pub(super) fn ahead(self, rows: usize, cols: usize) -> Ahead {
        Ahead { ptr: self.ptr, stride: self.stride, rows, bytes: cols * self.dtype.size() }
    }

    fn natural(self, rows: usize, cols: usize) -> Natural {
        Natural { dtype: self.dtype, data: self.ptr, stride: self.stride as isize, rows, cols }
    }
}

/// Rows of an output.
#[derive(Clone, Copy)]
pub(super) struct RowsMut {
    pub(super) ptr: *mut u8,
    pub(super) stride: usize,
    pub(super) dtype: DType,
}

impl RowsMut {
    fn natural(self, rows: usize, cols: usize) -> NaturalMut {
        NaturalMut { dtype: self.dtype, data: self.ptr, stride: self.stride as isize, rows, cols }
    }
}

/// `dst[c][r] = src[r][c]` as f32, rows of `lanes` floats, lanes `rows..lanes` zero.
///
/// # Safety
/// `rows` rows of `cols` elements are readable, `dst` holds `cols` rows; `lanes` are whole vectors.
pub(super) unsafe fn load_transposed(
    kernels: &Kernels,
    src: Rows,
    rows: usize,
    cols: usize,
    dst: *mut f32,
    lanes: usize,
) {
    // SAFETY: the caller's promise, and a table's instruction set is there.
    unsafe { (kernels.pack_transposed)(&src.natural(rows, cols), dst, lanes, 1.0) };
}

/// Pairs of bf16 along the columns: `dst[c/2][r]` holds columns c and c + 1 of row r; an odd last column is paired with 0,
/// lanes `rows..lanes` are 0.
///
/// # Safety
/// As for [`load_transposed`], with half as many rows of `dst` (rounded up).
pub(super) unsafe fn load_transposed_pairs(
    kernels: &Kernels,
    src: Rows,
    rows: usize,
    cols: usize,
    dst: *mut f32,
    lanes: usize,
) {
    // SAFETY: the caller's promise, and a table's instruction set is there.
    unsafe { (kernels.pack_transposed_pairs_bf16)(&src.natural(rows, cols), dst, lanes, 1.0) };
}

/// Pairs of rows of bf16: `dst[r/2][c]` holds rows r and r + 1 of column c; an odd last row is paired with 0, columns
/// `cols..ld` are 0.
///
/// # Safety
/// `rows` rows of `cols` elements are readable, `dst` holds half as many rows (rounded up) of `ld` floats, whole vectors.
pub(super) unsafe fn interleave_rows(
    kernels: &Kernels,
    src: Rows,
    rows: usize,
    cols: usize,
    dst: *mut f32,
    ld: usize,
) {
    // SAFETY: the caller's promise, and a table's instruction set is there.
    unsafe { (kernels.interleave_rows_bf16)(&src.natural(rows, cols), dst, ld) };
}

/// Copies rows of bf16 into rows of `padded` elements, the rest 0.
///
/// # Safety
/// `rows` rows of `cols` elements are readable, `dst` holds `rows·padded` elements.
pub(super) unsafe fn pad_rows_bf16(src: Rows, rows: usize, cols: usize, dst: *mut u16, padded: usize) {
    for r in 0..rows {
        // SAFETY: the caller's promise; the scratch and the tensor do not overlap.
        unsafe {
            let row = dst.add(r * padded);
            src.ptr.add(r * src.stride).copy_to_nonoverlapping(row.cast(), cols * 2);
            std::slice::from_raw_parts_mut(row.add(cols), padded - cols).fill(0);
        }
    }
}

/// `dst[r][c] = src[c][r]`, rounded to nearest even.
///
/// # Safety
/// `src` holds `cols` rows of `lanes` floats, at least `rows`; `rows` rows of `cols` elements are writable.
pub(super) unsafe fn store_transposed(
    kernels: &Kernels,
    src: *const f32,
    lanes: usize,
    rows: usize,
    cols: usize,
    dst: RowsMut,
) {
    // SAFETY: the caller's promise, and a table's instruction set is there.
    unsafe { (kernels.unpack_transposed)(src, lanes, &dst.natural(rows, cols), 1.0) };
}

/// `dst[r][c] += src[c][r]` for f32 rows.
///
/// # Safety
/// As for [`store_transposed`], rows of `dst` being readable f32.
pub(super) unsafe fn add_transposed(
    kernels: &Kernels,
    src: *const f32,
    lanes: usize,
    rows: usize,
    cols: usize,
    dst: RowsMut,
) {
    debug_assert_eq!(dst.dtype, DType::F32);
    // SAFETY: the caller's promise, and a table's instruction set is there.
    unsafe { (kernels.unpack_transposed_add)(src, lanes, &dst.natural(rows, cols), 1.0) };
}

/// Rows as f32, `ld` floats apart, columns `cols..ld` zero.
///
/// # Safety
/// `rows` rows of `cols` elements are readable, `dst` holds `rows·ld` floats, `ld` being whole vectors.
pub(super) unsafe fn widen(kernels: &Kernels, src: Rows, rows: usize, cols: usize, dst: *mut f32, ld: usize) {
    // SAFETY: the caller's promise, and a table's instruction set is there.
    unsafe { (kernels.widen_rows)(&src.natural(rows, cols), dst, ld, 1.0) };
}

/// f32 rows `ld` floats apart, rounded to nearest even.
///
/// # Safety
/// `rows` rows of `cols` floats, `ld` apart, are readable at `src`; `rows` rows of `cols` elements are writable.
pub(super) unsafe fn narrow(
    kernels: &Kernels,
    src: *const f32,
    ld: usize,
    rows: usize,
    cols: usize,
    dst: RowsMut,
) {
    // SAFETY: the caller's promise, and a table's instruction set is there.
    unsafe { (kernels.narrow_rows)(src, ld, &dst.natural(rows, cols), 1.0) };
}

/// Whether every element of the rows is finite.
///
/// # Safety
/// `rows` rows of `cols` elements are readable.
pub(super) unsafe fn all_finite(kernels: &Kernels, src: Rows, rows: usize, cols: usize) -> bool {
    let mut finite = false;
    // SAFETY: the caller's promise, and a table's instruction set is there.
    unsafe { (kernels.all_finite)(&src.natural(rows, cols), &raw mut finite) };
    finite
}

/// Fills rows with one value.
///
/// # Safety
/// `rows` rows of `cols` elements are writable.
pub(super) unsafe fn fill(dst: RowsMut, rows: usize, cols: usize, value: f32) {
    for r in 0..rows {
        if value.to_bits() == 0 {
            // Zero is zero bytes in every dtype.
            // SAFETY: the caller's promise.
            unsafe { dst.ptr.add(r * dst.stride).write_bytes(0, cols * dst.dtype.size()) };
            continue;
        }
        for c in 0..cols {
            // SAFETY: the caller's promise.
            unsafe { write(dst.dtype, dst.ptr.add(r * dst.stride + c * dst.dtype.size()), value) };
        }
    }
}

/// Writes one element, rounded to nearest even.
///
/// # Safety
/// `ptr` points to a writable element of type `dtype`.
pub(super) unsafe fn write(dtype: DType, ptr: *mut u8, value: f32) {
    // SAFETY: the caller's promise; unaligned writes cost nothing here.
    unsafe {
        match dtype {
            DType::F32 => ptr.cast::<f32>().write_unaligned(value),
            DType::F16 => ptr.cast::<half::f16>().write_unaligned(half::f16::from_f32(value)),
            DType::BF16 => ptr.cast::<half::bf16>().write_unaligned(half::bf16::from_f32(value)),
        }
    }
}
