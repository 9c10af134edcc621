//! Tiles of few queries, as where a model generates text: they do not fill a vector, and what takes time is to read K and V.
//!
//! So vectors run along the keys, for scores, and along the columns of V, for O, instead of along queries. Every element is the
//! same chain of multiply-adds as in other tiles (`simd::gemm`): a row's result does not depend on how many rows are
//! computed with it.

use super::masked::{Pairing, Visible, gemm_visible};
use super::moves::{self, Rows, RowsMut};
use super::products::Products;
use super::simd::Kernels;
use super::simd::gemm::{Ahead, Gemm};
use super::tiling::Tiling;
use super::workspace::{Carver, Floats};
use crate::attention::Problem;
use crate::tensor::DType;

/// A thread's scratch for such tiles.
#[derive(Clone, Copy)]
pub(super) struct FewRows {
    head_dim: usize,
    /// Scores `[queries][keys]`.
    scores: Floats,
    /// O `[queries][d]`.
    o: Floats,
}

impl FewRows {
    /// Whether tiles of few rows of this problem are computed so.
    pub(super) fn serve(problem: &Problem<'_>, kernels: &Kernels) -> bool {
        problem.head_dim().is_multiple_of(kernels.lanes) && Products::of(problem, kernels) == Products::F32
    }

    pub(super) fn carve(problem: &Problem<'_>, kernels: &Kernels, carver: &mut Carver) -> Option<Self> {
        let head_dim = problem.head_dim();
        Self::serve(problem, kernels).then(|| Self {
            head_dim,
            scores: carver.floats(kernels.lanes * Tiling::forward(kernels).keys),
            o: carver.floats(kernels.lanes * head_dim),
        })
    }

    /// For tiles of that many lanes: one vector.
    pub(super) fn serves(self, kernels: &Kernels, lanes: usize) -> Option<Self> {
        (lanes == kernels.lanes).then_some(self)
    }

    fn o_rows(self) -> RowsMut {
        RowsMut { ptr: self.o.at(0).cast(), stride: self.head_dim * 4, dtype: DType::F32 }
    }

    /// S = K·Qᵀ as `[keys][lanes]`, of Qᵀ `[d][lanes]`.
    ///
    /// # Safety
    /// `rows` and the keys are at most the tile's; `qt`, `s` and the keys are as long as their shapes say; `kv` holds
    /// [`Products::left_factor_floats`] of the keys, which is no less than a transposed tile.
    #[allow(clippy::too_many_arguments, reason = "a product's operands and its scratch")]
    pub(super) unsafe fn scores(
        self,
        k: &Kernels,
        qt: *const f32,
        rows: usize,
        key_rows: Rows,
        keys: usize,
        kv: *mut f32,
        s: *mut f32,
        ahead: Ahead,
    ) {
        let (d, wide) = (self.head_dim, keys.next_multiple_of(k.lanes));
        let scores = self.scores.at(0);
        // SAFETY: the caller's promise; `scores` was carved for whole vectors of a tile's keys.
        unsafe {
            moves::load_transposed(k, key_rows, keys, d, kv, wide);
            (k.gemm)(&Gemm {
                m: rows,
                n: wide,
                k: d,
                a: qt.cast(),
                a_row: 4,
                a_col: (k.lanes * 4) as isize,
                b: kv,
                b_row: wide,
                c: scores,
                c_row: wide,
                accumulate: false,
                ahead,
            });
            let natural = Rows { ptr: scores.cast_const().cast(), stride: wide * 4, dtype: DType::F32 };
            moves::load_transposed(k, natural, rows, keys, s, k.lanes);
        }
    }

    /// O ← O·alpha, row by row.
    ///
    /// # Safety
    /// `alpha` holds `rows` floats, at most a vector's.
    pub(super) unsafe fn rescale(self, rows: usize, alpha: *const f32) {
        for row in 0..rows {
            // SAFETY: as many rows were carved; the caller's promise.
            let (o, alpha) = unsafe {
                let start = self.o.at(row * self.head_dim);
                (std::slice::from_raw_parts_mut(start, self.head_dim), *alpha.add(row))
            };
            for x in o {
                *x *= alpha;
            }
        }
    }

    /// O += Pᵀ·V, of P `[keys][lanes]`; O = Pᵀ·V for the first tile. `hidden`: leaves hidden pairs out, by way of Oᵀ in `ot`.
    ///
    /// # Safety
    /// As for [`scores`](Self::scores); `ot` holds `[d][lanes]`.
    #[allow(clippy::too_many_arguments, reason = "a product's operands and its scratch")]
    pub(super) unsafe fn add_values(
        self,
        k: &Kernels,
        s: *const f32,
        rows: usize,
        values: Rows,
        keys: usize,
        kv: *mut f32,
        first: bool,
        hidden: Option<Visible>,
        ot: *mut f32,
        next: Ahead,
    ) {
        let d = self.head_dim;
        let mut product = Gemm {
            m: rows,
            n: d,
            k: keys,
            a: s.cast(),
            a_row: 4,
            a_col: (k.lanes * 4) as isize,
            b: values.ptr.cast(),
            b_row: values.stride / 4,
            c: self.o.at(0),
            c_row: d,
            accumulate: !first,
            ahead: next,
        };
        // SAFETY: the caller's promise; O was carved for a vector's rows.
        unsafe {
            if let Some(visible) = hidden {
                if !first {
                    self.transposed(k, 0, rows, ot);
                }
                let by_lanes =
                    Gemm { m: d, n: k.lanes, b: s, b_row: k.lanes, c: ot, c_row: k.lanes, ..product };
                gemm_visible(&by_lanes, values, &visible, Pairing::KeysSummed);
                moves::store_transposed(k, ot, k.lanes, rows, d, self.o_rows());
                return;
            }
            if values.dtype != DType::F32 {
                moves::widen(k, values, keys, d, kv, d);
                (product.b, product.b_row) = (kv, d);
            }
            (k.gemm)(&product);
        }
    }

    /// Rows of O from `first` on, transposed: `[d][lanes]`.
    ///
    /// # Safety
    /// These are a vector's rows at most, and `ot` has room for them.
    pub(super) unsafe fn transposed(self, k: &Kernels, first: usize, rows: usize, ot: *mut f32) {
        let o = self.o_rows();
        let natural = Rows { ptr: o.ptr.cast_const(), stride: o.stride, dtype: o.dtype }.from(first);
        // SAFETY: the caller's promise.
        unsafe { moves::load_transposed(k, natural, rows, self.head_dim, ot, k.lanes) };
    }
}
