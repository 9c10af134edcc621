//! Inducer attention as a composition of candle operations in f64: slow, differentiable, and written after the equations.

use candle_core::{D, DType, Device, Result, Tensor};
use inducer_attention::dropout::KeepMask;
use inducer_attention_candle::{
    Activation, AdapterTensors, AttentionOptions, KeyTensors, SequenceLengths, TensorLayout, ValueTensors,
    VirtualTokens,
};

pub(crate) struct Composed {
    pub(crate) o: Tensor,
    pub(crate) u: Option<Tensor>,
    pub(crate) lse: Tensor,
}

/// One row's place: which keys it may see, and its position among them.
struct Row {
    offset: i64,
    keys: std::ops::Range<usize>,
}

fn row(options: &AttentionOptions, b: usize, i: usize, n: usize, m: usize) -> Row {
    match &options.lengths {
        SequenceLengths::Full => Row { offset: (i + m) as i64 - n as i64, keys: 0..m },
        SequenceLengths::Padded { query_lengths, key_lengths, key_starts } => {
            let end = key_lengths.as_ref().map_or(m, |l| l[b] as usize);
            let start = key_starts.as_ref().map_or(0, |l| l[b] as usize);
            let offset = match query_lengths {
                Some(l) => i as i64 + end as i64 - i64::from(l[b]),
                None => (i + m) as i64 - n as i64,
            };
            Row { offset, keys: start..end }
        }
        SequenceLengths::Packed { cu_seqlens_q, cu_seqlens_k } => {
            let s = cu_seqlens_q.iter().rposition(|&start| start as usize <= i).unwrap();
            let (q, k) = (&cu_seqlens_q[s..], &cu_seqlens_k[s..]);
            let (rows, keys) = (q[1] - q[0], k[1] - k[0]);
            // In absolute key numbers.
            let offset = i as i64 - i64::from(q[0]) + i64::from(keys - rows) + i64::from(k[0]);
            Row { offset, keys: k[0] as usize..k[1] as usize }
        }
    }
}

/// A tensor [B, Hq, N, M] made from a function of its indices.
fn table([b, h, n, m]: [usize; 4], mut f: impl FnMut(usize, usize, usize, usize) -> f64) -> Result<Tensor> {
    let mut values = Vec::with_capacity(b * h * n * m);
    for b in 0..b {
        for h in 0..h {
            for i in 0..n {
                values.extend((0..m).map(|j| f(b, h, i, j)));
            }
        }
    }
    Tensor::from_vec(values, (b, h, n, m), &Device::Cpu)
}

pub(crate) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    tokens: &VirtualTokens,
    options: &AttentionOptions,
) -> Result<Composed> {
    let wide = |t: &Tensor| t.to_dtype(DType::F64);
    let bhnd = |t: &Tensor| match options.layout {
        TensorLayout::Bhnd => wide(t)?.contiguous(),
        TensorLayout::Bnhd => wide(t)?.transpose(1, 2)?.contiguous(),
    };
    let (q, k, v) = (bhnd(q)?, bhnd(k)?, bhnd(v)?);
    let (b, h, n, d) = q.dims4()?;
    let (_, h_kv, m, _) = k.dims4()?;
    let grouped = |t: &Tensor| {
        let m = t.dim(2)?;
        t.unsqueeze(2)?.broadcast_as((b, h_kv, h / h_kv, m, d))?.reshape((b, h, m, d))
    };
    let (k, v) = (grouped(&k)?, grouped(&v)?);
    let config = options.config;
    let scale = config.softmax_scale.map_or(1.0 / (d as f64).sqrt(), f64::from);
    let scores = |k: &Tensor| {
        let s = (q.matmul(&k.t()?)? * scale)?;
        match config.softcap.map(f64::from) {
            Some(cap) => (s / cap)?.tanh()? * cap,
            None => Ok(s),
        }
    };
    let slope = |b: usize, head: usize| match &options.alibi_slopes {
        Some(s) if s.len() == h => f64::from(s[head]),
        Some(s) => f64::from(s[b * h + head]),
        None => 0.0,
    };
    let bias = table([b, h, n, m], |b, head, i, j| {
        let Row { offset, keys } = row(options, b, i, n, m);
        let (left, right) = (config.window_left, config.window_right);
        let j_at = j as i64;
        let right = if config.causal { Some(0) } else { right };
        let seen = keys.contains(&j)
            && right.is_none_or(|w| j_at <= offset + w)
            && left.is_none_or(|w| j_at >= offset - w);
        if seen { -slope(b, head) * (offset - j_at).abs() as f64 } else { f64::NEG_INFINITY }
    })?;
    let mut s = (scores(&k)? + bias)?;
    let mut values = v;
    let mut prefix_length = 0;
    if let Some(prefix) = &tokens.prefix {
        let over_batch = |t: &Tensor| {
            let (h_kv, l, d) = t.dims3()?;
            grouped(&wide(t)?.unsqueeze(0)?.broadcast_as((b, h_kv, l, d))?.contiguous()?)
        };
        prefix_length = prefix.k.dim(1)?;
        s = Tensor::cat(&[scores(&over_batch(&prefix.k)?)?, s], 3)?;
        values = Tensor::cat(&[over_batch(&prefix.v)?, values], 2)?;
    }
    let max = s.max_keepdim(D::Minus1)?.detach();
    let exps = s.broadcast_sub(&max)?.exp()?;
    let total = exps.sum_keepdim(D::Minus1)?;
    let lse = (total.log()? + &max)?;
    let mut p = exps.broadcast_div(&total)?;
    let mask = config.dropout.map(|dropout| KeepMask::new(dropout.p, dropout.seed));
    if let Some(mask) = &mask {
        let keep = table([b, h, n, prefix_length + m], |b, head, i, j| {
            let (stream, i) = ((b * h + head) as u32, i as u32);
            let kept = match j.checked_sub(prefix_length) {
                Some(j) => mask.keep_real(stream, i, j as u32),
                None => mask.keep_prefix(stream, i, j as u32),
            };
            if kept { mask.scale() } else { 0.0 }
        })?;
        p = (p * keep)?;
    }
    let attn = p.matmul(&values)?;
    let back = |t: Tensor| match options.layout {
        TensorLayout::Bhnd => Ok(t),
        TensorLayout::Bnhd => t.transpose(1, 2)?.contiguous(),
    };
    let lse_out = lse.squeeze(3)?;
    let Some(inducer) = &tokens.inducer else {
        return Ok(Composed { o: back(attn)?, u: None, lse: lse_out });
    };

    let act = |t: Tensor| match inducer.activation {
        Activation::Tanh => t.tanh(),
        Activation::Identity => Ok(t),
    };
    let per_head = |x: &Tensor, w: &Tensor, bias: &Tensor| {
        let (heads, inner, outer) = w.dims3()?;
        let w = wide(w)?.unsqueeze(0)?.broadcast_as((b, heads, inner, outer))?.contiguous()?;
        x.matmul(&w)?.broadcast_add(&wide(bias)?.unsqueeze(1)?)
    };
    let adapter = |a: &AdapterTensors| {
        per_head(&act(per_head(&q, &a.down_weight, &a.down_bias)?)?, &a.up_weight, &a.up_bias)
    };
    let own = |virtual_key: &Tensor| (&q * virtual_key)?.sum_keepdim(D::Minus1)? * scale;
    let s0 = match &inducer.key {
        KeyTensors::Query => own(&q)?,
        KeyTensors::Residual(a) => own(&(&q + adapter(a)?)?)?,
        KeyTensors::LogitPerHead(t) => {
            wide(t)?.reshape((1, h, 1, 1))?.broadcast_as((b, h, n, 1))?.contiguous()?
        }
        KeyTensors::LogitPerToken(t) => wide(t)?.unsqueeze(3)?,
    };
    let s0 = if inducer.adaptive_length {
        let tau = table([b, h, n, 1], |b, _, i, _| {
            let position = match &options.positions {
                Some(positions) => i64::from(positions[b * n + i]),
                None if config.causal => (row(options, b, i, n, m).offset + 1).max(1),
                None => i as i64 + 1,
            };
            (position as f64).sqrt()
        })?;
        (s0 * tau)?
    } else {
        s0
    };
    let lambda = ((s0 - lse)?.neg()?.exp()? + 1.0)?.recip()?;
    let rest = lambda.affine(-1.0, 1.0)?;
    let dropped = match &mask {
        Some(mask) => {
            let keep = table([b, h, n, 1], |b, head, i, _| {
                if mask.keep_lambda((b * h + head) as u32, i as u32) { mask.scale() } else { 0.0 }
            })?;
            (&lambda * keep)?
        }
        None => lambda,
    };
    let (o, u) = match &inducer.value {
        ValueTensors::Zero => (attn.broadcast_mul(&rest)?, None),
        ValueTensors::Residual(a) => ((attn + adapter(a)?.broadcast_mul(&dropped)?)?, None),
        ValueTensors::Direct(a) => {
            ((attn.broadcast_mul(&rest)? + adapter(a)?.broadcast_mul(&dropped)?)?, None)
        }
        ValueTensors::Extended { down_weight, down_bias } => {
            let hidden = act(per_head(&q, down_weight, down_bias)?)?;
            (attn, Some(hidden.broadcast_mul(&dropped)?))
        }
    };
    Ok(Composed { o: back(o)?, u: u.map(back).transpose()?, lse: lse_out })
}
