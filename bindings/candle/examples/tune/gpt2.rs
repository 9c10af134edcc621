//! GPT-2 checkpoints in Hugging Face format: `config.json`, `model.safetensors`, `tokenizer.json`.
//!
//! The format keeps query, key and value in one `c_attn`, weights as `[in, out]` (its `Conv1D`), and every name perhaps
//! behind `transformer.`. The output head is the token embedding.

use crate::model::{Config, Weights};
use crate::tokens::Tokenizer;
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// Ours and theirs, for the parts that differ in name alone.
const RENAMED: [(&str, &str); 5] = [
    ("attn.output", "attn.c_proj"),
    ("mlp.up", "mlp.c_fc"),
    ("mlp.down", "mlp.c_proj"),
    ("ln_1", "ln_1"),
    ("ln_2", "ln_2"),
];
/// In the order in which `c_attn` holds them.
const PACKED: [&str; 3] = ["attn.query", "attn.key", "attn.value"];

/// Reads a checkpoint. A folder without a tokenizer must have a vocabulary of 256: its tokens are bytes, as those of the
/// models that [`save`] writes.
pub(crate) fn load(directory: &Path) -> Result<(Config, Weights, Tokenizer)> {
    let config = read_config(&directory.join("config.json"))?;
    let path = directory.join("model.safetensors");
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu)
        .with_context(|| format!("cannot read the weights {}", path.display()))?;
    let weights = unpack(&config, &tensors).with_context(|| format!("in {}", path.display()))?;
    let tokenizer = directory.join("tokenizer.json");
    let tokenizer = if tokenizer.exists() {
        Tokenizer::load(&tokenizer)?
    } else if config.vocabulary == 256 {
        Tokenizer::Bytes
    } else {
        bail!("{} has no tokenizer.json (only a vocabulary of 256 goes without)", directory.display());
    };
    Ok((config, weights, tokenizer))
}

/// Writes `config.json` and `model.safetensors`.
pub(crate) fn save(directory: &Path, config: &Config, weights: &Weights) -> Result<()> {
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make the folder {}", directory.display()))?;
    let description = json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "vocab_size": config.vocabulary,
        "n_positions": config.context,
        "n_ctx": config.context,
        "n_embd": config.width,
        "n_inner": config.hidden,
        "n_head": config.heads,
        "n_layer": config.layers,
        "layer_norm_epsilon": config.epsilon,
        "tie_word_embeddings": true,
    });
    let path = directory.join("config.json");
    fs::write(&path, format!("{description:#}\n"))
        .with_context(|| format!("cannot write {}", path.display()))?;
    let path = directory.join("model.safetensors");
    candle_core::safetensors::save(&pack(config, weights)?, &path)
        .with_context(|| format!("cannot write {}", path.display()))
}

fn read_config(path: &Path) -> Result<Config> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read the configuration {}", path.display()))?;
    let json: Value =
        serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
    parse_config(&json).with_context(|| format!("in {}", path.display()))
}

fn parse_config(json: &Value) -> Result<Config> {
    let size = |name: &str| -> Result<usize> {
        let value = json.get(name).with_context(|| format!("{name} is missing"))?;
        match value.as_u64() {
            Some(value @ 1..=0x100_0000) => Ok(value as usize),
            _ => bail!("{name} = {value}, expected a positive integer"),
        }
    };
    let expect = |name: &str, expected: &[Value]| match json.get(name) {
        None | Some(Value::Null) => Ok(()),
        Some(value) if expected.contains(value) => Ok(()),
        Some(value) => bail!("{name} = {value} is not supported, only {}", expected[0]),
    };
    expect("model_type", &[json!("gpt2")])?;
    expect("activation_function", &[json!("gelu_new"), json!("gelu_pytorch_tanh")])?;
    expect("scale_attn_weights", &[json!(true)])?;
    expect("scale_attn_by_inverse_layer_idx", &[json!(false)])?;
    expect("tie_word_embeddings", &[json!(true)])?;
    let width = size("n_embd")?;
    let config = Config {
        vocabulary: size("vocab_size")?,
        context: size("n_positions").or_else(|error| size("n_ctx").map_err(|_| error))?,
        width,
        hidden: if json.get("n_inner").is_none_or(Value::is_null) { 4 * width } else { size("n_inner")? },
        heads: size("n_head")?,
        layers: size("n_layer")?,
        epsilon: json.get("layer_norm_epsilon").and_then(Value::as_f64).unwrap_or(1e-5),
    };
    ensure!(
        width.is_multiple_of(config.heads),
        "n_embd = {width} is not a multiple of n_head = {}",
        config.heads
    );
    ensure!(config.head_dim() <= 256, "n_embd / n_head = {}, at most 256 is supported", config.head_dim());
    ensure!(config.epsilon > 0.0, "layer_norm_epsilon = {}, expected a positive number", config.epsilon);
    Ok(config)
}

/// Their tensors under our names, in f32.
fn unpack(config: &Config, tensors: &HashMap<String, Tensor>) -> Result<Weights> {
    let find = |name: &str| tensors.get(name).or_else(|| tensors.get(&format!("transformer.{name}")));
    let get = |name: &str, shape: &[usize]| -> Result<Tensor> {
        let tensor = find(name).with_context(|| format!("{name} is missing"))?;
        ensure!(tensor.dims() == shape, "{name} is {:?}, expected {shape:?}", tensor.dims());
        Ok(tensor.to_dtype(DType::F32)?.contiguous()?)
    };
    let Config { vocabulary, context, width, hidden, .. } = *config;
    let mut weights = Weights::new();
    weights.insert("wte".into(), get("wte.weight", &[vocabulary, width])?);
    weights.insert("wpe".into(), get("wpe.weight", &[context, width])?);
    weights.insert("ln_f.weight".into(), get("ln_f.weight", &[width])?);
    weights.insert("ln_f.bias".into(), get("ln_f.bias", &[width])?);
    for layer in 0..config.layers {
        for (ours, theirs) in RENAMED {
            let (inputs, outputs) = match ours {
                "mlp.up" => (width, hidden),
                "mlp.down" => (hidden, width),
                _ => (width, width),
            };
            let shape = if ours.starts_with("ln") { vec![width] } else { vec![inputs, outputs] };
            weights.insert(
                format!("h.{layer}.{ours}.weight"),
                get(&format!("h.{layer}.{theirs}.weight"), &shape)?,
            );
            weights.insert(
                format!("h.{layer}.{ours}.bias"),
                get(&format!("h.{layer}.{theirs}.bias"), &[outputs])?,
            );
        }
        let weight = get(&format!("h.{layer}.attn.c_attn.weight"), &[width, 3 * width])?;
        let bias = get(&format!("h.{layer}.attn.c_attn.bias"), &[3 * width])?;
        for (part, ours) in PACKED.iter().enumerate() {
            let weight = weight.narrow(1, part * width, width)?.contiguous()?;
            weights.insert(format!("h.{layer}.{ours}.weight"), weight);
            weights
                .insert(format!("h.{layer}.{ours}.bias"), bias.narrow(0, part * width, width)?.contiguous()?);
        }
    }
    if let Some(head) = tensors.get("lm_head.weight") {
        let same = head.dims() == [vocabulary, width]
            && head.to_dtype(DType::F32)?.sub(&weights["wte"])?.abs()?.max_all()?.to_scalar::<f32>()? == 0.0;
        ensure!(same, "lm_head.weight differs from wte.weight: an output head of its own is not supported");
    }
    Ok(weights)
}

/// Our weights under their names.
fn pack(config: &Config, weights: &Weights) -> Result<HashMap<String, Tensor>> {
    let get = |name: String| weights.get(&name).with_context(|| format!("{name} is missing"));
    let mut tensors = HashMap::new();
    for (ours, theirs) in [
        ("wte", "wte.weight"),
        ("wpe", "wpe.weight"),
        ("ln_f.weight", "ln_f.weight"),
        ("ln_f.bias", "ln_f.bias"),
    ] {
        tensors.insert(format!("transformer.{theirs}"), get(ours.into())?.clone());
    }
    for layer in 0..config.layers {
        for part in ["weight", "bias"] {
            for (ours, theirs) in RENAMED {
                let tensor = get(format!("h.{layer}.{ours}.{part}"))?.clone();
                tensors.insert(format!("transformer.h.{layer}.{theirs}.{part}"), tensor);
            }
            let packed: Vec<_> =
                PACKED.iter().map(|ours| get(format!("h.{layer}.{ours}.{part}"))).collect::<Result<_>>()?;
            let packed = Tensor::cat(&packed, candle_core::D::Minus1)?;
            tensors.insert(format!("transformer.h.{layer}.attn.c_attn.{part}"), packed);
        }
    }
    Ok(tensors)
}

#[cfg(test)]
#[path = "gpt2_tests.rs"]
mod tests;
