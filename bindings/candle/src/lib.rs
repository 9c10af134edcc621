//! Inducer attention for candle: the operation with autograd, and a module that tunes frozen transformers.
//!
//! - [`inducer_attention()`] is attention in which every query may have its own virtual token, over CPU tensors and, with feature
//!   `cuda`, over CUDA tensors, in one fused pass forward and one backward.
//! - [`InducerAttention`] holds the trained tensors of one layer: inducers, a shared prefix, LoRA on the query projection.
//! - [`save_adapter`] and [`load_adapter`] keep them in safetensors files.
//!
//! The equations stand at [`inducer_attention::reference`] and at each item.

mod backend;
mod call;
mod checkpoint;
mod config;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
mod engine;
mod init;
mod layout;
mod module;
mod op;
mod options;
mod storage;
mod tape;
mod tensors;

pub use checkpoint::{CheckpointError, load_adapter, save_adapter};
pub use config::{InducerAttentionConfig, LoraConfig, Parameter};
pub use device::{DeviceError, cuda_device};
pub use engine::release_workspaces;
pub use inducer_attention::{Activation, AttentionConfig, Dropout, InducerConfig, KeyConfig, ValueConfig};
pub use init::Initial;
pub use module::InducerAttention;
pub use op::{AttentionOutputs, inducer_attention, inducer_attention_outputs};
pub use options::{AttentionOptions, SequenceLengths, TensorLayout};
pub use tensors::{AdapterTensors, InducerTensors, KeyTensors, PrefixTensors, ValueTensors, VirtualTokens};

/// The example of the binding's README, compiled and run with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
