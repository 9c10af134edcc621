//! What a core can do at most: multiply-adds on registers alone, the yardstick of the other kernels.

#![allow(unsafe_op_in_unsafe_fn, reason = "vector operations under the contract of `Vector`")]

use super::vector::Vector;

/// Independent chains of multiply-adds, enough to cover their latency.
pub(crate) const CHAINS: usize = 12;

/// [`CHAINS`] multiply-adds of vectors, `steps` times, of `f32`; the results' sum goes to `out`.
///
/// # Safety
///
/// The contract of [`Vector`]; `out` is writable.
#[inline(always)]
pub(super) unsafe fn fma_peak<V: Vector>(steps: usize, out: *mut f32) {
    chains::<V, false>(steps, out);
}

/// The same of bfloat16 dot products.
///
/// # Safety
///
/// As for [`fma_peak`].
#[inline(always)]
pub(super) unsafe fn dot_peak<V: Vector>(steps: usize, out: *mut f32) {
    chains::<V, true>(steps, out);
}

#[inline(always)]
unsafe fn chains<V: Vector, const PAIRS: bool>(steps: usize, out: *mut f32) {
    // Zero times one plus zero, in a disguise that the compiler does not see through.
    let a = V::splat(core::hint::black_box(0.0));
    let b = V::splat(core::hint::black_box(0.0));
    let mut acc = [V::zero(); CHAINS];
    for _ in 0..steps {
        for chain in 0..CHAINS {
            acc[chain] = if PAIRS { V::dot_bf16(acc[chain], a, b) } else { V::fma(acc[chain], a, b) };
        }
    }
    let mut sum = V::zero();
    for chain in 0..CHAINS {
        sum = sum.add(acc[chain]);
    }
    *out = sum.reduce_add();
}
