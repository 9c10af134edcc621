//! CUDA tensors against CPU tensors: results and all gradients. Without a device each test prints a line and is done.

use candle_core::{DType, Device, Result, Tensor};
use inducer_attention_candle::{
    AttentionConfig, AttentionOptions, Dropout, SequenceLengths, TensorLayout, VirtualTokens, cuda_device,
    inducer_attention, inducer_attention_outputs,
};

use crate::support::{
    Key, Sizes, Value, Variables, inducer, loss, mapped, prefix, published, relative_error, tensor,
};

const SIZES: Sizes = Sizes { batch: 2, heads: 4, kv_heads: 2, rows: 70, keys: 90, head_dim: 16 };

fn device() -> Option<Device> {
    match cuda_device(0) {
        Ok(device) => Some(device),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// Relative errors of results and gradients that roundings of the type explain, twice over: both sides round.
fn tolerances(dtype: DType) -> (f64, f64) {
    match dtype {
        DType::F16 => (4e-3, 1e-2),
        DType::BF16 => (3e-2, 6e-2),
        _ => (1e-5, 1e-4),
    }
}

/// Runs the same variables on both devices; moving them is part of the graph.
fn check(
    dtype: DType,
    options: &AttentionOptions,
    tokens: impl Fn(&mut Variables) -> VirtualTokens,
) -> Result<()> {
    let Some(device) = device() else { return Ok(()) };
    let dims = |[b, h, n, d]: [usize; 4]| match options.layout {
        TensorLayout::Bhnd => [b, h, n, d],
        TensorLayout::Bnhd => [b, n, h, d],
    };
    let mut variables = Variables::default();
    let q = variables.add("q", &dims(SIZES.q()));
    let (k, v) = (variables.add("k", &dims(SIZES.k())), variables.add("v", &dims(SIZES.k())));
    let tokens = tokens(&mut variables);
    let run = |device: &Device| {
        let to = |t: &Tensor| t.to_dtype(dtype)?.to_device(device);
        let (q, k, v) = (to(&q)?, to(&k)?, to(&v)?);
        let tokens = mapped(&tokens, |t| t.to_device(device))?;
        let outputs = inducer_attention_outputs(&q, &k, &v, &tokens, options)?;
        let mut results = vec![("o", outputs.o), ("lse", outputs.lse)];
        results.extend(outputs.u.map(|u| ("u", u)));
        results
            .into_iter()
            .map(|(name, t)| Ok((name, t.to_device(&Device::Cpu)?)))
            .collect::<Result<Vec<_>>>()
    };
    let (got, expected) = (run(&device)?, run(&Device::Cpu)?);
    let (forward, backward) = tolerances(dtype);
    for ((name, got), (_, expected)) in got.iter().zip(&expected) {
        let error = relative_error(got, expected);
        assert!(error < forward, "{name}: {error:e}");
    }
    // Through O alone, and through all of the results.
    for count in [1, got.len()] {
        let total = |results: &[(&str, Tensor)]| {
            loss(&results[..count].iter().map(|(_, t)| t).collect::<Vec<_>>())?.backward()
        };
        let (got, expected) = (total(&got)?, total(&expected)?);
        for (name, variable) in &variables.0 {
            let error = relative_error(got.get(variable).unwrap(), expected.get(variable).unwrap());
            assert!(error < backward, "gradient of {name}: {error:e}");
        }
    }
    Ok(())
}

fn with_inducer(key: Key, value: Value) -> impl Fn(&mut Variables) -> VirtualTokens {
    move |variables| VirtualTokens { prefix: None, inducer: Some(inducer(variables, &SIZES, key, value)) }
}

#[test]
fn every_dtype() -> Result<()> {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        check(dtype, &AttentionOptions::causal(), |_| VirtualTokens::default())?;
        check(dtype, &AttentionOptions::causal(), |variables| VirtualTokens {
            prefix: Some(prefix(variables, &SIZES, 6)),
            ..published(variables, &SIZES)
        })?;
    }
    Ok(())
}

#[test]
fn every_key_and_value() -> Result<()> {
    for (key, value) in [
        (Key::Query, Value::Residual),
        (Key::Residual, Value::Direct),
        (Key::PerHead, Value::Zero),
        (Key::PerToken, Value::Residual),
    ] {
        check(DType::F32, &AttentionOptions::default(), with_inducer(key, value))?;
    }
    Ok(())
}

/// Rank 5: rows of `[attn | U]` do not begin where the kernels need them without padding.
#[test]
fn the_extended_value_in_both_layouts() -> Result<()> {
    for layout in [TensorLayout::Bhnd, TensorLayout::Bnhd] {
        for save_attention in [false, true] {
            let options =
                AttentionOptions { save_attention, ..AttentionOptions::causal() }.with_layout(layout);
            for dtype in [DType::F32, DType::BF16] {
                check(dtype, &options, with_inducer(Key::Residual, Value::Extended))?;
            }
        }
    }
    Ok(())
}

#[test]
fn lists_masks_and_dropout() -> Result<()> {
    let lengths = SequenceLengths::Padded {
        query_lengths: Some(vec![70, 33]),
        key_lengths: Some(vec![90, 41]),
        key_starts: Some(vec![4, 0]),
    };
    let config = AttentionConfig {
        window_left: Some(30),
        softcap: Some(5.0),
        dropout: Some(Dropout { p: 0.2, seed: 11 }),
        ..AttentionConfig::default()
    };
    let alibi_slopes = Some((0..SIZES.heads).map(|i| 0.1 + 0.05 * i as f32).collect());
    let options = AttentionOptions { config, lengths, alibi_slopes, ..AttentionOptions::default() };
    check(DType::F32, &options, with_inducer(Key::Residual, Value::Residual))
}

#[test]
fn rows_that_kernels_cannot_read_in_place_are_copied() -> Result<()> {
    let Some(device) = device() else { return Ok(()) };
    // Rows of 17 elements, of which the first is left out.
    let wide = tensor(5, &[1, 2, 9, 17]);
    let run = |device: &Device| {
        let x = wide.to_device(device)?.narrow(3, 1, 16)?;
        inducer_attention(&x, &x, &x, &VirtualTokens::default(), &AttentionOptions::causal())?
            .to_device(&Device::Cpu)
    };
    assert!(relative_error(&run(&device)?, &run(&Device::Cpu)?) < 1e-5);
    Ok(())
}

#[test]
fn mistakes_are_errors_that_name_the_argument() -> Result<()> {
    let Some(device) = device() else { return Ok(()) };
    let message = |q: &Tensor, k: &Tensor| {
        let result = inducer_attention(q, k, k, &VirtualTokens::default(), &AttentionOptions::default());
        result.map(|_| ()).unwrap_err().to_string()
    };
    let on_host = tensor(1, &[1, 2, 4, 16]);
    let on_device = on_host.to_device(&device)?;
    let mixed = message(&on_device, &on_host);
    assert!(mixed.contains("k: in the host memory, expected in the memory of CUDA device 0"), "{mixed}");
    let narrow = on_device.narrow(3, 0, 12)?;
    let head_dim = message(&narrow, &narrow);
    assert!(head_dim.contains("head_dim: 12, the CUDA kernels take multiples of 8"), "{head_dim}");
    Ok(())
}
