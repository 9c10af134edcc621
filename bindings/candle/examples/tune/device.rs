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

/// One line, whatever the error's text.
fn notice(error: &anyhow::Error) -> String {
    let text = error.to_string();
    let reason: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    format!("--device cuda: {}; going on on the CPU", reason.join(": "))
}

#[cfg(test)]
mod tests {
    use super::{choose, notice};

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
        let line = notice(&anyhow::anyhow!("inducer_attention\n\n  no CUDA driver\n"));
        assert_eq!(line, "--device cuda: inducer_attention: no CUDA driver; going on on the CPU");
    }
}
