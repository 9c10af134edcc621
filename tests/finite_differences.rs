//! Every gradient of every family member agrees with finite differences of the forward pass.
//!
//! The loss is a random linear function of O, lse and U. Each element of each tensor is moved to `x ± h`, `x ± 2h`, and
//! the five-point central difference is held against the analytic gradient. With `h = 2⁻⁹` its truncation error is
//! `h⁴/30 ≈ 5e-13` times the fifth derivative, which here is of order 1 to 100, and its rounding error about
//! `1e-16 / h ≈ 6e-14` times the loss. The largest difference seen, relative to the gradient's norm, is 1.5e-10 (16
//! times that at twice the step: it is truncation). So `1e-9` is some ten times what the method itself leaves, and any
//! wrong term is orders above it.

use inducer_attention::Activation;
use inducer_attention::dropout::KeepMask;
use inducer_attention::reference::{
    Adapter, CuSeqlens, Down, Inducer, OutputGradients, Prefix, Problem, Tensor, Up, VirtualKey,
    VirtualValue, backward, extended_backward, extended_forward, forward,
};

const STEP: f64 = 1.0 / 512.0;
const TOLERANCE: f64 = 1e-9;

const BATCH: usize = 2;
const Q_HEADS: usize = 4;
const KV_HEADS: usize = 2;
const QUERIES: usize = 4;
const KEYS: usize = 5;
const HEAD_DIM: usize = 3;
const KEY_RANK: usize = 2;
const VALUE_RANK: usize = 1;

/// Deterministic values in [−1, 1) (`SplitMix64`).
struct Values(u64);

impl Values {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as f64 / 2.0_f64.powi(63) - 1.0
    }

    fn tensor(&mut self, shape: &[usize]) -> Tensor {
        Tensor::from_fn(shape, |_| self.next())
    }

    fn adapter(&mut self, rank: usize, activation: Activation) -> Adapter {
        let up =
            Up { weight: self.tensor(&[Q_HEADS, rank, HEAD_DIM]), bias: self.tensor(&[Q_HEADS, HEAD_DIM]) };
        Adapter { down: self.down(rank, activation), up }
    }

    fn down(&mut self, rank: usize, activation: Activation) -> Down {
        Down {
            weight: self.tensor(&[Q_HEADS, HEAD_DIM, rank]),
            bias: self.tensor(&[Q_HEADS, rank]),
            activation,
        }
    }
}

/// Every member of the family, by name, over the same random plain attention of `batch` entries.
fn members(batch: usize, queries: usize, keys: usize) -> Vec<(String, Problem)> {
    let mut values = Values(1);
    let plain = Problem::new(
        values.tensor(&[batch, Q_HEADS, queries, HEAD_DIM]),
        values.tensor(&[batch, KV_HEADS, keys, HEAD_DIM]),
        values.tensor(&[batch, KV_HEADS, keys, HEAD_DIM]),
    );
    let keys = [
        ("query key", VirtualKey::Query),
        ("residual key", VirtualKey::Residual(values.adapter(KEY_RANK, Activation::Tanh))),
        ("logit per head", VirtualKey::LogitPerHead(values.tensor(&[Q_HEADS]))),
        ("logit per token", VirtualKey::LogitPerToken(values.tensor(&[batch, Q_HEADS, queries]))),
    ];
    let virtual_values = [
        ("zero value", VirtualValue::Zero),
        ("residual value", VirtualValue::Residual(values.adapter(VALUE_RANK, Activation::Tanh))),
        ("direct value", VirtualValue::Direct(values.adapter(VALUE_RANK, Activation::Tanh))),
        ("extended value", VirtualValue::Extended(values.down(VALUE_RANK, Activation::Tanh))),
    ];
    let mut inducers = Vec::new();
    for (key_name, key) in &keys {
        for (value_name, value) in &virtual_values {
            inducers.push((format!("{key_name}, {value_name}"), key.clone(), value.clone()));
        }
    }
    let identity_key = VirtualKey::Residual(values.adapter(KEY_RANK, Activation::Identity));
    for (name, value) in [
        ("residual", VirtualValue::Residual(values.adapter(VALUE_RANK, Activation::Identity))),
        ("extended", VirtualValue::Extended(values.down(VALUE_RANK, Activation::Identity))),
    ] {
        inducers.push((format!("identity residual key, identity {name} value"), identity_key.clone(), value));
    }
    let mut members = vec![("plain".to_owned(), plain.clone())];
    for (name, key, value) in inducers {
        let inducer = Inducer { key, value, adaptive_length: false, positions: None };
        members.push((name, Problem { inducer: Some(inducer), ..plain.clone() }));
    }
    members
}

/// `Σ dO∘O + Σ dLSE∘lse + Σ dU∘U`, leaving out the lse of rows that see nothing.
fn loss(problem: &Problem, weights: &OutputGradients) -> f64 {
    let sum = |weights: &Tensor, output: &Tensor| -> f64 {
        let products =
            weights.data.iter().zip(&output.data).filter(|(_, x)| x.is_finite()).map(|(w, x)| w * x);
        products.sum()
    };
    let output = forward(problem);
    assert!(output.o.data.iter().all(|x| x.is_finite()));
    sum(&weights.o, &output.o)
        + weights.lse.as_ref().map_or(0.0, |weights| sum(weights, &output.lse))
        + output.u.map_or(0.0, |u| sum(weights.u.as_ref().expect("weights of U"), &u))
}

/// Checks all gradients of a problem and returns the largest relative error.
fn check(name: &str, problem: &Problem) -> f64 {
    let mut values = Values(2);
    let output = forward(problem);
    let weights = OutputGradients {
        o: values.tensor(&output.o.shape),
        lse: Some(values.tensor(&output.lse.shape)),
        u: output.u.as_ref().map(|u| values.tensor(&u.shape)),
    };
    let gradients = backward(problem, &weights);
    let gradients = gradients.named();

    let mut moved = problem.clone();
    let names: Vec<&str> = moved.parameters_mut().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, gradients.iter().map(|&(name, _)| name).collect::<Vec<_>>(), "{name}");
    let mut worst = 0.0_f64;
    for (index, &(parameter, gradient)) in gradients.iter().enumerate() {
        let mut differences = Tensor::zeros(&gradient.shape);
        for (element, difference) in differences.data.iter_mut().enumerate() {
            let original = moved.parameters_mut()[index].1.data[element];
            let mut at = |steps: f64| {
                moved.parameters_mut()[index].1.data[element] = original + steps * STEP;
                loss(&moved, &weights)
            };
            *difference = (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * STEP);
            at(0.0);
        }
        let norm = differences.data.iter().map(|x| x * x).sum::<f64>().sqrt();
        assert!(norm > 1e-2, "{name}: the gradient of {parameter} is {norm:e}, too small to tell anything");
        let error = gradient.relative_error(&differences);
        assert!(error <= TOLERANCE, "{name}: gradient of {parameter}: relative error {error:e}");
        worst = worst.max(error);
    }
    assert_eq!(&moved, problem, "every element was put back");
    worst
}

/// Checks every family member with what `set` adds to it.
fn check_members(set: impl Fn(&mut Problem)) {
    check_members_of(members(BATCH, QUERIES, KEYS), set);
}

fn check_members_of(members: Vec<(String, Problem)>, set: impl Fn(&mut Problem)) {
    let mut worst = 0.0_f64;
    for (name, mut problem) in members {
        set(&mut problem);
        worst = worst.max(check(&name, &problem));
    }
    println!("largest relative error {worst:.1e}");
}

fn rows_that_see_nothing(problem: &Problem) -> usize {
    forward(problem).lse.data.iter().filter(|&&lse| lse == f64::NEG_INFINITY).count()
}

fn prefix(tokens: usize) -> Prefix {
    let mut values = Values(3);
    Prefix {
        k: values.tensor(&[KV_HEADS, tokens, HEAD_DIM]),
        v: values.tensor(&[KV_HEADS, tokens, HEAD_DIM]),
    }
}

#[test]
fn unmasked() {
    check_members(|_| {});
}

#[test]
fn softmax_scale() {
    check_members(|problem| problem.softmax_scale = 0.9);
}

#[test]
fn causal_with_fewer_queries_than_keys() {
    check_members(|problem| problem.causal = true);
}

/// The first rows see nothing: λ = 1 and their lse gradient counts for nothing.
#[test]
fn causal_with_more_queries_than_keys() {
    check_members_of(members(BATCH, 5, 3), |problem| {
        problem.causal = true;
        assert_eq!(rows_that_see_nothing(problem), BATCH * Q_HEADS * 2);
    });
}

#[test]
fn window() {
    check_members(|problem| (problem.window_left, problem.window_right) = (Some(1), Some(0)));
    check_members(|problem| (problem.window_left, problem.window_right) = (None, Some(1)));
}

#[test]
fn causal_window() {
    check_members(|problem| {
        (problem.causal, problem.window_left, problem.window_right) = (true, Some(1), Some(2));
    });
}

/// One batch entry has no key at all.
#[test]
fn key_lengths_and_starts() {
    check_members(|problem| {
        problem.key_lengths = Some(vec![4, 3]);
        problem.key_starts = Some(vec![1, 3]);
        assert_eq!(rows_that_see_nothing(problem), Q_HEADS * QUERIES);
    });
}

#[test]
fn query_lengths_causal() {
    check_members(|problem| {
        problem.causal = true;
        problem.query_lengths = Some(vec![3, 2]);
        problem.key_lengths = Some(vec![4, 2]);
    });
}

/// Three sequences, one of them without keys, and a tail that belongs to none.
#[test]
fn packed_sequences() {
    for causal in [false, true] {
        check_members_of(members(1, 7, 9), |problem| {
            problem.causal = causal;
            problem.cu_seqlens = Some(CuSeqlens { q: vec![0, 2, 3, 6], k: vec![0, 3, 3, 8] });
            problem.alibi_slopes = Some(Values(4).tensor(&[3, Q_HEADS]));
        });
    }
}

#[test]
fn softcap() {
    check_members(|problem| problem.softcap = Some(0.7));
}

#[test]
fn alibi() {
    for shape in [&[Q_HEADS][..], &[BATCH, Q_HEADS]] {
        check_members(|problem| problem.alibi_slopes = Some(Values(4).tensor(shape)));
    }
}

#[test]
fn shared_prefix() {
    check_members(|problem| problem.prefix = Some(prefix(2)));
}

#[test]
fn adaptive_length() {
    for causal in [false, true] {
        check_members(|problem| {
            problem.causal = causal;
            if let Some(inducer) = &mut problem.inducer {
                inducer.adaptive_length = true;
            }
        });
    }
}

#[test]
fn adaptive_length_with_explicit_positions() {
    check_members(|problem| {
        if let Some(inducer) = &mut problem.inducer {
            inducer.adaptive_length = true;
            inducer.positions = Some(Tensor::from_fn(&[BATCH, QUERIES], |i| (1 + 3 * i % 7) as f64));
        }
    });
}

/// Heavy enough that probabilities and λ are both seen dropped and kept in every member.
#[test]
fn dropout() {
    for seed in [5, 6] {
        check_members(|problem| problem.dropout = Some(KeepMask::new(0.4, seed)));
    }
}

#[test]
fn everything_at_once() {
    check_members(|problem| {
        problem.prefix = Some(prefix(3));
        problem.softmax_scale = 0.8;
        problem.causal = true;
        problem.window_left = Some(2);
        problem.key_lengths = Some(vec![5, 4]);
        problem.key_starts = Some(vec![0, 1]);
        problem.query_lengths = Some(vec![4, 3]);
        problem.softcap = Some(0.9);
        problem.alibi_slopes = Some(Values(4).tensor(&[BATCH, Q_HEADS]));
        problem.dropout = Some(KeepMask::new(0.3, 8));
        if let Some(inducer) = &mut problem.inducer {
            inducer.adaptive_length = true;
        }
    });
}

/// What the caller makes of U, with an up projection per head and with one for all heads. It is bilinear, so that a
/// central difference of any step has no truncation error.
#[test]
fn extended_projection() {
    const WIDTH: usize = 5;
    let mut values = Values(9);
    for weight_shape in [&[Q_HEADS, VALUE_RANK + 1, WIDTH][..], &[VALUE_RANK + 1, WIDTH]] {
        let inputs = [
            values.tensor(&[BATCH, Q_HEADS, QUERIES, VALUE_RANK + 1]),
            values.tensor(weight_shape),
            values.tensor(&[WIDTH]),
        ];
        let d_y = values.tensor(&[BATCH, QUERIES, WIDTH]);
        let gradients = extended_backward(&inputs[0], &inputs[1], &d_y);
        let loss = |[u, weight, bias]: &[Tensor; 3]| -> f64 {
            let y = extended_forward(u, weight, bias);
            y.data.iter().zip(&d_y.data).map(|(y, d)| y * d).sum()
        };
        for (index, gradient) in [gradients.u, gradients.up_weight, gradients.up_bias].iter().enumerate() {
            let differences = Tensor::from_fn(&gradient.shape, |element| {
                let at = |x: f64| {
                    let mut moved = inputs.clone();
                    moved[index].data[element] = x;
                    loss(&moved)
                };
                (at(1.0) - at(-1.0)) / 2.0
            });
            let error = gradient.relative_error(&differences);
            assert!(error <= 1e-13, "input {index}: relative error {error:e}");
        }
    }
}
