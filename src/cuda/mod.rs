//! The CUDA backend: handwritten kernels for every GPU since Ampere.

mod convert;
pub mod kernels;
mod lists;
pub mod params;
pub mod plan;

pub use convert::HEAD_DIM_MULTIPLE;
pub use lists::Lists;
