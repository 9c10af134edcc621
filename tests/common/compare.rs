//! When a result is right.
//!
//! **f32**: ‖x − ref‖ ≤ tolerance · max(1, L/10) · ‖ref‖ in the Frobenius norm, with 1e-6 forward, 5e-6 backward, and L
//! the largest logit: a score's rounding error is proportional to it, and becomes a relative error of the probability.
//!
//! **f16, bf16**: FlashAttention's criterion, ‖x − ref‖ ≤ 2 · ‖naive − ref‖, where naive is the same computation done
//! naively in the same type (see [`naive`](super::naive)). What the best rounding of the reference itself costs is
//! always allowed, as is f32's bound: where naive happens to be exact, nothing better than that can be asked.
//!
//! dQ and dK are sums of P∘(dP − D), in which nearly all of a peaked row cancels, and where a backend is given O and not
//! attn, more is lost in it the nearer λ is to 1: errors are proportional to the terms, and 8 units of f32 rounding of
//! these (2 of 16 bits') are allowed; over 64 columns, more with their square root, as a dot product's rounding errors are. Where
//! nothing much cancels that is less than the above. The same goes for what is proportional to a λ or 1 − λ that is next
//! to nothing.
//!
//! A tensor of a few numbers, or of a few rows, can have a norm far below that of the terms that cancel in it, and one
//! naive run can be right by luck. There the yardstick is the largest error of several naive runs that round at random,
//! of which four times (f32) or twice (16 bits) is allowed. In f32 that stays well under the first bound unless terms
//! cancel.

use super::case::{Case, Inputs};
use super::naive::{Rounding, Run, Upstream, naive};
use super::run::upstream;
use super::storage::round_to;
use inducer_attention::DType;
use inducer_attention::reference::{self, OutputGradients, Tensor};
use std::cell::OnceCell;
use std::collections::BTreeMap;

const FORWARD_TOLERANCE: f64 = 1e-6;
const BACKWARD_TOLERANCE: f64 = 5e-6;

/// Of lse in 16 bits: it is f32, but exponentials of probabilities that are rounded to 16 bits afterwards need not be
/// good to more than a hundredth of that.
const LSE_TOLERANCE: f64 = 5e-6;

/// Probabilities and weights λ below f32's normal range, 1.2e-38, may be flushed to zero. In an adapter's gradient they are
/// multiplied by dO·Δ, by σW and by Q, together less than 10,000 for logits up to 10, and more for larger ones in proportion.
const FLUSHED: f64 = 1.2e-34;

/// Rows from which on luck is out of the question.
const MANY_ROWS: f64 = 64.0;
const SAMPLES: u64 = 4;

/// What the results of a case should be, and how far from it they may be.
pub struct Judge {
    dtype: DType,
    problem: reference::Problem,
    upstream: OutputGradients,
    from_output: bool,
    output: BTreeMap<&'static str, Tensor>,
    gradients: BTreeMap<&'static str, Tensor>,
    /// See [`Run`]; computed without rounding.
    pub exact: Run,
    nearest: OnceCell<BTreeMap<&'static str, Tensor>>,
    samples: OnceCell<Vec<BTreeMap<&'static str, Tensor>>>,
}

/// A run's results by name.
pub fn by_name(run: &Run) -> BTreeMap<&'static str, Tensor> {
    let mut all =
        BTreeMap::from([("o", run.o.clone()), ("lse", run.lse.clone()), ("attn", run.attn.clone())]);
    all.extend(run.u.clone().map(|u| ("u", u)));
    all.extend(run.gradients.iter().map(|(name, t)| (gradient_name(name), t.clone())));
    all
}

/// Names of gradients among those of outputs.
pub fn gradient_name(name: &str) -> &'static str {
    match name {
        "q" => "dq",
        "k" => "dk",
        "v" => "dv",
        "prefix.k" => "d prefix.k",
        "prefix.v" => "d prefix.v",
        "logit" => "d logit",
        "key.down_weight" => "d key.down_weight",
        "key.down_bias" => "d key.down_bias",
        "key.up_weight" => "d key.up_weight",
        "key.up_bias" => "d key.up_bias",
        "value.down_weight" => "d value.down_weight",
        "value.down_bias" => "d value.down_bias",
        "value.up_weight" => "d value.up_weight",
        "value.up_bias" => "d value.up_bias",
        other => panic!("unknown gradient {other}"),
    }
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.shape, b.shape, "shapes of the compared tensors");
    a.data
        .iter()
        .zip(&b.data)
        .map(|(&a, &b)| {
            // Equal infinities are no difference: the lse of rows that see nothing.
            if a == b { 0.0 } else { (a - b) * (a - b) }
        })
        .sum::<f64>()
        .sqrt()
}

/// The largest relative error of rounding to nearest.
fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 2f64.powi(-24),
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
    }
}

fn norm(t: &Tensor) -> f64 {
    t.data.iter().filter(|x| x.is_finite()).map(|x| x * x).sum::<f64>().sqrt()
}

impl Judge {
    /// The judge of a run with these inputs.
    ///
    /// # Errors
    /// If they are not valid.
    pub fn of(inputs: &Inputs) -> Result<Self, String> {
        let problem = inputs.attention().validate().map_err(|e| format!("validation: {e}"))?;
        Ok(Self::new(&inputs.case, (&problem).into(), (&upstream(inputs)).into()))
    }

    /// Evaluates the oracle.
    pub fn new(case: &Case, problem: reference::Problem, upstream: OutputGradients) -> Self {
        let forward = reference::forward(&problem);
        let backward = reference::backward(&problem, &upstream);
        let mut output = BTreeMap::from([("o", forward.o), ("lse", forward.lse), ("attn", forward.attn)]);
        output.extend(forward.u.map(|u| ("u", u)));
        let from_output = !case.saves_attention;
        let start = Upstream { gradients: &upstream, from_output };
        let exact = naive(&problem, Some(start), &Rounding::None);
        Self {
            dtype: case.dtype,
            from_output,
            output,
            gradients: backward.named().into_iter().map(|(name, t)| (name, t.clone())).collect(),
            problem,
            upstream,
            exact,
            nearest: OnceCell::new(),
            samples: OnceCell::new(),
        }
    }

    /// The oracle and the naive run without rounding are two derivations of one operation.
    pub fn derivations_agree(&self) -> Result<(), String> {
        let exact = by_name(&self.exact);
        let gradients = self.gradients.iter().map(|(name, t)| (gradient_name(name), t));
        for (name, reference) in self.output.iter().map(|(name, t)| (*name, t)).chain(gradients) {
            // f64 rounding errors grow with the scores as well.
            let bound = 1e-12 * self.exact.largest_logit.max(10.0);
            let error = distance(&exact[name], reference);
            if error.is_nan() || error > bound * norm(reference).max(1.0) {
                return Err(format!(
                    "{name}: the oracle and the naive computation in f64 differ by {error:e}"
                ));
            }
        }
        Ok(())
    }

    /// Judges a result of the forward.
    pub fn output(&self, name: &str, actual: &Tensor) -> Result<(), String> {
        if name == "lse" && self.dtype != DType::F32 {
            return self.judge(name, actual, &self.output[name], DType::F32, LSE_TOLERANCE);
        }
        self.judge(name, actual, &self.output[name], self.dtype, FORWARD_TOLERANCE)
    }

    /// Judges a gradient.
    pub fn gradient(&self, name: &str, actual: &Tensor) -> Result<(), String> {
        self.judge(gradient_name(name), actual, &self.gradients[name], self.dtype, BACKWARD_TOLERANCE)?;
        self.hidden_gradients_are_zero(name, actual)
    }

    /// Padding rows and keys that nobody sees have no gradient at all, not a small one.
    fn hidden_gradients_are_zero(&self, name: &str, actual: &Tensor) -> Result<(), String> {
        let takes_part = match name {
            "q" => &self.exact.exists,
            "k" | "v" => &self.exact.seen,
            _ => return Ok(()),
        };
        let &[_, heads, rows, d] = &actual.shape[..] else { panic!("four dimensions") };
        let stray = (0..actual.data.len()).find(|flat| {
            let row = flat / d;
            let (entry, row) = (row / rows / heads, row % rows);
            !takes_part[entry * rows + row] && actual.data[*flat] != 0.0
        });
        stray.map_or(Ok(()), |flat| {
            Err(format!("d{name}: element {flat} takes no part in the problem, but is {}", actual.data[flat]))
        })
    }

    fn judge(
        &self,
        name: &str,
        actual: &Tensor,
        reference: &Tensor,
        dtype: DType,
        tolerance: f64,
    ) -> Result<(), String> {
        let error = distance(actual, reference);
        // An error of lse is a relative error of the probabilities, however small lse is.
        let scale = match name {
            "lse" => norm(&Tensor::new(
                &reference.shape,
                reference.data.iter().map(|x| x.abs().max(1.0)).collect(),
            )),
            _ => norm(reference),
        };
        let steep = (self.exact.largest_logit / 10.0).max(1.0);
        let flushed = FLUSHED * steep * (reference.data.len() as f64).sqrt();
        let single = tolerance * steep * scale + flushed;
        if error <= single {
            return Ok(());
        }
        let plain = name.strip_prefix('d').map_or(name, str::trim_start);
        let terms = self.exact.magnitudes.get(plain).map_or(0.0, norm);
        let columns = self.problem.q.shape[3] as f64;
        let units = 8.0 * (columns / 64.0).sqrt().max(1.0);
        let (mut bound, mut factor) = (single.max(units * unit(DType::F32) * terms), 4.0);
        if error <= bound {
            return Ok(());
        }
        if dtype == DType::F32 && self.dtype != DType::F32 {
            // lse of a 16-bit problem: nothing cancels in it.
            return Err(self.report(name, actual, reference, error, bound, scale));
        }
        if dtype != DType::F32 {
            let nearest = self.nearest.get_or_init(|| by_name(&self.naive(&Rounding::Nearest(dtype))));
            let rounded = reference.data.iter().map(|&x| round_to(dtype, x)).collect();
            let unavoidable = distance(&Tensor::new(&reference.shape, rounded), reference);
            bound = (2.0 * distance(&nearest[name], reference)).max(bound + 1.01 * unavoidable);
            bound = bound.max(2.0 * unit(dtype) * terms);
            factor = 2.0;
            if error <= bound {
                return Ok(());
            }
        }
        let count = |marks: &[bool]| marks.iter().filter(|&&mark| mark).count();
        let rows = self.problem.k.shape[1] * count(&self.exact.exists).min(count(&self.exact.seen));
        // Dropout leaves that much of them.
        let kept = self.problem.dropout.map_or(1.0, |mask| 1.0 / mask.scale());
        let few = (rows as f64) * kept < MANY_ROWS || reference.shape.len() < 4;
        if few || dtype == DType::F32 {
            let samples = self.samples.get_or_init(|| {
                (0..SAMPLES).map(|seed| by_name(&self.naive(&Rounding::random(dtype, seed)))).collect()
            });
            for sample in samples {
                bound = bound.max(factor * distance(&sample[name], reference));
            }
            if error <= bound {
                return Ok(());
            }
        }
        Err(self.report(name, actual, reference, error, bound, scale))
    }

    fn report(
        &self,
        name: &str,
        actual: &Tensor,
        reference: &Tensor,
        error: f64,
        bound: f64,
        scale: f64,
    ) -> String {
        let off = |i: usize| (actual.data[i] - reference.data[i]).abs();
        // A NaN is the worst there is.
        let key = |i: usize| if off(i).is_nan() { f64::INFINITY } else { off(i) };
        let worst = (0..reference.data.len())
            .filter(|&i| actual.data[i] != reference.data[i])
            .max_by(|&a, &b| key(a).total_cmp(&key(b)));
        let worst = worst.map_or(String::new(), |i| {
            format!("; worst at flat index {i}: {} for {}", actual.data[i], reference.data[i])
        });
        format!(
            "{name} {:?}: error {error:.3e}, at most {bound:.3e}, of {scale:.3e}; largest logit {:.1}{worst}",
            reference.shape, self.exact.largest_logit
        )
    }

    fn naive(&self, rounding: &Rounding) -> Run {
        let start = Upstream { gradients: &self.upstream, from_output: self.from_output };
        naive(&self.problem, Some(start), rounding)
    }
}
