//! The same attention as a composition of candle's operations, as the published implementation has it.

use candle_core::{D, Device, Result, Tensor, bail};
use inducer_attention_candle::{AdapterTensors, KeyTensors, ValueTensors, VirtualTokens};

/// Causal attention of q, k, v `[B, N, H, d]` with a prefix and an inducer of residual key and value; `[B, N, H, d]`.
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, tokens: &VirtualTokens) -> Result<Tensor> {
    let (batch, length, heads, d) = q.dims4()?;
    let scale = 1.0 / (d as f64).sqrt();
    let by_head = |x: &Tensor| x.transpose(1, 2)?.contiguous();
    let (q, mut k, mut v) = (by_head(q)?, by_head(k)?, by_head(v)?);
    let mut prefix = 0;
    if let Some(tokens) = &tokens.prefix {
        prefix = tokens.k.dim(1)?;
        let over_batch = |x: &Tensor| x.unsqueeze(0)?.broadcast_as((batch, heads, prefix, d))?.contiguous();
        k = Tensor::cat(&[over_batch(&tokens.k)?, k], 2)?;
        v = Tensor::cat(&[over_batch(&tokens.v)?, v], 2)?;
    }
    let scores = (q.matmul(&k.t()?)? * scale)?.broadcast_add(&causal_mask(length, prefix)?)?;
    let max = scores.max_keepdim(D::Minus1)?.detach();
    let exps = scores.broadcast_sub(&max)?.exp()?;
    let total = exps.sum_keepdim(D::Minus1)?;
    let attended = exps.matmul(&v)?.broadcast_div(&total)?;
    let Some(inducer) = &tokens.inducer else {
        return attended.transpose(1, 2);
    };
    let (KeyTensors::Residual(key), ValueTensors::Residual(value)) = (&inducer.key, &inducer.value) else {
        bail!("eager attention: only residual keys and values");
    };
    // λ = sigmoid(s0 − lse), O = attn + λ Δ.
    let virtual_key = (&q + residual(&q, key)?)?;
    let own_score = ((&q * virtual_key)?.sum_keepdim(D::Minus1)? * scale)?;
    let lse = (total.log()? + max)?;
    let weight = candle_nn::ops::sigmoid(&(own_score - lse)?)?;
    (attended + residual(&q, value)?.broadcast_mul(&weight)?)?.transpose(1, 2)
}

/// `tanh(q A + a) B + b` per head.
fn residual(q: &Tensor, adapter: &AdapterTensors) -> Result<Tensor> {
    let over_batch = |x: &Tensor| {
        let (heads, rows, columns) = x.dims3()?;
        x.unsqueeze(0)?.broadcast_as((q.dim(0)?, heads, rows, columns))?.contiguous()
    };
    let hidden =
        q.matmul(&over_batch(&adapter.down_weight)?)?.broadcast_add(&adapter.down_bias.unsqueeze(1)?)?;
    hidden.tanh()?.matmul(&over_batch(&adapter.up_weight)?)?.broadcast_add(&adapter.up_bias.unsqueeze(1)?)
}

/// 0 where query i may see key j, −∞ elsewhere; the prefix is seen by all.
fn causal_mask(length: usize, prefix: usize) -> Result<Tensor> {
    let columns = prefix + length;
    let mask: Vec<f32> = (0..length * columns)
        .map(|index| if index % columns > prefix + index / columns { f32::NEG_INFINITY } else { 0.0 })
        .collect();
    Tensor::from_vec(mask, (length, columns), &Device::Cpu)
}
