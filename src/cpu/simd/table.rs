//! Kernels as tables of function pointers, one table per instruction set, chosen at run time.
//!
//! A kernel is written once, as an `#[inline(always)] unsafe fn name<V: Vector>(arguments)` whose arguments do not
//! mention `V`. **To add one, add its line to the list in `with_kernels!` below.** The line declares a field of
//! [`Kernels`] and, for every instruction set, a `#[target_feature]` function that the kernel is inlined into. Paths may
//! start with `super` or `crate`; a result type goes between the arguments and the path, as in
//! `largest: (x: *const f32, len: usize) -> f32 = crate::cpu::softmax::largest;`.

use super::gemm::Gemm;
use super::pack::{Natural, NaturalMut};
use super::portable::Portable;
use super::vector::Vector;
use crate::cpu::kernels::gradient::{GradientTile, RoundTile};
use crate::cpu::kernels::inducer::{InducerGradientTile, InducerTile};
use crate::cpu::kernels::score::{ScoreTile, Transform};
use crate::cpu::kernels::softmax::SoftmaxTile;

/// Hands the list of kernels, preceded by the given tokens, to another macro. Types must be in scope here.
macro_rules! with_kernels {
    ($then:ident!($($head:tt)*)) => {
        $then! { [$($head)*]
            /// C (+)= A·B, see [`super::gemm::gemm`].
            gemm: (g: &Gemm) = super::gemm::gemm;
            /// C (+)= A·B of pairs of bfloat16, see [`super::gemm::gemm_bf16`]. Emulated, and slower than [`Self::gemm`],
            /// unless [`Self::bf16_dot`].
            gemm_bf16: (g: &Gemm) = super::gemm::gemm_bf16;
            /// y = 2^x over `len` elements, see [`super::math::exp2`].
            exp2: (x: *const f32, y: *mut f32, len: usize) = super::math::exp2_slice;
            /// y ≈ 2^x over `len` elements, see [`super::math::exp2_bf16`].
            exp2_bf16: (x: *const f32, y: *mut f32, len: usize) = super::math::exp2_bf16_slice;
            /// y = e^x over `len` elements, see [`super::math::exp`].
            exp: (x: *const f32, y: *mut f32, len: usize) = super::math::exp_slice;
            /// y = ln x over `len` elements, see [`super::math::ln`].
            ln: (x: *const f32, y: *mut f32, len: usize) = super::math::ln_slice;
            /// y = tanh x over `len` elements, see [`super::math::tanh`].
            tanh: (x: *const f32, y: *mut f32, len: usize) = super::math::tanh_slice;
            /// y = 1/(1 + e^−x) over `len` elements, see [`super::math::sigmoid`].
            sigmoid: (x: *const f32, y: *mut f32, len: usize) = super::math::sigmoid_slice;
            /// Columns of a natural matrix to rows of `f32`, see [`super::pack::pack_transposed`].
            pack_transposed: (src: &Natural, dst: *mut f32, ld: usize, scale: f32) = super::pack::pack_transposed;
            /// Pairs of columns to rows of pairs, see [`super::pack::pack_transposed_pairs_bf16`].
            pack_transposed_pairs_bf16: (src: &Natural, dst: *mut f32, ld: usize, scale: f32) = super::pack::pack_transposed_pairs_bf16;
            /// Rows of `f32` to columns of a natural matrix, see [`super::pack::unpack_transposed`].
            unpack_transposed: (src: *const f32, ld: usize, dst: &NaturalMut, scale: f32) = super::pack::unpack_transposed;
            /// The same, adding, see [`super::pack::unpack_transposed_add`].
            unpack_transposed_add: (src: *const f32, ld: usize, dst: &NaturalMut, scale: f32) = super::pack::unpack_transposed_add;
            /// Natural rows to rows of `f32`, see [`super::pack::widen_rows`].
            widen_rows: (src: &Natural, dst: *mut f32, ld: usize, scale: f32) = super::pack::widen_rows;
            /// Rows of `f32` to natural rows, see [`super::pack::narrow_rows`].
            narrow_rows: (src: *const f32, ld: usize, dst: &NaturalMut, scale: f32) = super::pack::narrow_rows;
            /// Pairs of natural rows to rows of pairs, see [`super::pack::interleave_rows_bf16`].
            interleave_rows_bf16: (src: &Natural, dst: *mut f32, ld: usize) = super::pack::interleave_rows_bf16;
            /// −∞ where keys are hidden, see [`crate::cpu::kernels::score::mask`].
            mask: (t: &ScoreTile, lo: *const i32, hi: *const i32) = crate::cpu::kernels::score::mask;
            /// Softcap and ALiBi, see [`crate::cpu::kernels::score::transform`].
            transform: (t: &ScoreTile, f: &Transform) = crate::cpu::kernels::score::transform;
            /// One step of the online softmax, see [`crate::cpu::kernels::softmax::softmax`].
            softmax: (t: &SoftmaxTile) = crate::cpu::kernels::softmax::softmax;
            /// Rows times a factor per lane, see [`crate::cpu::kernels::softmax::scale_lanes`].
            scale_lanes: (x: *mut f32, rows: usize, lanes: usize, factor: *const f32) = crate::cpu::kernels::softmax::scale_lanes;
            /// The softmax's end, see [`crate::cpu::kernels::softmax::finish`].
            softmax_finish: (max: *const f32, sum: *const f32, lanes: usize, inverse: *mut f32, lse: *mut f32) = crate::cpu::kernels::softmax::finish;
            /// P and dS of a tile, see [`crate::cpu::kernels::gradient::gradient`].
            gradient: (t: &GradientTile) = crate::cpu::kernels::gradient::gradient;
            /// Tiles rounded to bfloat16, see [`crate::cpu::kernels::gradient::round_bf16`].
            round_bf16: (t: &RoundTile) = crate::cpu::kernels::gradient::round_bf16;
            /// Virtual tokens, see [`crate::cpu::kernels::inducer::inducer_forward`].
            inducer_forward: (t: &InducerTile) = crate::cpu::kernels::inducer::inducer_forward;
            /// Gradients of virtual tokens, see [`crate::cpu::kernels::inducer::inducer_backward`].
            inducer_backward: (t: &InducerGradientTile) = crate::cpu::kernels::inducer::inducer_backward;
            /// Dot products of columns, see [`crate::cpu::kernels::inducer::dot_rows`].
            dot_rows: (a: *const f32, b: *const f32, rows: usize, lanes: usize, out: *mut f32) = crate::cpu::kernels::inducer::dot_rows;
            /// A copy times a factor per lane, see [`crate::cpu::kernels::inducer::scaled_copy`].
            scaled_copy: (x: *const f32, y: *mut f32, rows: usize, lanes: usize, factor: *const f32) = crate::cpu::kernels::inducer::scaled_copy;
            /// Sums of rows, see [`crate::cpu::kernels::inducer::add_row_sums`].
            add_row_sums: (x: *const f32, rows: usize, lanes: usize, sums: *mut f32) = crate::cpu::kernels::inducer::add_row_sums;
            /// Whether all is finite, see [`crate::cpu::kernels::finite::all_finite`].
            all_finite: (rows: &Natural, finite: *mut bool) = crate::cpu::kernels::finite::all_finite;
            /// The most multiply-adds a core can do, see [`super::peak::fma_peak`].
            fma_peak: (steps: usize, out: *mut f32) = super::peak::fma_peak;
            /// The most bfloat16 dot products a core can do, see [`super::peak::dot_peak`].
            dot_peak: (steps: usize, out: *mut f32) = super::peak::dot_peak;
        }
    };
}

/// Declares [`Kernels`].
macro_rules! declare {
    ([] $($(#[$doc:meta])* $name:ident : ($($arg:ident : $ty:ty),*) $(-> $result:ty)? = $($path:ident)::+ ;)*) => {
        /// The kernels of one instruction set.
        ///
        /// A reference to a table is only handed out where the processor has the instruction set, so whoever holds one
        /// may call its functions as far as their operands allow.
        pub(crate) struct Kernels {
            /// Which instruction set.
            pub(crate) set: InstructionSet,
            /// `f32` per vector: the granularity of [`Gemm::n`] and of padded rows.
            pub(crate) lanes: usize,
            /// Columns of a register block of the matrix product.
            pub(crate) panel: usize,
            /// Whether the processor has a bfloat16 dot product.
            pub(crate) bf16_dot: bool,
            $($(#[$doc])* pub(crate) $name: unsafe fn($($ty),*) $(-> $result)?,)*
        }
    };
}
with_kernels!(declare!());

/// Defines the table of one instruction set.
macro_rules! instantiate {
    ([$set:ident, $vector:ty, #[$attribute:meta]]
     $($(#[$doc:meta])* $name:ident : ($($arg:ident : $ty:ty),*) $(-> $result:ty)? = $($path:ident)::+ ;)*) => {{
        $(
            #[$attribute]
            unsafe fn $name($($arg: $ty),*) $(-> $result)? {
                // SAFETY: the contract of the kernel, which the caller upholds, and that of `Vector`: a function of
                // this table is reached only where the instruction set is available.
                unsafe { $($path)::+::<$vector>($($arg),*) }
            }
        )*
        Kernels {
            set: InstructionSet::$set,
            lanes: <$vector as Vector>::LANES,
            panel: <$vector as Vector>::GEMM_VECTORS * <$vector as Vector>::LANES,
            bf16_dot: <$vector as Vector>::BF16_DOT,
            $($name,)*
        }
    }};
}

#[cfg(target_arch = "x86_64")]
static AVX512_BF16: Kernels = with_kernels!(instantiate!(
    Avx512Bf16,
    super::avx512::Avx512<true>,
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c,bmi2")]
));

#[cfg(target_arch = "x86_64")]
static AVX512: Kernels = with_kernels!(instantiate!(
    Avx512,
    super::avx512::Avx512<false>,
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi2")]
));

#[cfg(target_arch = "x86_64")]
static AVX2: Kernels = with_kernels!(instantiate!(
    Avx2,
    super::avx2::Avx2,
    #[target_feature(enable = "avx2,fma,f16c,bmi2")]
));

static PORTABLE: Kernels = with_kernels!(instantiate!(Portable, Portable, #[inline(never)]));

/// An instruction set that the CPU engine has kernels for, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum InstructionSet {
    /// AVX-512 F, BW, DQ, VL with the bfloat16 dot product.
    Avx512Bf16,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// What the target guarantees; always available.
    Portable,
}

impl InstructionSet {
    /// Every instruction set, best first.
    pub const ALL: [Self; 4] = [Self::Avx512Bf16, Self::Avx512, Self::Avx2, Self::Portable];

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        if cfg!(miri) {
            // Miri interprets Rust, and few of the vector instructions.
            return self == Self::Portable;
        }
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
                && is_x86_feature_detected!("bmi2");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq");
            match self {
                Self::Avx512Bf16 => avx512 && is_x86_feature_detected!("avx512bf16"),
                Self::Avx512 => avx512,
                Self::Avx2 => avx2,
                Self::Portable => true,
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Portable
        }
    }

    /// The instruction sets of this processor, best first.
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|set| set.is_available()).collect()
    }
}

impl Kernels {
    /// The kernels of an instruction set, if this processor has it.
    pub(crate) fn for_set(set: InstructionSet) -> Option<&'static Self> {
        if !set.is_available() {
            return None;
        }
        match set {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512Bf16 => Some(&AVX512_BF16),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => Some(&AVX512),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => Some(&AVX2),
            #[cfg(not(target_arch = "x86_64"))]
            InstructionSet::Avx512Bf16 | InstructionSet::Avx512 | InstructionSet::Avx2 => None,
            InstructionSet::Portable => Some(&PORTABLE),
        }
    }

    /// The best kernels that this processor can run.
    pub(crate) fn detect() -> &'static Self {
        InstructionSet::ALL.into_iter().find_map(Self::for_set).unwrap_or(&PORTABLE)
    }

    /// All kernels that this processor can run, best first.
    pub(crate) fn all_available() -> Vec<&'static Self> {
        InstructionSet::ALL.into_iter().filter_map(Self::for_set).collect()
    }
}
