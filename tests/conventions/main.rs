//! The oracle's conventions, one by one, against tables and formulas written out by hand.
//!
//! Finite differences cannot tell which keys a row should see or where positions count from; these tests can. Where it
//! helps, V is a unit matrix, so that row `i` of the attention output *is* the row of probabilities.

// What is compared exactly here is computed by the same operations, or is 0 or infinite.
#![allow(clippy::float_cmp)]
// Indices are those of the formulas.
#![allow(clippy::needless_range_loop)]

mod containment;
mod equivalences;
mod masks;
mod virtual_token;

use inducer_attention::Activation;
use inducer_attention::reference::{Adapter, Down, Inducer, Problem, Tensor, Up, VirtualKey, VirtualValue};

/// Deterministic values in [−1, 1).
pub(crate) fn tensor(seed: usize, shape: &[usize]) -> Tensor {
    Tensor::from_fn(shape, |i| {
        ((i + 1) as f64 * 0.754_877_666 + seed as f64 * 0.569_840_29).fract() * 2.0 - 1.0
    })
}

/// Random Q and K, V a unit matrix: `[batch, heads, queries or keys, keys]`.
pub(crate) fn probabilities(batch: usize, heads: usize, queries: usize, keys: usize) -> Problem {
    let unit =
        Tensor::from_fn(&[batch, heads, keys, keys], |i| if i / keys % keys == i % keys { 1.0 } else { 0.0 });
    Problem::new(tensor(1, &[batch, heads, queries, keys]), tensor(2, &[batch, heads, keys, keys]), unit)
}

/// Plain attention with everything random.
pub(crate) fn random(
    batch: usize,
    q_heads: usize,
    kv_heads: usize,
    queries: usize,
    keys: usize,
    d: usize,
) -> Problem {
    Problem::new(
        tensor(1, &[batch, q_heads, queries, d]),
        tensor(2, &[batch, kv_heads, keys, d]),
        tensor(3, &[batch, kv_heads, keys, d]),
    )
}

pub(crate) fn down(seed: usize, heads: usize, d: usize, rank: usize) -> Down {
    let (weight, bias) = (tensor(seed, &[heads, d, rank]), tensor(seed + 1, &[heads, rank]));
    Down { weight, bias, activation: Activation::Tanh }
}

pub(crate) fn adapter(seed: usize, heads: usize, d: usize, rank: usize) -> Adapter {
    let up = Up { weight: tensor(seed + 2, &[heads, rank, d]), bias: tensor(seed + 3, &[heads, d]) };
    Adapter { down: down(seed, heads, d, rank), up }
}

pub(crate) fn inducer(key: VirtualKey, value: VirtualValue) -> Inducer {
    Inducer { key, value, adaptive_length: false, positions: None }
}

pub(crate) fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-13 * b.abs().max(1.0)
}
