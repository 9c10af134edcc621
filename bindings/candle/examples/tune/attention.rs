//! Which attention the model runs on.

use crate::adapter::LayerAdapter;
use candle_core::{Result, Tensor};

/// The operation, fused or composed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Attention {
    /// A composition of candle's operations.
    #[default]
    Eager,
}

impl Attention {
    pub(crate) const ALL: [Self; 1] = [Self::Eager];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Eager => "eager",
        }
    }

    /// Causal attention of q, k, v `[B, H, N, d]` with the layer's prefix and inducer; `[B, H, N, d]`.
    pub(crate) fn forward(self, q: &Tensor, k: &Tensor, v: &Tensor, adapter: Option<&LayerAdapter>) -> Result<Tensor> {
        match self {
            Self::Eager => crate::eager::attention(q, k, v, adapter),
        }
    }
}
