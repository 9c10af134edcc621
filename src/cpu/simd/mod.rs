//! The instruction-set layer: vector operations, elementary functions, the GEMM micro-kernel and packing, each written
//! once and compiled for every instruction set.

#![allow(
    dead_code,
    reason = "the vector operations are a complete set, whichever of them today's kernels use"
)]
// Wrappers and kernels must become part of the function that enables the instruction set.
#![allow(
    clippy::inline_always,
    reason = "a kernel that is not inlined is compiled for the wrong instruction set"
)]
#![allow(
    clippy::needless_range_loop,
    reason = "register blocks are indexed by constants so that they stay in registers"
)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod gemm;
pub(crate) mod math;
pub(crate) mod pack;
mod peak;
mod portable;
mod table;
pub(crate) mod vector;

#[cfg(test)]
pub(super) mod tests;

pub(crate) use peak::CHAINS as PEAK_CHAINS;
pub use table::InstructionSet;
pub(crate) use table::Kernels;
