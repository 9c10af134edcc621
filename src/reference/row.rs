//! One row of attention: which keys a query sees, and every intermediate quantity of its equations.

use super::problem::{Adapter, Down, Inducer, Problem, Up, VirtualKey, VirtualValue};
use super::tensor::{Tensor, add_scaled, dot};
use crate::inducer::Activation;

/// A batch entry, or one packed sequence: where its rows and keys lie, and how its positions relate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sequence {
    /// Its number, for dropout and for slopes per batch entry.
    pub(super) index: usize,
    /// Its batch entry in the tensors; 0 where sequences are packed.
    pub(super) batch: usize,
    /// Its first row in Q.
    pub(super) first_query: usize,
    /// Its first row in K and V.
    pub(super) first_key: usize,
    /// How many rows it has; those after are padding.
    pub(super) queries: usize,
    /// Keys from here on are masked.
    pub(super) key_end: usize,
    /// Keys before this one are masked.
    key_start: usize,
    /// `offset_i − i`.
    shift: i64,
}

impl Sequence {
    /// All sequences of a problem.
    pub(super) fn all(problem: &Problem) -> Vec<Self> {
        let (batch, queries, keys) = (problem.q.shape[0], problem.q.shape[2], problem.k.shape[2]);
        let of = |lengths: &Option<Vec<usize>>, b: usize| lengths.as_ref().map(|lengths| lengths[b]);
        if let Some(cu) = &problem.cu_seqlens {
            let sequence = |s: usize| {
                let (queries, keys) = (cu.q[s + 1] - cu.q[s], cu.k[s + 1] - cu.k[s]);
                Self {
                    index: s,
                    batch: 0,
                    first_query: cu.q[s],
                    first_key: cu.k[s],
                    queries,
                    key_end: keys,
                    key_start: 0,
                    shift: keys as i64 - queries as i64,
                }
            };
            (0..cu.q.len() - 1).map(sequence).collect()
        } else {
            let sequence = |b: usize| {
                let key_end = of(&problem.key_lengths, b).unwrap_or(keys);
                let query_length = of(&problem.query_lengths, b);
                Self {
                    index: b,
                    batch: b,
                    first_query: 0,
                    first_key: 0,
                    queries: query_length.unwrap_or(queries),
                    key_end,
                    key_start: of(&problem.key_starts, b).unwrap_or(0),
                    shift: match query_length {
                        Some(query_length) => key_end as i64 - query_length as i64,
                        None => keys as i64 - queries as i64,
                    },
                }
            };
            (0..batch).map(sequence).collect()
        }
    }

    /// The position among the keys that row `i` is aligned with.
    fn offset(&self, i: usize) -> i64 {
        i as i64 + self.shift
    }

    /// Whether row `i` sees key `j`, both local to the sequence.
    fn sees(&self, problem: &Problem, i: usize, j: usize) -> bool {
        let (distance, causal) = (j as i64 - self.offset(i), problem.causal);
        j >= self.key_start
            && j < self.key_end
            && (!causal || distance <= 0)
            && problem.window_left.is_none_or(|left| distance >= -(left as i64))
            && problem.window_right.is_none_or(|right| distance <= right as i64)
    }
}

/// Where a key and its value lie.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    /// Token of the shared prefix.
    Prefix(usize),
    /// Row of K and V.
    Key(usize),
}

/// A key that a query sees.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) source: Source,
    /// s, the score.
    pub(super) score: f64,
    /// ∂s / ∂(σ Q·K): what the softcap lets through.
    pub(super) score_slope: f64,
    /// p = exp(s − lse).
    pub(super) probability: f64,
    /// m̃, the dropout factor.
    pub(super) keep: f64,
}

/// The virtual token of one row.
#[derive(Clone, Debug)]
pub(super) struct VirtualToken {
    /// τσ.
    pub(super) scale: f64,
    /// u, empty unless the key has an adapter.
    pub(super) key_hidden: Vec<f64>,
    /// `P_k`, empty where s0 is given.
    pub(super) key: Vec<f64>,
    /// λ.
    pub(super) lambda: f64,
    /// 1 − λ, without cancellation.
    pub(super) rest: f64,
    /// m̃₀, the dropout factor of λ.
    pub(super) keep: f64,
    /// h, empty where the value is zero.
    pub(super) value_hidden: Vec<f64>,
    /// Δ, empty where the value is zero or extended.
    pub(super) delta: Vec<f64>,
}

/// Every quantity of one row's equations.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// The visible keys, prefix first.
    pub(super) seen: Vec<Seen>,
    /// log Σ exp s; −∞ where nothing is seen.
    pub(super) lse: f64,
    /// Σ m̃ p V.
    pub(super) attn: Vec<f64>,
    /// The inducer's part.
    pub(super) token: Option<VirtualToken>,
}

/// The key at a source, `[d]`.
pub(super) fn key_row<'a>(
    problem: &'a Problem,
    sequence: &Sequence,
    kv_head: usize,
    source: Source,
) -> &'a [f64] {
    source_row(problem.prefix.as_ref().map(|prefix| &prefix.k), &problem.k, sequence, kv_head, source)
}

/// The value at a source, `[d]`.
pub(super) fn value_row<'a>(
    problem: &'a Problem,
    sequence: &Sequence,
    kv_head: usize,
    source: Source,
) -> &'a [f64] {
    source_row(problem.prefix.as_ref().map(|prefix| &prefix.v), &problem.v, sequence, kv_head, source)
}

fn source_row<'a>(
    prefix: Option<&'a Tensor>,
    keys: &'a Tensor,
    sequence: &Sequence,
    kv_head: usize,
    source: Source,
) -> &'a [f64] {
    match source {
        Source::Prefix(t) => prefix.expect("a prefix token of a problem with a prefix").row([kv_head, t]),
        Source::Key(row) => keys.row([sequence.batch, kv_head, row]),
    }
}

/// Evaluates the equations of row `i` (local to the sequence) of query head `head`.
pub(super) fn evaluate(problem: &Problem, sequence: &Sequence, head: usize, i: usize) -> Row {
    let q = problem.q.row([sequence.batch, head, sequence.first_query + i]);
    let kv_head = head / (problem.q.shape[1] / problem.k.shape[1]);
    let mut seen = scores(problem, sequence, head, i);

    // Keys whose scores are all −∞ are as good as no keys.
    if seen.iter().all(|seen| seen.score == f64::NEG_INFINITY) {
        seen.clear();
    }
    let max = seen.iter().map(|seen| seen.score).fold(f64::NEG_INFINITY, f64::max);
    let lse = if seen.is_empty() {
        f64::NEG_INFINITY
    } else {
        max + seen.iter().map(|seen| (seen.score - max).exp()).sum::<f64>().ln()
    };
    let mut attn = vec![0.0; q.len()];
    for seen in &mut seen {
        seen.probability = (seen.score - lse).exp();
        let value = value_row(problem, sequence, kv_head, seen.source);
        add_scaled(&mut attn, seen.keep * seen.probability, value);
    }

    let token =
        problem.inducer.as_ref().map(|inducer| virtual_token(problem, inducer, sequence, head, i, lse));
    Row { seen, lse, attn, token }
}

/// Scores and dropout factors of the visible keys of a row.
fn scores(problem: &Problem, sequence: &Sequence, head: usize, i: usize) -> Vec<Seen> {
    let q_heads = problem.q.shape[1];
    let q = problem.q.row([sequence.batch, head, sequence.first_query + i]);
    let kv_head = head / (q_heads / problem.k.shape[1]);
    let mask_head = (sequence.index * q_heads + head) as u32;
    let alibi_slope = match &problem.alibi_slopes {
        None => 0.0,
        Some(slopes) if slopes.shape.len() == 1 => slopes[[head]],
        Some(slopes) => slopes[[sequence.index, head]],
    };
    let product = |source: Source| {
        let raw = problem.softmax_scale * dot(q, key_row(problem, sequence, kv_head, source));
        match problem.softcap {
            None => (raw, 1.0),
            Some(cap) => {
                let t = (raw / cap).tanh();
                (cap * t, 1.0 - t * t)
            }
        }
    };

    let mut seen = Vec::new();
    for t in 0..problem.prefix.as_ref().map_or(0, |prefix| prefix.k.shape[1]) {
        let source = Source::Prefix(t);
        let (score, score_slope) = product(source);
        let keep = problem.dropout.map_or(1.0, |mask| {
            if mask.keep_prefix(mask_head, i as u32, t as u32) { mask.scale() } else { 0.0 }
        });
        seen.push(Seen { source, score, score_slope, probability: f64::NAN, keep });
    }
    for j in (0..sequence.key_end).filter(|&j| sequence.sees(problem, i, j)) {
        let source = Source::Key(sequence.first_key + j);
        let (capped, score_slope) = product(source);
        let score = capped - alibi_slope * (sequence.offset(i) - j as i64).abs() as f64;
        let keep = problem.dropout.map_or(1.0, |mask| {
            if mask.keep_real(mask_head, i as u32, j as u32) { mask.scale() } else { 0.0 }
        });
        seen.push(Seen { source, score, score_slope, probability: f64::NAN, keep });
    }
    seen
}

fn virtual_token(
    problem: &Problem,
    inducer: &Inducer,
    sequence: &Sequence,
    head: usize,
    i: usize,
    lse: f64,
) -> VirtualToken {
    let row = sequence.first_query + i;
    let q = problem.q.row([sequence.batch, head, row]);

    let scale = problem.softmax_scale * temperature(problem, inducer, sequence, i);
    let (mut key_hidden, mut key) = (Vec::new(), Vec::new());
    let s0 = match &inducer.key {
        VirtualKey::LogitPerHead(logit) => logit[[head]],
        VirtualKey::LogitPerToken(logit) => logit[[sequence.batch, head, row]],
        VirtualKey::Query => {
            key = q.to_vec();
            scale * dot(q, &key)
        }
        VirtualKey::Residual(Adapter { down, up }) => {
            key_hidden = project_down(down, head, q);
            key = project_up(up, head, &key_hidden);
            add_scaled(&mut key, 1.0, q);
            scale * dot(q, &key)
        }
    };
    // A logit of −∞ means no virtual token, even in a row that sees nothing else.
    let (lambda, rest) =
        if s0 == f64::NEG_INFINITY { (0.0, 1.0) } else { (sigmoid(s0 - lse), sigmoid(lse - s0)) };

    let (mut value_hidden, mut delta) = (Vec::new(), Vec::new());
    match &inducer.value {
        VirtualValue::Zero => {}
        VirtualValue::Residual(Adapter { down, up }) | VirtualValue::Direct(Adapter { down, up }) => {
            value_hidden = project_down(down, head, q);
            delta = project_up(up, head, &value_hidden);
        }
        VirtualValue::Extended(down) => value_hidden = project_down(down, head, q),
    }
    let mask_head = (sequence.index * problem.q.shape[1] + head) as u32;
    let keep = problem
        .dropout
        .map_or(1.0, |mask| if mask.keep_lambda(mask_head, i as u32) { mask.scale() } else { 0.0 });
    VirtualToken { scale, key_hidden, key, lambda, rest, keep, value_hidden, delta }
}

/// τ of row `i`.
fn temperature(problem: &Problem, inducer: &Inducer, sequence: &Sequence, i: usize) -> f64 {
    if !inducer.adaptive_length {
        return 1.0;
    }
    let position = match &inducer.positions {
        Some(positions) => positions[[sequence.batch, sequence.first_query + i]],
        None if problem.causal => (sequence.offset(i) + 1).max(1) as f64,
        None => (i + 1) as f64,
    };
    position.sqrt()
}

/// `act(x A + a)`.
fn project_down(down: &Down, head: usize, x: &[f64]) -> Vec<f64> {
    let mut z = down.bias.row([head]).to_vec();
    for (c, &x) in x.iter().enumerate() {
        add_scaled(&mut z, x, down.weight.row([head, c]));
    }
    match down.activation {
        Activation::Tanh => z.into_iter().map(f64::tanh).collect(),
        Activation::Identity => z,
    }
}

/// `h B + b`.
fn project_up(up: &Up, head: usize, hidden: &[f64]) -> Vec<f64> {
    let mut y = up.bias.row([head]).to_vec();
    for (r, &h) in hidden.iter().enumerate() {
        add_scaled(&mut y, h, up.weight.row([head, r]));
    }
    y
}

/// `1 / (1 + exp(−x))`, without overflow.
fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 {
        1.0 / (1.0 + (-x).exp())
    } else {
        let e = x.exp();
        e / (1.0 + e)
    }
}
