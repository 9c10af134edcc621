//! The layers of [`crate::layers`], composed of candle's own operations: what a GPU runs, and what the fused ones are tested against.

use candle_core::{Result, Tensor};

/// `y = x W + b`.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    x.matmul(weight)?.broadcast_add(bias)
}

/// `y = (x − mean) / √(variance + ε) · γ + β` over the last dimension.
pub(crate) fn layer_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor, epsilon: f32) -> Result<Tensor> {
    candle_nn::ops::layer_norm_slow(x, gamma, beta, epsilon)
}

/// The tanh form of GELU. candle writes the gradient of its own with six digits, hence tanh.
pub(crate) fn gelu(x: &Tensor) -> Result<Tensor> {
    let cube = (x.sqr()? * x)?;
    let inner = ((x + (cube * 0.044_715)?)? * (2.0 / std::f64::consts::PI).sqrt())?;
    (x * 0.5)? * (inner.tanh()? + 1.0)?
}

/// Mean over the rows of `−log softmax(logits)[target]`.
pub(crate) fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    candle_nn::loss::cross_entropy(logits, targets)
}
