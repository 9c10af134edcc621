//! The oracle: inducer attention in f64, written to be read beside the equations.
//!
//! Everything is materialised, nothing is clever, and every member of the family is here with every convention: this is
//! what the engines are tested against. It is itself held against the numbers of the published implementation of
//! inducer-tuning and against finite differences.
//!
//! # Forward
//!
//! For query row `i` of one head (batch and head left out), over the keys `j` that row `i` may see, shared prefix first:
//!
//! ```text
//! s_ij   = softcap(σ Q_i·K_j) − slope·|offset_i − j|              (no ALiBi on the prefix)
//! lse_i  = log Σ_j exp s_ij
//! p_ij   = exp(s_ij − lse_i)
//! attn_i = Σ_j m̃_ij p_ij V_j                                       m̃: dropout factor, 1 without dropout
//!
//! u_i    = act(Q_i A_k + a_k),   P_k,i = Q_i + u_i B_k + b_k        virtual key
//! s0_i   = τ_i σ Q_i·P_k,i                                          or a given logit
//! λ_i    = sigmoid(s0_i − lse_i)
//! h_i    = act(Q_i A_v + a_v),   Δ_i = h_i B_v + b_v                virtual value
//!
//! O_i    = attn_i + m̃₀ λ_i Δ_i                                     residual
//! O_i    = (1 − λ_i) attn_i + m̃₀ λ_i Δ_i                           direct; zero is direct with Δ = 0
//! O_i    = attn_i,  U_i = m̃₀ λ_i h_i                               extended
//! ```
//!
//! # Backward
//!
//! [`backward`] is the chain rule applied to these lines from the last to the first. It deliberately does not use the
//! rearranged row constant that fused kernels use, so that the two derivations check each other.

mod backward;
mod convert;
mod extended;
mod forward;
mod gradients;
mod problem;
mod row;
mod tensor;

pub use backward::backward;
pub use extended::{ExtendedGradients, extended_backward, extended_forward};
pub use forward::{Output, forward};
pub use gradients::{Gradients, OutputGradients};
pub use problem::{Adapter, CuSeqlens, Down, Inducer, Prefix, Problem, Up, VirtualKey, VirtualValue};
pub use tensor::Tensor;
