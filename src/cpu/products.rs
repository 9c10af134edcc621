//! In which numbers the large products are computed, and their left factors: rows of K and V, of which a product broadcasts
//! one element at a time, across rows or down columns.

use super::moves::{self, Rows};
use super::simd::Kernels;
use super::tiling::{crowded, spread};
use crate::attention::Problem;
use crate::tensor::DType;

/// How products are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Products {
    /// In f32; 16-bit tensors are widened tile by tile.
    F32,
    /// As dot products of bf16 pairs, accumulated in f32.
    Bf16,
}

impl Products {
    pub(super) fn of(problem: &Problem<'_>, kernels: &Kernels) -> Self {
        if problem.dtype() == DType::BF16 && kernels.bf16_dot { Self::Bf16 } else { Self::F32 }
    }

    /// Floats that a copy of `n` rows takes at most.
    pub(super) fn left_factor_floats(n: usize, head_dim: usize) -> usize {
        n * spread(head_dim)
    }

    /// Rows in the form that products read: in place where possible, otherwise copied to `to`. Pairs of bf16 are
    /// consecutive along head_dim; an odd one ends with 0.
    ///
    /// # Safety
    /// `n` rows of `head_dim` elements are readable, bf16 for [`Products::Bf16`]; `to` holds
    /// [`left_factor_floats`](Self::left_factor_floats).
    pub(super) unsafe fn left_factor(
        self,
        kernels: &Kernels,
        rows: Rows,
        n: usize,
        head_dim: usize,
        to: *mut f32,
    ) -> Rows {
        let fits = match self {
            Self::F32 => rows.dtype == DType::F32,
            Self::Bf16 => head_dim.is_multiple_of(2),
        };
        if fits && !crowded(rows.stride) {
            return rows;
        }
        // SAFETY: the caller's promise; a row of the copy is no longer than `spread(head_dim)` floats.
        let (dtype, floats) = unsafe {
            match self {
                Self::F32 => {
                    let floats = spread(head_dim);
                    moves::widen(kernels, rows, n, head_dim, to, floats);
                    (DType::F32, floats)
                }
                Self::Bf16 => {
                    let floats = spread(head_dim.div_ceil(2));
                    moves::pad_rows_bf16(rows, n, head_dim, to.cast(), 2 * floats);
                    (DType::BF16, floats)
                }
            }
        };
        Rows { ptr: to.cast_const().cast(), stride: 4 * floats, dtype }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    /// Rows so far apart (in elements), as products read them: in place or not, and every number, pairs filled up with 0.
    fn check<T: Copy>(
        products: Products,
        dtype: DType,
        [head_dim, apart]: [usize; 2],
        in_place: bool,
        number: impl Fn(usize) -> T,
    ) {
        let n = 5;
        let data: Vec<T> = (0..n * apart).map(number).collect();
        let rows = Rows { ptr: data.as_ptr().cast(), stride: apart * dtype.size(), dtype };
        let mut to = vec![f32::NAN; Products::left_factor_floats(n, head_dim)];
        let kernels = Kernels::detect();
        // SAFETY: as many rows of that length are there, and as much room.
        let factor = unsafe { products.left_factor(kernels, rows, n, head_dim, to.as_mut_ptr()) };
        assert_eq!(factor.ptr == rows.ptr, in_place, "{products:?} {dtype} {head_dim} {apart}");
        assert!(in_place || !crowded(factor.stride));
        let read = |rows: Rows, i: usize, c: usize| {
            // SAFETY: the element is one of the rows, or of the copy.
            unsafe { crate::tensor::read(rows.dtype, rows.ptr.add(i * rows.stride + c * rows.dtype.size())) }
        };
        for i in 0..n {
            for c in 0..head_dim {
                assert_eq!(read(factor, i, c).to_bits(), read(rows, i, c).to_bits(), "row {i}, column {c}");
            }
            if products == Products::Bf16 && head_dim % 2 == 1 {
                assert_eq!(read(factor, i, head_dim).to_bits(), 0, "row {i}: the pair's second half");
            }
        }
    }

    #[test]
    fn left_factors_are_the_rows() {
        let wide = |i: usize| i as f32 + 0.5;
        let short = |i: usize| bf16::from_f32((i % 200) as f32);
        for head_dim in [1, 7, 8, 33, 64, 128] {
            check(Products::F32, DType::F32, [head_dim, head_dim + 3], true, wide);
            check(Products::F32, DType::F32, [head_dim, 512], false, wide);
            check(Products::F32, DType::BF16, [head_dim, head_dim + 3], false, short);
            check(Products::Bf16, DType::BF16, [head_dim, head_dim + 3], head_dim % 2 == 0, short);
            check(Products::Bf16, DType::BF16, [head_dim, 1024], false, short);
        }
    }
}
