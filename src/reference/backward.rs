//! The chain rule, from the outputs back to every tensor.

use super::gradients::{Gradients, OutputGradients};
use super::problem::{Adapter, Down, Inducer, Problem, Up, VirtualKey, VirtualValue};
use super::row::{Row, Sequence, Source, VirtualToken, evaluate, key_row, value_row};
use super::tensor::{Tensor, add_scaled, dot};
use crate::inducer::Activation;

/// The backward pass: gradients of `Σ dO∘O + Σ dLSE∘lse + Σ dU∘U`.
///
/// # Panics
///
/// If the problem's shapes or lengths disagree, or those of the output gradients do not match it, or dU is given where
/// the value is not extended.
pub fn backward(problem: &Problem, upstream: &OutputGradients) -> Gradients {
    problem.assert_consistent();
    let &[batch, heads, queries, _] = &problem.q.shape[..] else { unreachable!("Q has four dimensions") };
    assert_eq!(upstream.o.shape, problem.q.shape, "dO");
    if let Some(lse) = &upstream.lse {
        assert_eq!(lse.shape, [batch, heads, queries], "dLSE");
    }
    if let Some(u) = &upstream.u {
        let rank = problem.extended_rank().expect("dU only where the value is extended");
        assert_eq!(u.shape, [batch, heads, queries, rank], "dU");
    }
    let mut gradients = Gradients::zeros(problem);
    for sequence in Sequence::all(problem) {
        for head in 0..heads {
            for i in 0..sequence.queries {
                let at = At { problem, sequence: &sequence, head, row: sequence.first_query + i };
                at.backward(upstream, &evaluate(problem, &sequence, head, i), &mut gradients);
            }
        }
    }
    gradients
}

/// Where in the problem a row is.
struct At<'a> {
    problem: &'a Problem,
    sequence: &'a Sequence,
    head: usize,
    /// The row in Q.
    row: usize,
}

impl At<'_> {
    fn q(&self) -> &[f64] {
        self.problem.q.row([self.sequence.batch, self.head, self.row])
    }

    /// Adds what the row contributes to all gradients.
    fn backward(&self, upstream: &OutputGradients, row: &Row, gradients: &mut Gradients) {
        let Self { problem, sequence, head, row: n } = *self;
        let b = sequence.batch;
        let d_o = upstream.o.row([b, head, n]);

        let mut d_q = vec![0.0; d_o.len()];
        let mut d_attn = d_o.to_vec();
        let mut d_lse = upstream.lse.as_ref().map_or(0.0, |lse| lse[[b, head, n]]);
        if let (Some(inducer), Some(token)) = (&problem.inducer, &row.token) {
            let d_lambda = match &inducer.value {
                // O = attn + λ̃ Δ,  λ̃ = m̃₀ λ
                VirtualValue::Residual(adapter) => {
                    self.value_adapter(adapter, token, d_o, gradients, &mut d_q);
                    token.keep * dot(d_o, &token.delta)
                }
                // O = (1 − λ) attn + λ̃ Δ
                VirtualValue::Direct(adapter) => {
                    self.value_adapter(adapter, token, d_o, gradients, &mut d_q);
                    d_attn = scaled(token.rest, d_o);
                    token.keep * dot(d_o, &token.delta) - dot(d_o, &row.attn)
                }
                // O = (1 − λ) attn
                VirtualValue::Zero => {
                    d_attn = scaled(token.rest, d_o);
                    -dot(d_o, &row.attn)
                }
                // O = attn,  U = λ̃ h,  h = act(Q A_v + a_v)
                VirtualValue::Extended(down) => {
                    let zeros = vec![0.0; token.value_hidden.len()];
                    let d_u = upstream.u.as_ref().map_or(&zeros[..], |u| u.row([b, head, n]));
                    let d_hidden = scaled(token.keep * token.lambda, d_u);
                    let gradient = half(&mut gradients.value_down_weight, &mut gradients.value_down_bias);
                    self.down(down, gradient, &token.value_hidden, &d_hidden, &mut d_q);
                    token.keep * dot(d_u, &token.value_hidden)
                }
            };
            // λ = sigmoid(s0 − lse)
            let d_s0 = token.lambda * token.rest * d_lambda;
            d_lse -= d_s0;
            self.virtual_key(inducer, token, d_s0, gradients, &mut d_q);
        }
        self.attention(row, &d_attn, d_lse, gradients, &mut d_q);
        gradients.q.row_mut([b, head, n]).copy_from_slice(&d_q);
    }

    /// `attn = Σ m̃ p V`, `p = exp(s − lse)`, `lse = log Σ exp s`, `s = softcap(σ Q·K) − ALiBi`.
    fn attention(
        &self,
        row: &Row,
        d_attn: &[f64],
        mut d_lse: f64,
        gradients: &mut Gradients,
        d_q: &mut [f64],
    ) {
        let Self { problem, sequence, head, .. } = *self;
        let kv_head = head / (problem.q.shape[1] / problem.k.shape[1]);
        let place = |source| Place { batch: sequence.batch, kv_head, source };

        let mut d_scores = Vec::with_capacity(row.seen.len());
        for seen in &row.seen {
            let d_value = place(seen.source).of(&mut gradients.v, gradients.prefix_v.as_mut());
            add_scaled(d_value, seen.keep * seen.probability, d_attn);
            let d_probability = seen.keep * dot(d_attn, value_row(problem, sequence, kv_head, seen.source));
            d_scores.push(seen.probability * d_probability);
            d_lse -= seen.probability * d_probability;
        }
        for (seen, d_score) in row.seen.iter().zip(d_scores) {
            let d_score = d_score + seen.probability * d_lse;
            let d_product = problem.softmax_scale * seen.score_slope * d_score;
            add_scaled(d_q, d_product, key_row(problem, sequence, kv_head, seen.source));
            let d_key = place(seen.source).of(&mut gradients.k, gradients.prefix_k.as_mut());
            add_scaled(d_key, d_product, self.q());
        }
    }

    /// `s0 = τσ Q·P_k`, `P_k = Q + u B_k + b_k`, `u = act(Q A_k + a_k)`; or s0 is given.
    fn virtual_key(
        &self,
        inducer: &Inducer,
        token: &VirtualToken,
        d_s0: f64,
        gradients: &mut Gradients,
        d_q: &mut [f64],
    ) {
        let Gradients { logit, key_down_weight, key_down_bias, key_up_weight, key_up_bias, .. } = gradients;
        match &inducer.key {
            VirtualKey::LogitPerHead(_) => {
                logit.as_mut().expect("a given logit has a gradient")[[self.head]] += d_s0;
                return;
            }
            VirtualKey::LogitPerToken(_) => {
                let logit = logit.as_mut().expect("a given logit has a gradient");
                logit[[self.sequence.batch, self.head, self.row]] += d_s0;
                return;
            }
            VirtualKey::Query | VirtualKey::Residual(_) => {}
        }
        add_scaled(d_q, token.scale * d_s0, &token.key);
        let d_key = scaled(token.scale * d_s0, self.q());
        add_scaled(d_q, 1.0, &d_key);
        if let VirtualKey::Residual(Adapter { down, up }) = &inducer.key {
            let d_hidden = self.up(up, half(key_up_weight, key_up_bias), &token.key_hidden, &d_key);
            self.down(down, half(key_down_weight, key_down_bias), &token.key_hidden, &d_hidden, d_q);
        }
    }

    /// `λ̃ Δ`, `Δ = h B_v + b_v`, `h = act(Q A_v + a_v)`.
    fn value_adapter(
        &self,
        adapter: &Adapter,
        token: &VirtualToken,
        d_o: &[f64],
        gradients: &mut Gradients,
        d_q: &mut [f64],
    ) {
        let d_delta = scaled(token.keep * token.lambda, d_o);
        let gradient = half(&mut gradients.value_up_weight, &mut gradients.value_up_bias);
        let d_hidden = self.up(&adapter.up, gradient, &token.value_hidden, &d_delta);
        let gradient = half(&mut gradients.value_down_weight, &mut gradients.value_down_bias);
        self.down(&adapter.down, gradient, &token.value_hidden, &d_hidden, d_q);
    }

    /// Through `y = h B + b`: adds dB and db, returns dh.
    fn up(&self, up: &Up, gradient: [&mut Tensor; 2], hidden: &[f64], d_y: &[f64]) -> Vec<f64> {
        let [d_weight, d_bias] = gradient;
        add_scaled(d_bias.row_mut([self.head]), 1.0, d_y);
        for (r, &h) in hidden.iter().enumerate() {
            add_scaled(d_weight.row_mut([self.head, r]), h, d_y);
        }
        (0..hidden.len()).map(|r| dot(up.weight.row([self.head, r]), d_y)).collect()
    }

    /// Through `h = act(Q A + a)`: adds dA, da and dQ.
    fn down(
        &self,
        down: &Down,
        gradient: [&mut Tensor; 2],
        hidden: &[f64],
        d_hidden: &[f64],
        d_q: &mut [f64],
    ) {
        let [d_weight, d_bias] = gradient;
        let derivative = |h: &f64| match down.activation {
            Activation::Tanh => 1.0 - h * h,
            Activation::Identity => 1.0,
        };
        let d_z: Vec<f64> = hidden.iter().zip(d_hidden).map(|(h, d)| derivative(h) * d).collect();
        add_scaled(d_bias.row_mut([self.head]), 1.0, &d_z);
        for (c, (&q, d_q)) in self.q().iter().zip(d_q).enumerate() {
            add_scaled(d_weight.row_mut([self.head, c]), q, &d_z);
            *d_q += dot(down.weight.row([self.head, c]), &d_z);
        }
    }
}

/// Which row of the gradients of K and V, or of the prefix's, a key adds to.
struct Place {
    batch: usize,
    kv_head: usize,
    source: Source,
}

impl Place {
    fn of<'a>(&self, keys: &'a mut Tensor, prefix: Option<&'a mut Tensor>) -> &'a mut [f64] {
        match self.source {
            Source::Prefix(t) => prefix.expect("a prefix has gradients").row_mut([self.kv_head, t]),
            Source::Key(row) => keys.row_mut([self.batch, self.kv_head, row]),
        }
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
