//! `AdamW` in one pass over each parameter, and its learning rate over the course of a run.

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor, Var, bail};
use rayon::prelude::*;
use std::sync::Mutex;

/// `AdamW` (Loshchilov and Hutter, 2019) with the gradient's norm limited.
pub(crate) struct AdamW {
    parameters: Vec<(Var, Mutex<Moments>)>,
    weight_decay: f32,
    step: i32,
}

#[derive(Default)]
struct Moments {
    first: Vec<f32>,
    second: Vec<f32>,
}

const BETA_1: f32 = 0.9;
const BETA_2: f32 = 0.99;
const EPSILON: f32 = 1e-8;
/// Gradients whose norm is larger are scaled down to it.
const LARGEST_NORM: f64 = 1.0;
const CHUNK: usize = 16 << 10;

impl AdamW {
    /// Weight decay acts on matrices; biases and the scales of norms go without.
    pub(crate) fn new(parameters: impl IntoIterator<Item = Var>, weight_decay: f64) -> Self {
        let parameters = parameters.into_iter().map(|parameter| (parameter, Mutex::default())).collect();
        Self { parameters, weight_decay: weight_decay as f32, step: 0 }
    }

    /// Changes the parameters that have a gradient.
    pub(crate) fn step(&mut self, gradients: &GradStore, learning_rate: f64) -> Result<()> {
        self.step += 1;
        let gradients: Vec<Option<Vec<f32>>> = self
            .parameters
            .iter()
            .map(|(parameter, _)| gradients.get(parameter).map(flat).transpose())
            .collect::<Result<_>>()?;
        let norm = gradients.iter().flatten().map(|gradient| square_sum(gradient)).sum::<f64>().sqrt();
        if !norm.is_finite() {
            bail!("the gradient is not finite at step {}", self.step);
        }
        let scale = (LARGEST_NORM / norm.max(LARGEST_NORM)) as f32;
        for ((parameter, moments), gradient) in self.parameters.iter().zip(&gradients) {
            let Some(gradient) = gradient else { continue };
            let weight_decay = if parameter.rank() >= 2 { self.weight_decay } else { 0.0 };
            let update = Update {
                gradient,
                scale,
                moments,
                learning_rate: learning_rate as f32,
                weight_decay,
                step: self.step,
            };
            if parameter.device().is_cpu() {
                parameter.inplace_op1(&update)?;
            } else {
                // There and back: the moments stay here, and what is trained is small.
                let mut values = flat(parameter)?;
                update.apply(&mut values)?;
                parameter.set(&Tensor::from_vec(values, parameter.shape(), parameter.device())?)?;
            }
        }
        Ok(())
    }
}

struct Update<'a> {
    gradient: &'a [f32],
    scale: f32,
    moments: &'a Mutex<Moments>,
    learning_rate: f32,
    weight_decay: f32,
    step: i32,
}

impl InplaceOp1 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, parameter: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(parameter), Some((start, end))) = (parameter, layout.contiguous_offsets())
        else {
            bail!("adamw: parameters must be contiguous f32");
        };
        self.apply(&mut parameter[start..end])
    }
}

impl Update<'_> {
    fn apply(&self, parameter: &mut [f32]) -> Result<()> {
        let Ok(mut moments) = self.moments.lock() else { bail!("adamw: an earlier step panicked") };
        let Moments { first, second } = &mut *moments;
        first.resize(parameter.len(), 0.0);
        second.resize(parameter.len(), 0.0);
        let rate = self.learning_rate / (1.0 - BETA_1.powi(self.step));
        let second_correction = 1.0 / (1.0 - BETA_2.powi(self.step));
        let keep = 1.0 - self.learning_rate * self.weight_decay;
        parameter
            .par_chunks_mut(CHUNK)
            .zip(first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK)))
            .zip(self.gradient.par_chunks(CHUNK))
            .for_each(|((parameter, (first, second)), gradient)| {
                for (((p, m), v), g) in parameter.iter_mut().zip(first).zip(second).zip(gradient) {
                    let g = g * self.scale;
                    *m = BETA_1 * *m + (1.0 - BETA_1) * g;
                    *v = BETA_2 * *v + (1.0 - BETA_2) * g * g;
                    *p = keep * *p - rate * *m / ((*v * second_correction).sqrt() + EPSILON);
                }
            });
        Ok(())
    }
}

fn flat(gradient: &Tensor) -> Result<Vec<f32>> {
    gradient.flatten_all()?.to_vec1()
}

/// Summed over chunks of fixed size, so that the result does not depend on the number of threads.
fn square_sum(values: &[f32]) -> f64 {
    let squares = |chunk: &[f32]| chunk.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
    values.chunks(CHUNK).map(squares).sum()
}

/// Learning rate as a part of its peak: a linear warm-up over the first twentieth, then a cosine down to a twentieth.
pub(crate) fn schedule(progress: f64) -> f64 {
    const WARM_UP: f64 = 0.05;
    const FLOOR: f64 = 0.05;
    let progress = progress.clamp(0.0, 1.0);
    if progress < WARM_UP {
        return progress / WARM_UP;
    }
    let angle = std::f64::consts::PI * (progress - WARM_UP) / (1.0 - WARM_UP);
    FLOOR + (1.0 - FLOOR) * 0.5 * (1.0 + angle.cos())
}

#[cfg(test)]
mod tests {
    use super::{AdamW, schedule};
    use candle_core::{Device, Result, Tensor, Var};
    use candle_nn::{Optimizer, ParamsAdamW};

    #[test]
    fn the_schedule_rises_then_falls() {
        assert!(schedule(0.0).abs() < 1e-12);
        assert!((schedule(0.025) - 0.5).abs() < 1e-12);
        assert!((schedule(0.05) - 1.0).abs() < 1e-12);
        assert!((schedule(0.525) - 0.525).abs() < 1e-12);
        assert!((schedule(1.0) - 0.05).abs() < 1e-12);
        assert!((schedule(7.0) - 0.05).abs() < 1e-12);
        let after: Vec<_> = (5..=100).map(|step| schedule(f64::from(step) / 100.0)).collect();
        assert!(after.is_sorted_by(|a, b| a > b));
    }

    /// Below the largest norm the steps are those of candle's `AdamW`.
    #[test]
    fn steps_agree_with_candle() -> Result<()> {
        let start = Tensor::randn(0f32, 1f32, (4, 5), &Device::Cpu)?;
        let target = Tensor::randn(0f32, 1f32, (4, 5), &Device::Cpu)?;
        let (ours, theirs) = (Var::from_tensor(&start)?, Var::from_tensor(&start)?);
        let loss = |x: &Var| -> Result<Tensor> { (x.as_tensor() - &target)?.sqr()?.sum_all()? * 0.01 };
        let mut our_optimizer = AdamW::new([ours.clone()], 0.1);
        let parameters = ParamsAdamW { lr: 0.03, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1 };
        let mut their_optimizer = candle_nn::AdamW::new(vec![theirs.clone()], parameters)?;
        for _ in 0..20 {
            our_optimizer.step(&loss(&ours)?.backward()?, 0.03)?;
            their_optimizer.backward_step(&loss(&theirs)?)?;
        }
        let difference = (ours.as_tensor() - theirs.as_tensor())?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(difference < 1e-5, "{difference}");
        assert!((ours.as_tensor() - start)?.abs()?.max_all()?.to_scalar::<f32>()? > 0.1);
        Ok(())
    }

    #[test]
    fn a_gradient_that_is_not_finite_is_an_error() -> Result<()> {
        let x = Var::new(&[0f32], &Device::Cpu)?;
        let gradients = x.log()?.sqr()?.sum_all()?.backward()?;
        let message = AdamW::new([x], 0.0).step(&gradients, 0.1).unwrap_err().to_string();
        assert!(message.contains("not finite at step 1"), "{message}");
        Ok(())
    }
}
