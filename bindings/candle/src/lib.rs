//! Inducer attention for candle: the operation with autograd, and a module that tunes frozen transformers.

mod call;
mod engine;
mod op;
mod options;
mod storage;
mod tape;
mod tensors;

pub use engine::release_workspaces;
pub use inducer_attention::{Activation, AttentionConfig, Dropout, InducerConfig, KeyConfig, ValueConfig};
pub use op::{AttentionOutputs, inducer_attention, inducer_attention_outputs};
pub use options::{AttentionOptions, SequenceLengths, TensorLayout};
pub use tensors::{AdapterTensors, InducerTensors, KeyTensors, PrefixTensors, ValueTensors, VirtualTokens};
