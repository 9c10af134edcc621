//! AVX2 with FMA and F16C.

#![allow(unsafe_op_in_unsafe_fn, reason = "each method is one operation under the contract of `Vector`")]

#[allow(clippy::wildcard_imports, reason = "instructions are named by their own prefix")]
use core::arch::x86_64::*;

use super::vector::Vector;

/// Eight lanes.
#[derive(Clone, Copy)]
pub(super) struct Avx2(__m256);

/// The upper half of each lane.
const HIGH_HALVES: i32 = 0xFFFF_0000_u32 as i32;

/// Each `f32` rounded to bfloat16, nearest even, in the upper half of its lane; the lower half is arbitrary.
#[inline(always)]
unsafe fn round_bf16(x: __m256) -> __m256i {
    let bits = _mm256_castps_si256(x);
    let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
    let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
    let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(x, x);
    _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), nan))
}

#[inline(always)]
unsafe fn widen_u16(p: *const u16) -> __m256i {
    _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()))
}

impl Vector for Avx2 {
    /// All bits of a lane set, or none.
    type Mask = __m256;
    type Int = __m256i;
    type Block = [Self; 8];

    const LANES: usize = 8;
    const GEMM_ROWS: usize = 6;
    const GEMM_VECTORS: usize = 2;
    const BF16_DOT: bool = false;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self(_mm256_setzero_ps())
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self(_mm256_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn splat_unaligned(p: *const u8) -> Self {
        Self(_mm256_set1_ps(p.cast::<f32>().read_unaligned()))
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Self(_mm256_loadu_ps(p))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        _mm256_storeu_ps(p, self.0);
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(widen_u16(p))))
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        Self(_mm256_cvtph_ps(_mm_loadu_si128(p.cast())))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16) {
        let halves = _mm256_srli_epi32::<16>(round_bf16(self.0));
        let packed = _mm_packus_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
        _mm_storeu_si128(p.cast(), packed);
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16) {
        _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0));
    }
    #[inline(always)]
    unsafe fn transpose(block: &mut Self::Block) {
        // Four rows at a time, within 128-bit halves: u[4g + c] holds column c of each half for rows 4g..4g + 4.
        let mut u = *block;
        for g in 0..2 {
            let (a, b) = (block[4 * g].0, block[4 * g + 1].0);
            let (c, d) = (block[4 * g + 2].0, block[4 * g + 3].0);
            let ab = (_mm256_castps_pd(_mm256_unpacklo_ps(a, b)), _mm256_castps_pd(_mm256_unpackhi_ps(a, b)));
            let cd = (_mm256_castps_pd(_mm256_unpacklo_ps(c, d)), _mm256_castps_pd(_mm256_unpackhi_ps(c, d)));
            u[4 * g].0 = _mm256_castpd_ps(_mm256_unpacklo_pd(ab.0, cd.0));
            u[4 * g + 1].0 = _mm256_castpd_ps(_mm256_unpackhi_pd(ab.0, cd.0));
            u[4 * g + 2].0 = _mm256_castpd_ps(_mm256_unpacklo_pd(ab.1, cd.1));
            u[4 * g + 3].0 = _mm256_castpd_ps(_mm256_unpackhi_pd(ab.1, cd.1));
        }
        for c in 0..4 {
            block[c].0 = _mm256_permute2f128_ps::<0x20>(u[c].0, u[4 + c].0);
            block[4 + c].0 = _mm256_permute2f128_ps::<0x31>(u[c].0, u[4 + c].0);
        }
    }
    #[inline(always)]
    unsafe fn zero_block() -> Self::Block {
        [Self::zero(); 8]
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        _mm_prefetch::<_MM_HINT_T1>(p.cast());
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        Self(_mm256_add_ps(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        Self(_mm256_sub_ps(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        Self(_mm256_mul_ps(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        Self(_mm256_div_ps(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn fma(a: Self, b: Self, c: Self) -> Self {
        Self(_mm256_fmadd_ps(a.0, b.0, c.0))
    }
    #[inline(always)]
    unsafe fn max(a: Self, b: Self) -> Self {
        Self(_mm256_max_ps(a.0, b.0))
    }
    #[inline(always)]
    unsafe fn min(a: Self, b: Self) -> Self {
        Self(_mm256_min_ps(a.0, b.0))
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        Self(_mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0))
    }
    #[inline(always)]
    unsafe fn copy_sign(self, sign: Self) -> Self {
        Self(_mm256_or_ps(self.abs().0, _mm256_and_ps(_mm256_set1_ps(-0.0), sign.0)))
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        Self(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0))
    }
    #[inline(always)]
    unsafe fn reduce_add(self) -> f32 {
        let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }
    #[inline(always)]
    unsafe fn reduce_max(self) -> f32 {
        let four = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
    }

    #[inline(always)]
    unsafe fn exp2_split(x: Self) -> (Self, Self) {
        // The bounds make the biased exponent 0 (a zero result) or 255 (an infinite one). NaN, as second operand, passes.
        let x = Self::min(Self::splat(128.0), Self::max(Self::splat(-127.0), x));
        let floor = _mm256_floor_ps(x.0);
        (Self(_mm256_sub_ps(x.0, floor)), Self(floor))
    }
    #[inline(always)]
    unsafe fn exp2_scale(p: Self, exponent: Self) -> Self {
        let biased = _mm256_add_epi32(_mm256_cvtps_epi32(exponent.0), _mm256_set1_epi32(127));
        Self(_mm256_mul_ps(p.0, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))))
    }

    #[inline(always)]
    unsafe fn lt(a: Self, b: Self) -> __m256 {
        _mm256_cmp_ps::<_CMP_LT_OQ>(a.0, b.0)
    }
    #[inline(always)]
    unsafe fn le(a: Self, b: Self) -> __m256 {
        _mm256_cmp_ps::<_CMP_LE_OQ>(a.0, b.0)
    }
    #[inline(always)]
    unsafe fn eq(a: Self, b: Self) -> __m256 {
        _mm256_cmp_ps::<_CMP_EQ_OQ>(a.0, b.0)
    }
    #[inline(always)]
    unsafe fn select(mask: __m256, a: Self, b: Self) -> Self {
        Self(_mm256_blendv_ps(b.0, a.0, mask))
    }
    #[inline(always)]
    unsafe fn keep(mask: __m256, a: Self) -> Self {
        Self(_mm256_and_ps(mask, a.0))
    }
    #[inline(always)]
    unsafe fn mask_and(a: __m256, b: __m256) -> __m256 {
        _mm256_and_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mask_or(a: __m256, b: __m256) -> __m256 {
        _mm256_or_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mask_and_not(a: __m256, b: __m256) -> __m256 {
        _mm256_andnot_ps(b, a)
    }
    #[inline(always)]
    unsafe fn mask_bits(mask: __m256) -> u32 {
        _mm256_movemask_ps(mask) as u32
    }

    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> __m256i {
        _mm256_set1_epi32(x)
    }
    #[inline(always)]
    unsafe fn load_i32(p: *const i32) -> __m256i {
        _mm256_loadu_si256(p.cast())
    }
    #[inline(always)]
    unsafe fn store_i32(x: __m256i, p: *mut i32) {
        _mm256_storeu_si256(p.cast(), x);
    }
    #[inline(always)]
    unsafe fn lt_i32(a: __m256i, b: __m256i) -> __m256 {
        _mm256_castsi256_ps(_mm256_cmpgt_epi32(b, a))
    }
    #[inline(always)]
    unsafe fn add_i32(a: __m256i, b: __m256i) -> __m256i {
        _mm256_add_epi32(a, b)
    }
    #[inline(always)]
    unsafe fn and_i32(a: __m256i, b: __m256i) -> __m256i {
        _mm256_and_si256(a, b)
    }
    #[inline(always)]
    unsafe fn xor_i32(a: __m256i, b: __m256i) -> __m256i {
        _mm256_xor_si256(a, b)
    }
    #[inline(always)]
    unsafe fn mul_wide_u32(a: __m256i, b: __m256i) -> (__m256i, __m256i) {
        let even = _mm256_mul_epu32(a, b);
        let odd = _mm256_mul_epu32(_mm256_srli_epi64::<32>(a), _mm256_srli_epi64::<32>(b));
        let low = _mm256_blend_epi32::<0xAA>(even, _mm256_slli_epi64::<32>(odd));
        let high = _mm256_blend_epi32::<0xAA>(_mm256_srli_epi64::<32>(even), odd);
        (low, high)
    }
    #[inline(always)]
    unsafe fn shift_right_u32<const BITS: u32>(a: __m256i) -> __m256i {
        // The count is a constant, so this becomes the immediate form.
        _mm256_srl_epi32(a, _mm_cvtsi32_si128(BITS as i32))
    }
    #[inline(always)]
    unsafe fn convert_i32(a: __m256i) -> Self {
        Self(_mm256_cvtepi32_ps(a))
    }
    #[inline(always)]
    unsafe fn to_bits(self) -> __m256i {
        _mm256_castps_si256(self.0)
    }
    #[inline(always)]
    unsafe fn from_bits(bits: __m256i) -> Self {
        Self(_mm256_castsi256_ps(bits))
    }

    #[inline(always)]
    unsafe fn dot_bf16(acc: Self, a: Self, b: Self) -> Self {
        let (a, b) = (_mm256_castps_si256(a.0), _mm256_castps_si256(b.0));
        let (a_low, b_low) = (_mm256_slli_epi32::<16>(a), _mm256_slli_epi32::<16>(b));
        let mask = _mm256_set1_epi32(HIGH_HALVES);
        let (a_high, b_high) = (_mm256_and_si256(a, mask), _mm256_and_si256(b, mask));
        let low = _mm256_fmadd_ps(_mm256_castsi256_ps(a_low), _mm256_castsi256_ps(b_low), acc.0);
        Self(_mm256_fmadd_ps(_mm256_castsi256_ps(a_high), _mm256_castsi256_ps(b_high), low))
    }
    #[inline(always)]
    unsafe fn pack_bf16(low: Self, high: Self) -> Self {
        let low = _mm256_srli_epi32::<16>(round_bf16(low.0));
        let high = _mm256_and_si256(round_bf16(high.0), _mm256_set1_epi32(HIGH_HALVES));
        Self(_mm256_castsi256_ps(_mm256_or_si256(low, high)))
    }
    #[inline(always)]
    unsafe fn interleave_bf16(low: *const u16, high: *const u16) -> Self {
        let high = _mm256_slli_epi32::<16>(widen_u16(high));
        Self(_mm256_castsi256_ps(_mm256_or_si256(widen_u16(low), high)))
    }
}
