//! Which attention the model runs on.

use crate::eager;
use candle_core::{Result, Tensor};
use inducer_attention_candle::{AttentionOptions, TensorLayout, VirtualTokens, inducer_attention};

/// The operation, fused or composed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Attention {
    /// This crate's.
    #[default]
    Fused,
    /// A composition of candle's operations: what the fused one is checked against, and compared with in speed.
    Eager,
}

impl Attention {
    pub(crate) const ALL: [Self; 2] = [Self::Fused, Self::Eager];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fused => "fused",
            Self::Eager => "eager",
        }
    }

    /// Causal attention of q, k, v `[B, N, H, d]` with the layer's prefix and inducer; `[B, N, H, d]`.
    pub(crate) fn forward(
        self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        tokens: &VirtualTokens,
    ) -> Result<Tensor> {
        match self {
            Self::Fused => {
                let options = AttentionOptions::causal().with_layout(TensorLayout::Bnhd);
                inducer_attention(q, k, v, tokens, &options)
            }
            Self::Eager => eager::attention(q, k, v, tokens),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Attention;
    use candle_core::{Device, Result, Tensor, Var};
    use inducer_attention_candle::{
        AdapterTensors, InducerTensors, KeyTensors, PrefixTensors, ValueTensors, VirtualTokens,
    };

    /// Outputs and all gradients of the fused operation against candle's own through the composition.
    #[test]
    fn fused_and_eager_agree() -> Result<()> {
        let (batch, length, heads, d, rank, prefix) = (2, 37, 2, 16, 3, 5);
        let mut variables = Vec::new();
        let mut variable = |shape: &[usize]| -> Result<Tensor> {
            let variable = Var::randn(0f32, 0.7, shape, &Device::Cpu)?;
            variables.push(variable.clone());
            Ok(variable.as_tensor().clone())
        };
        let [q, k, v] = [(); 3].map(|()| variable(&[batch, length, heads, d]));
        let (q, k, v) = (q?, k?, v?);
        let mut adapter = || -> Result<AdapterTensors> {
            Ok(AdapterTensors {
                down_weight: variable(&[heads, d, rank])?,
                down_bias: variable(&[heads, rank])?,
                up_weight: variable(&[heads, rank, d])?,
                up_bias: variable(&[heads, d])?,
            })
        };
        let inducer =
            InducerTensors::new(KeyTensors::Residual(adapter()?), ValueTensors::Residual(adapter()?));
        let prefix = PrefixTensors { k: variable(&[heads, prefix, d])?, v: variable(&[heads, prefix, d])? };
        let tokens = VirtualTokens { prefix: Some(prefix), inducer: Some(inducer) };
        let weight = Tensor::randn(0f32, 1.0, (batch, length, heads, d), &Device::Cpu)?;
        let run = |attention: Attention| -> Result<_> {
            let output = attention.forward(&q, &k, &v, &tokens)?;
            let gradients = (&output * &weight)?.sum_all()?.backward()?;
            let mut all = vec![output];
            all.extend(variables.iter().map(|variable| gradients.get(variable).unwrap().clone()));
            Ok(all)
        };
        for (index, (fused, eager)) in run(Attention::Fused)?.iter().zip(run(Attention::Eager)?).enumerate() {
            let error = (fused - &eager)?.sqr()?.sum_all()?.to_scalar::<f32>()?.sqrt();
            let norm = eager.sqr()?.sum_all()?.to_scalar::<f32>()?.sqrt();
            assert!(error <= 1e-5 * norm, "tensor {index}: error {error} against norm {norm}");
        }
        Ok(())
    }
}
