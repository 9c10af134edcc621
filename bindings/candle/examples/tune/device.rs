//! Which device the run is on.

use anyhow::{Result, ensure};
use candle_core::{Device, Tensor, Var};
use inducer_attention_candle::{AttentionOptions, VirtualTokens, cuda_device, inducer_attention};

/// The first CUDA device if it is asked for and attention runs on it, forward and backward. Otherwise the CPU and, if it was
/// asked for, a line that says why.
pub(crate) fn choose(cuda: bool) -> (Device, Option<String>) {
    if !cuda {
        return (Device::Cpu, None);
    }
    match usable() {
        Ok(device) => (device, None),
        Err(error) => (Device::Cpu, Some(notice(&error))),
    }
}

/// The first CUDA device, tried out: a driver or a kernel that is missing shows here and not in the middle of the run.
fn usable() -> Result<Device> {
    let device = cuda_device(0)?;
    let x = Var::from_tensor(&Tensor::ones((1, 1, 2, 32), candle_core::DType::F32, &device)?)?;
    let o = inducer_attention(&x, &x, &x, &VirtualTokens::default(), &AttentionOptions::causal())?;
    let loss = o.sum_all()?;
    let gradients = loss.backward()?;
    ensure!(gradients.get(&x).is_some(), "the backward gave no gradient");
    let sum = loss.to_scalar::<f32>()?;
    ensure!((sum - 64.0).abs() < 1e-3, "attention over ones gave {sum} instead of 64");
    Ok(device)
}

/// One line, whatever the error's text. candle's ends with a backtrace where the environment asks for one.
fn notice(error: &anyhow::Error) -> String {
    let text = error.to_string();
    let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("0: "));
    let reason: Vec<_> = lines.filter(|line| !line.is_empty()).collect();
    format!("--device cuda: {}; going on on the CPU", reason.join(": "))
}

#[cfg(test)]
mod tests {
    use super::{choose, notice};
    use crate::adapter::{Adapter, Method};
    use crate::model::{Config, Model, Weights, initial_weights, on_device, trainable};
    use crate::optimizer::AdamW;
    use candle_core::{Device, Tensor};

    #[test]
    fn the_cpu_is_taken_without_a_word() {
        let (device, line) = choose(false);
        assert!(device.is_cpu() && line.is_none());
    }

    /// Holds on every machine, with and without feature `cuda`, driver and device.
    #[test]
    fn where_cuda_cannot_be_used_one_line_says_why() {
        let (device, line) = choose(true);
        assert_eq!(device.is_cpu(), line.is_some());
        if let Some(line) = line {
            assert_eq!(line.lines().count(), 1, "{line:?}");
            assert!(
                line.starts_with("--device cuda: ") && line.ends_with("; going on on the CPU"),
                "{line:?}"
            );
            let names_the_feature = line.contains("built without feature `cuda`");
            assert_eq!(names_the_feature, !cfg!(feature = "cuda"), "{line:?}");
        }
    }

    #[test]
    fn errors_of_several_lines_become_one() {
        let line =
            notice(&anyhow::anyhow!("inducer_attention\n\n  no CUDA driver\n   0: main\n  at main.rs"));
        assert_eq!(line, "--device cuda: inducer_attention: no CUDA driver; going on on the CPU");
    }

    const TINY: Config =
        Config { vocabulary: 256, context: 16, width: 24, hidden: 30, heads: 3, layers: 2, epsilon: 1e-5 };

    /// Losses before and after each of a few steps: of training the model, and of each method.
    fn losses(device: &Device) -> anyhow::Result<Vec<f32>> {
        let text: Vec<u32> = (0..40).map(|i| i * 37 % 256).collect();
        let tokens = Tensor::new(&text[..24], &Device::Cpu)?.reshape((2, 12))?;
        let targets = Tensor::new(&text[1..25], &Device::Cpu)?.reshape((2, 12))?;
        let mut losses = Vec::new();
        let mut steps = |model: &Model, adapter: Option<&Adapter>, parameters| -> anyhow::Result<()> {
            let mut optimizer = AdamW::new(parameters, 0.1);
            for _ in 0..3 {
                let loss = model.loss(&tokens, &targets, adapter)?;
                losses.push(loss.to_scalar()?);
                optimizer.step(&loss.backward()?, 0.01)?;
            }
            losses.push(model.loss(&tokens, &targets, adapter)?.to_scalar()?);
            Ok(())
        };
        let weights = on_device(initial_weights(&TINY, 1)?, device)?;
        let variables = trainable(weights.clone())?;
        let tracked: Weights = variables.iter().map(|(n, v)| (n.clone(), v.as_tensor().clone())).collect();
        steps(&Model::new(TINY, tracked)?, None, variables.into_values().collect())?;
        let frozen = Model::new(TINY, weights)?;
        for method in Method::ALL {
            let adapter = Adapter::new(method.recipe(2, &TINY), &frozen, &text, 7)?;
            steps(&frozen, Some(&adapter), adapter.variables()?)?;
            let path =
                std::env::temp_dir().join(format!("tune-gpu-{}-{}", method.name(), std::process::id()));
            adapter.save(&path)?;
            let loaded = Adapter::load(&path, &TINY, device);
            std::fs::remove_file(&path)?;
            steps(&frozen, Some(&loaded?), Vec::new())?;
        }
        Ok(losses)
    }

    #[test]
    fn steps_on_a_gpu_are_those_on_the_cpu() -> anyhow::Result<()> {
        let (device, line) = choose(true);
        if let Some(line) = line {
            eprintln!("skipped: {line}");
            return Ok(());
        }
        let (got, expected) = (losses(&device)?, losses(&Device::Cpu)?);
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            assert!((got - expected).abs() < 1e-3 * expected, "loss {i}: {got} instead of {expected}");
        }
        Ok(())
    }
}
