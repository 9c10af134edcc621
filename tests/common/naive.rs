//! The operation done naively, as an eager framework would in the dtype of Q: every product accumulates in f32, and
//! every tensor that a framework would keep in memory (scores, probabilities, λ, hidden layers, their gradients) is
//! rounded to the dtype.
//!
//! Its error against the oracle is the yardstick of FlashAttention's criterion. Without rounding it is a second
//! derivation of forward and backward, which the oracle is held against.

use super::case::mix;
use super::storage::round_to;
use inducer_attention::reference::{
    Adapter, Down, Inducer, OutputGradients, Problem, Tensor, Up, VirtualKey, VirtualValue,
};
use inducer_attention::{Activation, DType};
use std::cell::Cell;
use std::collections::BTreeMap;

/// What is rounded, and how.
#[derive(Clone, Debug)]
pub enum Rounding {
    /// Nothing: f64 throughout.
    None,
    /// To the nearest number of this dtype.
    Nearest(DType),
    /// Up or down at random, right on average: one more sample of the errors that rounding makes.
    Random(DType, Cell<u64>),
}

impl Rounding {
    pub fn random(dtype: DType, seed: u64) -> Self {
        Self::Random(dtype, Cell::new(mix(seed)))
    }

    /// A value as it is kept in memory.
    fn store(&self, x: f64) -> f64 {
        match self {
            Self::None => x,
            Self::Nearest(dtype) => round_to(*dtype, x),
            Self::Random(dtype, state) => at_random(*dtype, state, x),
        }
    }

    /// A value in an f32 register.
    fn single(&self, x: f64) -> f64 {
        match self {
            Self::None => x,
            Self::Nearest(_) => f64::from(x as f32),
            Self::Random(_, state) => at_random(DType::F32, state, x),
        }
    }

    fn store_all(&self, xs: &mut [f64]) {
        xs.iter_mut().for_each(|x| *x = self.store(*x));
    }

    fn dot(&self, a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).fold(0.0, |sum, (a, b)| self.single(sum + a * b))
    }

    /// `y += factor · x`.
    fn add(&self, y: &mut [f64], factor: f64, x: &[f64]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = self.single(*y + factor * x);
        }
    }
}

fn at_random(dtype: DType, state: &Cell<u64>, x: f64) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let (digits, least) = match dtype {
        DType::F32 => (23, -126),
        DType::F16 => (10, -14),
        DType::BF16 => (7, -126),
    };
    let exponent = ((x.to_bits() >> 52) & 0x7ff) as i32 - 1023;
    let ulp = f64::from(exponent.max(least) - digits).exp2();
    state.set(mix(state.get()));
    let shift = (state.get() >> 11) as f64 / (1u64 << 53) as f64 - 0.5;
    round_to(dtype, x + shift * ulp)
}

/// Results of a run.
#[derive(Clone, Debug)]
pub struct Run {
    pub o: Tensor,
    /// `[B, Hq, N]`.
    pub lse: Tensor,
    /// `[B, Hq, N, r_v]`.
    pub u: Option<Tensor>,
    pub attn: Tensor,
    /// The largest |s| of a real key (or partial sum of one), and the largest |s0| whose λ is not yet 0 or 1 to f32 precision.
    pub largest_logit: f64,
    /// Keys of K and V that some row sees, `[B, M]`.
    pub seen: Vec<bool>,
    /// Rows of Q that belong to a sequence, `[B, N]`.
    pub exists: Vec<bool>,
    /// By name, as the oracle names them.
    pub gradients: ByName,
    /// Of what rounding errors are proportional to where it can be far more than the result: for each element, the root
    /// of the sum of squares of its terms before anything cancels between dP and its mean, and of what an error of s0
    /// in proportion to s0 becomes. By name, as `gradients`, and for `o` and `u`.
    pub magnitudes: ByName,
}

struct Span {
    index: usize,
    batch: usize,
    q: (usize, usize),
    k: (usize, usize),
    start: usize,
    shift: i64,
}

fn spans(p: &Problem) -> Vec<Span> {
    let (batch, n, m) = (p.q.shape[0], p.q.shape[2], p.k.shape[2]);
    if let Some(cu) = &p.cu_seqlens {
        return (0..cu.q.len() - 1)
            .map(|s| Span {
                index: s,
                batch: 0,
                q: (cu.q[s], cu.q[s + 1]),
                k: (cu.k[s], cu.k[s + 1]),
                start: 0,
                shift: (cu.k[s + 1] - cu.k[s]) as i64 - (cu.q[s + 1] - cu.q[s]) as i64,
            })
            .collect();
    }
    (0..batch)
        .map(|b| {
            let k = p.key_lengths.as_ref().map_or(m, |l| l[b]);
            let q = p.query_lengths.as_ref().map(|l| l[b]);
            Span {
                index: b,
                batch: b,
                q: (0, q.unwrap_or(n)),
                k: (0, k),
                start: p.key_starts.as_ref().map_or(0, |l| l[b]),
                shift: q.map_or(m as i64 - n as i64, |q| k as i64 - q as i64),
            }
        })
        .collect()
}

/// The virtual token of one row, as computed.
struct Token<'a> {
    inducer: &'a Inducer,
    /// τσ.
    scale: f64,
    s0: f64,
    /// |s0|, or its partial sums where these are larger: what its rounding errors are proportional to.
    s0_terms: f64,
    u: Vec<f64>,
    key: Vec<f64>,
    lambda: f64,
    rest: f64,
    keep: f64,
    h: Vec<f64>,
    delta: Vec<f64>,
}

/// How far s0 is from lse where λ or 1 − λ is below 2·10⁻⁹.
const SATURATED: f64 = 20.0;

/// Gradients by the oracle's names.
type ByName = BTreeMap<&'static str, Tensor>;

/// What the backward starts from.
#[derive(Clone, Copy, Debug)]
pub struct Upstream<'a> {
    pub gradients: &'a OutputGradients,
    /// Backends have O and not attn: what is lost in that counts in [`Run::magnitudes`].
    pub from_output: bool,
}

/// Runs forward, and backward where there are upstream gradients.
pub fn naive(p: &Problem, upstream: Option<Upstream<'_>>, r: &Rounding) -> Run {
    let &[batch, heads, rows, d] = &p.q.shape[..] else { panic!("Q has four dimensions") };
    let &[_, kv_heads, keys, _] = &p.k.shape[..] else { panic!("K has four dimensions") };
    let prefix_len = p.prefix.as_ref().map_or(0, |prefix| prefix.k.shape[1]);
    let mut run = Run {
        o: Tensor::zeros(&p.q.shape),
        lse: Tensor::full(&[batch, heads, rows], f64::NEG_INFINITY),
        u: p.extended_rank().map(|rank| Tensor::zeros(&[batch, heads, rows, rank])),
        attn: Tensor::zeros(&p.q.shape),
        largest_logit: 0.0,
        seen: vec![false; batch * keys],
        exists: vec![false; batch * rows],
        gradients: BTreeMap::new(),
        magnitudes: BTreeMap::new(),
    };
    let mut gradients: ByName =
        p.clone().parameters_mut().into_iter().map(|(name, t)| (name, Tensor::zeros(&t.shape))).collect();
    let mut take = |name| gradients.remove(name).unwrap_or_else(|| Tensor::zeros(&[kv_heads, 0, d]));
    let (mut d_q_all, mut d_k, mut d_v) = (take("q"), take("k"), take("v"));
    let (mut d_prefix_k, mut d_prefix_v) = (take("prefix.k"), take("prefix.v"));

    let mut magnitudes: ByName = [("q", &d_q_all), ("k", &d_k), ("prefix.k", &d_prefix_k), ("o", &run.o)]
        .into_iter()
        .chain(run.u.as_ref().map(|u| ("u", u)))
        .map(|(name, t)| (name, Tensor::zeros(&t.shape)))
        .collect();
    let mut parameter_magnitudes: ByName =
        gradients.iter().map(|(name, t)| (*name, Tensor::zeros(&t.shape))).collect();

    for span in spans(p) {
        let b = span.batch;
        for head in 0..heads {
            let kv = head / (heads / kv_heads);
            let mask_head = (span.index * heads + head) as u32;
            let slope = p.alibi_slopes.as_ref().map_or(0.0, |t| match t.shape.len() {
                1 => t[[head]],
                _ => t[[span.index, head]],
            });
            for i in 0..span.q.1 - span.q.0 {
                let n = span.q.0 + i;
                run.exists[b * rows + n] = true;
                let q = p.q.row([b, head, n]);
                let position = i as i64 + span.shift;

                // Prefix tokens first, then the keys that the row sees: (local column, row in the tensor).
                let mut columns: Vec<(usize, usize)> = (0..prefix_len).map(|t| (t, t)).collect();
                for j in span.start..span.k.1 - span.k.0 {
                    let distance = i128::from(j as i64 - position);
                    if !(p.causal && distance > 0)
                        && p.window_left.is_none_or(|w| distance >= -(w as i128))
                        && p.window_right.is_none_or(|w| distance <= w as i128)
                    {
                        columns.push((j, span.k.0 + j));
                        run.seen[b * keys + span.k.0 + j] = true;
                    }
                }
                let row_of = |prefix: Option<&Tensor>, t: &Tensor, c: usize| -> Vec<f64> {
                    match prefix {
                        Some(prefix) if c < prefix_len => prefix.row([kv, c]).to_vec(),
                        _ => t.row([b, kv, columns[c].1]).to_vec(),
                    }
                };
                let key = |c| row_of(p.prefix.as_ref().map(|x| &x.k), &p.k, c);
                let value = |c| row_of(p.prefix.as_ref().map(|x| &x.v), &p.v, c);

                let (mut scores, mut cap_slopes, mut keeps) = (Vec::new(), Vec::new(), Vec::new());
                for (c, &(column, _)) in columns.iter().enumerate() {
                    let k = key(c);
                    let mut s = r.store(p.softmax_scale * r.dot(q, &k));
                    // Partial sums count as well: of independent terms they are as large as the root of the squares.
                    let partial = q.iter().zip(&k).map(|(q, k)| q * k * q * k).sum::<f64>().sqrt();
                    run.largest_logit = run.largest_logit.max(s.abs()).max(p.softmax_scale.abs() * partial);
                    let mut cap_slope = 1.0;
                    if let Some(cap) = p.softcap {
                        let t = (s / cap).tanh();
                        (s, cap_slope) = (r.store(cap * t), 1.0 - t * t);
                    }
                    if c >= prefix_len && p.alibi_slopes.is_some() {
                        s = r.store(s - slope * (column as i64 - position).abs() as f64);
                    }
                    run.largest_logit = run.largest_logit.max(s.abs());
                    scores.push(s);
                    cap_slopes.push(cap_slope);
                    keeps.push(p.dropout.map_or(1.0, |mask| {
                        let kept = if c < prefix_len {
                            mask.keep_prefix(mask_head, i as u32, column as u32)
                        } else {
                            mask.keep_real(mask_head, i as u32, column as u32)
                        };
                        if kept { mask.scale() } else { 0.0 }
                    }));
                }
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum = scores.iter().fold(0.0, |sum, s| r.single(sum + (s - max).exp()));
                let lse = if scores.is_empty() { f64::NEG_INFINITY } else { r.single(max + sum.ln()) };
                run.lse[[b, head, n]] = lse;
                let p_row: Vec<f64> = scores.iter().map(|s| r.store((s - lse).exp())).collect();
                let mut attn = vec![0.0; d];
                for c in 0..columns.len() {
                    r.add(&mut attn, r.store(p_row[c] * keeps[c]), &value(c));
                }
                r.store_all(&mut attn);
                run.attn.row_mut([b, head, n]).copy_from_slice(&attn);

                let mut o = attn.clone();
                let token = p.inducer.as_ref().map(|inducer| {
                    let tau = match (&inducer.positions, inducer.adaptive_length) {
                        (_, false) => 1.0,
                        (Some(positions), true) => positions[[b, n]].sqrt(),
                        (None, true) if p.causal => ((position + 1).max(1) as f64).sqrt(),
                        (None, true) => ((i + 1) as f64).sqrt(),
                    };
                    let keep = p.dropout.map_or(1.0, |mask| {
                        if mask.keep_lambda(mask_head, i as u32) { mask.scale() } else { 0.0 }
                    });
                    virtual_token(inducer, q, [b, head, n], p.softmax_scale * tau, keep, lse, r)
                });
                if let Some(t) = &token {
                    if (t.s0 - lse).abs() < SATURATED {
                        run.largest_logit = run.largest_logit.max(t.s0_terms);
                    }
                    let error = t.lambda * t.rest * t.amplification(lse);
                    if let Some(u) = magnitudes.get_mut("u") {
                        add_squares(u.row_mut([b, head, n]), error * t.keep, &t.h);
                    } else {
                        let o = magnitudes.get_mut("o").expect("present").row_mut([b, head, n]);
                        add_squares(o, error * t.keep, &t.delta);
                        if t.is_direct() {
                            add_squares(o, error, &attn);
                        }
                    }
                    let lambda = r.store(t.lambda * t.keep);
                    if let VirtualValue::Extended(_) = &t.inducer.value {
                        let u = run.u.as_mut().expect("U of the extended value").row_mut([b, head, n]);
                        u.iter_mut().zip(&t.h).for_each(|(u, h)| *u = r.store(lambda * h));
                    } else {
                        if t.is_direct() {
                            o.iter_mut().for_each(|o| *o = r.single(*o * t.rest));
                        }
                        r.add(&mut o, lambda, &t.delta);
                    }
                }
                r.store_all(&mut o);
                run.o.row_mut([b, head, n]).copy_from_slice(&o);

                let Some(Upstream { gradients: upstream, from_output }) = upstream else { continue };
                let d_o = upstream.o.row([b, head, n]);
                let mut d_q = vec![0.0; d];
                let mut d_attn = d_o.to_vec();
                let mut token_magnitude = 0.0;
                let mut d_lse = upstream.lse.as_ref().map_or(0.0, |t| t[[b, head, n]]);
                if let Some(t) = &token {
                    if t.is_direct() {
                        d_attn.iter_mut().for_each(|x| *x = r.store(*x * t.rest));
                    }
                    let d_u = upstream.u.as_ref().map(|u| u.row([b, head, n]));
                    let ds0 = t.backward(q, head, &attn, d_o, d_u, &mut d_q, &mut gradients, r);
                    if let Some(logit) = gradients.get_mut("logit") {
                        match logit.shape.len() {
                            1 => logit[[head]] = r.single(logit[[head]] + ds0),
                            _ => logit[[b, head, n]] = ds0,
                        }
                    }
                    d_lse -= ds0;
                    token_magnitude = t.magnitude(&attn, &o, d_o, d_u, from_output) * t.amplification(lse);
                    let error = t.keep * t.lambda * t.rest * t.amplification(lse);
                    t.add_value_magnitudes(q, head, error, d_o, d_u, &mut parameter_magnitudes);
                    let dq_magnitude = magnitudes.get_mut("q").expect("present").row_mut([b, head, n]);
                    t.add_magnitudes(
                        q,
                        [b, head, n],
                        token_magnitude,
                        dq_magnitude,
                        &mut parameter_magnitudes,
                    );
                    if from_output && !matches!(t.inducer.value, VirtualValue::Extended(_)) {
                        token_magnitude = token_magnitude.hypot(root_of_squares(d_o, &o));
                    }
                }
                let mut d_p = Vec::with_capacity(columns.len());
                for c in 0..columns.len() {
                    let d_value = if c < prefix_len {
                        d_prefix_v.row_mut([kv, c])
                    } else {
                        d_v.row_mut([b, kv, columns[c].1])
                    };
                    r.add(d_value, r.store(p_row[c] * keeps[c]), &d_attn);
                    d_p.push(r.store(keeps[c] * r.dot(&d_attn, &value(c))));
                }
                let constant = r.dot(&p_row, &d_p) - d_lse;
                let constant_magnitude = root_of_squares(&d_attn, &attn).hypot(d_lse).hypot(token_magnitude);
                for c in 0..columns.len() {
                    let d_s = r.store(r.store(p_row[c] * (d_p[c] - constant)) * cap_slopes[c]);
                    r.add(&mut d_q, p.softmax_scale * d_s, &key(c));
                    let d_key = if c < prefix_len {
                        d_prefix_k.row_mut([kv, c])
                    } else {
                        d_k.row_mut([b, kv, columns[c].1])
                    };
                    r.add(d_key, p.softmax_scale * d_s, q);

                    // The slope of the softcap is 1 − t².
                    let terms = (keeps[c] * root_of_squares(&d_attn, &value(c))).hypot(constant_magnitude);
                    let slope_terms = if p.softcap.is_some() { d_p[c] - constant } else { 0.0 };
                    let magnitude = p.softmax_scale * p_row[c] * slope_terms.hypot(cap_slopes[c] * terms);
                    let key_magnitude = if c < prefix_len {
                        magnitudes.get_mut("prefix.k").expect("present").row_mut([kv, c])
                    } else {
                        magnitudes.get_mut("k").expect("present").row_mut([b, kv, columns[c].1])
                    };
                    add_squares(key_magnitude, magnitude, q);
                    let dq_magnitude = magnitudes.get_mut("q").expect("present").row_mut([b, head, n]);
                    add_squares(dq_magnitude, magnitude, &key(c));
                }
                d_q_all.row_mut([b, head, n]).copy_from_slice(&d_q);
            }
        }
    }
    if upstream.is_some() {
        // Gradients of Q, K and V have the dtype; those of the parameters are f32.
        for (name, mut t) in [("q", d_q_all), ("k", d_k), ("v", d_v)] {
            r.store_all(&mut t.data);
            gradients.insert(name, t);
        }
        if p.prefix.is_some() {
            gradients.insert("prefix.k", d_prefix_k);
            gradients.insert("prefix.v", d_prefix_v);
        }
        run.gradients = gradients;
        magnitudes.append(&mut parameter_magnitudes);
        magnitudes.values_mut().for_each(|t| t.data.iter_mut().for_each(|m| *m = m.sqrt()));
        run.magnitudes = magnitudes;
    }
    run
}

/// The typical size of a sum of products, if their signs are random.
fn root_of_squares(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b * a * b).sum::<f64>().sqrt()
}

/// `y += (factor · x)²`, element by element.
fn add_squares(y: &mut [f64], factor: f64, x: &[f64]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += (factor * x).powi(2));
}

/// `act(x A + a)`.
fn project_down(t: &Down, head: usize, x: &[f64], r: &Rounding) -> Vec<f64> {
    let mut z = t.bias.row([head]).to_vec();
    for (c, &x) in x.iter().enumerate() {
        r.add(&mut z, x, t.weight.row([head, c]));
    }
    r.store_all(&mut z);
    z.into_iter()
        .map(|z| {
            r.store(match t.activation {
                Activation::Tanh => z.tanh(),
                Activation::Identity => z,
            })
        })
        .collect()
}

/// `h B + b`.
fn project_up(t: &Up, head: usize, h: &[f64], r: &Rounding) -> Vec<f64> {
    let mut y = t.bias.row([head]).to_vec();
    for (c, &h) in h.iter().enumerate() {
        r.add(&mut y, h, t.weight.row([head, c]));
    }
    r.store_all(&mut y);
    y
}

fn virtual_token<'a>(
    inducer: &'a Inducer,
    q: &[f64],
    [b, head, n]: [usize; 3],
    scale: f64,
    keep: f64,
    lse: f64,
    r: &Rounding,
) -> Token<'a> {
    let (mut u, mut key) = (Vec::new(), q.to_vec());
    if let VirtualKey::Residual(Adapter { down, up }) = &inducer.key {
        u = project_down(down, head, q, r);
        r.add(&mut key, 1.0, &project_up(up, head, &u, r));
        r.store_all(&mut key);
    }
    let s0 = match &inducer.key {
        VirtualKey::LogitPerHead(t) => t[[head]],
        VirtualKey::LogitPerToken(t) => t[[b, head, n]],
        VirtualKey::Query | VirtualKey::Residual(_) => r.store(scale * r.dot(q, &key)),
    };
    let mut squares = root_of_squares(q, q).powi(2);
    if let VirtualKey::Residual(Adapter { down, up }) = &inducer.key {
        squares += root_of_squares(q, up.bias.row([head])).powi(2);
        for (c, u) in u.iter().enumerate() {
            let b = up.weight.row([head, c]);
            let a: Vec<f64> = (0..q.len()).map(|k| down.weight.row([head, k])[c]).collect();
            let product = q.iter().zip(b).map(|(q, b)| q * b).sum::<f64>();
            squares += (root_of_squares(q, &a) * product).powi(2) + (u * root_of_squares(q, b)).powi(2);
        }
    }
    let s0_terms = match &inducer.key {
        VirtualKey::Query | VirtualKey::Residual(_) => s0.abs().max(scale.abs() * squares.sqrt()),
        VirtualKey::LogitPerHead(_) | VirtualKey::LogitPerToken(_) => s0.abs(),
    };
    // No softmax over both would make sense of −∞ − (−∞): no token.
    let sigmoid = |x: f64| if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) };
    let (lambda, rest) =
        if s0 == f64::NEG_INFINITY { (0.0, 1.0) } else { (sigmoid(s0 - lse), sigmoid(lse - s0)) };
    let (mut h, mut delta) = (Vec::new(), vec![0.0; q.len()]);
    match &inducer.value {
        VirtualValue::Zero => {}
        VirtualValue::Residual(Adapter { down, up }) | VirtualValue::Direct(Adapter { down, up }) => {
            h = project_down(down, head, q, r);
            delta = project_up(up, head, &h, r);
        }
        VirtualValue::Extended(down) => h = project_down(down, head, q, r),
    }
    Token {
        inducer,
        scale,
        s0,
        s0_terms,
        u,
        key,
        lambda: r.store(lambda),
        rest: r.store(rest),
        keep,
        h,
        delta,
    }
}

impl Token<'_> {
    /// Whether attn is multiplied by 1 − λ.
    fn is_direct(&self) -> bool {
        matches!(self.inducer.value, VirtualValue::Direct(_) | VirtualValue::Zero)
    }

    /// The typical size of the terms of ds0.
    fn magnitude(&self, attn: &[f64], o: &[f64], d_o: &[f64], d_u: Option<&[f64]>, from_output: bool) -> f64 {
        let own = match self.inducer.value {
            VirtualValue::Extended(_) => root_of_squares(d_u.unwrap_or(&[]), &self.h),
            _ => root_of_squares(d_o, &self.delta),
        };
        match (self.is_direct(), from_output) {
            // 1 − λ comes from the difference of these: attn cannot be had from O any better.
            (true, true) => self.lambda * (self.keep * own).hypot(root_of_squares(d_o, o)),
            (true, false) => self.lambda * self.rest * (self.keep * own).hypot(root_of_squares(d_o, attn)),
            (false, _) => self.lambda * self.rest * self.keep * own,
        }
    }

    /// How far s0's relative errors are magnified in λ: only where λ is all but 0 or 1, as elsewhere
    /// [`Run::largest_logit`] says it.
    fn amplification(&self, lse: f64) -> f64 {
        let saturated = self.s0.is_finite() && lse.is_finite() && (self.s0 - lse).abs() >= SATURATED;
        if saturated { 1.0 + self.s0_terms } else { 1.0 }
    }

    /// Adds what an error of λ̃ of this size becomes.
    fn add_value_magnitudes(
        &self,
        q: &[f64],
        head: usize,
        error: f64,
        d_o: &[f64],
        d_u: Option<&[f64]>,
        parameters: &mut ByName,
    ) {
        let (down, d_h) = match &self.inducer.value {
            VirtualValue::Zero => return,
            VirtualValue::Residual(Adapter { down, up }) | VirtualValue::Direct(Adapter { down, up }) => {
                add_row(parameters, "value.up_bias", &[head], error, d_o);
                for (c, h) in self.h.iter().enumerate() {
                    add_row(parameters, "value.up_weight", &[head, c], error * h, d_o);
                }
                let d_h = (0..self.h.len()).map(|c| root_of_squares(up.weight.row([head, c]), d_o)).collect();
                (down, d_h)
            }
            VirtualValue::Extended(down) => (down, d_u.map_or(vec![0.0; self.h.len()], <[f64]>::to_vec)),
        };
        let d_z: Vec<f64> =
            self.h.iter().zip(&d_h).map(|(&h, d_h)| error * derivative(down, h) * d_h).collect();
        add_row(parameters, "value.down_bias", &[head], 1.0, &d_z);
        for (c, &q) in q.iter().enumerate() {
            add_row(parameters, "value.down_weight", &[head, c], q, &d_z);
        }
    }

    /// Adds what an error of ds0 of this size becomes.
    fn add_magnitudes(
        &self,
        q: &[f64],
        [b, head, n]: [usize; 3],
        ds0: f64,
        d_q: &mut [f64],
        parameters: &mut ByName,
    ) {
        if let Some(logit) = parameters.get_mut("logit") {
            match logit.shape.len() {
                1 => logit[[head]] += ds0.powi(2),
                _ => logit[[b, head, n]] += ds0.powi(2),
            }
            return;
        }
        let d_key = self.scale.abs() * ds0;
        add_squares(d_q, d_key, q);
        add_squares(d_q, d_key, &self.key);
        let VirtualKey::Residual(Adapter { down, up }) = &self.inducer.key else { return };
        add_row(parameters, "key.up_bias", &[head], d_key, q);
        for (c, h) in self.u.iter().enumerate() {
            add_row(parameters, "key.up_weight", &[head, c], d_key * h, q);
        }
        let d_z: Vec<f64> = (0..self.u.len())
            .map(|c| derivative(down, self.u[c]) * d_key * root_of_squares(up.weight.row([head, c]), q))
            .collect();
        add_row(parameters, "key.down_bias", &[head], 1.0, &d_z);
        for (c, &q) in q.iter().enumerate() {
            add_row(parameters, "key.down_weight", &[head, c], q, &d_z);
            d_q[c] += root_of_squares(down.weight.row([head, c]), &d_z).powi(2);
        }
    }

    /// Adds to dQ and the adapters' gradients, and returns ds0.
    #[allow(clippy::too_many_arguments)] // It is one piece of the row's loop body.
    fn backward(
        &self,
        q: &[f64],
        head: usize,
        attn: &[f64],
        d_o: &[f64],
        d_u: Option<&[f64]>,
        d_q: &mut [f64],
        gradients: &mut ByName,
        r: &Rounding,
    ) -> f64 {
        let lambda = r.store(self.lambda * self.keep);
        let mut d_lambda = self.keep
            * match self.inducer.value {
                VirtualValue::Extended(_) => r.dot(d_u.unwrap_or(&[]), &self.h),
                _ => r.dot(d_o, &self.delta),
            };
        if self.is_direct() {
            d_lambda -= r.dot(d_o, attn);
        }
        let ds0 = r.store(self.lambda * self.rest * d_lambda);

        match &self.inducer.value {
            VirtualValue::Zero => {}
            VirtualValue::Residual(Adapter { down, up }) | VirtualValue::Direct(Adapter { down, up }) => {
                let d_delta: Vec<f64> = d_o.iter().map(|x| r.store(lambda * x)).collect();
                let d_h = up_backward("value", up, head, &self.h, &d_delta, gradients, r);
                down_backward("value", down, head, q, &self.h, &d_h, d_q, gradients, r);
            }
            VirtualValue::Extended(down) => {
                let mut d_h = vec![0.0; self.h.len()];
                d_h.iter_mut().zip(d_u.unwrap_or(&[])).for_each(|(d_h, d_u)| *d_h = r.store(lambda * d_u));
                down_backward("value", down, head, q, &self.h, &d_h, d_q, gradients, r);
            }
        }
        let d_key: Vec<f64> = q.iter().map(|q| r.store(self.scale * ds0 * q)).collect();
        match &self.inducer.key {
            VirtualKey::LogitPerHead(_) | VirtualKey::LogitPerToken(_) => {}
            VirtualKey::Query => {
                r.add(d_q, self.scale * ds0, &self.key);
                r.add(d_q, 1.0, &d_key);
            }
            VirtualKey::Residual(Adapter { down, up }) => {
                r.add(d_q, self.scale * ds0, &self.key);
                r.add(d_q, 1.0, &d_key);
                let d_u = up_backward("key", up, head, &self.u, &d_key, gradients, r);
                down_backward("key", down, head, q, &self.u, &d_u, d_q, gradients, r);
            }
        }
        ds0
    }
}

/// act′ from the activation's value.
fn derivative(t: &Down, h: f64) -> f64 {
    match t.activation {
        Activation::Tanh => 1.0 - h * h,
        Activation::Identity => 1.0,
    }
}

/// Adds squares to a row of a parameter's magnitude.
fn add_row(parameters: &mut ByName, name: &str, index: &[usize], factor: f64, x: &[f64]) {
    let t = parameters.get_mut(name).expect("a magnitude of every gradient");
    match *index {
        [a] => add_squares(t.row_mut([a]), factor, x),
        [a, b] => add_squares(t.row_mut([a, b]), factor, x),
        _ => unreachable!("weights and biases"),
    }
}

fn named(part: &str, key: &'static str, value: &'static str) -> &'static str {
    if part == "key" { key } else { value }
}

fn up_backward(
    part: &str,
    t: &Up,
    head: usize,
    h: &[f64],
    d_y: &[f64],
    gradients: &mut ByName,
    r: &Rounding,
) -> Vec<f64> {
    let bias = gradients.get_mut(named(part, "key.up_bias", "value.up_bias")).expect("a gradient");
    r.add(bias.row_mut([head]), 1.0, d_y);
    let weight = gradients.get_mut(named(part, "key.up_weight", "value.up_weight")).expect("a gradient");
    for (c, &h) in h.iter().enumerate() {
        r.add(weight.row_mut([head, c]), h, d_y);
    }
    (0..h.len()).map(|c| r.store(r.dot(t.weight.row([head, c]), d_y))).collect()
}

#[allow(clippy::too_many_arguments)] // As above.
fn down_backward(
    part: &str,
    t: &Down,
    head: usize,
    q: &[f64],
    h: &[f64],
    d_h: &[f64],
    d_q: &mut [f64],
    gradients: &mut ByName,
    r: &Rounding,
) {
    let d_z: Vec<f64> = h.iter().zip(d_h).map(|(&h, d_h)| r.store(derivative(t, h) * d_h)).collect();
    let bias = gradients.get_mut(named(part, "key.down_bias", "value.down_bias")).expect("a gradient");
    r.add(bias.row_mut([head]), 1.0, &d_z);
    let weight = gradients.get_mut(named(part, "key.down_weight", "value.down_weight")).expect("a gradient");
    for (c, &q) in q.iter().enumerate() {
        r.add(weight.row_mut([head, c]), q, &d_z);
        d_q[c] = r.single(d_q[c] + r.dot(t.weight.row([head, c]), &d_z));
    }
}
