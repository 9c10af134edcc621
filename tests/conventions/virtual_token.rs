//! The virtual token's weight and what becomes of it.

use crate::{adapter, close, inducer, probabilities, random, tensor};
use inducer_attention::dropout::KeepMask;
use inducer_attention::reference::{
    Adapter, Inducer, Output, OutputGradients, Prefix, Tensor, VirtualKey, VirtualValue, backward, forward,
};

/// s0, from what λ and lse say.
fn virtual_logit(output: &Output, b: usize, h: usize, i: usize) -> f64 {
    let lambda = output.lambda[[b, h, i]];
    (lambda / (1.0 - lambda)).ln() + output.lse[[b, h, i]]
}

/// The virtual token is one more key of the softmax: λ is its weight, and the residual, direct and zero forms are what
/// that softmax gives with the virtual values attn + Δ, Δ and 0.
#[test]
fn lambda_is_a_softmax_weight() {
    let mut problem = random(1, 2, 1, 3, 4, 3);
    let (key, value) = (adapter(20, 2, 3, 2), adapter(30, 2, 3, 2));
    let mut run = |virtual_value: VirtualValue| -> Output {
        problem.inducer = Some(inducer(VirtualKey::Residual(key.clone()), virtual_value));
        forward(&problem)
    };
    let residual = run(VirtualValue::Residual(value.clone()));
    let direct = run(VirtualValue::Direct(value.clone()));
    let zero = run(VirtualValue::Zero);
    let extended = run(VirtualValue::Extended(value.down.clone()));

    let bottleneck = |adapter: &Adapter, h: usize, x: &[f64]| -> (Vec<f64>, Vec<f64>) {
        let hidden: Vec<f64> = (0..2)
            .map(|r| {
                let z: f64 = (0..3).map(|c| x[c] * adapter.down.weight[[h, c, r]]).sum();
                (z + adapter.down.bias[[h, r]]).tanh()
            })
            .collect();
        let out = (0..3)
            .map(|c| {
                adapter.up.bias[[h, c]]
                    + (0..2).map(|r| hidden[r] * adapter.up.weight[[h, r, c]]).sum::<f64>()
            })
            .collect();
        (hidden, out)
    };
    let scale = 1.0 / 3.0_f64.sqrt();
    for (h, i) in [(0, 0), (1, 2)] {
        let q = problem.q.row([0, h, i]);
        let product = |key: &[f64]| scale * (q[0] * key[0] + q[1] * key[1] + q[2] * key[2]);
        let (_, up) = bottleneck(&key, h, q);
        let virtual_key: Vec<f64> = (0..3).map(|c| q[c] + up[c]).collect();
        let weight = product(&virtual_key).exp();
        let weights: Vec<f64> = (0..4).map(|j| product(problem.k.row([0, 0, j])).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let (hidden, delta) = bottleneck(&value, h, q);
        let lambda = weight / (sum + weight);
        assert!(close(residual.lambda[[0, h, i]], lambda));
        assert!(close(residual.lse[[0, h, i]], sum.ln()));
        for c in 0..3 {
            let weighted: f64 = (0..4).map(|j| weights[j] * problem.v[[0, 0, j, c]]).sum();
            let attn = weighted / sum;
            assert!(close(residual.attn[[0, h, i, c]], attn));
            assert!(close(
                residual.o[[0, h, i, c]],
                (weighted + weight * (attn + delta[c])) / (sum + weight)
            ));
            assert!(close(direct.o[[0, h, i, c]], (weighted + weight * delta[c]) / (sum + weight)));
            assert!(close(zero.o[[0, h, i, c]], weighted / (sum + weight)));
            assert!(close(extended.o[[0, h, i, c]], attn));
        }
        for r in 0..2 {
            assert!(close(extended.u.as_ref().expect("U")[[0, h, i, r]], lambda * hidden[r]));
        }
    }
}

#[test]
fn adaptive_length_counts_positions_from_one() {
    let run = |queries, keys, causal, query_lengths, positions| {
        let mut problem = random(1, 1, 1, queries, keys, 2);
        problem.causal = causal;
        problem.query_lengths = query_lengths;
        let plain = {
            problem.inducer = Some(inducer(VirtualKey::Query, VirtualValue::Zero));
            forward(&problem)
        };
        problem.inducer = Some(Inducer {
            adaptive_length: true,
            positions,
            ..inducer(VirtualKey::Query, VirtualValue::Zero)
        });
        let adaptive = forward(&problem);
        // Where nothing is seen λ is 1 and tells nothing about s0.
        (0..queries)
            .filter(|&i| adaptive.lse[[0, 0, i]] > f64::NEG_INFINITY)
            .map(|i| (virtual_logit(&adaptive, 0, 0, i) / virtual_logit(&plain, 0, 0, i)).powi(2))
            .collect::<Vec<f64>>()
    };
    let assert_positions = |actual: Vec<f64>, expected: &[f64]| {
        assert_eq!(actual.len(), expected.len());
        for (a, e) in actual.iter().zip(expected) {
            assert!((a - e).abs() < 1e-9, "positions {actual:?}, expected {expected:?}");
        }
    };
    assert_positions(run(3, 5, true, None, None), &[3.0, 4.0, 5.0]);
    assert_positions(run(3, 5, false, None, None), &[1.0, 2.0, 3.0]);
    assert_positions(run(3, 5, true, Some(vec![2]), None), &[4.0, 5.0]);
    assert_positions(run(4, 2, true, None, None), &[1.0, 2.0]);
    let positions = Tensor::new(&[1, 3], vec![7.0, 1.0, 9.0]);
    assert_positions(run(3, 5, true, None, Some(positions)), &[7.0, 1.0, 9.0]);
}

/// A causal row before the first key has position 1, seen through its prefix.
#[test]
fn positions_are_at_least_one() {
    let mut problem = random(1, 1, 1, 3, 1, 2);
    problem.causal = true;
    problem.prefix = Some(Prefix { k: tensor(9, &[1, 2, 2]), v: tensor(10, &[1, 2, 2]) });
    problem.inducer = Some(inducer(VirtualKey::Query, VirtualValue::Zero));
    let plain = forward(&problem);
    problem.inducer.as_mut().expect("inducer").adaptive_length = true;
    assert_eq!(forward(&problem), plain);
}

/// Neither σ nor τ touches a given logit.
#[test]
fn given_logits_are_taken_as_they_are() {
    let mut problem = random(2, 2, 1, 3, 4, 2);
    problem.softmax_scale = 3.0;
    let logits = tensor(7, &[2, 2, 3]);
    problem.inducer = Some(Inducer {
        adaptive_length: true,
        ..inducer(VirtualKey::LogitPerToken(logits.clone()), VirtualValue::Zero)
    });
    let output = forward(&problem);
    for (b, h, i) in [(0, 0, 0), (0, 1, 2), (1, 0, 1), (1, 1, 2)] {
        assert!((virtual_logit(&output, b, h, i) - logits[[b, h, i]]).abs() < 1e-12);
    }
    let logits = Tensor::new(&[2], vec![0.5, -0.25]);
    problem.inducer = Some(inducer(VirtualKey::LogitPerHead(logits), VirtualValue::Zero));
    let output = forward(&problem);
    assert!((virtual_logit(&output, 1, 0, 2) - 0.5).abs() < 1e-12);
    assert!((virtual_logit(&output, 0, 1, 1) + 0.25).abs() < 1e-12);
}

#[test]
fn rows_that_see_nothing_are_all_virtual() {
    let mut problem = random(1, 1, 1, 2, 3, 2);
    problem.key_lengths = Some(vec![0]);
    let output = forward(&problem);
    assert_eq!(output.o, Tensor::zeros(&[1, 1, 2, 2]));
    assert_eq!(output.lse, Tensor::full(&[1, 1, 2], f64::NEG_INFINITY));

    let value = adapter(30, 1, 2, 3);
    for virtual_value in [VirtualValue::Residual(value.clone()), VirtualValue::Direct(value.clone())] {
        problem.inducer = Some(inducer(VirtualKey::Query, virtual_value));
        let output = forward(&problem);
        assert_eq!(output.lambda, Tensor::full(&[1, 1, 2], 1.0));
        let hidden: Vec<f64> = (0..3)
            .map(|r| {
                let z: f64 = (0..2).map(|c| problem.q[[0, 0, 1, c]] * value.down.weight[[0, c, r]]).sum();
                (z + value.down.bias[[0, r]]).tanh()
            })
            .collect();
        let delta: f64 = (0..3).map(|r| hidden[r] * value.up.weight[[0, r, 1]]).sum();
        assert!(close(output.o[[0, 0, 1, 1]], delta + value.up.bias[[0, 1]]));
        let upstream = OutputGradients {
            o: tensor(40, &[1, 1, 2, 2]),
            lse: Some(Tensor::full(&[1, 1, 2], 3.0)),
            u: None,
        };
        let gradients = backward(&problem, &upstream);
        assert!(gradients.named().iter().all(|(_, gradient)| gradient.data.iter().all(|x| x.is_finite())));
        assert_eq!(gradients, backward(&problem, &OutputGradients { lse: None, ..upstream }));
    }
    problem.inducer = Some(inducer(VirtualKey::Query, VirtualValue::Extended(value.down)));
    let output = forward(&problem);
    assert_eq!(output.o, Tensor::zeros(&[1, 1, 2, 2]));
    assert!(output.u.expect("U").data.iter().all(|&u| u != 0.0));
}

/// Also in rows that see nothing; gradients are finite and those of the logit are 0.
#[test]
fn a_logit_of_minus_infinity_is_plain_attention() {
    let mut problem = random(2, 2, 1, 3, 4, 3);
    problem.key_lengths = Some(vec![4, 0]);
    let plain = forward(&problem);
    let upstream =
        OutputGradients { o: tensor(40, &[2, 2, 3, 3]), lse: Some(tensor(41, &[2, 2, 3])), u: None };
    let plain_gradients = backward(&problem, &upstream);
    let value = adapter(30, 2, 3, 2);
    for key in [
        VirtualKey::LogitPerHead(Tensor::full(&[2], f64::NEG_INFINITY)),
        VirtualKey::LogitPerToken(Tensor::full(&[2, 2, 3], f64::NEG_INFINITY)),
    ] {
        for virtual_value in
            [VirtualValue::Zero, VirtualValue::Residual(value.clone()), VirtualValue::Direct(value.clone())]
        {
            problem.inducer = Some(inducer(key.clone(), virtual_value));
            assert_eq!(forward(&problem), plain);
            let gradients = backward(&problem, &upstream);
            assert_eq!(gradients.q, plain_gradients.q);
            assert_eq!(gradients.k, plain_gradients.k);
            assert_eq!(gradients.v, plain_gradients.v);
            let logit = gradients.logit.expect("logit");
            assert!(logit.data.iter().all(|&x| x == 0.0));
            for gradient in [gradients.value_down_weight, gradients.value_up_bias].into_iter().flatten() {
                assert!(gradient.data.iter().all(|&x| x == 0.0));
            }
        }
    }
}

/// Probabilities and λ are dropped by the mask's streams and scaled; lse and the weight 1 − λ are not.
#[test]
fn dropout_follows_its_mask() {
    let mut problem = probabilities(2, 2, 20, 18);
    problem.prefix = Some(Prefix {
        k: tensor(9, &[2, 3, 18]),
        v: Tensor::from_fn(&[2, 3, 18], |i| if i % 18 == i / 18 % 3 { 100.0 } else { 0.0 }),
    });
    problem.inducer = Some(inducer(VirtualKey::Query, VirtualValue::Direct(adapter(30, 2, 18, 2))));
    let whole = forward(&problem);
    let mask = KeepMask::new(0.35, 99);
    problem.dropout = Some(mask);
    let dropped = forward(&problem);
    assert_eq!(dropped.lse, whole.lse);
    assert_eq!(dropped.lambda, whole.lambda);

    let q_value = {
        let mut zero_keys = problem.clone();
        zero_keys.v = Tensor::zeros(&problem.v.shape);
        zero_keys.prefix.as_mut().expect("prefix").v = Tensor::zeros(&[2, 3, 18]);
        zero_keys.dropout = None;
        forward(&zero_keys).o
    };
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>() / 18.0_f64.sqrt();
    for (b, h) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let head = (b * 2 + h) as u32;
        for i in 0..20 {
            let (q, lse) = (problem.q.row([b, h, i]), whole.lse[[b, h, i]]);
            let lambda = whole.lambda[[b, h, i]];
            let keep_lambda = if mask.keep_lambda(head, i as u32) { mask.scale() } else { 0.0 };
            for j in 0..18 {
                let p = (product(q, problem.k.row([b, h, j])) - lse).exp();
                let mut attn = if mask.keep_real(head, i as u32, j as u32) { mask.scale() * p } else { 0.0 };
                if j < 3 && mask.keep_prefix(head, i as u32, j as u32) {
                    let key = problem.prefix.as_ref().expect("prefix").k.row([h, j]);
                    attn += mask.scale() * 100.0 * (product(q, key) - lse).exp();
                }
                assert!((dropped.attn[[b, h, i, j]] - attn).abs() < 1e-12 * attn.max(1.0));
                let o = (1.0 - lambda) * attn + keep_lambda * q_value[[b, h, i, j]];
                assert!((dropped.o[[b, h, i, j]] - o).abs() < 1e-12 * o.abs().max(1.0));
            }
        }
    }
}
