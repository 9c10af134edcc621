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
}
