//! Every table that this processor can run, against naive loops and `f64`.

#![allow(clippy::float_cmp, reason = "exact values are expected")]

mod gemm;
mod math;
mod pack;
mod vector;

use super::Kernels;
use super::gemm::{Ahead, Gemm};

/// A reproducible stream of numbers in [−1, 1).
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next_u32(&mut self) -> u32 {
        // Knuth's MMIX multiplier; the upper half of the state is good enough.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    fn uniform(&mut self) -> f32 {
        (self.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn many(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.uniform()).collect()
    }
}

/// Distance between `y` and the exact `exact` in units in the last place of `f32` at `exact`; below the smallest normal
/// number, where results may be flushed to zero, anything from zero to that number counts as right.
fn ulps(y: f32, exact: f64) -> f64 {
    if exact.is_nan() || y.is_nan() {
        return if exact.is_nan() && y.is_nan() { 0.0 } else { f64::INFINITY };
    }
    if f64::from(y) == exact {
        return 0.0;
    }
    // Beyond the largest f32 by more than half a unit, infinity is the right answer.
    if y.is_infinite()
        && y.is_sign_positive() == (exact > 0.0)
        && exact.abs() >= f64::from(f32::MAX) * (1.0 + 2e-8)
    {
        return 0.0;
    }
    if exact.abs() < f64::from(f32::MIN_POSITIVE) && y.abs() <= f32::MIN_POSITIVE {
        return 0.0;
    }
    let exponent = exact.abs().max(f64::from(f32::MIN_POSITIVE)).log2().floor();
    (f64::from(y) - exact).abs() / (exponent - 23.0).exp2()
}

/// Whether the multiply-add of a table rounds once.
fn fused(kernels: &Kernels) -> bool {
    // −x² rounded, plus x² not rounded or rounded.
    let x = 1.0 + f32::EPSILON;
    let a = [-(x * x), x];
    let b: Vec<f32> = [1.0, x].into_iter().flat_map(|x| vec![x; kernels.lanes]).collect();
    let mut c = vec![0.0; kernels.lanes];
    let g = Gemm {
        m: 1,
        n: kernels.lanes,
        k: 2,
        a: a.as_ptr().cast(),
        a_row: 8,
        a_col: 4,
        b: b.as_ptr(),
        b_row: kernels.lanes,
        c: c.as_mut_ptr(),
        c_row: 0,
        accumulate: false,
        ahead: Ahead::NONE,
    };
    // SAFETY: one row of one vector, and two scalars.
    unsafe { (kernels.gemm)(&g) };
    c[0] != 0.0
}
