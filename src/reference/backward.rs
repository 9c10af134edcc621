//! The chain rule, from the outputs back to every tensor.

use super::problem::{Adapter, Down, Problem, Up, VirtualKey, VirtualValue};
use super::row::{Sequence, Source, evaluate, key_row, value_row};
use super::tensor::{Tensor, add_scaled, dot};

/// The gradients of a loss with respect to the outputs.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputGradients {
    /// dO `[B, Hq, N, d]`.
    pub o: Tensor,
    /// dLSE `[B, Hq, N]`; ignored in rows that see nothing.
    pub lse: Option<Tensor>,
    /// dU `[B, N, Hq, r_v]`, where the value is extended.
    pub u: Option<Tensor>,
}

/// The gradients of a loss with respect to every tensor of a [`Problem`], each in its tensor's shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// dQ `[B, Hq, N, d]`.
    pub q: Tensor,
    /// dK `[B, Hkv, M, d]`.
    pub k: Tensor,
    /// dV `[B, Hkv, M, d]`.
    pub v: Tensor,
    /// Of the shared prefix's keys `[Hkv, L, d]`.
    pub prefix_k: Option<Tensor>,
    /// Of the shared prefix's values `[Hkv, L, d]`.
    pub prefix_v: Option<Tensor>,
    /// `dA_k` `[Hq, d, r_k]`.
    pub key_down_weight: Option<Tensor>,
    /// `da_k` `[Hq, r_k]`.
    pub key_down_bias: Option<Tensor>,
    /// `dB_k` `[Hq, r_k, d]`.
    pub key_up_weight: Option<Tensor>,
    /// `db_k` `[Hq, d]`.
    pub key_up_bias: Option<Tensor>,
    /// Of the given logit, `[Hq]` or `[B, Hq, N]`.
    pub logit: Option<Tensor>,
    /// `dA_v` `[Hq, d, r_v]`.
    pub value_down_weight: Option<Tensor>,
    /// `da_v` `[Hq, r_v]`.
    pub value_down_bias: Option<Tensor>,
    /// `dB_v` `[Hq, r_v, d]`.
    pub value_up_weight: Option<Tensor>,
    /// `db_v` `[Hq, d]`.
    pub value_up_bias: Option<Tensor>,
}

impl Gradients {
    /// Every gradient that exists, by name, in the order of [`Problem::parameters_mut`].
    pub fn named(&self) -> Vec<(&'static str, &Tensor)> {
        let all = [
            ("q", Some(&self.q)),
            ("k", Some(&self.k)),
            ("v", Some(&self.v)),
            ("prefix.k", self.prefix_k.as_ref()),
            ("prefix.v", self.prefix_v.as_ref()),
            ("key.down_weight", self.key_down_weight.as_ref()),
            ("key.down_bias", self.key_down_bias.as_ref()),
            ("key.up_weight", self.key_up_weight.as_ref()),
            ("key.up_bias", self.key_up_bias.as_ref()),
            ("logit", self.logit.as_ref()),
            ("value.down_weight", self.value_down_weight.as_ref()),
            ("value.down_bias", self.value_down_bias.as_ref()),
            ("value.up_weight", self.value_up_weight.as_ref()),
            ("value.up_bias", self.value_up_bias.as_ref()),
        ];
        all.into_iter().filter_map(|(name, tensor)| Some((name, tensor?))).collect()
    }

    fn zeros(problem: &Problem) -> Self {
        let zeros = |tensor: &Tensor| Tensor::zeros(&tensor.shape);
        let inducer = problem.inducer.as_ref();
        let (key_adapter, logit) = match inducer.map(|inducer| &inducer.key) {
            Some(VirtualKey::Residual(adapter)) => (Some(adapter), None),
            Some(VirtualKey::LogitPerHead(logit) | VirtualKey::LogitPerToken(logit)) => (None, Some(logit)),
            Some(VirtualKey::Query) | None => (None, None),
        };
        let (value_down, value_up) = match inducer.map(|inducer| &inducer.value) {
            Some(VirtualValue::Residual(adapter) | VirtualValue::Direct(adapter)) => {
                (Some(&adapter.down), Some(&adapter.up))
            }
            Some(VirtualValue::Extended(down)) => (Some(down), None),
            Some(VirtualValue::Zero) | None => (None, None),
        };
        Self {
            q: zeros(&problem.q),
            k: zeros(&problem.k),
            v: zeros(&problem.v),
            prefix_k: problem.prefix.as_ref().map(|prefix| zeros(&prefix.k)),
            prefix_v: problem.prefix.as_ref().map(|prefix| zeros(&prefix.v)),
            key_down_weight: key_adapter.map(|adapter| zeros(&adapter.down.weight)),
            key_down_bias: key_adapter.map(|adapter| zeros(&adapter.down.bias)),
            key_up_weight: key_adapter.map(|adapter| zeros(&adapter.up.weight)),
            key_up_bias: key_adapter.map(|adapter| zeros(&adapter.up.bias)),
            logit: logit.map(zeros),
            value_down_weight: value_down.map(|down| zeros(&down.weight)),
            value_down_bias: value_down.map(|down| zeros(&down.bias)),
            value_up_weight: value_up.map(|up| zeros(&up.weight)),
            value_up_bias: value_up.map(|up| zeros(&up.bias)),
        }
    }
}

/// The backward pass: gradients of `Σ dO∘O + Σ dLSE∘lse + Σ dU∘U`.
///
/// # Panics
///
/// If the problem's shapes or lengths disagree, or those of the output gradients do not match it, or dU is given or
/// missing where it should not be.
pub fn backward(problem: &Problem, upstream: &OutputGradients) -> Gradients {
    problem.assert_consistent();
    let &[batch, heads, queries, _] = &problem.q.shape[..] else { unreachable!("Q has four dimensions") };
    assert_eq!(upstream.o.shape, problem.q.shape, "dO");
    if let Some(lse) = &upstream.lse {
        assert_eq!(lse.shape, [batch, heads, queries], "dLSE");
    }
    assert_eq!(
        upstream.u.as_ref().map(|u| u.shape.clone()),
        problem.extended_rank().map(|rank| vec![batch, queries, heads, rank]),
        "dU"
    );
    let mut gradients = Gradients::zeros(problem);
    for sequence in Sequence::all(problem) {
        for head in 0..heads {
            for i in 0..sequence.queries {
                backward_row(problem, upstream, &mut gradients, &sequence, head, i);
            }
        }
    }
    gradients
}

fn backward_row(
    problem: &Problem,
    upstream: &OutputGradients,
    gradients: &mut Gradients,
    sequence: &Sequence,
    head: usize,
    i: usize,
) {
    let (b, n) = (sequence.batch, sequence.first_query + i);
    let kv_head = head / (problem.q.shape[1] / problem.k.shape[1]);
    let q = problem.q.row([b, head, n]);
    let d_o = upstream.o.row([b, head, n]);
    let row = evaluate(problem, sequence, head, i);

    let mut d_q = vec![0.0; q.len()];
    let mut d_lse = upstream.lse.as_ref().map_or(0.0, |lse| lse[[b, head, n]]);
    let mut d_attn = d_o.to_vec();

    if let (Some(token), Some(inducer)) = (&row.token, &problem.inducer) {
        let mut d_lambda = 0.0;
        // O = attn + λ̃ Δ,  O = (1 − λ) attn + λ̃ Δ,  or U = λ̃ h;  λ̃ = m̃₀ λ.
        match &inducer.value {
            VirtualValue::Zero => {
                d_attn = scaled(token.rest, d_o);
                d_lambda -= dot(d_o, &row.attn);
            }
            VirtualValue::Residual(_) => d_lambda += token.keep * dot(d_o, &token.delta),
            VirtualValue::Direct(_) => {
                d_attn = scaled(token.rest, d_o);
                d_lambda += token.keep * dot(d_o, &token.delta) - dot(d_o, &row.attn);
            }
            VirtualValue::Extended(_) => {
                let d_u =
                    upstream.u.as_ref().expect("dU is there where the value is extended").row([b, n, head]);
                d_lambda += token.keep * dot(d_u, &token.value_hidden);
            }
        }
        // Δ = h B_v + b_v,  h = act(Q A_v + a_v).
        let dropped_lambda = token.keep * token.lambda;
        match &inducer.value {
            VirtualValue::Zero => {}
            VirtualValue::Residual(Adapter { down, up }) | VirtualValue::Direct(Adapter { down, up }) => {
                let d_delta = scaled(dropped_lambda, d_o);
                let gradient = half(&mut gradients.value_up_weight, &mut gradients.value_up_bias);
                let d_hidden = backward_up(up, gradient, head, &token.value_hidden, &d_delta);
                let gradient = half(&mut gradients.value_down_weight, &mut gradients.value_down_bias);
                backward_down(down, gradient, head, q, &token.value_hidden, &d_hidden, &mut d_q);
            }
            VirtualValue::Extended(down) => {
                let d_u =
                    upstream.u.as_ref().expect("dU is there where the value is extended").row([b, n, head]);
                let d_hidden = scaled(dropped_lambda, d_u);
                let gradient = half(&mut gradients.value_down_weight, &mut gradients.value_down_bias);
                backward_down(down, gradient, head, q, &token.value_hidden, &d_hidden, &mut d_q);
            }
        }
        // λ = sigmoid(s0 − lse).
        let d_s0 = token.lambda * token.rest * d_lambda;
        d_lse -= d_s0;
        // s0 = τσ Q·P_k,  P_k = Q + u B_k + b_k,  u = act(Q A_k + a_k).
        let d_key = scaled(token.scale * d_s0, q);
        match &inducer.key {
            VirtualKey::LogitPerHead(_) => {
                gradients.logit.as_mut().expect("a given logit has a gradient")[[head]] += d_s0;
            }
            VirtualKey::LogitPerToken(_) => {
                gradients.logit.as_mut().expect("a given logit has a gradient")[[b, head, n]] += d_s0;
            }
            VirtualKey::Query => {
                add_scaled(&mut d_q, token.scale * d_s0, &token.key);
                add_scaled(&mut d_q, 1.0, &d_key);
            }
            VirtualKey::Residual(Adapter { down, up }) => {
                add_scaled(&mut d_q, token.scale * d_s0, &token.key);
                add_scaled(&mut d_q, 1.0, &d_key);
                let gradient = half(&mut gradients.key_up_weight, &mut gradients.key_up_bias);
                let d_hidden = backward_up(up, gradient, head, &token.key_hidden, &d_key);
                let gradient = half(&mut gradients.key_down_weight, &mut gradients.key_down_bias);
                backward_down(down, gradient, head, q, &token.key_hidden, &d_hidden, &mut d_q);
            }
        }
    }

    // attn = Σ m̃ p V,  p = exp(s − lse).
    let mut d_scores = vec![0.0; row.seen.len()];
    for (seen, d_score) in row.seen.iter().zip(&mut d_scores) {
        let d_value = source_gradient(&mut gradients.v, gradients.prefix_v.as_mut(), b, kv_head, seen.source);
        add_scaled(d_value, seen.keep * seen.probability, &d_attn);
        let value = value_row(problem, sequence, kv_head, seen.source);
        let d_probability = seen.keep * dot(&d_attn, value);
        *d_score += seen.probability * d_probability;
        d_lse -= seen.probability * d_probability;
    }
    // lse = log Σ exp s,  s = softcap(σ Q·K) − ALiBi.
    for (seen, d_score) in row.seen.iter().zip(&mut d_scores) {
        *d_score += seen.probability * d_lse;
        let d_product = problem.softmax_scale * seen.score_slope * *d_score;
        add_scaled(&mut d_q, d_product, key_row(problem, sequence, kv_head, seen.source));
        let d_key = source_gradient(&mut gradients.k, gradients.prefix_k.as_mut(), b, kv_head, seen.source);
        add_scaled(d_key, d_product, q);
    }
    gradients.q.row_mut([b, head, n]).copy_from_slice(&d_q);
}

fn source_gradient<'a>(
    keys: &'a mut Tensor,
    prefix: Option<&'a mut Tensor>,
    batch: usize,
    kv_head: usize,
    source: Source,
) -> &'a mut [f64] {
    match source {
        Source::Prefix(t) => prefix.expect("a prefix has gradients").row_mut([kv_head, t]),
        Source::Key(row) => keys.row_mut([batch, kv_head, row]),
    }
}

/// Weight and bias gradients of one half of an adapter that the problem has.
fn half<'a>(weight: &'a mut Option<Tensor>, bias: &'a mut Option<Tensor>) -> [&'a mut Tensor; 2] {
    [weight, bias].map(|gradient| gradient.as_mut().expect("every half of an adapter has gradients"))
}

/// `factor · x`.
fn scaled(factor: f64, x: &[f64]) -> Vec<f64> {
    x.iter().map(|x| factor * x).collect()
}

/// Through `y = h B + b`: adds dB and db, returns dh.
fn backward_up(up: &Up, gradient: [&mut Tensor; 2], head: usize, hidden: &[f64], d_y: &[f64]) -> Vec<f64> {
    let [d_weight, d_bias] = gradient;
    add_scaled(d_bias.row_mut([head]), 1.0, d_y);
    for (r, &h) in hidden.iter().enumerate() {
        add_scaled(d_weight.row_mut([head, r]), h, d_y);
    }
    (0..hidden.len()).map(|r| dot(up.weight.row([head, r]), d_y)).collect()
}

/// Through `h = act(Q A + a)`: adds dA, da and dQ.
fn backward_down(
    down: &Down,
    gradient: [&mut Tensor; 2],
    head: usize,
    q: &[f64],
    hidden: &[f64],
    d_hidden: &[f64],
    d_q: &mut [f64],
) {
    let [d_weight, d_bias] = gradient;
    let d_z: Vec<f64> =
        hidden.iter().zip(d_hidden).map(|(&h, d)| down.activation.derivative_at_value(h) * d).collect();
    add_scaled(d_bias.row_mut([head]), 1.0, &d_z);
    for (c, &q) in q.iter().enumerate() {
        add_scaled(d_weight.row_mut([head, c]), q, &d_z);
        d_q[c] += dot(down.weight.row([head, c]), &d_z);
    }
}
