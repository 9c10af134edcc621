//! The same attention as a composition of candle operations, as the published implementation has it: what the fused
//! operation is checked against, and compared with in speed (`--attention eager`).

use crate::adapter::LayerAdapter;
use candle_core::{D, Device, Result, Tensor};

/// Causal attention of q, k, v `[B, H, N, d]` with the layer's prefix and inducer; `[B, H, N, d]`.
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, adapter: Option<&LayerAdapter>) -> Result<Tensor> {
    let (batch, heads, length, d) = q.dims4()?;
    let scale = 1.0 / (d as f64).sqrt();
    let (q, mut k, mut v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    let mut prefix = 0;
    if let Some((prefix_k, prefix_v)) = adapter.and_then(|adapter| adapter.prefix.as_ref()) {
        prefix = prefix_k.dim(1)?;
        let over_batch = |x: &Tensor| x.unsqueeze(0)?.broadcast_as((batch, heads, prefix, d))?.contiguous();
        k = Tensor::cat(&[over_batch(prefix_k)?, k], 2)?;
        v = Tensor::cat(&[over_batch(prefix_v)?, v], 2)?;
    }
    let scores = (q.matmul(&k.t()?)? * scale)?.broadcast_add(&causal_mask(length, prefix)?)?;
    let max = scores.max_keepdim(D::Minus1)?.detach();
    let exps = scores.broadcast_sub(&max)?.exp()?;
    let total = exps.sum_keepdim(D::Minus1)?;
    let attended = exps.matmul(&v)?.broadcast_div(&total)?;
    let Some(inducer) = adapter.and_then(|adapter| adapter.inducer.as_ref()) else {
        return Ok(attended);
    };
    // λ = sigmoid(s0 − lse), O = attn + λ Δ.
    let virtual_key = (&q + residual(&q, &inducer.key)?)?;
    let own_score = ((&q * virtual_key)?.sum_keepdim(D::Minus1)? * scale)?;
    let lse = (total.log()? + max)?;
    let weight = candle_nn::ops::sigmoid(&(own_score - lse)?)?;
    attended + residual(&q, &inducer.value)?.broadcast_mul(&weight)?
}

/// `tanh(q A + a) B + b` per head.
fn residual(q: &Tensor, [down, down_bias, up, up_bias]: &[Tensor; 4]) -> Result<Tensor> {
    let over_batch = |x: &Tensor, batch: usize| {
        let (heads, rows, columns) = x.dims3()?;
        x.unsqueeze(0)?.broadcast_as((batch, heads, rows, columns))?.contiguous()
    };
    let batch = q.dim(0)?;
    let hidden = q.matmul(&over_batch(down, batch)?)?.broadcast_add(&down_bias.unsqueeze(1)?)?.tanh()?;
    hidden.matmul(&over_batch(up, batch)?)?.broadcast_add(&up_bias.unsqueeze(1)?)
}

/// 0 where query i may see key j, −∞ elsewhere; the prefix is seen by all.
fn causal_mask(length: usize, prefix: usize) -> Result<Tensor> {
    let columns = prefix + length;
    let mask: Vec<f32> = (0..length * columns)
        .map(|index| if index % columns > prefix + index / columns { f32::NEG_INFINITY } else { 0.0 })
        .collect();
    Tensor::from_vec(mask, (length, columns), &Device::Cpu)
}
