//! From products to scores: softcap, ALiBi and mask.

use crate::cpu::simd::math;
use crate::cpu::simd::vector::Vector;

/// A tile of scores `[keys][lanes]`, in place.
#[derive(Clone, Copy)]
pub(crate) struct ScoreTile {
    pub s: *mut f32,
    pub keys: usize,
    pub lanes: usize,
    /// Number of the first key.
    pub first_key: i32,
}

/// Hides what rows do not see: −∞ outside `lo <= key < hi`.
///
/// # Safety
/// The contract of [`Vector`]; the tile is writable, `lo` and `hi` hold `lanes` numbers, a multiple of the vector's.
#[inline(always)]
pub(crate) unsafe fn mask<V: Vector>(t: &ScoreTile, lo: *const i32, hi: *const i32) {
    let hidden = V::splat(f32::NEG_INFINITY);
    let mut lane = 0;
    while lane < t.lanes {
        let (lo, hi) = (V::load_i32(lo.add(lane)), V::load_i32(hi.add(lane)));
        for j in 0..t.keys {
            let p = t.s.add(j * t.lanes + lane);
            let key = V::splat_i32(t.first_key + j as i32);
            V::select(V::in_range(key, lo, hi), V::load(p), hidden).store(p);
        }
        lane += V::LANES;
    }
}

/// What softcap and ALiBi need to turn products into scores in units of log2.
#[derive(Clone, Copy)]
pub(crate) struct Transform {
    /// σ·log2 e without softcap; σ/c with it.
    pub scale: f32,
    /// c·log2 e, or 0 for no softcap.
    pub cap: f32,
    /// slope·log2 e, or 0 for no ALiBi.
    pub slope: f32,
    /// Key position of each lane, `[lanes]`.
    pub position: *const i32,
    /// Where the derivative of the softcap goes, a tile like the scores; null if not wanted.
    pub derivative: *mut f32,
}

/// `s ← (c·tanh(σ s/c) − slope·|position − key|)·log2 e`.
///
/// # Safety
/// As for [`mask`]; `position` holds `lanes` numbers, `derivative` is null or a writable tile.
#[inline(always)]
pub(crate) unsafe fn transform<V: Vector>(t: &ScoreTile, f: &Transform) {
    let (scale, cap, slope) = (V::splat(f.scale), V::splat(f.cap), V::splat(f.slope));
    let one = V::splat(1.0);
    let mut lane = 0;
    while lane < t.lanes {
        let position = V::load_i32(f.position.add(lane));
        for j in 0..t.keys {
            let at = j * t.lanes + lane;
            let mut s = V::mul(V::load(t.s.add(at)), scale);
            if f.cap != 0.0 {
                let tanh = math::tanh(s);
                if !f.derivative.is_null() {
                    V::sub(one, V::mul(tanh, tanh)).store(f.derivative.add(at));
                }
                s = V::mul(tanh, cap);
            }
            if f.slope != 0.0 {
                // The difference of two numbers below 2^31 may be 2^31: take it in f32, where that is harmless.
                let key = V::splat((t.first_key + j as i32) as f32);
                let distance = V::sub(V::convert_i32(position), key).abs();
                s = V::sub(s, V::mul(slope, distance));
            }
            s.store(t.s.add(at));
        }
        lane += V::LANES;
    }
}
