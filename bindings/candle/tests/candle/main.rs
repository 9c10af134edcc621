//! The operation and the module against compositions of candle's own operations.

mod autograd;
mod bad_input;
mod checkpoint;
mod composition;
#[cfg(feature = "cuda")]
mod cuda;
mod dtypes;
mod family;
mod module;
mod support;
