//! From the crate's problems to the oracle's, widening every element to f64.

use super::gradients::OutputGradients;
use super::problem::{Adapter, CuSeqlens, Down, Inducer, Prefix, Problem, Up, VirtualKey, VirtualValue};
use super::tensor::Tensor;
use crate::attention::Lengths;
use crate::call::Upstream;
use crate::dropout::KeepMask;
use crate::inducer;
use crate::tensor::TensorRef;

impl<const R: usize> From<&TensorRef<'_, R>> for Tensor {
    /// Widens a view, whatever its dtype and strides.
    fn from(view: &TensorRef<'_, R>) -> Self {
        let shape = view.shape();
        Self::from_fn(&shape, |flat| {
            let (mut rest, mut index) = (flat, [0; R]);
            for dimension in (0..R).rev() {
                index[dimension] = rest % shape[dimension];
                rest /= shape[dimension];
            }
            view.get(index).into()
        })
    }
}

impl From<&crate::Problem<'_>> for Problem {
    /// Widens a validated problem; σ is the problem's, in f32.
    fn from(problem: &crate::Problem<'_>) -> Self {
        let attention = problem.attention();
        let config = &attention.config;
        let window = |width: Option<i64>| width.map(|width| usize::try_from(width).expect("validated"));
        let mut widened = Self {
            prefix: attention
                .prefix
                .as_ref()
                .map(|prefix| Prefix { k: (&prefix.k).into(), v: (&prefix.v).into() }),
            softmax_scale: problem.softmax_scale().into(),
            causal: config.causal,
            window_left: window(config.window_left),
            window_right: window(config.window_right),
            softcap: config.softcap.map(f64::from),
            alibi_slopes: attention.alibi_slopes.map(|slopes| {
                let heads = problem.query_heads();
                let shape =
                    if slopes.len() == heads { vec![heads] } else { vec![slopes.len() / heads, heads] };
                Tensor::from_fn(&shape, |i| slopes[i].into())
            }),
            dropout: config.dropout.map(|dropout| KeepMask::new(dropout.p, dropout.seed)),
            inducer: attention.inducer.as_ref().map(|inducer| Inducer {
                key: (&inducer.key).into(),
                value: (&inducer.value).into(),
                adaptive_length: inducer.adaptive_length,
                positions: inducer.positions.map(|positions| {
                    Tensor::from_fn(&[problem.batch(), problem.rows()], |i| positions[i].into())
                }),
            }),
            ..Self::new((&attention.q).into(), (&attention.k).into(), (&attention.v).into())
        };
        match attention.lengths {
            Lengths::Full => {}
            Lengths::Padded { query_lengths, key_lengths, key_starts } => {
                widened.query_lengths = query_lengths.map(counts);
                widened.key_lengths = key_lengths.map(counts);
                widened.key_starts = key_starts.map(counts);
            }
            Lengths::Packed { cu_seqlens_q, cu_seqlens_k } => {
                widened.cu_seqlens = Some(CuSeqlens { q: counts(cu_seqlens_q), k: counts(cu_seqlens_k) });
            }
        }
        widened
    }
}

impl From<&Upstream<'_>> for OutputGradients {
    fn from(upstream: &Upstream<'_>) -> Self {
        Self {
            o: (&upstream.d_o).into(),
            lse: upstream.d_lse.as_ref().map(Tensor::from),
            u: upstream.d_u.as_ref().map(Tensor::from),
        }
    }
}

impl From<&inducer::VirtualKey<'_>> for VirtualKey {
    fn from(key: &inducer::VirtualKey<'_>) -> Self {
        match key {
            inducer::VirtualKey::Query => Self::Query,
            inducer::VirtualKey::Residual(adapter) => Self::Residual(adapter.into()),
            inducer::VirtualKey::LogitPerHead(logit) => Self::LogitPerHead(logit.into()),
            inducer::VirtualKey::LogitPerToken(logit) => Self::LogitPerToken(logit.into()),
        }
    }
}

impl From<&inducer::VirtualValue<'_>> for VirtualValue {
    fn from(value: &inducer::VirtualValue<'_>) -> Self {
        match value {
            inducer::VirtualValue::Zero => Self::Zero,
            inducer::VirtualValue::Residual(adapter) => Self::Residual(adapter.into()),
            inducer::VirtualValue::Direct(adapter) => Self::Direct(adapter.into()),
            inducer::VirtualValue::Extended(down) => Self::Extended(Down {
                weight: (&down.down_weight).into(),
                bias: (&down.down_bias).into(),
                activation: down.activation,
            }),
        }
    }
}

impl From<&inducer::Adapter<'_>> for Adapter {
    fn from(adapter: &inducer::Adapter<'_>) -> Self {
        Self {
            down: Down {
                weight: (&adapter.down_weight).into(),
                bias: (&adapter.down_bias).into(),
                activation: adapter.activation,
            },
            up: Up { weight: (&adapter.up_weight).into(), bias: (&adapter.up_bias).into() },
        }
    }
}

/// Validated lengths, which are not negative.
fn counts(lengths: &[i32]) -> Vec<usize> {
    lengths.iter().map(|&length| usize::try_from(length).expect("validated")).collect()
}
