//! CUDA tensors: the kernels of their context, and candle's memory lent to calls.

mod engines;
mod memory;
mod scope;

pub(crate) use engines::{Gpu, engine};
pub(crate) use memory::Elements;
pub(crate) use scope::Scope;
