//! The operation.

use candle_core::{Result, Tensor, bail};

use crate::call::{Call, sources};
use crate::options::{AttentionOptions, TensorLayout};
use crate::storage::{Buffer, CONTEXT};
use crate::tape;
use crate::tensors::VirtualTokens;

/// What [`inducer_attention_outputs`] returns.
#[derive(Clone, Debug)]
pub struct AttentionOutputs {
    /// O, of Q's shape and dtype (for the extended value: attn).
    pub o: Tensor,
    /// U, as O with `r_v` in place of d; only for the extended value.
    pub u: Option<Tensor>,
    /// Natural logarithm of the sum of exponentials over real keys and prefix, f32 `[B, Hq, N]`; differentiable.
    pub lse: Tensor,
    /// `[attn | U]` per head, `[B, N, Hq, d + r_v]` or `[B, Hq, N, d + r_v]`; O itself if there is no U.
    pub(crate) packed: Tensor,
    pub(crate) layout: TensorLayout,
}

/// Attention in which every query has its own virtual token.
///
/// With σ the softmax scale, `s_ij = σ Q_i·K_j` over what query i may see (prefix included) and `lse_i = log Σ_j exp s_ij`,
/// `attn_i = Σ_j exp(s_ij − lse_i) V_j`, the virtual token's score `s0_i` and its weight `λ_i = sigmoid(s0_i − lse_i)`:
///
/// ```text
/// O_i = attn_i + λ_i Δ_i              residual value
/// O_i = (1 − λ_i) attn_i + λ_i Δ_i    direct value
/// ```
///
/// (Chen et al., *Inducer-tuning*, EMNLP 2022.) Gradients reach Q, K, V and every tensor of `tokens` through O.
///
/// # Shapes
/// q `[B, Hq, N, d]`, k and v `[B, Hkv, M, d]`, Hq a multiple of Hkv ([`TensorLayout::Bnhd`] exchanges the two middle
/// dimensions); any strides, copied only if the last dimension is not contiguous. f32, f16 or bf16, all three alike. The result has
/// q's shape and dtype.
///
/// # Devices
/// CPU, and with feature `cuda` one CUDA device for all tensors: then d is a multiple of 8, rows of Q, K, V and prefix that do not
/// begin at multiples of 16 bytes are copied first, and the call is enqueued on the stream of the device without waiting for it. The
/// first call in a context loads the kernels; [`cuda_device`](crate::cuda_device()) does so beforehand.
///
/// # Errors
/// A [`candle_core::Error`] that carries an [`inducer_attention::Error`] naming the argument for anything that does not
/// fit, and saying what is missing of driver, device and kernels; a [`DeviceError`](crate::DeviceError) for tensors where this build
/// does not compute; an error for the extended value, whose second result needs [`inducer_attention_outputs`].
///
/// ```
/// use candle_core::{Device, Tensor};
/// use inducer_attention_candle::{AttentionOptions, VirtualTokens, inducer_attention};
/// let q = Tensor::randn(0f32, 1.0, (1, 4, 10, 16), &Device::Cpu)?;
/// let kv = Tensor::randn(0f32, 1.0, (1, 2, 10, 16), &Device::Cpu)?;
/// let o = inducer_attention(&q, &kv, &kv, &VirtualTokens::default(), &AttentionOptions::causal())?;
/// assert_eq!(o.dims(), [1, 4, 10, 16]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn inducer_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    tokens: &VirtualTokens,
    options: &AttentionOptions,
) -> Result<Tensor> {
    if tokens.extended_rank().is_some() {
        bail!("{CONTEXT}: the extended value also returns U; use inducer_attention_outputs");
    }
    Ok(run(q, k, v, tokens, options, false)?.0)
}

/// [`inducer_attention()`] with all of its results: O, lse and, for the extended value, U.
///
/// Gradients flow back through each of them.
///
/// # Errors
/// As [`inducer_attention()`], but the extended value is welcome.
pub fn inducer_attention_outputs(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    tokens: &VirtualTokens,
    options: &AttentionOptions,
) -> Result<AttentionOutputs> {
    let (packed, lse) = run(q, k, v, tokens, options, true)?;
    let Some(lse) = lse else { bail!("{CONTEXT}: lse is missing") };
    let (o, u) = match tokens.extended_rank() {
        None => (packed.clone(), None),
        Some(rank) => {
            let head_dim = packed.dim(3)? - rank;
            (packed.narrow(3, 0, head_dim)?, Some(packed.narrow(3, head_dim, rank)?))
        }
    };
    Ok(AttentionOutputs { o, u, lse, packed, layout: options.layout })
}

/// Runs the call, and puts it on the graph if an input is on one. Without a graph nothing is kept.
fn run(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    tokens: &VirtualTokens,
    options: &AttentionOptions,
    lse: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let call = Call::new(q, k, v, tokens, options)?;
    let width = call.width();
    // Rows without the padding that they may end with.
    let unpadded = |main: Tensor| if main.dim(3)? == width { Ok(main) } else { main.narrow(3, 0, width) };
    let inputs: Vec<&Tensor> = sources(q, k, v, tokens).into_iter().map(|(_, t)| t).collect();
    if inputs.iter().any(|t| t.track_op()) {
        let results = call.forward(true)?;
        let (main, lse) = tape::record(call, &inputs, results)?;
        return Ok((unpadded(main)?, Some(lse)));
    }
    let results = call.forward(lse)?;
    Ok((unpadded(results.main.into_tensor())?, results.lse.map(Buffer::into_tensor)))
}
