//! The CPU engine.

pub(crate) mod simd;

#[doc(hidden)]
pub mod microkernels;

pub use simd::InstructionSet;
