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
