//! Online softmax over tiles (Milakov and Gimelshein 2018; Dao et al. 2022).

use crate::cpu::simd::math;
use crate::cpu::simd::vector::Vector;

/// The running state of every lane's row and the next tile of its scores.
#[derive(Clone, Copy)]
pub(crate) struct SoftmaxTile {
    /// Scores `[keys][lanes]`; becomes the probabilities relative to the new maximum.
    pub s: *mut f32,
    pub keys: usize,
    pub lanes: usize,
    /// What brings scores to units of log2; not negative.
    pub scale: f32,
    /// What scores are taken relative to, in units of log2: the largest so far less [`SLACK`] at least, and at most the
    /// largest; −∞ before the first.
    pub max: *mut f32,
    /// Sum of the probabilities so far, relative to `max`.
    pub sum: *mut f32,
    /// What the accumulated output must be multiplied by.
    pub alpha: *mut f32,
    /// Set to whether some `alpha` is not 1.
    pub rescale: *mut bool,
    /// Where the probabilities go as pairs of bf16 `[keys/2][lanes]`, keys 2t and 2t+1 in one lane; null for f32 in place.
    pub pairs: *mut f32,
}

/// A maximum stays until a score passes it by more than this, in units of log2, so that what has been accumulated is
/// rarely rescaled. Probabilities relative to it are then up to 2⁸, with the same relative accuracy.
const SLACK: f32 = 8.0;

/// Takes one tile into the softmax.
///
/// # Safety
/// The contract of [`Vector`]; the tile is writable, the state holds `lanes` floats, a multiple of the vector's.
#[inline(always)]
pub(crate) unsafe fn softmax<V: Vector>(t: &SoftmaxTile) {
    *t.rescale = false;
    let mut lane = 0;
    while lane + 4 * V::LANES <= t.lanes {
        columns::<V, 4>(t, lane);
        lane += 4 * V::LANES;
    }
    while lane < t.lanes {
        columns::<V, 1>(t, lane);
        lane += V::LANES;
    }
}

#[inline(always)]
unsafe fn columns<V: Vector, const N: usize>(t: &SoftmaxTile, lane: usize) {
    let row = |j: usize| t.s.wrapping_add(j * t.lanes + lane);
    let mut max = [V::splat(f32::NEG_INFINITY); N];
    for j in 0..t.keys {
        let p = row(j);
        for (v, max) in max.iter_mut().enumerate() {
            // A NaN score is passed over here and reaches its row through the exponential.
            *max = V::max(V::load(p.add(v * V::LANES)), *max);
        }
    }
    let scale = V::splat(t.scale);
    let mut offset = [V::zero(); N];
    let mut sum = [V::zero(); N];
    let mut alpha = [V::zero(); N];
    for v in 0..N {
        let at = lane + v * V::LANES;
        let old = V::load(t.max.add(at));
        let largest = V::mul(max[v], scale);
        let new = V::select(V::lt(old.add(V::splat(SLACK)), largest), largest, old);
        new.store(t.max.add(at));
        // A row that has seen nothing stays at −∞: subtract 0 there, so that exponentials are 0, not NaN.
        let nothing = V::eq(new, V::splat(f32::NEG_INFINITY));
        let safe = V::select(nothing, V::zero(), new);
        offset[v] = V::sub(V::zero(), safe);
        alpha[v] = math::exp2(V::sub(old, safe));
        alpha[v].store(t.alpha.add(at));
        if !V::all(V::eq(alpha[v], V::splat(1.0))) {
            *t.rescale = true;
        }
    }
    if t.pairs.is_null() {
        for j in 0..t.keys {
            let p = row(j);
            for v in 0..N {
                let at = p.add(v * V::LANES);
                let e = math::exp2(V::fma(V::load(at), scale, offset[v]));
                sum[v] = V::add(sum[v], e);
                e.store(at);
            }
        }
    } else {
        let mut j = 0;
        while j < t.keys {
            let (p, q) = (row(j), row(j + 1));
            let pair = t.pairs.add(j / 2 * t.lanes + lane);
            for v in 0..N {
                let low = math::exp2_bf16(V::fma(V::load(p.add(v * V::LANES)), scale, offset[v]));
                sum[v] = V::add(sum[v], low);
                let mut high = V::zero();
                if j + 1 < t.keys {
                    high = math::exp2_bf16(V::fma(V::load(q.add(v * V::LANES)), scale, offset[v]));
                    sum[v] = V::add(sum[v], high);
                }
                V::pack_bf16(low, high).store(pair.add(v * V::LANES));
            }
            j += 2;
        }
    }
    for v in 0..N {
        let at = t.sum.add(lane + v * V::LANES);
        V::fma(V::load(at), alpha[v], sum[v]).store(at);
    }
}

/// `x[r][lane] *= factor[lane]` over `rows` rows of `lanes` floats.
///
/// # Safety
/// As for [`softmax`].
#[inline(always)]
pub(crate) unsafe fn scale_lanes<V: Vector>(x: *mut f32, rows: usize, lanes: usize, factor: *const f32) {
    let mut lane = 0;
    while lane < lanes {
        let factor = V::load(factor.add(lane));
        for r in 0..rows {
            let p = x.add(r * lanes + lane);
            V::mul(V::load(p), factor).store(p);
        }
        lane += V::LANES;
    }
}

/// Ends a softmax: `inverse = 1/sum` (0 for an empty row) and the natural-log `lse` (−∞ for an empty row).
///
/// # Safety
/// As for [`softmax`].
#[inline(always)]
pub(crate) unsafe fn finish<V: Vector>(
    max: *const f32,
    sum: *const f32,
    lanes: usize,
    inverse: *mut f32,
    lse: *mut f32,
) {
    let mut lane = 0;
    while lane < lanes {
        let (m, l) = (V::load(max.add(lane)), V::load(sum.add(lane)));
        // Not by the maximum: a row of NaN scores leaves that at −∞ as well.
        let nothing = V::eq(l, V::zero());
        let inv = V::div(V::splat(1.0), l);
        V::select(nothing, V::zero(), inv).store(inverse.add(lane));
        let log = V::fma(m, V::splat(std::f32::consts::LN_2), math::ln(l));
        V::select(nothing, m, log).store(lse.add(lane));
        lane += V::LANES;
    }
}
