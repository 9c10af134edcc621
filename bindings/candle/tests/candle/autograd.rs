//! The operation as a citizen of candle's graphs.

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, Var};
use inducer_attention_candle::{
    AttentionOptions, PrefixTensors, TensorLayout, VirtualTokens, inducer_attention,
    inducer_attention_outputs,
};

use crate::composition;
use crate::support::{
    Key, SMALL, Sizes, Value, Variables, inducer, loss, published, relative_error, tensor, to_vec, var,
};

fn qkv(variables: &mut Variables, sizes: &Sizes) -> [Tensor; 3] {
    [variables.add("q", &sizes.q()), variables.add("k", &sizes.k()), variables.add("v", &sizes.k())]
}

#[test]
fn without_variables_there_is_no_graph() {
    let q = tensor(1, &SMALL.q());
    let (k, v) = (tensor(2, &SMALL.k()), tensor(3, &SMALL.k()));
    let outputs =
        inducer_attention_outputs(&q, &k, &v, &VirtualTokens::default(), &AttentionOptions::causal())
            .unwrap();
    assert!(!outputs.o.track_op() && !outputs.lse.track_op());
}

#[test]
fn only_what_is_tracked_gets_a_gradient() -> Result<()> {
    let mut variables = Variables::default();
    let tokens = published(&mut variables, &SMALL);
    let (q, k, v) = (tensor(1, &SMALL.q()), tensor(2, &SMALL.k()), tensor(3, &SMALL.k()));
    let options = AttentionOptions::causal();
    let o = inducer_attention(&q, &k, &v, &tokens, &options)?;
    let gradients = loss(&[&o])?.backward()?;
    assert!([&q, &k, &v].iter().all(|t| gradients.get(t).is_none()));
    let expected = loss(&[&composition::attention(&q, &k, &v, &tokens, &options)?.o])?.backward()?;
    for (name, variable) in &variables.0 {
        let error = relative_error(gradients.get(variable).unwrap(), expected.get(variable).unwrap());
        assert!(error < 1e-5, "{name}: {error:e}");
    }
    Ok(())
}

#[test]
fn one_trained_tensor_of_an_adapter_is_enough() -> Result<()> {
    let mut variables = Variables::default();
    let mut tokens = published(&mut variables, &SMALL);
    tokens = VirtualTokens {
        inducer: tokens.inducer.map(|mut inducer| {
            if let inducer_attention_candle::KeyTensors::Residual(a) = &mut inducer.key {
                a.down_weight = a.down_weight.detach();
                a.up_weight = a.up_weight.detach();
                a.up_bias = a.up_bias.detach();
            }
            inducer
        }),
        ..tokens
    };
    let (q, k, v) = (tensor(1, &SMALL.q()), tensor(2, &SMALL.k()), tensor(3, &SMALL.k()));
    let o = inducer_attention(&q, &k, &v, &tokens, &AttentionOptions::causal())?;
    let gradients = loss(&[&o])?.backward()?;
    let trained: Vec<_> =
        variables.0.iter().filter(|(_, v)| gradients.get(v).is_some()).map(|(n, _)| n.as_str()).collect();
    assert_eq!(
        trained,
        ["key.down_bias", "value.down_weight", "value.down_bias", "value.up_weight", "value.up_bias"]
    );
    Ok(())
}

#[test]
fn a_graph_can_be_walked_twice() -> Result<()> {
    let mut variables = Variables::default();
    let [q, k, v] = qkv(&mut variables, &SMALL);
    let tokens = published(&mut variables, &SMALL);
    let outputs = inducer_attention_outputs(&q, &k, &v, &tokens, &AttentionOptions::causal())?;
    let total = loss(&[&outputs.o, &outputs.lse])?;
    let (first, second) = (total.backward()?, total.backward()?);
    for (name, variable) in &variables.0 {
        assert_eq!(to_vec(first.get(variable).unwrap()), to_vec(second.get(variable).unwrap()), "{name}");
    }
    // A pass through one output alone brings nothing of what the other had before.
    let of_o = loss(&[&outputs.o])?.backward()?;
    let fresh = inducer_attention(&q, &k, &v, &tokens, &AttentionOptions::causal())?;
    let expected = loss(&[&fresh])?.backward()?;
    for (name, variable) in &variables.0 {
        assert_eq!(to_vec(of_o.get(variable).unwrap()), to_vec(expected.get(variable).unwrap()), "{name}");
    }
    Ok(())
}

#[test]
fn threads_walk_one_graph_at_the_same_time() -> Result<()> {
    let mut variables = Variables::default();
    let [q, k, v] = qkv(&mut variables, &SMALL);
    let o = inducer_attention(&q, &k, &v, &VirtualTokens::default(), &AttentionOptions::causal())?;
    let losses: Vec<Tensor> =
        (1..=4).map(|scale| loss(&[&o]).and_then(|l| l * f64::from(scale))).collect::<Result<_>>()?;
    let gradient = |l: &Tensor| to_vec(l.backward().unwrap().get(&variables.0[0].1).unwrap());
    let expected: Vec<_> = losses.iter().map(gradient).collect();
    std::thread::scope(|scope| {
        for (l, expected) in losses.iter().zip(&expected) {
            scope.spawn(move || {
                for _ in 0..10 {
                    assert_eq!(&gradient(l), expected);
                }
            });
        }
    });
    Ok(())
}

#[test]
fn lse_alone_carries_gradients() -> Result<()> {
    let mut variables = Variables::default();
    let [q, k, v] = qkv(&mut variables, &SMALL);
    let options = AttentionOptions::causal();
    let tokens = VirtualTokens::default();
    let got = loss(&[&inducer_attention_outputs(&q, &k, &v, &tokens, &options)?.lse])?.backward()?;
    let expected = loss(&[&composition::attention(&q, &k, &v, &tokens, &options)?.lse])?.backward()?;
    for (name, variable) in &variables.0[..2] {
        let error = relative_error(got.get(variable).unwrap(), expected.get(variable).unwrap());
        assert!(error < 1e-5, "{name}: {error:e}");
    }
    let d_v = got.get(&variables.0[2].1).unwrap();
    assert!(to_vec(d_v).iter().all(|&x| x == 0.0));
    Ok(())
}

#[test]
fn the_same_tensor_may_be_q_k_and_v() -> Result<()> {
    let x = var(5, &[2, 3, 9, 8]);
    let options = AttentionOptions::causal();
    let tokens = VirtualTokens::default();
    let got = loss(&[&inducer_attention(&x, &x, &x, &tokens, &options)?])?.backward()?;
    let expected = loss(&[&composition::attention(&x, &x, &x, &tokens, &options)?.o])?.backward()?;
    assert!(relative_error(got.get(&x).unwrap(), expected.get(&x).unwrap()) < 1e-5);
    Ok(())
}

#[test]
fn views_of_a_packed_projection_are_read_in_place() -> Result<()> {
    let (b, n, h, d) = (2, 9, 3, 8);
    let qkv = var(6, &[b, n, 3 * h * d]);
    let heads = |i: usize| qkv.reshape((b, n, 3 * h, d))?.narrow(2, i * h, h);
    for layout in [TensorLayout::Bnhd, TensorLayout::Bhnd] {
        let part = |i: usize| match layout {
            TensorLayout::Bnhd => heads(i),
            TensorLayout::Bhnd => heads(i)?.transpose(1, 2),
        };
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);
        assert!(!q.is_contiguous());
        let options = AttentionOptions::causal().with_layout(layout);
        let tokens = VirtualTokens::default();
        let got = inducer_attention(&q, &k, &v, &tokens, &options)?;
        let expected = composition::attention(&q, &k, &v, &tokens, &options)?.o;
        assert!(relative_error(&got, &expected) < 1e-6);
        let (got, expected) = (loss(&[&got])?.backward()?, loss(&[&expected])?.backward()?);
        assert!(relative_error(got.get(&qkv).unwrap(), expected.get(&qkv).unwrap()) < 1e-5);
    }
    Ok(())
}

#[test]
fn a_strided_last_dimension_and_a_broadcast_gradient_are_taken() -> Result<()> {
    let q = var(7, &[1, 2, 8, 9]);
    let (k, v) = (tensor(8, &[1, 2, 9, 8]), tensor(9, &[1, 2, 9, 8]));
    let q_view = q.transpose(2, 3)?;
    let (tokens, options) = (VirtualTokens::default(), AttentionOptions::causal());
    let got = inducer_attention(&q_view, &k, &v, &tokens, &options)?;
    let expected = composition::attention(&q_view, &k, &v, &tokens, &options)?.o;
    assert!(relative_error(&got, &expected) < 1e-6);
    let (got, expected) = (got.sum_all()?.backward()?, expected.sum_all()?.backward()?);
    assert!(relative_error(got.get(&q).unwrap(), expected.get(&q).unwrap()) < 1e-5);
    Ok(())
}

/// Step of the finite differences: f32 rounding over it, and its own error, are each below 1e-3.
const H: f32 = 1.0 / 128.0;

#[test]
fn gradients_agree_with_finite_differences() -> Result<()> {
    let sizes = Sizes { batch: 1, heads: 2, kv_heads: 1, rows: 4, keys: 6, head_dim: 4 };
    for value in [Value::Residual, Value::Direct] {
        let mut variables = Variables::default();
        let [q, k, v] = qkv(&mut variables, &sizes);
        let tokens = VirtualTokens {
            prefix: Some(crate::support::prefix(&mut variables, &sizes, 2)),
            inducer: Some(inducer(&mut variables, &sizes, Key::Residual, value)),
        };
        let value = || -> Result<Tensor> {
            let out = inducer_attention_outputs(&q, &k, &v, &tokens, &AttentionOptions::causal())?;
            loss(&[&out.o, &out.lse])
        };
        let gradients = value()?.backward()?;
        for (name, variable) in &variables.0 {
            let gradient = to_vec(gradients.get(variable).unwrap());
            let at: Vec<f32> = to_vec(variable).into_iter().map(|x| x as f32).collect();
            let (mut difference, mut norm) = (0.0, 0.0);
            for i in 0..at.len() {
                let step = |by: f32| -> Result<f64> {
                    let mut moved = at.clone();
                    moved[i] += by;
                    variable.set(&Tensor::from_vec(moved, variable.shape(), &Device::Cpu)?)?;
                    value()?.to_scalar::<f64>()
                };
                let slope = (step(H)? - step(-H)?) / f64::from(2.0 * H);
                difference += (slope - gradient[i]).powi(2);
                norm += gradient[i].powi(2);
            }
            variable.set(&Tensor::from_vec(at, variable.shape(), &Device::Cpu)?)?;
            let error = (difference / norm).sqrt();
            assert!(error < 2e-3, "{name}: {error:e}");
        }
    }
    Ok(())
}

#[test]
fn trained_tokens_in_f32_under_activations_in_bf16() -> Result<()> {
    let mut variables = Variables::default();
    let tokens = VirtualTokens {
        prefix: Some(PrefixTensors {
            k: variables.add("prefix.k", &[SMALL.kv_heads, 3, SMALL.head_dim]),
            v: variables.add("prefix.v", &[SMALL.kv_heads, 3, SMALL.head_dim]),
        }),
        inducer: Some(inducer(&mut variables, &SMALL, Key::Residual, Value::Residual)),
    };
    let half = |seed, shape: &[usize]| tensor(seed, shape).to_dtype(DType::BF16);
    let q = Var::from_tensor(&half(1, &SMALL.q())?)?;
    let (k, v) = (half(2, &SMALL.k())?, half(3, &SMALL.k())?);
    let options = AttentionOptions::causal();
    let o = inducer_attention(&q, &k, &v, &tokens, &options)?;
    assert_eq!(o.dtype(), DType::BF16);
    let got = loss(&[&o])?.backward()?;
    let expected = loss(&[&composition::attention(&q, &k, &v, &tokens, &options)?.o])?.backward()?;
    for (name, variable) in variables.0.iter().map(|(n, v)| (n.as_str(), v)).chain([("q", &q)]) {
        let gradient = got.get(variable).unwrap();
        assert_eq!(gradient.dtype(), variable.dtype(), "{name}");
        let error = relative_error(gradient, expected.get(variable).unwrap());
        assert!(error < 2e-2, "{name}: {error:e}");
    }
    Ok(())
}

/// An operation through which candle cannot go back.
struct OneWay;

impl CustomOp1 for OneWay {
    fn name(&self) -> &'static str {
        "one-way"
    }

    fn cpu_fwd(&self, _: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![1.0; layout.shape().elem_count()]), layout.shape().clone()))
    }
}

#[test]
fn a_pass_that_failed_leaves_nothing_for_the_next() -> Result<()> {
    let mut variables = Variables::default();
    let [q, k, v] = qkv(&mut variables, &SMALL);
    let (tokens, options) = (VirtualTokens::default(), AttentionOptions::causal());
    let outputs = inducer_attention_outputs(&q, &k, &v, &tokens, &options)?;
    // candle goes back from the last operand to the first: O's gradient arrives, then the pass fails before lse.
    let failing = (loss(&[&outputs.lse.apply_op1(OneWay)?])? + loss(&[&outputs.o])?)?;
    assert!(failing.backward().is_err());
    let got = loss(&[&outputs.lse])?.backward()?;
    let fresh = inducer_attention_outputs(&q, &k, &v, &tokens, &options)?;
    let expected = loss(&[&fresh.lse])?.backward()?;
    for (name, variable) in &variables.0 {
        assert_eq!(to_vec(got.get(variable).unwrap()), to_vec(expected.get(variable).unwrap()), "{name}");
    }
    Ok(())
}
