//! Elementary functions of the softmax, with stated error bounds.

#![allow(unsafe_op_in_unsafe_fn, reason = "vector operations under the contract of `Vector`")]

use super::vector::Vector;

/// (2^r − 1)/r on [0, 1], minimax in the relative error of 2^r: 2.1e-9.
const EXP2_DEGREE_6: [f32; 6] =
    [0.693_147_06, 0.240_229_08, 0.055_486_184, 0.009_673_775, 0.001_248_228_8, 0.000_215_659_85];

/// The same at degree 4: 2.9e-6.
const EXP2_DEGREE_4: [f32; 4] = [0.693_044_84, 0.241_280_23, 0.052_242_436, 0.013_426_711];

/// 2^x, within 1.5 ulp (2 without fused multiply-add).
///
/// 2^x = 2^⌊x⌋ · p(x − ⌊x⌋) with a polynomial p of degree 6 and p(0) = 1, so that integers give exact powers. −∞ gives 0,
/// x ≥ 128 gives ∞, NaN gives NaN; results below 2⁻¹²⁶ may be flushed to zero.
///
/// # Safety
///
/// The contract of [`Vector`].
#[inline(always)]
pub(crate) unsafe fn exp2<V: Vector>(x: V) -> V {
    exp2_polynomial(x, EXP2_DEGREE_6)
}

/// 2^x with relative error below 3.2e-6, for results that are rounded to bfloat16 or half precision afterwards;
/// otherwise as [`exp2`].
///
/// # Safety
///
/// The contract of [`Vector`].
#[inline(always)]
pub(crate) unsafe fn exp2_bf16<V: Vector>(x: V) -> V {
    exp2_polynomial(x, EXP2_DEGREE_4)
}

#[inline(always)]
unsafe fn exp2_polynomial<V: Vector, const DEGREE: usize>(x: V, coefficients: [f32; DEGREE]) -> V {
    let (r, exponent) = V::exp2_split(x);
    let mut p = V::splat(coefficients[DEGREE - 1]);
    for i in (0..DEGREE - 1).rev() {
        p = V::fma(p, r, V::splat(coefficients[i]));
    }
    V::exp2_scale(V::fma(p, r, V::splat(1.0)), exponent)
}

/// ln 2 in two parts: the product of the first with an integer below 2¹⁵ is exact.
const LN_2_HIGH: f32 = 355.0 / 512.0;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// ln 2⁻¹²⁶: e^x is a normal number from here on.
const EXP_SMALLEST: f32 = -87.336_54;

/// A bound beyond which e^x overflows.
const EXP_LARGEST: f32 = 89.0;

/// (e^r − 1 − r)/r² for |r| ≤ ln 2 / 2, minimax in the relative error of e^r − 1: 1.5e-8.
const EXPM1: [f32; 5] = [0.499_999_97, 0.166_665_39, 0.041_667_745, 0.008_367_057, 0.001_383_870_7];

/// `(n, e^r − 1)` with x = n · ln 2 + r, n an integer, r about half of ln 2 at most. For |x| < 2¹⁵.
#[inline(always)]
unsafe fn expm1_reduced<V: Vector>(x: V) -> (V, V) {
    let n = V::round(x.mul(V::splat(core::f32::consts::LOG2_E)));
    let r = V::fma(n, V::splat(-LN_2_HIGH), x);
    let r = V::fma(n, V::splat(-LN_2_LOW), r);
    let mut q = V::splat(EXPM1[EXPM1.len() - 1]);
    for i in (0..EXPM1.len() - 1).rev() {
        q = V::fma(q, r, V::splat(EXPM1[i]));
    }
    (n, V::fma(q.mul(r), r, r))
}

/// e^x, within 1.25 ulp; results below 2⁻¹²⁶ are flushed to zero, NaN gives NaN.
///
/// e^x = 2^n · (1 + (e^r − 1)), the parenthesis a polynomial of degree 6 in r.
///
/// # Safety
///
/// The contract of [`Vector`].
#[inline(always)]
pub(crate) unsafe fn exp<V: Vector>(x: V) -> V {
    // NaN, as second operand, passes the bounds.
    let bounded = V::min(V::splat(EXP_LARGEST), V::max(V::splat(EXP_SMALLEST), x));
    let (n, expm1) = expm1_reduced(bounded);
    // The largest results have n = 128 and a fraction below 1; 2^127 twice the fraction is the same and representable.
    let two = V::splat(2.0);
    let last = V::eq(n, V::splat(128.0));
    let p = V::select(last, V::fma(two, expm1, two), expm1.add(V::splat(1.0)));
    let y = V::exp2_scale(p, V::select(last, V::splat(127.0), n));
    V::select(V::lt(x, V::splat(EXP_SMALLEST)), V::zero(), y)
}

/// (ln(1 + f) − f + f²/2)/f³ for 1 + f from √½ to √2, minimax in the relative error of the logarithm: 6.7e-9.
const LN: [f32; 8] = [
    0.333_333_3,
    -0.250_008_23,
    0.200_012_61,
    -0.166_233_14,
    0.142_008_87,
    -0.131_601_14,
    0.127_666_62,
    -0.076_381_17,
];

/// Bits of √½.
const SQRT_HALF_BITS: i32 = 0x3F35_04F3;
/// Bits of 1.
const ONE_BITS: i32 = 0x3F80_0000;
/// Bits of a fraction.
const FRACTION_BITS: i32 = 0x007F_FFFF;

/// ln x, within 1 ulp; ln 0 = −∞, ln ∞ = ∞, and NaN for NaN and negative x. Subnormal numbers are exact arguments.
///
/// x = 2^e · (1 + f) with 1 + f from √½ to √2, by integer arithmetic on the bits; ln x = e · ln 2 + ln(1 + f), the latter a
/// polynomial of degree 10 in f.
///
/// # Safety
///
/// The contract of [`Vector`].
#[inline(always)]
pub(crate) unsafe fn ln<V: Vector>(x: V) -> V {
    // 2^25 makes a subnormal number normal.
    let subnormal = V::lt(x, V::splat(f32::MIN_POSITIVE));
    let normal = V::select(subnormal, x.mul(V::splat(33_554_432.0)), x);
    let bits = V::add_i32(normal.to_bits(), V::splat_i32(ONE_BITS - SQRT_HALF_BITS));
    let biased = V::convert_i32(V::shift_right_u32::<23>(bits));
    let e = biased.sub(V::select(subnormal, V::splat(127.0 + 25.0), V::splat(127.0)));
    let fraction = V::and_i32(bits, V::splat_i32(FRACTION_BITS));
    let f = V::from_bits(V::add_i32(fraction, V::splat_i32(SQRT_HALF_BITS))).sub(V::splat(1.0));
    let mut p = V::splat(LN[LN.len() - 1]);
    for i in (0..LN.len() - 1).rev() {
        p = V::fma(p, f, V::splat(LN[i]));
    }
    let square = f.mul(f);
    // From the small terms to the large ones.
    let tail = V::fma(e, V::splat(LN_2_LOW), p.mul(f).mul(square));
    let tail = V::fma(V::splat(-0.5), square, tail);
    let y = V::fma(e, V::splat(LN_2_HIGH), f.add(tail));
    let y = V::select(V::lt(x, V::zero()), V::splat(f32::NAN), y);
    let y = V::select(V::eq(x, V::zero()), V::splat(f32::NEG_INFINITY), y);
    // Infinity and NaN are their own logarithms.
    V::select(V::lt(x, V::splat(f32::INFINITY)), y, x)
}

/// A bound beyond which tanh is 1 in `f32`.
const TANH_LARGEST: f32 = 9.5;

/// tanh x, within 2.5 ulp everywhere; tanh ±∞ = ±1, NaN gives NaN.
///
/// tanh |x| = y/(y + 2) with y = e^(2|x|) − 1, which keeps its relative accuracy down to the smallest numbers:
/// y = 2^n · (e^r − 1) + (2^n − 1).
///
/// # Safety
///
/// The contract of [`Vector`].
#[inline(always)]
pub(crate) unsafe fn tanh<V: Vector>(x: V) -> V {
    let magnitude = V::min(V::splat(TANH_LARGEST), x.abs());
    let (n, expm1) = expm1_reduced(magnitude.add(magnitude));
    let power = V::exp2_scale(V::splat(1.0), n);
    let y = V::fma(power, expm1, power.sub(V::splat(1.0)));
    y.div(y.add(V::splat(2.0))).copy_sign(x)
}

/// The logistic function 1/(1 + e^−x), within 2.5 ulp where it is at least 2⁻¹²⁶ and zero below; NaN gives NaN.
///
/// With t = e^−|x| it is 1/(1 + t) or t/(1 + t), so that neither end cancels or overflows.
///
/// # Safety
///
/// The contract of [`Vector`].
#[inline(always)]
pub(crate) unsafe fn sigmoid<V: Vector>(x: V) -> V {
    let t = exp(V::zero().sub(x.abs()));
    let one = V::splat(1.0);
    V::select(V::lt(x, V::zero()), t, one).div(one.add(t))
}

/// Defines a function over slices from one over vectors.
macro_rules! over_slices {
    ($($(#[$doc:meta])* $name:ident = $function:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        ///
        /// The contract of [`Vector`]; `x` readable and `y` writable for `len` elements. They may be the same.
        #[inline(always)]
        pub(super) unsafe fn $name<V: Vector>(x: *const f32, y: *mut f32, len: usize) {
            let whole = len - len % V::LANES;
            let mut i = 0;
            while i < whole {
                $function(V::load(x.add(i))).store(y.add(i));
                i += V::LANES;
            }
            if i < len {
                // The rest through a buffer of one vector.
                let mut buffer = [0.0_f32; 16];
                for j in i..len {
                    buffer[j - i] = *x.add(j);
                }
                $function(V::load(buffer.as_ptr())).store(buffer.as_mut_ptr());
                for j in i..len {
                    *y.add(j) = buffer[j - i];
                }
            }
        }
    )*};
}

over_slices! {
    /// [`exp2`] of `len` elements.
    exp2_slice = exp2;
    /// [`exp2_bf16`] of `len` elements.
    exp2_bf16_slice = exp2_bf16;
    /// [`exp`] of `len` elements.
    exp_slice = exp;
    /// [`ln`] of `len` elements.
    ln_slice = ln;
    /// [`tanh`] of `len` elements.
    tanh_slice = tanh;
    /// [`sigmoid`] of `len` elements.
    sigmoid_slice = sigmoid;
}
