//! The backward's tile: from scores and dP to P and dS.

use crate::cpu::simd::math;
use crate::cpu::simd::vector::Vector;

/// Scores and dP of a tile with what their rows need.
#[derive(Clone, Copy)]
pub(crate) struct GradientTile {
    /// Scores `[keys][lanes]`, −∞ where hidden; becomes `w·m̃·P`, the factor of dO in dV.
    pub s: *mut f32,
    /// dP `[keys][lanes]`; becomes `σ dS`.
    pub dp: *mut f32,
    pub keys: usize,
    pub lanes: usize,
    /// What brings scores to units of log2.
    pub scale: f32,
    /// σ.
    pub sigma: f32,
    /// lse in units of log2, 0 for rows that see nothing.
    pub lse: *const f32,
    /// Row factor w, `[lanes]`.
    pub w: *const f32,
    /// Row constant D′, `[lanes]`.
    pub d_prime: *const f32,
    /// Dropout factors m̃ `[keys][lanes]`, or null.
    pub keep: *const f32,
    /// Derivative of the softcap `[keys][lanes]`, or null.
    pub softcap: *const f32,
}

/// `P = exp(s − lse)`, `dS = P ∘ (w m̃ ∘ dP − D′)` times the softcap's derivative.
///
/// # Safety
/// The contract of [`Vector`]; tiles are as described, rows hold a multiple of the vector's lanes.
#[inline(always)]
pub(crate) unsafe fn gradient<V: Vector>(t: &GradientTile) {
    if t.keep.is_null() && t.softcap.is_null() {
        rows::<V, false>(t);
    } else {
        rows::<V, true>(t);
    }
}

#[inline(always)]
unsafe fn rows<V: Vector, const RARE: bool>(t: &GradientTile) {
    let (scale, sigma) = (V::splat(t.scale), V::splat(t.sigma));
    let mut lane = 0;
    while lane < t.lanes {
        let offset = V::sub(V::zero(), V::load(t.lse.add(lane)));
        let w = V::load(t.w.add(lane));
        let d_prime = V::mul(V::load(t.d_prime.add(lane)), sigma);
        let sigma_w = V::mul(w, sigma);
        for j in 0..t.keys {
            let at = j * t.lanes + lane;
            let p = math::exp2(V::fma(V::load(t.s.add(at)), scale, offset));
            let mut factor = V::load(t.dp.add(at));
            let mut kept = V::mul(p, w);
            if RARE && !t.keep.is_null() {
                let keep = V::load(t.keep.add(at));
                factor = V::mul(factor, keep);
                kept = V::mul(kept, keep);
            }
            let mut ds = V::mul(p, V::sub(V::mul(factor, sigma_w), d_prime));
            if RARE && !t.softcap.is_null() {
                ds = V::mul(ds, V::load(t.softcap.add(at)));
            }
            // A hidden key's dP may be anything, NaN included; a NaN probability must stay one.
            let hidden = V::eq(p, V::zero());
            V::select(hidden, V::zero(), ds).store(t.dp.add(at));
            kept.store(t.s.add(at));
        }
        lane += V::LANES;
    }
}

/// Rounds tiles to bf16 for the dot-product unit: `rows` `[keys][bf16_ld]` (queries adjacent) and, unless null, `pairs`
/// `[keys/2][lanes]` (keys 2t and 2t+1 in one lane).
#[derive(Clone, Copy)]
pub(crate) struct RoundTile {
    pub x: *const f32,
    pub keys: usize,
    pub lanes: usize,
    /// Null if not wanted.
    pub rows: *mut u16,
    /// Null if not wanted.
    pub pairs: *mut f32,
}

/// See [`RoundTile`]. Rows of `rows` are `lanes` elements long.
///
/// # Safety
/// As for [`gradient`].
#[inline(always)]
pub(crate) unsafe fn round_bf16<V: Vector>(t: &RoundTile) {
    let mut j = 0;
    while j < t.keys {
        let mut lane = 0;
        let two = j + 1 < t.keys;
        while lane < t.lanes {
            let low = V::load(t.x.add(j * t.lanes + lane));
            let high = if two { V::load(t.x.add((j + 1) * t.lanes + lane)) } else { V::zero() };
            if !t.rows.is_null() {
                low.store_bf16(t.rows.add(j * t.lanes + lane));
                if two {
                    high.store_bf16(t.rows.add((j + 1) * t.lanes + lane));
                }
            }
            if !t.pairs.is_null() {
                V::pack_bf16(low, high).store(t.pairs.add(j / 2 * t.lanes + lane));
            }
            lane += V::LANES;
        }
        j += 2;
    }
}
