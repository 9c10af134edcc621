//! What the tests of the engines share: cases, their inputs and results, the backends, and the judgement of results.

// Every test binary uses its own part of this.
#![allow(dead_code, unreachable_pub)]
// A case is switches and sizes.
#![allow(clippy::struct_excessive_bools)]
// Equal infinities, and zeros that are exactly that.
#![allow(clippy::float_cmp)]
// Element by element, in one line.
#![allow(clippy::needless_for_each)]

pub mod agreement;
pub mod backend;
pub mod case;
pub mod compare;
pub mod draw;
#[cfg(feature = "emulator")]
pub mod emulated;
#[cfg(feature = "cuda")]
pub mod gpu;
pub mod naive;
pub mod pairwise;
pub mod run;
#[cfg(any(feature = "cuda", feature = "emulator"))]
pub mod staging;
pub mod storage;
