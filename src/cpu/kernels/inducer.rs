//! The virtual token of every lane's query, forward and backward.
//!
//! The inducer's products with Q come as rows of one tile, from one matrix product with the key slot
//! `[A_kᵀ (r_k); B_k (r_k); b_k (1); A_vᵀ (r_v)]`: `z_k = Q A_k`, `W = Q B_kᵀ`, `Q·b_k`, `z_v = Q A_v`.

use crate::cpu::simd::math;
use crate::cpu::simd::vector::Vector;

/// How the virtual token's score comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Score {
    /// There is no virtual token: λ = 0.
    None,
    /// τσ Q·P_k.
    Key,
    /// Given, in [`InducerTile::s0`].
    Given,
}

/// How the virtual token enters the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Zero,
    Residual,
    Direct,
    Extended,
}

/// Everything about the virtual tokens of a tile of queries; rows of `lanes` floats.
#[derive(Clone, Copy)]
pub(crate) struct InducerTile {
    pub lanes: usize,
    pub score: Score,
    pub value: Value,
    pub key_rank: usize,
    pub value_rank: usize,
    pub key_tanh: bool,
    pub value_tanh: bool,
    /// σ.
    pub sigma: f32,
    /// Products of the key slot with Q, `[2·r_k + 1 + r_v]` rows (without the first `2·r_k + 1` if `r_k` is 0); z_k becomes u,
    /// z_v becomes h.
    pub z: *mut f32,
    /// a_k, `[r_k]`.
    pub key_bias: *const f32,
    /// a_v, `[r_v]`.
    pub value_bias: *const f32,
    /// Q·Q, `[lanes]`.
    pub qq: *const f32,
    /// τ, `[lanes]`.
    pub tau: *const f32,
    /// lse, natural log, `[lanes]`.
    pub lse: *const f32,
    /// s0, `[lanes]`: read if given, otherwise written.
    pub s0: *mut f32,
    /// λ without dropout, `[lanes]`, written.
    pub lambda: *mut f32,
    /// 1 − λ, `[lanes]`, written. A sigmoid of its own: where λ is close to 1, the difference would lose its digits.
    pub rest: *mut f32,
    /// Dropout factor of λ, `[lanes]`.
    pub keep: *const f32,
    /// `m₀λh` (r_v rows) and `m₀λ` (one row): what multiplies the value slot `[B_v; b_v]`. Written.
    pub f: *mut f32,
}

impl InducerTile {
    fn key_rows(&self) -> usize {
        if self.key_rank > 0 { 2 * self.key_rank + 1 } else { 0 }
    }
}

/// Scores, λ and the rows `f` of the forward; also what the backward begins with.
///
/// # Safety
/// The contract of [`Vector`]; memory as described.
#[inline(always)]
pub(crate) unsafe fn inducer_forward<V: Vector>(t: &InducerTile) {
    let (rk, rv, key_rows) = (t.key_rank, t.value_rank, t.key_rows());
    let mut lane = 0;
    while lane < t.lanes {
        let z = t.z.add(lane);
        let mut s0 = V::splat(f32::NEG_INFINITY);
        if t.score == Score::Key {
            let mut dot = V::load(t.qq.add(lane));
            for r in 0..rk {
                let u = V::add(V::load(z.add(r * t.lanes)), V::splat(*t.key_bias.add(r)));
                let u = if t.key_tanh { math::tanh(u) } else { u };
                u.store(z.add(r * t.lanes));
                dot = V::fma(u, V::load(z.add((rk + r) * t.lanes)), dot);
            }
            if rk > 0 {
                dot = V::add(dot, V::load(z.add(2 * rk * t.lanes)));
            }
            s0 = V::mul(V::mul(V::load(t.tau.add(lane)), V::splat(t.sigma)), dot);
            s0.store(t.s0.add(lane));
        } else if t.score == Score::Given {
            s0 = V::load(t.s0.add(lane));
        }
        // A given −∞ means λ = 0, also where lse is −∞ and the difference would be NaN.
        let off = V::eq(s0, V::splat(f32::NEG_INFINITY));
        let lse = V::load(t.lse.add(lane));
        let lambda = V::select(off, V::zero(), math::sigmoid(V::sub(s0, lse)));
        lambda.store(t.lambda.add(lane));
        V::select(off, V::splat(1.0), math::sigmoid(V::sub(lse, s0))).store(t.rest.add(lane));
        let weight = V::mul(lambda, V::load(t.keep.add(lane)));
        for r in 0..rv {
            let p = z.add((key_rows + r) * t.lanes);
            let h = V::add(V::load(p), V::splat(*t.value_bias.add(r)));
            let h = if t.value_tanh { math::tanh(h) } else { h };
            h.store(p);
            V::mul(weight, h).store(t.f.add(r * t.lanes + lane));
        }
        weight.store(t.f.add(rv * t.lanes + lane));
        lane += V::LANES;
    }
}

/// What the backward adds.
#[derive(Clone, Copy)]
pub(crate) struct InducerGradientTile {
    /// After [`inducer_forward`].
    pub forward: InducerTile,
    /// Products of the value slot with dO, `[r_v + 1]` rows: `G = dO B_vᵀ` and `dO·b_v`. Extended: dU in the first r_v rows.
    pub g: *const f32,
    /// `dO·O`, or `dO·attn` if `from_attention`, `[lanes]`.
    pub d_o_dot_o: *const f32,
    /// Whether the saved tensor is attn.
    pub from_attention: bool,
    /// dLSE, `[lanes]`.
    pub d_lse: *const f32,
    /// D′, `[lanes]`, written.
    pub d_prime: *mut f32,
    /// w, `[lanes]`, written.
    pub w: *mut f32,
    /// ds0, `[lanes]`, written.
    pub d_s0: *mut f32,
    /// `[dz_k; τσ ds0 u; τσ ds0; dz_v]`, rows as the key slot's, written.
    pub e: *mut f32,
    /// `2 τσ ds0`, `[lanes]`, what multiplies Q in dQ; written.
    pub q_factor: *mut f32,
}

/// Row constants of the attention's backward and gradients of the inducer's products, DESIGN's equations:
///
/// ```text
/// Residual:  ds0 = λ(1−λ) m₀ dO·Δ          D′ = dO·O − m₀ λ² dO·Δ − dLSE = dO·attn + ds0 − dLSE
/// Direct:    ds0 = λ (m₀ dO·Δ − dO·O)      D′ = (1−λ) dO·O − dLSE
/// Extended:  ds0 = λ(1−λ) m₀ dU·h          D′ = dO·attn + ds0 − dLSE
/// dz_k = τσ ds0 (W ∘ (1−u²))               dz_v = m₀ λ G ∘ (1−h²)
/// ```
///
/// # Safety
/// As for [`inducer_forward`].
#[inline(always)]
pub(crate) unsafe fn inducer_backward<V: Vector>(t: &InducerGradientTile) {
    let f = &t.forward;
    let (rk, rv, key_rows, lanes) = (f.key_rank, f.value_rank, f.key_rows(), f.lanes);
    let (zero, one) = (V::zero(), V::splat(1.0));
    let mut lane = 0;
    while lane < f.lanes {
        let (z, e, g) = (f.z.add(lane), t.e.add(lane), t.g.add(lane));
        let lambda = V::load(f.lambda.add(lane));
        let keep = V::load(f.keep.add(lane));
        let lse = V::load(f.lse.add(lane));
        // The gradient of the lse of a row that sees nothing has nowhere to go.
        let nothing = V::eq(lse, V::splat(f32::NEG_INFINITY));
        let d_lse = V::select(nothing, zero, V::load(t.d_lse.add(lane)));
        // dO·Δ, Extended: dU·h.
        let mut d_delta = zero;
        for r in 0..rv {
            d_delta = V::fma(V::load(z.add((key_rows + r) * lanes)), V::load(g.add(r * lanes)), d_delta);
        }
        if matches!(f.value, Value::Residual | Value::Direct) {
            d_delta = V::add(d_delta, V::load(g.add(rv * lanes)));
        }
        let kept = V::mul(keep, d_delta);
        let rest = V::load(f.rest.add(lane));
        let saved = V::load(t.d_o_dot_o.add(lane));
        let (w, d_s0, d_prime);
        match f.value {
            Value::Zero | Value::Direct => {
                w = rest;
                let d_o_dot_o;
                if t.from_attention {
                    d_o_dot_o = V::fma(lambda, kept, V::mul(rest, saved));
                    // dO·Δ − dO·O = (1−λ)(dO·Δ − dO·attn), without the cancellation where λ is close to 1.
                    d_s0 = V::mul(V::mul(lambda, rest), V::sub(kept, saved));
                } else {
                    d_o_dot_o = saved;
                    // Where λ is 1 it stays there, whatever rounding has made of O.
                    let fixed = V::eq(rest, zero);
                    d_s0 = V::select(fixed, zero, V::mul(lambda, V::sub(kept, saved)));
                }
                d_prime = V::sub(V::mul(rest, d_o_dot_o), d_lse);
            }
            Value::Residual => {
                w = one;
                d_s0 = V::mul(V::mul(lambda, rest), kept);
                let attention = if t.from_attention { saved } else { V::sub(saved, V::mul(lambda, kept)) };
                d_prime = V::sub(V::add(attention, d_s0), d_lse);
            }
            Value::Extended => {
                w = one;
                d_s0 = V::mul(V::mul(lambda, rest), kept);
                d_prime = V::sub(V::add(saved, d_s0), d_lse);
            }
        }
        w.store(t.w.add(lane));
        d_s0.store(t.d_s0.add(lane));
        d_prime.store(t.d_prime.add(lane));
        if f.score == Score::Key {
            let factor = V::mul(V::mul(V::load(f.tau.add(lane)), V::splat(f.sigma)), d_s0);
            V::add(factor, factor).store(t.q_factor.add(lane));
            for r in 0..rk {
                let u = V::load(z.add(r * lanes));
                let mut dz = V::mul(factor, V::load(z.add((rk + r) * lanes)));
                if f.key_tanh {
                    dz = V::mul(dz, V::sub(one, V::mul(u, u)));
                }
                dz.store(e.add(r * lanes));
                V::mul(factor, u).store(e.add((rk + r) * lanes));
            }
            if rk > 0 {
                factor.store(e.add(2 * rk * lanes));
            }
        } else {
            zero.store(t.q_factor.add(lane));
        }
        let weight = V::mul(keep, lambda);
        for r in 0..rv {
            let h = V::load(z.add((key_rows + r) * lanes));
            let mut dz = V::mul(weight, V::load(g.add(r * lanes)));
            if f.value_tanh {
                dz = V::mul(dz, V::sub(one, V::mul(h, h)));
            }
            dz.store(e.add((key_rows + r) * lanes));
        }
        lane += V::LANES;
    }
}

/// Sums of [`dot_rows`] that run beside each other.
const CHAINS: usize = 4;

/// `out[lane] = Σ_r a[r][lane]·b[r][lane]` over `rows` rows. Every fourth row is summed by itself: dO·O is what dO·Δ cancels
/// against, and the error of one chain over all rows would be twice as large.
///
/// # Safety
/// As for [`inducer_forward`].
#[inline(always)]
pub(crate) unsafe fn dot_rows<V: Vector>(
    a: *const f32,
    b: *const f32,
    rows: usize,
    lanes: usize,
    out: *mut f32,
) {
    let mut lane = 0;
    while lane < lanes {
        let mut sums = [V::zero(); CHAINS];
        let mut r = 0;
        while r < rows {
            for (chain, sum) in sums.iter_mut().enumerate().take(rows - r) {
                let at = (r + chain) * lanes + lane;
                *sum = V::fma(V::load(a.add(at)), V::load(b.add(at)), *sum);
            }
            r += CHAINS;
        }
        let [s0, s1, s2, s3] = sums;
        V::add(V::add(s0, s1), V::add(s2, s3)).store(out.add(lane));
        lane += V::LANES;
    }
}

/// `y[r][lane] = x[r][lane]·factor[lane]` over `rows` rows.
///
/// # Safety
/// As for [`inducer_forward`].
#[inline(always)]
pub(crate) unsafe fn scaled_copy<V: Vector>(
    x: *const f32,
    y: *mut f32,
    rows: usize,
    lanes: usize,
    factor: *const f32,
) {
    let mut lane = 0;
    while lane < lanes {
        let factor = V::load(factor.add(lane));
        for r in 0..rows {
            V::mul(V::load(x.add(r * lanes + lane)), factor).store(y.add(r * lanes + lane));
        }
        lane += V::LANES;
    }
}

/// `sums[r] += Σ_lane x[r][lane]` over `rows` rows.
///
/// # Safety
/// As for [`inducer_forward`].
#[inline(always)]
pub(crate) unsafe fn add_row_sums<V: Vector>(x: *const f32, rows: usize, lanes: usize, sums: *mut f32) {
    for r in 0..rows {
        let mut sum = V::zero();
        let mut lane = 0;
        while lane < lanes {
            sum = V::add(sum, V::load(x.add(r * lanes + lane)));
            lane += V::LANES;
        }
        *sums.add(r) += sum.reduce_add();
    }
}
