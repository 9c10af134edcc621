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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Activation, Attention, AttentionConfig, Dropout, bf16};

    fn values(len: usize) -> Vec<f32> {
        (0..len).map(|i| (i * 37 % 101) as f32 / 64.0 - 0.75).collect()
    }

    /// The oracle's tensor of the first values.
    fn wide(shape: &[usize]) -> Tensor {
        wide_from(0, shape)
    }

    /// The oracle's tensor of the values from `start` on.
    fn wide_from(start: usize, shape: &[usize]) -> Tensor {
        let values = values(start + shape.iter().product::<usize>());
        Tensor::from_fn(shape, |i| values[start + i].into())
    }

    #[test]
    fn strides_and_dtypes_are_resolved() {
        let data: Vec<bf16> = values(2 * 3 * 4 * 5).into_iter().map(bf16::from_f32).collect();
        // [B, N, H, d] in memory.
        let view = TensorRef::new(&data, [2, 3, 4, 5]).and_then(|view| view.permute([0, 2, 1, 3])).unwrap();
        let tensor = Tensor::from(&view);
        assert_eq!(tensor.shape, [2, 4, 3, 5]);
        for (b, n, h, c) in [(0, 0, 0, 0), (1, 2, 3, 4), (0, 2, 1, 3), (1, 0, 2, 1)] {
            let element = f64::from(data[((b * 3 + n) * 4 + h) * 5 + c].to_f32());
            assert_eq!(tensor[[b, h, n, c]].to_bits(), element.to_bits());
        }
    }

    /// Every field of a problem arrives where it belongs.
    #[test]
    fn every_setting_arrives() {
        let data = values(2 * 4 * 3 * 5);
        let rank3 = |shape| TensorRef::new(&data, shape).unwrap();
        let rank2 = |shape| TensorRef::new(&data, shape).unwrap();
        let rank4 = |start: usize, shape| TensorRef::new(&data[start..], shape).unwrap();
        let mut attention =
            Attention::new(rank4(0, [2, 4, 3, 5]), rank4(1, [2, 2, 3, 5]), rank4(2, [2, 2, 3, 5]));
        let plain =
            Problem::new(wide(&[2, 4, 3, 5]), wide_from(1, &[2, 2, 3, 5]), wide_from(2, &[2, 2, 3, 5]));
        let sigma = f64::from((1.0 / 5.0_f64.sqrt()) as f32);
        let mut expected = Problem { softmax_scale: sigma, ..plain };
        assert_eq!(Problem::from(&attention.validate().unwrap()), expected);

        attention.config = AttentionConfig {
            softmax_scale: Some(0.5),
            causal: true,
            window_left: Some(3),
            window_right: Some(4),
            softcap: Some(2.5),
            dropout: Some(Dropout { p: 0.25, seed: 17 }),
        };
        attention.prefix =
            Some(inducer::Prefix { k: rank3([2, 6, 5]), v: TensorRef::new(&data[3..], [2, 6, 5]).unwrap() });
        attention.alibi_slopes = Some(&data[..4]);
        let (query_lengths, key_lengths, key_starts) = ([1, 3], [2, 0], [0, 1]);
        attention.lengths = Lengths::Padded {
            query_lengths: Some(&query_lengths),
            key_lengths: Some(&key_lengths),
            key_starts: Some(&key_starts),
        };
        let adapter = inducer::Adapter {
            down_weight: rank3([4, 5, 2]),
            down_bias: rank2([4, 2]),
            up_weight: rank3([4, 2, 5]),
            up_bias: rank2([4, 5]),
            activation: Activation::Identity,
        };
        let positions = [1, 2, 3, 9, 8, 7];
        attention.inducer = Some(inducer::Inducer {
            key: inducer::VirtualKey::Residual(adapter),
            value: inducer::VirtualValue::Direct(inducer::Adapter {
                activation: Activation::Tanh,
                ..adapter
            }),
            adaptive_length: true,
            positions: Some(&positions),
        });
        let wide_adapter = |activation| Adapter {
            down: Down { weight: wide(&[4, 5, 2]), bias: wide(&[4, 2]), activation },
            up: Up { weight: wide(&[4, 2, 5]), bias: wide(&[4, 5]) },
        };
        expected = Problem {
            softmax_scale: 0.5,
            causal: true,
            window_left: Some(3),
            window_right: Some(4),
            softcap: Some(2.5),
            dropout: Some(KeepMask::new(0.25, 17)),
            prefix: Some(Prefix { k: wide(&[2, 6, 5]), v: wide_from(3, &[2, 6, 5]) }),
            alibi_slopes: Some(wide(&[4])),
            query_lengths: Some(vec![1, 3]),
            key_lengths: Some(vec![2, 0]),
            key_starts: Some(vec![0, 1]),
            inducer: Some(Inducer {
                key: VirtualKey::Residual(wide_adapter(Activation::Identity)),
                value: VirtualValue::Direct(wide_adapter(Activation::Tanh)),
                adaptive_length: true,
                positions: Some(Tensor::new(&[2, 3], vec![1.0, 2.0, 3.0, 9.0, 8.0, 7.0])),
            }),
            ..expected
        };
        assert_eq!(Problem::from(&attention.validate().unwrap()), expected);

        attention.alibi_slopes = Some(&data[..8]);
        expected.alibi_slopes = Some(wide(&[2, 4]));
        let logits = rank3([2, 4, 3]);
        let down = inducer::DownProjection {
            down_weight: rank3([4, 5, 2]),
            down_bias: rank2([4, 2]),
            activation: Activation::Tanh,
        };
        attention.inducer = Some(inducer::Inducer::new(
            inducer::VirtualKey::LogitPerToken(logits),
            inducer::VirtualValue::Extended(down),
        ));
        expected.inducer = Some(Inducer {
            key: VirtualKey::LogitPerToken(wide(&[2, 4, 3])),
            value: VirtualValue::Extended(wide_adapter(Activation::Tanh).down),
            adaptive_length: false,
            positions: None,
        });
        assert_eq!(Problem::from(&attention.validate().unwrap()), expected);
    }

    #[test]
    fn packed_boundaries_arrive() {
        let data = values(2 * 7 * 5);
        let (q, k) =
            (TensorRef::new(&data, [1, 2, 7, 5]).unwrap(), TensorRef::new(&data, [1, 1, 9, 5]).unwrap());
        let (cu_seqlens_q, cu_seqlens_k) = ([0, 2, 6], [0, 4, 9]);
        let mut attention = Attention::new(q, k, k);
        attention.lengths = Lengths::Packed { cu_seqlens_q: &cu_seqlens_q, cu_seqlens_k: &cu_seqlens_k };
        let cu_seqlens = Problem::from(&attention.validate().unwrap()).cu_seqlens;
        assert_eq!(cu_seqlens, Some(CuSeqlens { q: vec![0, 2, 6], k: vec![0, 4, 9] }));
    }
}
