//! Products over tiles whose rows see different keys, where a hidden element is not finite.
//!
//! A masked probability is 0, and 0 times NaN is NaN: the ordinary product would carry a NaN from a key that one row may
//! not see into that row. Here hidden pairs are left out instead of multiplied by 0. Rare, so plain.

use super::moves::Rows;
use super::query_tile::Lanes;
use super::simd::gemm::Gemm;
use crate::tensor::read;

/// Which of a tile's keys each lane sees: an interval whose ends never decrease with the lane.
#[derive(Clone, Copy)]
pub(super) struct Visible {
    /// First key that each lane sees.
    pub(super) lo: *const i32,
    /// One past the last.
    pub(super) hi: *const i32,
    pub(super) lanes: usize,
    /// Number of the tile's first key.
    pub(super) first_key: usize,
    pub(super) keys: usize,
}

impl Visible {
    /// Of the keys `first_key..first_key + keys`.
    pub(super) fn new(v: &Lanes, lanes: usize, first_key: usize, keys: usize) -> Self {
        Self { lo: v.lo(), hi: v.hi(), lanes, first_key, keys }
    }

    /// # Safety
    /// `lo` and `hi` hold the lane.
    unsafe fn sees(&self, lane: usize, key: usize) -> bool {
        let key = (self.first_key + key) as i32;
        // SAFETY: the caller's promise.
        unsafe { (*self.lo.add(lane)..*self.hi.add(lane)).contains(&key) }
    }
}

/// Which of a product's indices are keys and queries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pairing {
    /// `C[m][query] += Σ_key A(m, key)·B[key][query]`, rows of keys giving A: `A(m, key) = rows[key][m]`.
    KeysSummed,
    /// `C[key][n] += Σ_query A(key, query)·B[query][n]`, rows of queries giving B.
    QueriesSummed,
}

/// C (+)= A·B without the hidden pairs. `rows` replace the operand that comes from a tensor.
///
/// # Safety
/// The operands that are not replaced are as [`Gemm`] says; `rows` has `k` rows of m (or n) elements.
pub(super) unsafe fn gemm_visible(g: &Gemm, rows: Rows, visible: &Visible, pairing: Pairing) {
    let element = |row: usize, col: usize| {
        // SAFETY: the caller's promise.
        unsafe { read(rows.dtype, rows.ptr.add(row * rows.stride + col * rows.dtype.size())) }
    };
    for m in 0..g.m {
        for n in 0..g.n {
            // SAFETY: C, and what of A and B is not replaced, are as `Gemm` says.
            unsafe {
                let c = g.c.add(m * g.c_row + n);
                let mut sum = if g.accumulate { *c } else { 0.0 };
                for k in 0..g.k {
                    match pairing {
                        Pairing::KeysSummed if visible.sees(n, k) => {
                            sum += element(k, m) * *g.b.add(k * g.b_row + n);
                        }
                        Pairing::QueriesSummed if visible.sees(k, m) => {
                            let a = g.a.offset(m as isize * g.a_row + k as isize * g.a_col).cast::<f32>();
                            sum += *a * element(k, n);
                        }
                        _ => {}
                    }
                }
                *c = sum;
            }
        }
    }
}
