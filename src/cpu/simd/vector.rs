//! The vector operations that every kernel of the CPU engine is written in.

#![allow(unsafe_op_in_unsafe_fn, reason = "default methods are made of others, under the same contract")]

/// One register of `f32` lanes of some instruction set.
///
/// Kernels are generic over this trait and every method is `#[inline(always)]`, so that a kernel compiled inside a
/// `#[target_feature]` function (see [`super::table`]) becomes straight instructions of that set. Kernels keep to
/// plain loops for the same reason: a closure is a function of its own, which need not be inlined.
///
/// # Safety
///
/// Every method requires that the processor has the instruction set of the implementing type. Holding a
/// [`super::Kernels`] table that names the type is the proof. Methods that take pointers require [`Vector::LANES`]
/// elements (or the stated number) to be readable or writable there; no alignment is required beyond that of the
/// element type, and none at all of methods whose name ends in `unaligned`.
pub(crate) trait Vector: Copy {
    /// One truth value per lane.
    type Mask: Copy;
    /// One `i32` (or, to the operations named `u32`, one `u32`) per lane.
    type Int: Copy;
    /// [`Vector::LANES`] vectors: a square block of `f32`.
    type Block: Copy + AsRef<[Self]> + AsMut<[Self]>;

    /// Number of `f32` lanes, a power of two from 4 to 16.
    const LANES: usize;
    /// Rows of C that the GEMM micro-kernel keeps in registers, at [`Vector::GEMM_VECTORS`] vectors each.
    const GEMM_ROWS: usize;
    /// Vectors per row of C that the GEMM micro-kernel keeps in registers: 1 or 2.
    const GEMM_VECTORS: usize;
    /// Whether [`Vector::dot_bf16`] is one instruction.
    const BF16_DOT: bool;

    // Memory.

    /// All lanes zero.
    unsafe fn zero() -> Self;
    /// All lanes `x`.
    unsafe fn splat(x: f32) -> Self;
    /// All lanes the four bytes at `p`.
    unsafe fn splat_unaligned(p: *const u8) -> Self;
    /// Lanes from consecutive `f32`.
    unsafe fn load(p: *const f32) -> Self;
    /// Lanes to consecutive `f32`.
    unsafe fn store(self, p: *mut f32);
    /// Lanes from consecutive bfloat16, exactly.
    unsafe fn load_bf16(p: *const u16) -> Self;
    /// Lanes from consecutive IEEE half precision, exactly.
    unsafe fn load_f16(p: *const u16) -> Self;
    /// Lanes to consecutive bfloat16, rounded to nearest even; a NaN stays a NaN.
    unsafe fn store_bf16(self, p: *mut u16);
    /// Lanes to consecutive IEEE half precision, rounded to nearest even; a NaN stays a NaN.
    unsafe fn store_f16(self, p: *mut u16);
    /// Transposes a square block held in registers.
    unsafe fn transpose(block: &mut Self::Block);
    /// A block of zeros.
    unsafe fn zero_block() -> Self::Block;
    /// Asks for the cache line at `p`, which may be any address, to be in the second-level cache soon.
    #[inline(always)]
    unsafe fn prefetch(_p: *const u8) {}

    // Arithmetic.

    /// `self + b`.
    unsafe fn add(self, b: Self) -> Self;
    /// `self − b`.
    unsafe fn sub(self, b: Self) -> Self;
    /// `self · b`.
    unsafe fn mul(self, b: Self) -> Self;
    /// `self / b`.
    unsafe fn div(self, b: Self) -> Self;
    /// `a · b + c`: one rounding on vector instruction sets, two on the portable one.
    unsafe fn fma(a: Self, b: Self, c: Self) -> Self;
    /// `a > b ? a : b`: where either lane is NaN, the lane of `b`.
    unsafe fn max(a: Self, b: Self) -> Self;
    /// `a < b ? a : b`: where either lane is NaN, the lane of `b`.
    unsafe fn min(a: Self, b: Self) -> Self;
    /// Magnitude, by clearing the sign bit.
    unsafe fn abs(self) -> Self;
    /// Magnitude of `self`, sign bit of `sign`.
    unsafe fn copy_sign(self, sign: Self) -> Self;
    /// The nearest integer, ties to even. For |x| < 2²²; NaN gives NaN.
    unsafe fn round(self) -> Self;
    /// Sum of all lanes, in a fixed order.
    unsafe fn reduce_add(self) -> f32;
    /// Largest lane; unspecified which value where a lane is NaN.
    unsafe fn reduce_max(self) -> f32;

    // Pieces of elementary functions.

    /// Splits `x` for 2^x: the fraction `x − ⌊x⌋` in [0, 1], and an exponent for [`Vector::exp2_scale`]. The fraction
    /// is finite for infinite `x` and NaN for NaN.
    unsafe fn exp2_split(x: Self) -> (Self, Self);
    /// `p · 2^⌊x⌋` for normal `p` and the exponent that [`Vector::exp2_split`] made of `x` (or any integer from −126 to
    /// 127): 0 for −∞, ∞ where it overflows. For `p` in [1, 2] results below 2⁻¹²⁶ may be flushed to zero.
    unsafe fn exp2_scale(p: Self, exponent: Self) -> Self;

    // Masks.

    /// `a < b`, false where either is NaN.
    unsafe fn lt(a: Self, b: Self) -> Self::Mask;
    /// `a <= b`, false where either is NaN.
    unsafe fn le(a: Self, b: Self) -> Self::Mask;
    /// `a == b`, false where either is NaN.
    unsafe fn eq(a: Self, b: Self) -> Self::Mask;
    /// `mask ? a : b`.
    unsafe fn select(mask: Self::Mask, a: Self, b: Self) -> Self;
    /// `mask ? a : 0`.
    unsafe fn keep(mask: Self::Mask, a: Self) -> Self;
    /// Lane-wise conjunction.
    unsafe fn mask_and(a: Self::Mask, b: Self::Mask) -> Self::Mask;
    /// Lane-wise disjunction.
    unsafe fn mask_or(a: Self::Mask, b: Self::Mask) -> Self::Mask;
    /// Bit `i` is lane `i`; higher bits are zero.
    unsafe fn mask_bits(mask: Self::Mask) -> u32;
    /// Whether some lane is true.
    #[inline(always)]
    unsafe fn any(mask: Self::Mask) -> bool {
        Self::mask_bits(mask) != 0
    }
    /// Whether every lane is true.
    #[inline(always)]
    unsafe fn all(mask: Self::Mask) -> bool {
        Self::mask_bits(mask) == (1_u32 << Self::LANES) - 1
    }

    // Integers.

    /// All lanes `x`.
    unsafe fn splat_i32(x: i32) -> Self::Int;
    /// Lanes from consecutive `i32`.
    unsafe fn load_i32(p: *const i32) -> Self::Int;
    /// Lanes to consecutive `i32`.
    unsafe fn store_i32(x: Self::Int, p: *mut i32);
    /// `a < b`, signed.
    unsafe fn lt_i32(a: Self::Int, b: Self::Int) -> Self::Mask;
    /// `lo <= x < hi`, signed.
    #[inline(always)]
    unsafe fn in_range(x: Self::Int, lo: Self::Int, hi: Self::Int) -> Self::Mask {
        Self::mask_and_not(Self::lt_i32(x, hi), Self::lt_i32(x, lo))
    }
    /// `a && !b`, lane-wise.
    unsafe fn mask_and_not(a: Self::Mask, b: Self::Mask) -> Self::Mask;
    /// Wrapping sum.
    unsafe fn add_i32(a: Self::Int, b: Self::Int) -> Self::Int;
    /// Bits in both.
    unsafe fn and_i32(a: Self::Int, b: Self::Int) -> Self::Int;
    /// Bits in exactly one.
    unsafe fn xor_i32(a: Self::Int, b: Self::Int) -> Self::Int;
    /// The two halves `(low, high)` of the 64-bit product of unsigned lanes.
    unsafe fn mul_wide_u32(a: Self::Int, b: Self::Int) -> (Self::Int, Self::Int);
    /// Each lane shifted right by `BITS`, filling with zeros.
    unsafe fn shift_right_u32<const BITS: u32>(a: Self::Int) -> Self::Int;
    /// Each lane, signed, converted to `f32`, rounded to nearest even.
    unsafe fn convert_i32(a: Self::Int) -> Self;
    /// The bits of each `f32`.
    unsafe fn to_bits(self) -> Self::Int;
    /// Each lane's bits as an `f32`.
    unsafe fn from_bits(bits: Self::Int) -> Self;

    // Pairs of bfloat16: a lane holds element 2t in its low half and element 2t + 1 in its high half.

    /// `acc + a.low · b.low + a.high · b.high`, lanes being pairs of bfloat16. The instruction treats subnormal inputs
    /// and results as zero, the emulation does not.
    unsafe fn dot_bf16(acc: Self, a: Self, b: Self) -> Self;
    /// Lanes of pairs from two vectors of `f32`, rounded to nearest even; a NaN stays a NaN. Subnormals may become zero.
    unsafe fn pack_bf16(low: Self, high: Self) -> Self;
    /// Lanes of pairs from two runs of bfloat16.
    unsafe fn interleave_bf16(low: *const u16, high: *const u16) -> Self;
}
