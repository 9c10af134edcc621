//! From a validated problem to the kernels' structs, with the checks that only the kernels need.

use super::lists::Lists;
use super::params::{self, flags, key_kind, value_kind};
use crate::attention::Problem;
use crate::dropout::KeepMask;
use crate::error::{Error, Result};
use crate::inducer::{Activation, Adapter, DownProjection, VirtualKey, VirtualValue};
use crate::tensor::{DType, TensorRef};

/// Head dimensions that kernels take are multiples of this, up to [`MAX_HEAD_DIM`](crate::MAX_HEAD_DIM).
pub const HEAD_DIM_MULTIPLE: usize = 8;

/// How kernels reach the rows of a tensor, which says how these must be aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Copied to shared memory sixteen bytes at a time.
    Chunks,
    /// Written two elements at a time.
    Pairs,
    /// One element at a time.
    Elements,
}

impl Access {
    fn alignment(self, dtype: DType) -> usize {
        match self {
            Self::Chunks => 16,
            Self::Pairs => 2 * dtype.size(),
            Self::Elements => dtype.size(),
        }
    }
}

/// The address of a view, 0 if it has no elements, and its strides, 0 where a dimension has at most one entry.
fn place<const R: usize>(
    argument: &'static str,
    t: &TensorRef<'_, R>,
    access: Access,
) -> Result<(u64, [i64; R])> {
    let (shape, all) = (t.shape(), t.strides());
    if t.is_empty() {
        return Ok((0, [0; R]));
    }
    let mut strides = [0i64; R];
    for (stride, (&n, &s)) in strides.iter_mut().zip(shape.iter().zip(&all)) {
        // The view's size was checked when it was made.
        *stride = if n > 1 { s as i64 } else { 0 };
    }
    let address = t.as_ptr() as usize;
    if address == 0 {
        return Err(Error::NullPointer { argument, elements: t.len() });
    }
    let alignment = access.alignment(t.dtype());
    let last = if access == Access::Elements { R } else { R - 1 };
    let aligned = strides[..last].iter().all(|&s| (s as usize * t.dtype().size()).is_multiple_of(alignment));
    if !address.is_multiple_of(alignment) || !aligned {
        return Err(Error::Misaligned {
            argument,
            address,
            strides: all.to_vec(),
            dtype: t.dtype(),
            alignment,
        });
    }
    Ok((address as u64, strides))
}

/// A tensor `[B, H, N, d]`.
pub(super) fn tensor(argument: &'static str, t: &TensorRef<'_, 4>, access: Access) -> Result<params::Tensor> {
    let (data, [batch, head, row, _]) = place(argument, t, access)?;
    Ok(params::Tensor { data, batch, head, row })
}

/// A prefix `[Hkv, L, d]`.
fn prefix(argument: &'static str, t: &TensorRef<'_, 3>) -> Result<params::Tensor> {
    let (data, [head, row, _]) = place(argument, t, Access::Chunks)?;
    Ok(params::Tensor { data, batch: 0, head, row })
}

/// A tensor of up to three dimensions and any strides.
pub(super) fn strided<const R: usize>(
    argument: &'static str,
    t: &TensorRef<'_, R>,
) -> Result<params::Strided> {
    let (data, strides) = place(argument, t, Access::Elements)?;
    let mut stride = [0; 3];
    stride[..R].copy_from_slice(&strides);
    Ok(params::Strided { data, stride })
}

fn down(names: [&'static str; 2], t: &DownProjection<'_>) -> Result<params::Adapter> {
    let (down_weight, [down_weight_head, down_weight_row, _]) =
        place(names[0], &t.down_weight, Access::Elements)?;
    let (down_bias, [down_bias_head, _]) = place(names[1], &t.down_bias, Access::Elements)?;
    Ok(params::Adapter {
        down_weight,
        down_bias,
        down_weight_head,
        down_weight_row,
        down_bias_head,
        rank: t.down_weight.shape()[2] as i32,
        identity: i32::from(t.activation == Activation::Identity),
        is_f32: i32::from(t.down_weight.dtype() == DType::F32),
        ..params::Adapter::default()
    })
}

fn adapter(names: [&'static str; 4], t: &Adapter<'_>) -> Result<params::Adapter> {
    let Adapter { down_weight, down_bias, activation, .. } = *t;
    let (up_weight, [up_weight_head, up_weight_row, _]) = place(names[2], &t.up_weight, Access::Elements)?;
    let (up_bias, [up_bias_head, _]) = place(names[3], &t.up_bias, Access::Elements)?;
    let down = down([names[0], names[1]], &DownProjection { down_weight, down_bias, activation })?;
    Ok(params::Adapter { up_weight, up_bias, up_weight_head, up_weight_row, up_bias_head, ..down })
}

/// The problem.
///
/// # Errors
/// [`Error::DeviceHeadDim`], [`Error::NullPointer`], [`Error::Misaligned`].
pub(super) fn problem(problem: &Problem<'_>, lists: &Lists) -> Result<params::Problem> {
    let attention = problem.attention();
    let config = &attention.config;
    let head_dim = problem.head_dim();
    // Validation has seen to the upper bound.
    if !head_dim.is_multiple_of(HEAD_DIM_MULTIPLE) {
        return Err(Error::DeviceHeadDim {
            got: head_dim,
            multiple: HEAD_DIM_MULTIPLE,
            max: crate::MAX_HEAD_DIM,
        });
    }
    let window = |w: Option<i64>| w.map_or(i32::MAX, |w| w.min(i32::MAX.into()) as i32);
    let scale = problem.softmax_scale();
    let mut flag = 0;
    let mut set = |on: bool, bit: i32| flag |= if on { bit } else { 0 };
    set(config.causal, flags::CAUSAL);
    set(config.softcap.is_some(), flags::SOFTCAP);
    set(lists.alibi_slopes != 0, flags::ALIBI);
    let plain = config.softcap.is_none() && lists.alibi_slopes == 0 && scale > 0.0;
    set(!plain, flags::TRANSFORM);

    let mut p = params::Problem {
        q: tensor("q", &attention.q, Access::Chunks)?,
        k: tensor("k", &attention.k, Access::Chunks)?,
        v: tensor("v", &attention.v, Access::Chunks)?,
        query_lengths: lists.query_lengths,
        key_lengths: lists.key_lengths,
        key_starts: lists.key_starts,
        cu_seqlens_q: lists.cu_seqlens_q,
        cu_seqlens_k: lists.cu_seqlens_k,
        positions: lists.positions,
        alibi_slopes: lists.alibi_slopes,
        alibi_sequence_stride: if lists.alibi_per_sequence { problem.query_heads() as i32 } else { 0 },
        // Validation keeps rows, keys and the product of sequences and heads within 31 and 32 bits; grids are checked where
        // they are made.
        sequences: lists.sequences as i32,
        query_heads: problem.query_heads() as i32,
        kv_heads: problem.kv_heads() as i32,
        rows: problem.rows() as i32,
        keys: problem.keys() as i32,
        head_dim: head_dim as i32,
        prefix_len: problem.prefix_len() as i32,
        window_left: window(config.window_left),
        window_right: if config.causal { 0 } else { window(config.window_right) },
        scale,
        softcap: config.softcap.unwrap_or(0.0),
        ..params::Problem::default()
    };
    if let Some(t) = &attention.prefix {
        p.prefix_k = prefix("prefix.k", &t.k)?;
        p.prefix_v = prefix("prefix.v", &t.v)?;
    }
    if let Some(dropout) = &config.dropout {
        let mask = KeepMask::new(dropout.p, dropout.seed);
        set(true, flags::DROPOUT);
        p.dropout_threshold = mask.threshold();
        p.dropout_scale = mask.scale() as f32;
        p.dropout_key = [dropout.seed as u32, (dropout.seed >> 32) as u32];
    }
    if let Some(inducer) = &attention.inducer {
        set(inducer.adaptive_length, flags::ADAPTIVE_LENGTH);
        match &inducer.key {
            VirtualKey::Query => p.key_kind = key_kind::QUERY,
            VirtualKey::Residual(t) => {
                p.key_kind = key_kind::RESIDUAL;
                p.key = adapter(["key.down_weight", "key.down_bias", "key.up_weight", "key.up_bias"], t)?;
            }
            VirtualKey::LogitPerHead(t) => {
                p.key_kind = key_kind::LOGIT_PER_HEAD;
                let logit = strided("key.logit", t)?;
                (p.logit, p.logit_stride) = (logit.data, [0, logit.stride[0], 0]);
                set(t.dtype() == DType::F32, flags::LOGIT_IS_F32);
            }
            VirtualKey::LogitPerToken(t) => {
                p.key_kind = key_kind::LOGIT_PER_TOKEN;
                let logit = strided("key.logit", t)?;
                (p.logit, p.logit_stride) = (logit.data, logit.stride);
                set(t.dtype() == DType::F32, flags::LOGIT_IS_F32);
            }
        }
        let names = ["value.down_weight", "value.down_bias", "value.up_weight", "value.up_bias"];
        match &inducer.value {
            VirtualValue::Zero => p.value_kind = value_kind::ZERO,
            VirtualValue::Residual(t) => {
                p.value_kind = value_kind::RESIDUAL;
                p.value = adapter(names, t)?;
            }
            VirtualValue::Direct(t) => {
                p.value_kind = value_kind::DIRECT;
                p.value = adapter(names, t)?;
            }
            VirtualValue::Extended(t) => {
                p.value_kind = value_kind::EXTENDED;
                p.value = down([names[0], names[1]], t)?;
            }
        }
    }
    p.flags = flag;
    Ok(p)
}
