//! Attention in which every query has its own virtual key and value, fused into one flash-style pass, forward and backward.
//!
//! Inducer-tuning (Chen et al., *Inducer-tuning: Connecting Prefix-tuning and Adapter-tuning*, EMNLP 2022, section 4.3)
//! adapts a frozen transformer by giving every query a virtual token of its own: a key close to the query, and a value in
//! residual form. Prefix-tuning shares one fixed set of virtual tokens among all queries; learned attention sinks are virtual
//! tokens without a value. This crate computes all of them, and plain attention, with one engine.
//!
//! # The operation
//!
//! Q is `[B, Hq, N, d]`, K and V are `[B, Hkv, M, d]`. For query row *i*, batch and head left out, σ the softmax scale:
//!
#![doc = include_str!("equations/scores.md")]
//!
//! The virtual key comes from the query through an adapter of rank r_k, and its score gives its softmax weight λ:
//!
#![doc = include_str!("equations/virtual_key.md")]
//!
//! where τ is 1, or √position ("adaptive length"). The virtual value comes through an adapter of rank r_v:
//!
#![doc = include_str!("equations/virtual_value.md")]
//!
//! and enters the output in one of four forms:
//!
#![doc = include_str!("equations/outputs.md")]
//!
//! The residual form is the published one: with P_v = attn + Δ, (1−λ) attn + λ P_v = attn + λΔ. The extended form leaves the up
//! projection to the caller's output projection, `[attn | U]·[W_o ; B_v] + b_v`.
//!
//! The virtual key is never materialised:
//!
#![doc = include_str!("equations/expanded_score.md")]
//!
//! needs products of Q with `A_k`, `B_k` and `b_k` alone, which are computed as if these were a few more keys.
//!
//! # Example
//!
//! Causal attention with published inducers, and its gradients:
//!
//! ```
//! use inducer_attention::cpu::{Engine, Workspace};
//! use inducer_attention::*;
//!
//! let (heads, n, d, r) = (2, 32, 16, 4);
//! let size = heads * n * d;
//! let (q, k, v) = (vec![0.1f32; size], vec![0.2f32; size], vec![0.3f32; size]);
//! let (weight, bias) = (vec![0.01f32; heads * d * r], vec![0f32; heads * d]);
//! let adapter = Adapter {
//!     down_weight: TensorRef::new(&weight, [heads, d, r])?,
//!     down_bias: TensorRef::new(&bias, [heads, r])?,
//!     up_weight: TensorRef::new(&weight, [heads, r, d])?,
//!     up_bias: TensorRef::new(&bias, [heads, d])?,
//!     activation: Activation::Tanh,
//! };
//!
//! let shape = [1, heads, n, d];
//! let view = |data| TensorRef::new(data, shape);
//! let mut attention = Attention::new(view(&q)?, view(&k)?, view(&v)?);
//! attention.config.causal = true;
//! let (key, value) = (VirtualKey::Residual(adapter), VirtualValue::Residual(adapter));
//! attention.inducer = Some(Inducer::new(key, value));
//! let problem = attention.validate()?; // mistakes are found here, or where outputs are handed over
//!
//! let engine = Engine::detect();
//! let bytes = engine.forward_workspace(&problem).max(engine.backward_workspace(&problem));
//! let mut workspace = Workspace::with_bytes(bytes);
//! let (mut o, mut lse) = (vec![0f32; q.len()], vec![0f32; heads * n]);
//! let rows = [1, heads, n];
//! let outputs = Outputs::with_lse(TensorMut::new(&mut o, shape)?, TensorMut::new(&mut lse, rows)?);
//! engine.forward(problem.forward(outputs)?, &mut workspace)?;
//!
//! let d_o = vec![1f32; o.len()];
//! let (mut d_q, mut d_k, mut d_v) = (q.clone(), k.clone(), v.clone()); // overwritten
//! let saved = Saved { output: SavedOutput::Output(view(&o)?), lse: TensorRef::new(&lse, rows)? };
//! let gradients = Gradients::new(
//!     TensorMut::new(&mut d_q, shape)?,
//!     TensorMut::new(&mut d_k, shape)?,
//!     TensorMut::new(&mut d_v, shape)?,
//! );
//! let upstream = Upstream::new(view(&d_o)?);
//! engine.backward(problem.backward(saved, upstream, gradients)?, &mut workspace)?;
//! assert!(o.iter().chain(&d_q).all(|x| x.is_finite()));
//! # Ok::<(), Error>(())
//! ```
//!
//! Gradients of the adapters go to [`Gradients::key`] and [`Gradients::value`].
//!
//! # Where things are
//!
//! - [`Attention`] describes a problem: tensors ([`tensor`]), settings ([`config`]), the virtual tokens ([`inducer`]).
//!   [`Attention::validate`] turns it into a [`Problem`] that no backend can fail on.
//! - [`Problem::forward`] and [`Problem::backward`] add the memory for the results and give a call ([`call`]).
//! - A backend runs calls. [`cpu::Engine`] is the fast one; [`reference`](mod@reference) is the f64 oracle that it is tested against;
//!   with feature `cuda`, `cuda::Engine` runs calls on NVIDIA GPUs.
//! - [`dropout`] fixes which entries are dropped, to the bit, for every backend.
//!
//! # Conventions
//!
//! - **lse** is the natural logarithm, f32, over real keys and prefix, never the virtual token, undropped, in every form.
//!   It is differentiable: [`Upstream::d_lse`].
//! - **Offset**: query i stands at key position `i + M − N`, so causal masks are bottom-right aligned. Where query lengths are
//!   given it is `i + key_length − query_length`; packed sequences use their own lengths.
//! - **Windows** are inclusive and count from that position.
//! - **Softcap** `c·tanh(s/c)` applies to real keys and prefix; **ALiBi** `−slope·|offset − j|` comes after it, on real keys.
//!   Neither, nor any mask, touches the virtual token.
//! - **Adaptive length**: position = max(1, offset + 1) when causal, i + 1 otherwise; explicit positions override.
//! - **Given logits** (attention sinks) are taken as they are: no σ, no τ. A logit of −∞ means λ = 0: plain attention.
//! - The **shared prefix** comes first, is the same for the whole batch, is seen by every query, and is not counted in M.
//! - **Dropout** acts on probabilities and on λ, with inverted scaling; the direct and zero forms' factor 1 − λ stays undropped.
//! - **Empty rows** (nothing to see): lse = −∞, λ = 1, attn = 0, so O = Δ and U = h; gradients are finite, and dLSE is ignored
//!   there. Without an inducer O = 0.
//! - A NaN or infinity in one row of Q, in keys that a mask hides, or in padding reaches no other row.
//! - **Dtypes**: Q, K, V and O alike (f32, f16, bf16); adapters of that type or f32; lse and all gradients of adapters f32.
//! - B, N, M may be 0; d, heads and ranks may not. d is at most [`MAX_HEAD_DIM`], ranks at most [`MAX_RANK`].
//!
//! # The backward
//!
//! With m̃ and m̃₀ the dropout factors of probabilities and of λ (1 without dropout), one formula serves every form:
//!
#![doc = include_str!("equations/backward_attention.md")]
//!
//! Only the row factor w and the row constant D′ depend on the form. Residual:
//!
#![doc = include_str!("equations/backward_residual.md")]
//!
//! Direct, and zero with Δ = 0:
//!
#![doc = include_str!("equations/backward_direct.md")]
//!
//! Extended, where dO is the gradient of attn:
//!
#![doc = include_str!("equations/backward_extended.md")]
//!
//! and the inducer's own gradients, dQ₀ its part of dQ, are:
//!
#![doc = include_str!("equations/backward_inducer.md")]
//!
//! A given logit's gradient is ds₀. With an O of 16 bits, D′ loses digits where |λΔ| is many times |attn|; saving attn instead
//! ([`SavedOutput::Attention`]) avoids that.
//!
//! # Features
//!
//! - `cuda`: the CUDA backend, module `cuda`. The crate then builds without nvcc and without a GPU all the same; calls say what is
//!   missing.
//! - `serde`: the configuration types ([`AttentionConfig`], [`InducerConfig`] and their parts) can be serialised.
//! - `emulator`: for this crate's tests; runs the CUDA kernels' source on the host.
//!
//! # Sources
//!
//! - The operation: Chen et al., EMNLP 2022, as above.
//! - Online softmax: Milakov and Gimelshein, *Online normalizer calculation for softmax*, 2018.
//! - Tiling without materialised scores, and the backward from lse: Dao et al., *FlashAttention*, 2022; Dao,
//!   *FlashAttention-2*, 2023.
//! - Dropout's generator: Salmon, Moraes, Dror and Shaw, *Parallel random numbers: as easy as 1, 2, 3*, 2011.

pub mod attention;
pub mod call;
pub mod config;
pub mod cpu;
#[cfg(any(feature = "cuda", feature = "emulator"))]
pub mod cuda;
pub mod dropout;
#[cfg(feature = "emulator")]
#[doc(hidden)]
pub mod emulator;
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
pub use tensor::{DType, Element, Memory, TensorMut, TensorRef};

/// The README's Rust example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
