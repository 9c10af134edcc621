//! Plain Rust that the compiler may vectorise with whatever the target guarantees.

#![allow(unsafe_op_in_unsafe_fn, reason = "each method is one operation under the contract of `Vector`")]
#![allow(clippy::needless_range_loop, reason = "loops over lanes, two or three arrays at a time")]

use half::{bf16, f16};

use super::vector::Vector;

/// Lanes of the portable vector: what every 64-bit architecture has registers for. (With two registers per vector the
/// compiler deals lanes out over them in ways that cost more shuffles than arithmetic.)
const N: usize = 4;

/// Plus a number below 2²², it has no room for a fraction, and the number's integer in its lowest bits.
const SHIFT: f32 = 12_582_912.0;

/// Four lanes.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; N]);

/// Applies an expression to every lane of the named arrays.
macro_rules! lanes {
    ($($name:ident = $array:expr),+ => $value:expr) => {{
        let mut out = [Default::default(); N];
        for i in 0..N {
            $(let $name = $array[i];)+
            out[i] = $value;
        }
        out
    }};
}

impl Vector for Portable {
    type Mask = [bool; N];
    type Int = [i32; N];
    type Block = [Self; N];

    const LANES: usize = N;
    const GEMM_ROWS: usize = 4;
    const GEMM_VECTORS: usize = 2;
    const BF16_DOT: bool = false;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; N])
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; N])
    }
    #[inline(always)]
    unsafe fn splat_unaligned(p: *const u8) -> Self {
        Self([p.cast::<f32>().read_unaligned(); N])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Self(p.cast::<[f32; N]>().read())
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        p.cast::<[f32; N]>().write(self.0);
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        let bits = p.cast::<[u16; N]>().read();
        Self(lanes!(b = bits => f32::from_bits(u32::from(b) << 16)))
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        let bits = p.cast::<[u16; N]>().read();
        Self(lanes!(b = bits => f16::from_bits(b).to_f32()))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16) {
        p.cast::<[u16; N]>().write(lanes!(x = self.0 => bf16::from_f32(x).to_bits()));
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16) {
        p.cast::<[u16; N]>().write(lanes!(x = self.0 => f16::from_f32(x).to_bits()));
    }
    #[inline(always)]
    unsafe fn transpose(block: &mut Self::Block) {
        for i in 0..N {
            for j in 0..i {
                (block[i].0[j], block[j].0[i]) = (block[j].0[i], block[i].0[j]);
            }
        }
    }
    #[inline(always)]
    unsafe fn zero_block() -> Self::Block {
        [Self::zero(); N]
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        Self(lanes!(x = self.0, y = b.0 => x + y))
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        Self(lanes!(x = self.0, y = b.0 => x - y))
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        Self(lanes!(x = self.0, y = b.0 => x * y))
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        Self(lanes!(x = self.0, y = b.0 => x / y))
    }
    #[inline(always)]
    unsafe fn fma(a: Self, b: Self, c: Self) -> Self {
        Self(lanes!(x = a.0, y = b.0, z = c.0 => x * y + z))
    }
    #[inline(always)]
    unsafe fn max(a: Self, b: Self) -> Self {
        Self(lanes!(x = a.0, y = b.0 => if x > y { x } else { y }))
    }
    #[inline(always)]
    unsafe fn min(a: Self, b: Self) -> Self {
        Self(lanes!(x = a.0, y = b.0 => if x < y { x } else { y }))
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        Self(lanes!(x = self.0 => x.abs()))
    }
    #[inline(always)]
    unsafe fn copy_sign(self, sign: Self) -> Self {
        Self(lanes!(x = self.0, s = sign.0 => x.copysign(s)))
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // `f32::round_ties_even` is a library call where the target has no instruction for it.
        Self(lanes!(x = self.0 => (x + SHIFT) - SHIFT))
    }
    #[inline(always)]
    unsafe fn reduce_add(self) -> f32 {
        let x = self.0;
        (x[0] + x[2]) + (x[1] + x[3])
    }
    #[inline(always)]
    unsafe fn reduce_max(self) -> f32 {
        let mut largest = self.0[0];
        for i in 1..N {
            largest = if largest > self.0[i] { largest } else { self.0[i] };
        }
        largest
    }

    #[inline(always)]
    unsafe fn exp2_split(x: Self) -> (Self, Self) {
        // The bounds make the biased exponent 0 (a zero result) or 255 (an infinite one). NaN, as second operand, passes.
        let x = Self::min(Self::splat(128.0), Self::max(Self::splat(-127.0), x));
        let nearest = x.round().0;
        let floor = lanes!(v = x.0, n = nearest => if n > v { n - 1.0 } else { n });
        (x.sub(Self(floor)), Self(floor))
    }
    #[inline(always)]
    unsafe fn exp2_scale(p: Self, exponent: Self) -> Self {
        // The sum has the biased exponent in its lowest bits; conversions of floats saturate, which does not vectorise.
        Self(lanes!(x = p.0, e = exponent.0 => x * f32::from_bits((e + (SHIFT + 127.0)).to_bits() << 23)))
    }

    #[inline(always)]
    unsafe fn lt(a: Self, b: Self) -> [bool; N] {
        lanes!(x = a.0, y = b.0 => x < y)
    }
    #[inline(always)]
    unsafe fn le(a: Self, b: Self) -> [bool; N] {
        lanes!(x = a.0, y = b.0 => x <= y)
    }
    #[inline(always)]
    #[allow(clippy::float_cmp, reason = "the operation asked for")]
    unsafe fn eq(a: Self, b: Self) -> [bool; N] {
        lanes!(x = a.0, y = b.0 => x == y)
    }
    #[inline(always)]
    unsafe fn select(mask: [bool; N], a: Self, b: Self) -> Self {
        Self(lanes!(m = mask, x = a.0, y = b.0 => if m { x } else { y }))
    }
    #[inline(always)]
    unsafe fn keep(mask: [bool; N], a: Self) -> Self {
        Self(lanes!(m = mask, x = a.0 => if m { x } else { 0.0 }))
    }
    #[inline(always)]
    unsafe fn mask_and(a: [bool; N], b: [bool; N]) -> [bool; N] {
        lanes!(x = a, y = b => x & y)
    }
    #[inline(always)]
    unsafe fn mask_or(a: [bool; N], b: [bool; N]) -> [bool; N] {
        lanes!(x = a, y = b => x | y)
    }
    #[inline(always)]
    #[allow(clippy::needless_bitwise_bool, reason = "a branch per lane would not vectorise")]
    unsafe fn mask_and_not(a: [bool; N], b: [bool; N]) -> [bool; N] {
        lanes!(x = a, y = b => x & !y)
    }
    #[inline(always)]
    unsafe fn mask_bits(mask: [bool; N]) -> u32 {
        let mut bits = 0;
        for i in 0..N {
            bits |= u32::from(mask[i]) << i;
        }
        bits
    }

    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> [i32; N] {
        [x; N]
    }
    #[inline(always)]
    unsafe fn load_i32(p: *const i32) -> [i32; N] {
        p.cast::<[i32; N]>().read()
    }
    #[inline(always)]
    unsafe fn store_i32(x: [i32; N], p: *mut i32) {
        p.cast::<[i32; N]>().write(x);
    }
    #[inline(always)]
    unsafe fn lt_i32(a: [i32; N], b: [i32; N]) -> [bool; N] {
        lanes!(x = a, y = b => x < y)
    }
    #[inline(always)]
    unsafe fn add_i32(a: [i32; N], b: [i32; N]) -> [i32; N] {
        lanes!(x = a, y = b => x.wrapping_add(y))
    }
    #[inline(always)]
    unsafe fn and_i32(a: [i32; N], b: [i32; N]) -> [i32; N] {
        lanes!(x = a, y = b => x & y)
    }
    #[inline(always)]
    unsafe fn xor_i32(a: [i32; N], b: [i32; N]) -> [i32; N] {
        lanes!(x = a, y = b => x ^ y)
    }
    #[inline(always)]
    unsafe fn mul_wide_u32(a: [i32; N], b: [i32; N]) -> ([i32; N], [i32; N]) {
        let product: [u64; N] = lanes!(x = a, y = b => u64::from(x as u32) * u64::from(y as u32));
        (lanes!(p = product => p as i32), lanes!(p = product => (p >> 32) as i32))
    }
    #[inline(always)]
    unsafe fn shift_right_u32<const BITS: u32>(a: [i32; N]) -> [i32; N] {
        lanes!(x = a => (x as u32 >> BITS) as i32)
    }
    #[inline(always)]
    unsafe fn convert_i32(a: [i32; N]) -> Self {
        Self(lanes!(x = a => x as f32))
    }
    #[inline(always)]
    unsafe fn to_bits(self) -> [i32; N] {
        lanes!(x = self.0 => x.to_bits() as i32)
    }
    #[inline(always)]
    unsafe fn from_bits(bits: [i32; N]) -> Self {
        Self(lanes!(b = bits => f32::from_bits(b as u32)))
    }

    #[inline(always)]
    unsafe fn dot_bf16(acc: Self, a: Self, b: Self) -> Self {
        Self(lanes!(x = a.0, y = b.0, z = acc.0 => {
            let (x, y) = (x.to_bits(), y.to_bits());
            let z = f32::from_bits(x << 16) * f32::from_bits(y << 16) + z;
            f32::from_bits(x & 0xFFFF_0000) * f32::from_bits(y & 0xFFFF_0000) + z
        }))
    }
    #[inline(always)]
    unsafe fn pack_bf16(low: Self, high: Self) -> Self {
        Self(lanes!(x = low.0, y = high.0 => {
            let (x, y) = (bf16::from_f32(x).to_bits(), bf16::from_f32(y).to_bits());
            f32::from_bits(u32::from(x) | u32::from(y) << 16)
        }))
    }
    #[inline(always)]
    unsafe fn interleave_bf16(low: *const u16, high: *const u16) -> Self {
        let (low, high) = (low.cast::<[u16; N]>().read(), high.cast::<[u16; N]>().read());
        Self(lanes!(x = low, y = high => f32::from_bits(u32::from(x) | u32::from(y) << 16)))
    }
}
