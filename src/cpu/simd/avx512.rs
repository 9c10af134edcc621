//! AVX-512 (F, BW, DQ, VL), with or without the bfloat16 dot product.

#![allow(unsafe_op_in_unsafe_fn, reason = "each method is one operation under the contract of `Vector`")]

#[allow(clippy::wildcard_imports, reason = "instructions are named by their own prefix")]
use core::arch::x86_64::*;
use core::mem::transmute;

use super::vector::Vector;

/// Sixteen lanes; `BF16` says whether the processor also has AVX512-BF16.
#[derive(Clone, Copy)]
pub(super) struct Avx512<const BF16: bool>(__m512);

/// The upper half of each lane.
const HIGH_HALVES: i32 = 0xFFFF_0000_u32 as i32;

/// Each `f32` rounded to bfloat16, nearest even, in the upper half of its lane; the lower half is arbitrary for a NaN
/// and otherwise what the rounding left.
#[inline(always)]
unsafe fn round_bf16(x: __m512) -> __m512i {
    let bits = _mm512_castps_si512(x);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
    _mm512_mask_mov_epi32(rounded, _mm512_cmpunord_ps_mask(x, x), quiet)
}

impl<const BF16: bool> Vector for Avx512<BF16> {
    type Mask = __mmask16;
    type Int = __m512i;
    type Block = [Self; 16];

    const LANES: usize = 16;
    const GEMM_ROWS: usize = 12;
    const GEMM_VECTORS: usize = 2;
    const BF16_DOT: bool = BF16;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self(_mm512_setzero_ps())
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self(_mm512_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn splat_unaligned(p: *const u8) -> Self {
        Self(_mm512_set1_ps(p.cast::<f32>().read_unaligned()))
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Self(_mm512_loadu_ps(p))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        _mm512_storeu_ps(p, self.0);
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
        Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves)))
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        Self(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast())))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16) {
        let halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(round_bf16(self.0)));
        _mm256_storeu_si256(p.cast(), halves);
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16) {
        _mm256_storeu_si256(
            p.cast(),
            _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0),
        );
    }
    #[inline(always)]
    unsafe fn transpose(block: &mut Self::Block) {
        // Four rows at a time, within 128-bit quarters: u[4g + c] holds column c of each quarter for rows 4g..4g + 4.
        let mut u = *block;
        for g in 0..4 {
            let (a, b) = (block[4 * g].0, block[4 * g + 1].0);
            let (c, d) = (block[4 * g + 2].0, block[4 * g + 3].0);
            let ab = (_mm512_castps_pd(_mm512_unpacklo_ps(a, b)), _mm512_castps_pd(_mm512_unpackhi_ps(a, b)));
            let cd = (_mm512_castps_pd(_mm512_unpacklo_ps(c, d)), _mm512_castps_pd(_mm512_unpackhi_ps(c, d)));
            u[4 * g].0 = _mm512_castpd_ps(_mm512_unpacklo_pd(ab.0, cd.0));
            u[4 * g + 1].0 = _mm512_castpd_ps(_mm512_unpackhi_pd(ab.0, cd.0));
            u[4 * g + 2].0 = _mm512_castpd_ps(_mm512_unpacklo_pd(ab.1, cd.1));
            u[4 * g + 3].0 = _mm512_castpd_ps(_mm512_unpackhi_pd(ab.1, cd.1));
        }
        // Then the quarters: column 4l + c is quarter l of u[c], u[4 + c], u[8 + c], u[12 + c].
        for c in 0..4 {
            let even = (
                _mm512_shuffle_f32x4::<0x88>(u[c].0, u[4 + c].0),
                _mm512_shuffle_f32x4::<0x88>(u[8 + c].0, u[12 + c].0),
            );
            let odd = (
                _mm512_shuffle_f32x4::<0xDD>(u[c].0, u[4 + c].0),
                _mm512_shuffle_f32x4::<0xDD>(u[8 + c].0, u[12 + c].0),
            );
            block[c].0 = _mm512_shuffle_f32x4::<0x88>(even.0, even.1);
            block[4 + c].0 = _mm512_shuffle_f32x4::<0x88>(odd.0, odd.1);
            block[8 + c].0 = _mm512_shuffle_f32x4::<0xDD>(even.0, even.1);
            block[12 + c].0 = _mm512_shuffle_f32x4::<0xDD>(odd.0, odd.1);
        }
    }
    #[inline(always)]
    unsafe fn zero_block() -> Self::Block {
        [Self::zero(); 16]
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        _mm_prefetch::<_MM_HINT_T1>(p.cast());
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        Self(_mm512_add_ps(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        Self(_mm512_sub_ps(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        Self(_mm512_mul_ps(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        Self(_mm512_div_ps(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn fma(a: Self, b: Self, c: Self) -> Self {
        Self(_mm512_fmadd_ps(a.0, b.0, c.0))
    }
    #[inline(always)]
    unsafe fn max(a: Self, b: Self) -> Self {
        Self(_mm512_max_ps(a.0, b.0))
    }
    #[inline(always)]
    unsafe fn min(a: Self, b: Self) -> Self {
        Self(_mm512_min_ps(a.0, b.0))
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        Self(_mm512_abs_ps(self.0))
    }
    #[inline(always)]
    unsafe fn copy_sign(self, sign: Self) -> Self {
        // Truth table of c ? b : a, with c the sign-bit mask.
        Self(_mm512_castsi512_ps(_mm512_ternarylogic_epi32::<0xD8>(
            _mm512_castps_si512(self.0),
            _mm512_castps_si512(sign.0),
            _mm512_set1_epi32(i32::MIN),
        )))
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        Self(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0))
    }
    #[inline(always)]
    unsafe fn reduce_add(self) -> f32 {
        _mm512_reduce_add_ps(self.0)
    }
    #[inline(always)]
    unsafe fn reduce_max(self) -> f32 {
        _mm512_reduce_max_ps(self.0)
    }

    #[inline(always)]
    unsafe fn exp2_split(x: Self) -> (Self, Self) {
        // x − ⌊x⌋, which the instruction defines as 0 for infinite x. The scaling takes the floor by itself.
        (Self(_mm512_reduce_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(x.0)), x)
    }
    #[inline(always)]
    unsafe fn exp2_scale(p: Self, exponent: Self) -> Self {
        Self(_mm512_scalef_ps(p.0, exponent.0))
    }

    #[inline(always)]
    unsafe fn lt(a: Self, b: Self) -> __mmask16 {
        _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a.0, b.0)
    }
    #[inline(always)]
    unsafe fn le(a: Self, b: Self) -> __mmask16 {
        _mm512_cmp_ps_mask::<_CMP_LE_OQ>(a.0, b.0)
    }
    #[inline(always)]
    unsafe fn eq(a: Self, b: Self) -> __mmask16 {
        _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a.0, b.0)
    }
    #[inline(always)]
    unsafe fn select(mask: __mmask16, a: Self, b: Self) -> Self {
        Self(_mm512_mask_blend_ps(mask, b.0, a.0))
    }
    #[inline(always)]
    unsafe fn keep(mask: __mmask16, a: Self) -> Self {
        Self(_mm512_maskz_mov_ps(mask, a.0))
    }
    #[inline(always)]
    unsafe fn mask_and(a: __mmask16, b: __mmask16) -> __mmask16 {
        a & b
    }
    #[inline(always)]
    unsafe fn mask_or(a: __mmask16, b: __mmask16) -> __mmask16 {
        a | b
    }
    #[inline(always)]
    unsafe fn mask_and_not(a: __mmask16, b: __mmask16) -> __mmask16 {
        a & !b
    }
    #[inline(always)]
    unsafe fn mask_bits(mask: __mmask16) -> u32 {
        u32::from(mask)
    }

    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> __m512i {
        _mm512_set1_epi32(x)
    }
    #[inline(always)]
    unsafe fn load_i32(p: *const i32) -> __m512i {
        _mm512_loadu_si512(p.cast())
    }
    #[inline(always)]
    unsafe fn store_i32(x: __m512i, p: *mut i32) {
        _mm512_storeu_si512(p.cast(), x);
    }
    #[inline(always)]
    unsafe fn lt_i32(a: __m512i, b: __m512i) -> __mmask16 {
        _mm512_cmplt_epi32_mask(a, b)
    }
    #[inline(always)]
    unsafe fn add_i32(a: __m512i, b: __m512i) -> __m512i {
        _mm512_add_epi32(a, b)
    }
    #[inline(always)]
    unsafe fn and_i32(a: __m512i, b: __m512i) -> __m512i {
        _mm512_and_si512(a, b)
    }
    #[inline(always)]
    unsafe fn xor_i32(a: __m512i, b: __m512i) -> __m512i {
        _mm512_xor_si512(a, b)
    }
    #[inline(always)]
    unsafe fn mul_wide_u32(a: __m512i, b: __m512i) -> (__m512i, __m512i) {
        let even = _mm512_mul_epu32(a, b);
        let odd = _mm512_mul_epu32(_mm512_srli_epi64::<32>(a), _mm512_srli_epi64::<32>(b));
        let low = _mm512_mask_mov_epi32(even, 0xAAAA, _mm512_slli_epi64::<32>(odd));
        let high = _mm512_mask_mov_epi32(_mm512_srli_epi64::<32>(even), 0xAAAA, odd);
        (low, high)
    }
    #[inline(always)]
    unsafe fn shift_right_u32<const BITS: u32>(a: __m512i) -> __m512i {
        _mm512_srli_epi32::<BITS>(a)
    }
    #[inline(always)]
    unsafe fn convert_i32(a: __m512i) -> Self {
        Self(_mm512_cvtepi32_ps(a))
    }
    #[inline(always)]
    unsafe fn to_bits(self) -> __m512i {
        _mm512_castps_si512(self.0)
    }
    #[inline(always)]
    unsafe fn from_bits(bits: __m512i) -> Self {
        Self(_mm512_castsi512_ps(bits))
    }

    #[inline(always)]
    unsafe fn dot_bf16(acc: Self, a: Self, b: Self) -> Self {
        let (a, b) = (_mm512_castps_si512(a.0), _mm512_castps_si512(b.0));
        if BF16 {
            return Self(_mm512_dpbf16_ps(
                acc.0,
                transmute::<__m512i, __m512bh>(a),
                transmute::<__m512i, __m512bh>(b),
            ));
        }
        let (a_low, b_low) = (_mm512_slli_epi32::<16>(a), _mm512_slli_epi32::<16>(b));
        let mask = _mm512_set1_epi32(HIGH_HALVES);
        let (a_high, b_high) = (_mm512_and_si512(a, mask), _mm512_and_si512(b, mask));
        let low = _mm512_fmadd_ps(_mm512_castsi512_ps(a_low), _mm512_castsi512_ps(b_low), acc.0);
        Self(_mm512_fmadd_ps(_mm512_castsi512_ps(a_high), _mm512_castsi512_ps(b_high), low))
    }
    #[inline(always)]
    unsafe fn pack_bf16(low: Self, high: Self) -> Self {
        if BF16 {
            // The conversion puts `low` in elements 0..16 and `high` in 16..32; the permutation interleaves them.
            let halves = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high.0, low.0));
            let lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
            let partner = _mm512_slli_epi32::<16>(_mm512_add_epi32(lane, _mm512_set1_epi32(16)));
            let order = _mm512_or_si512(lane, partner);
            return Self(_mm512_castsi512_ps(_mm512_permutexvar_epi16(order, halves)));
        }
        let low = _mm512_srli_epi32::<16>(round_bf16(low.0));
        let high = _mm512_and_si512(round_bf16(high.0), _mm512_set1_epi32(HIGH_HALVES));
        Self(_mm512_castsi512_ps(_mm512_or_si512(low, high)))
    }
    #[inline(always)]
    unsafe fn interleave_bf16(low: *const u16, high: *const u16) -> Self {
        let low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(low.cast()));
        let high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(high.cast()));
        Self(_mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32::<16>(high))))
    }
}
