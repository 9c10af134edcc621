//! Inducer attention.

pub mod attention;
pub mod call;
pub mod config;
pub mod cpu;
pub mod dropout;
pub mod error;
pub mod inducer;
pub mod reference;
pub mod tensor;

pub use attention::{Attention, Lengths, MAX_HEAD_DIM, Problem, Sequence};
pub use call::{Backward, Forward, Gradients, Outputs, Saved, SavedOutput, Upstream};
pub use config::{AttentionConfig, Dropout, InducerConfig, KeyConfig, ValueConfig};
pub use error::{Error, Result};
pub use half::{bf16, f16};
pub use inducer::{
    Activation, Adapter, AdapterGradients, DownProjection, DownProjectionGradients, Inducer, KeyGradients,
    MAX_RANK, Prefix, PrefixGradients, ValueGradients, VirtualKey, VirtualValue,
};
pub use tensor::{DType, Element, TensorMut, TensorRef};
