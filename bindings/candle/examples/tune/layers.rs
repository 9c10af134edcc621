//! The layers of a transformer as fused candle operations with their gradients.
//!
//! candle composes these from elementwise operations, and its backward pass computes the gradient of a frozen weight as
//! readily as that of a trained one. On a CPU that costs more than the products themselves, so each layer here is one
//! operation, and a gradient is computed only for an operand that is trained. On a GPU they are compositions.

use crate::composed;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Rows that one task works on. Partial sums are added in the order of the tasks, whatever thread ran them.
const ROWS: usize = 64;

/// `y = x W + b`: x `[T, in]`, W `[in, out]`, b `[out]`.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { x.apply_op3(weight, bias, Linear) } else { composed::linear(x, weight, bias) }
}

/// `y = (x − mean) / √(variance + ε) · γ + β` over the last dimension: x `[T, D]`, γ and β `[D]`.
pub(crate) fn layer_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor, epsilon: f32) -> Result<Tensor> {
    if x.device().is_cpu() {
        x.contiguous()?.apply_op3(gamma, beta, LayerNorm { epsilon })
    } else {
        composed::layer_norm(x, gamma, beta, epsilon)
    }
}

/// The tanh form of GELU that GPT-2 uses (`gelu_new`).
pub(crate) fn gelu(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { x.contiguous()?.apply_op1(Gelu) } else { composed::gelu(x) }
}

/// Mean over the rows of `−log softmax(logits)[target]`: logits `[T, V]`, targets u32 `[T]`; a scalar.
pub(crate) fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    if logits.device().is_cpu() {
        logits.contiguous()?.apply_op2(targets, CrossEntropy)
    } else {
        composed::cross_entropy(logits, targets)
    }
}

struct Linear;

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, inner) = x_layout.shape().dims2()?;
        let (weight_rows, columns) = weight_layout.shape().dims2()?;
        if weight_rows != inner || bias_layout.shape().dims1()? != columns {
            bail!("linear: x {:?} by weight {:?}", x_layout.shape(), weight_layout.shape());
        }
        let mut product = x.matmul(weight, (1, rows, columns, inner), x_layout, weight_layout)?;
        let CpuStorage::F32(values) = &mut product else {
            bail!("linear: expected f32, got {:?}", product.dtype());
        };
        let bias = contiguous(bias, bias_layout)?;
        values.par_chunks_mut(ROWS * columns).for_each(|chunk| {
            for row in chunk.chunks_exact_mut(columns) {
                for (value, bias) in row.iter_mut().zip(bias) {
                    *value += bias;
                }
            }
        });
        Ok((product, (rows, columns).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dx = wanted(x, || grad.matmul(&weight.detach().t()?))?;
        let dw = wanted(weight, || x.detach().t()?.matmul(grad))?;
        let db = wanted(bias, || {
            let ones = Tensor::ones((1, grad.dim(0)?), grad.dtype(), grad.device())?;
            ones.matmul(grad)?.squeeze(0)
        })?;
        Ok((dx, dw, db))
    }
}

struct LayerNorm {
    epsilon: f32,
}

impl LayerNorm {
    /// Mean and reciprocal standard deviation.
    fn moments(&self, row: &[f32]) -> (f32, f32) {
        let n = row.len() as f32;
        let mean = sum(row, |x| x) / n;
        let variance = sum(row, |x| (x - mean) * (x - mean)) / n;
        (mean, 1.0 / (variance + self.epsilon).sqrt())
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        gamma: &CpuStorage,
        gamma_layout: &Layout,
        beta: &CpuStorage,
        beta_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = x_layout.shape().dims2()?;
        let x = contiguous(x, x_layout)?;
        let gamma = contiguous(gamma, gamma_layout)?;
        let beta = contiguous(beta, beta_layout)?;
        if gamma.len() != width || beta.len() != width {
            bail!("layer-norm: x [{rows}, {width}] with {} scales", gamma.len());
        }
        let mut y = vec![0.0; x.len()];
        y.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width)).for_each(|(y, x)| {
            for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                let (mean, scale) = self.moments(x);
                for (((y, x), gamma), beta) in y.iter_mut().zip(x).zip(gamma).zip(beta) {
                    *y = (x - mean) * scale * gamma + beta;
                }
            }
        });
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gamma: &Tensor,
        beta: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (x_tracked, parameters_tracked) = (tracked(x), tracked(gamma) || tracked(beta));
        let (rows, width) = x.dims2()?;
        let device = x.device();
        let grad = grad.contiguous()?;
        let (dx, sums) = with_slices(&[x, gamma, &grad], |slices| {
            let [x, gamma, grad] = slices else { unreachable!("three tensors give three slices") };
            let mut dx = vec![0.0f32; x.len()];
            let chunk = ROWS * width;
            let sums: Vec<Vec<f32>> = dx
                .par_chunks_mut(chunk)
                .zip(x.par_chunks(chunk).zip(grad.par_chunks(chunk)))
                .map(|(dx, (x, grad))| {
                    // dγ in the first half, dβ in the second.
                    let mut sums = vec![0.0f32; 2 * width];
                    let (dgamma, dbeta) = sums.split_at_mut(width);
                    let rows =
                        dx.chunks_exact_mut(width).zip(x.chunks_exact(width).zip(grad.chunks_exact(width)));
                    for (dx, (x, grad)) in rows {
                        let (mean, scale) = self.moments(x);
                        for i in 0..width {
                            dx[i] = grad[i] * gamma[i];
                        }
                        let mean_dx = sum(dx, |v| v) / width as f32;
                        let mut projection = 0.0;
                        for i in 0..width {
                            projection += dx[i] * (x[i] - mean);
                        }
                        let projection = projection * scale * scale / width as f32;
                        for i in 0..width {
                            dx[i] = scale * (dx[i] - mean_dx - (x[i] - mean) * projection);
                        }
                        if parameters_tracked {
                            for i in 0..width {
                                dgamma[i] += grad[i] * (x[i] - mean) * scale;
                                dbeta[i] += grad[i];
                            }
                        }
                    }
                    sums
                })
                .collect();
            Ok((dx, sums))
        })?;
        let dx = if x_tracked { Some(Tensor::from_vec(dx, (rows, width), device)?) } else { None };
        if !parameters_tracked {
            return Ok((dx, None, None));
        }
        let mut total = vec![0.0f32; 2 * width];
        for sums in sums {
            total.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
        }
        let dbeta = total.split_off(width);
        let dgamma = wanted(gamma, || Tensor::from_vec(total, width, device))?;
        let dbeta = wanted(beta, || Tensor::from_vec(dbeta, width, device))?;
        Ok((dx, dgamma, dbeta))
    }
}

struct Gelu;

impl Gelu {
    /// √(2/π), and the cubic coefficient of Hendrycks and Gimpel (2016).
    const SCALE: f32 = 0.797_884_6;
    const CUBIC: f32 = 0.044_715;

    /// `½(1 + tanh u) = sigmoid(2u)` with `u = √(2/π)(x + 0.044715 x³)`.
    fn gate(x: f32) -> f32 {
        1.0 / (1.0 + exp(-2.0 * Self::SCALE * x * (1.0 + Self::CUBIC * x * x)))
    }
}

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu-new"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(x, layout)?;
        let mut y = vec![0.0; x.len()];
        y.par_chunks_mut(4096).zip(x.par_chunks(4096)).for_each(|(y, x)| {
            for (y, &x) in y.iter_mut().zip(x) {
                *y = x * Self::gate(x);
            }
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let dx = with_slices(&[x, &grad], |slices| {
            let mut dx = vec![0.0f32; slices[0].len()];
            dx.par_chunks_mut(4096).zip(slices[0].par_chunks(4096).zip(slices[1].par_chunks(4096))).for_each(
                |(dx, (x, grad))| {
                    for ((dx, &x), &grad) in dx.iter_mut().zip(x).zip(grad) {
                        let gate = Self::gate(x);
                        let slope = 2.0 * Self::SCALE * (1.0 + 3.0 * Self::CUBIC * x * x);
                        *dx = grad * gate * (1.0 + x * (1.0 - gate) * slope);
                    }
                },
            );
            Ok(dx)
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

struct CrossEntropy;

impl CustomOp2 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(
        &self,
        logits: &CpuStorage,
        logits_layout: &Layout,
        targets: &CpuStorage,
        targets_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, classes) = logits_layout.shape().dims2()?;
        let logits = contiguous(logits, logits_layout)?;
        let targets = match targets_layout.contiguous_offsets() {
            Some((start, end)) => &targets.as_slice::<u32>()?[start..end],
            None => bail!("cross-entropy: targets must be contiguous"),
        };
        if targets.len() != rows || targets.iter().any(|&target| target as usize >= classes) {
            bail!("cross-entropy: {} targets for logits [{rows}, {classes}]", targets.len());
        }
        let losses: Vec<f64> = logits
            .par_chunks(classes)
            .zip(targets)
            .map(|(row, &target)| {
                let (max, total) = softmax_parts(row);
                f64::from(max + total.ln() - row[target as usize])
            })
            .collect();
        let mean = losses.iter().sum::<f64>() / rows as f64;
        Ok((CpuStorage::F32(vec![mean as f32]), ().into()))
    }

    fn bwd(
        &self,
        logits: &Tensor,
        targets: &Tensor,
        _loss: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (rows, classes) = logits.dims2()?;
        let targets = targets.to_vec1::<u32>()?;
        let factor = grad.to_scalar::<f32>()? / rows as f32;
        let gradient = with_slices(&[logits], |slices| {
            let mut gradient = vec![0.0f32; rows * classes];
            gradient.par_chunks_mut(classes).zip(slices[0].par_chunks(classes)).zip(&targets).for_each(
                |((gradient, row), &target)| {
                    let (max, total) = softmax_parts(row);
                    let factor_over_total = factor / total;
                    for (gradient, &logit) in gradient.iter_mut().zip(row) {
                        *gradient = exp(logit - max) * factor_over_total;
                    }
                    gradient[target as usize] -= factor;
                },
            );
            Ok(gradient)
        })?;
        Ok((Some(Tensor::from_vec(gradient, (rows, classes), logits.device())?), None))
    }
}

/// The largest logit, and `Σ exp(logit − largest)`.
fn softmax_parts(row: &[f32]) -> (f32, f32) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (max, sum(row, |x| exp(x - max)))
}

/// Sum in eight running totals, which the compiler can keep in one vector register.
fn sum(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut totals = [0.0f32; 8];
    let chunks = values.chunks_exact(8);
    let rest: f32 = chunks.remainder().iter().map(|&x| f(x)).sum();
    for chunk in chunks {
        for (total, &x) in totals.iter_mut().zip(chunk) {
            *total += f(x);
        }
    }
    totals.iter().sum::<f32>() + rest
}

/// `exp` without a branch, so that loops over it vectorise: `x = n ln 2 + r` with |r| ≤ ½ ln 2, a polynomial for `exp r`,
/// and 2ⁿ made from its bits. Relative error below 2e-7; arguments beyond ±87 saturate.
fn exp(x: f32) -> f32 {
    /// Adding 1.5·2²³ rounds to an integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 87.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let p = 1.0 / 5040.0;
    let p = p * r + 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    let power = f32::from_bits((shifted.to_bits().wrapping_add(127)) << 23);
    p * power
}

/// Whether the backward pass has a use for the tensor's gradient.
fn tracked(tensor: &Tensor) -> bool {
    tensor.track_op()
}

fn wanted(tensor: &Tensor, gradient: impl FnOnce() -> Result<Tensor>) -> Result<Option<Tensor>> {
    if tracked(tensor) { gradient().map(Some) } else { Ok(None) }
}

fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("expected a contiguous tensor, got strides {:?}", layout.stride()),
    }
}

/// Calls `f` with the values of contiguous CPU tensors.
fn with_slices<R>(tensors: &[&Tensor], f: impl FnOnce(&[&[f32]]) -> Result<R>) -> Result<R> {
    let guards: Vec<_> = tensors.iter().map(|tensor| tensor.storage_and_layout()).collect();
    let slices = guards
        .iter()
        .map(|(storage, layout)| match &**storage {
            candle_core::Storage::Cpu(storage) => contiguous(storage, layout),
            _ => bail!("expected a tensor on the CPU"),
        })
        .collect::<Result<Vec<_>>>()?;
    f(&slices)
}

#[cfg(test)]
mod tests {
    use super::{cross_entropy, exp, gelu, layer_norm, linear};
    use crate::composed;
    use candle_core::{DType, Device, Result, Tensor, Var};

    fn random(shape: &[usize]) -> Result<Var> {
        Var::randn(0f32, 1f32, shape, &Device::Cpu)
    }

    /// Gradients of `Σ y·w` by the fused layer and by candle's own composition.
    fn compare(
        variables: &[&Var],
        fused: impl Fn() -> Result<Tensor>,
        composed: impl Fn() -> Result<Tensor>,
    ) -> Result<()> {
        let (fused, composed) = (fused()?, composed()?);
        let weight = Tensor::randn(0f32, 1f32, fused.shape(), &Device::Cpu)?;
        close(&fused, &composed)?;
        let fused = (fused * &weight)?.sum_all()?.backward()?;
        let composed = (composed * &weight)?.sum_all()?.backward()?;
        for variable in variables {
            close(fused.get(variable).unwrap(), composed.get(variable).unwrap())?;
        }
        Ok(())
    }

    fn close(a: &Tensor, b: &Tensor) -> Result<()> {
        let error = (a - b)?.sqr()?.sum_all()?.to_scalar::<f32>()?.sqrt();
        let norm = b.sqr()?.sum_all()?.to_scalar::<f32>()?.sqrt();
        assert!(error <= 2e-5 * norm, "error {error} against norm {norm}");
        Ok(())
    }

    #[test]
    fn linear_agrees_with_candle() -> Result<()> {
        let (x, w, b) = (random(&[70, 12])?, random(&[12, 20])?, random(&[20])?);
        compare(&[&x, &w, &b], || linear(&x, &w, &b), || composed::linear(&x, &w, &b))
    }

    #[test]
    fn layer_norm_agrees_with_candle() -> Result<()> {
        let (x, gamma, beta) = (random(&[70, 21])?, random(&[21])?, random(&[21])?);
        compare(
            &[&x, &gamma, &beta],
            || layer_norm(&x, &gamma, &beta, 1e-5),
            || composed::layer_norm(&x, &gamma, &beta, 1e-5),
        )
    }

    #[test]
    fn gelu_agrees_with_candle() -> Result<()> {
        let x = random(&[33, 17])?;
        compare(&[&x], || gelu(&x), || composed::gelu(&x))
    }

    #[test]
    fn cross_entropy_agrees_with_candle() -> Result<()> {
        let x = random(&[9, 31])?;
        let targets = Tensor::new(&[0u32, 30, 4, 4, 17, 2, 9, 29, 1], &Device::Cpu)?;
        compare(&[&x], || cross_entropy(&x, &targets), || composed::cross_entropy(&x, &targets))
    }

    #[test]
    fn exp_is_accurate() {
        for i in -8700..=8700 {
            let x = i as f32 / 100.0;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) - exact).abs() <= 2e-7 * exact, "exp({x})");
        }
    }

    #[test]
    fn frozen_operands_get_no_gradient() -> Result<()> {
        let x = random(&[5, 4])?;
        let w = Tensor::ones((4, 3), DType::F32, &Device::Cpu)?;
        let b = Tensor::zeros(3, DType::F32, &Device::Cpu)?;
        let gradients = linear(&x, &w, &b)?.sum_all()?.backward()?;
        assert!(gradients.get(&x).is_some());
        assert!(gradients.get(&w).is_none() && gradients.get(&b).is_none());
        Ok(())
    }

    #[test]
    fn a_target_beyond_the_classes_is_an_error() -> Result<()> {
        let logits = Tensor::zeros((1, 3), DType::F32, &Device::Cpu)?;
        assert!(cross_entropy(&logits, &Tensor::new(&[3u32], &Device::Cpu)?).is_err());
        Ok(())
    }
}
