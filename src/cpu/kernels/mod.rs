//! Kernels of the engine's own: what happens to a tile between its matrix products.
//!
//! Tiles are `[key][query]` with queries in the lanes, rows one behind the other; per-query quantities are vectors of `lanes`
//! floats. Every lane goes through the same operations in the same order, wherever it lies in its tile.

#![allow(unsafe_op_in_unsafe_fn, reason = "vector and pointer operations under the functions' contracts")]
#![allow(
    clippy::inline_always,
    reason = "a kernel that is not inlined is compiled for the wrong instruction set"
)]

pub(crate) mod finite;
pub(crate) mod gradient;
pub(crate) mod inducer;
pub(crate) mod score;
pub(crate) mod softmax;
