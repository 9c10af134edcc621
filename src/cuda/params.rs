//! What a launch hands to a kernel: the structs of `kernels/params.h`, byte for byte.
//!
//! Fields are in the order and of the types there, which also has their meanings. Pointers are addresses of device memory, of
//! host memory in the emulator; 0 where something is absent. Strides are counted in elements.

use bytemuck::{Pod, Zeroable};

/// A tensor `[B, H, N, d]` with a contiguous last dimension.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Tensor {
    /// Address of the first element.
    pub data: u64,
    /// Stride of B.
    pub batch: i64,
    /// Stride of H.
    pub head: i64,
    /// Stride of N.
    pub row: i64,
}

/// An f32 tensor with up to three dimensions and any strides.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[allow(missing_docs, reason = "kernels/params.h has the fields' meanings")]
pub struct Strided {
    pub data: u64,
    pub stride: [i64; 3],
}

/// An adapter's tensors.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[allow(missing_docs, reason = "kernels/params.h has the fields' meanings")]
pub struct Adapter {
    pub down_weight: u64,
    pub down_bias: u64,
    pub up_weight: u64,
    pub up_bias: u64,
    pub down_weight_head: i64,
    pub down_weight_row: i64,
    pub down_bias_head: i64,
    pub up_weight_head: i64,
    pub up_weight_row: i64,
    pub up_bias_head: i64,
    pub rank: i32,
    pub identity: i32,
    pub is_f32: i32,
    pub padding: i32,
}

/// `KeyKind` of params.h.
pub mod key_kind {
    #![allow(missing_docs, reason = "named as in kernels/params.h")]
    pub const NONE: i32 = 0;
    pub const QUERY: i32 = 1;
    pub const RESIDUAL: i32 = 2;
    pub const LOGIT_PER_HEAD: i32 = 3;
    pub const LOGIT_PER_TOKEN: i32 = 4;
}

/// `ValueKind` of params.h.
pub mod value_kind {
    #![allow(missing_docs, reason = "named as in kernels/params.h")]
    pub const ZERO: i32 = 0;
    pub const RESIDUAL: i32 = 1;
    pub const DIRECT: i32 = 2;
    pub const EXTENDED: i32 = 3;
}

/// `Flags` of params.h.
pub mod flags {
    #![allow(missing_docs, reason = "named as in kernels/params.h")]
    pub const CAUSAL: i32 = 1;
    pub const TRANSFORM: i32 = 2;
    pub const SOFTCAP: i32 = 4;
    pub const ALIBI: i32 = 8;
    pub const DROPOUT: i32 = 16;
    pub const ADAPTIVE_LENGTH: i32 = 32;
    pub const LOGIT_IS_F32: i32 = 64;
    pub const FROM_ATTENTION: i32 = 128;
    pub const UNORDERED: i32 = 256;
}

/// The attention problem.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[allow(missing_docs, reason = "kernels/params.h has the fields' meanings")]
pub struct Problem {
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    pub prefix_k: Tensor,
    pub prefix_v: Tensor,
    pub key: Adapter,
    pub value: Adapter,
    pub logit: u64,
    pub logit_stride: [i64; 3],
    pub query_lengths: u64,
    pub key_lengths: u64,
    pub key_starts: u64,
    pub cu_seqlens_q: u64,
    pub cu_seqlens_k: u64,
    pub positions: u64,
    pub alibi_slopes: u64,
    pub alibi_sequence_stride: i32,
    pub sequences: i32,
    pub query_heads: i32,
    pub kv_heads: i32,
    pub rows: i32,
    pub keys: i32,
    pub head_dim: i32,
    pub prefix_len: i32,
    pub window_left: i32,
    pub window_right: i32,
    pub flags: i32,
    pub key_kind: i32,
    pub value_kind: i32,
    pub scale: f32,
    pub softcap: f32,
    pub dropout_threshold: u32,
    pub dropout_scale: f32,
    pub dropout_key: [u32; 2],
    pub padding: i32,
}

/// Of the forward.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[allow(missing_docs, reason = "kernels/params.h has the fields' meanings")]
pub struct ForwardParams {
    pub problem: Problem,
    pub o: Tensor,
    pub u: Tensor,
    pub attn: Tensor,
    pub lse: Strided,
    pub row_tiles: i32,
    pub pairs: i32,
    pub blocks: i32,
    pub group: i32,
    pub folded: i32,
    pub padding: i32,
}

/// Where an adapter's gradients go.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[allow(missing_docs, reason = "kernels/params.h has the fields' meanings")]
pub struct AdapterGradients {
    pub down_weight: Strided,
    pub down_bias: Strided,
    pub up_weight: Strided,
    pub up_bias: Strided,
}

/// Of all passes of the backward.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[allow(missing_docs, reason = "kernels/params.h has the fields' meanings")]
pub struct BackwardParams {
    pub problem: Problem,
    pub saved: Tensor,
    pub d_o: Tensor,
    pub d_u: Tensor,
    pub lse: Strided,
    pub d_lse: Strided,
    pub d_q: Tensor,
    pub d_k: Tensor,
    pub d_v: Tensor,
    pub d_prefix_k: Strided,
    pub d_prefix_v: Strided,
    pub d_key: AdapterGradients,
    pub d_value: AdapterGradients,
    pub d_logit: Strided,
    pub d_q_sum: u64,
    pub row_factor: u64,
    pub row_constant: u64,
    pub partials: u64,
    pub prefix_partials: u64,
    pub turns: u64,
    pub ticket: u64,
    pub row_tiles: i32,
    pub turn_tiles: i32,
    pub prepare_tiles: i32,
    pub chunks: i32,
    pub key_tiles: i32,
    pub prefix_tiles: i32,
    pub prefix_groups: i32,
    pub partial_size: i32,
    pub finish_blocks: i32,
    pub gradient_blocks: i32,
    pub sequence_blocks: i32,
    pub padding: i32,
}
