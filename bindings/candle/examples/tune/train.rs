//! The training loop and what it reports of itself.

use crate::adapter::Adapter;
use crate::model::Model;
use crate::optimizer::{AdamW, schedule};
use crate::progress::Progress;
use crate::rng::Rng;
use crate::tokens::{Batch, Domain};
use anyhow::Result;
use candle_core::Var;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Set by Ctrl-C. Loops end at their next step and what they have is kept.
pub(crate) static STOP: AtomicBool = AtomicBool::new(false);

pub(crate) fn stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// How long, how fast and on how much at a time a phase trains.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) steps: usize,
    /// The phase ends by then, and its learning rate falls accordingly, where the machine is too slow for all steps.
    pub(crate) limit: Option<Duration>,
    pub(crate) learning_rate: f64,
    pub(crate) weight_decay: f64,
    /// Sequences in a batch, and tokens in a sequence.
    pub(crate) batch: usize,
    pub(crate) length: usize,
    /// Times that the held-out loss is taken in between.
    pub(crate) evaluations: usize,
    pub(crate) seed: u64,
}

/// A phase's course.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    /// Tokens trained on so far, and the held-out loss.
    pub(crate) curve: Vec<(f64, f64)>,
    pub(crate) steps: usize,
    /// Seconds of training, evaluation left out.
    pub(crate) seconds: f64,
    pub(crate) tokens: usize,
}

impl History {
    pub(crate) fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.seconds.max(1e-9)
    }
}

/// Trains `parameters`, which are the model's own or the adapter's, and takes the loss on `held_out` along the way.
pub(crate) fn train(
    label: &str,
    model: &Model,
    adapter: Option<&Adapter>,
    parameters: Vec<Var>,
    domain: &Domain,
    held_out: &[Batch],
    plan: &Plan,
) -> Result<History> {
    let mut rng = Rng::new(plan.seed);
    let mut optimizer = AdamW::new(parameters, plan.weight_decay);
    let mut history = History::default();
    let bar = Progress::new(label, plan.steps);
    history.curve.push((0.0, evaluate(model, adapter, held_out)?));
    let mut smoothed = None;
    while history.steps < plan.steps && !stopped() {
        let started = Instant::now();
        let elapsed = plan.limit.map_or(0.0, |limit| history.seconds / limit.as_secs_f64().max(1e-9));
        if elapsed >= 1.0 {
            break;
        }
        // In the middle of the step, so that the first one is not lost to a learning rate of 0.
        let progress = elapsed.max((history.steps as f64 + 0.5) / plan.steps as f64);
        let (tokens, targets) = domain.batch(&mut rng, plan.batch, plan.length)?;
        let loss = model.loss(&tokens, &targets, adapter)?;
        optimizer.step(&loss.backward()?, plan.learning_rate * schedule(progress))?;
        let loss = f64::from(loss.to_scalar::<f32>()?);
        let smooth = smoothed.map_or(loss, |smoothed| 0.9 * smoothed + 0.1 * loss);
        smoothed = Some(smooth);
        history.steps += 1;
        history.tokens += plan.batch * plan.length;
        history.seconds += started.elapsed().as_secs_f64();
        bar.step(progress, smooth, history.tokens_per_second());
        let due = (history.curve.len() as f64) / (plan.evaluations + 1) as f64;
        if progress >= due && history.steps < plan.steps {
            history.curve.push((history.tokens as f64, evaluate(model, adapter, held_out)?));
        }
    }
    if history.steps > 0 {
        history.curve.push((history.tokens as f64, evaluate(model, adapter, held_out)?));
    }
    bar.finish(history.curve.last().map_or(f64::NAN, |point| point.1), &history);
    Ok(history)
}

/// Mean loss in nats per token.
pub(crate) fn evaluate(model: &Model, adapter: Option<&Adapter>, batches: &[Batch]) -> Result<f64> {
    let (mut total, mut count) = (0.0, 0);
    for (tokens, targets) in batches {
        let loss = model.loss(tokens, targets, adapter)?.to_scalar::<f32>()?;
        total += f64::from(loss) * targets.elem_count() as f64;
        count += targets.elem_count();
    }
    Ok(total / count as f64)
}
