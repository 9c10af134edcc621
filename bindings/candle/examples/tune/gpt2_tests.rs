//! The loader against a checkpoint that the test writes and a straightforward f64 computation from the same numbers.

use super::{load, parse_config, save};
use crate::model::{Config, Model, initial_weights};
use crate::rng::Rng;
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

const VOCABULARY: usize = 11;
const CONTEXT: usize = 7;
const WIDTH: usize = 6;
const HIDDEN: usize = 10;
const HEADS: usize = 2;
const LAYERS: usize = 2;
const EPSILON: f64 = 1e-3;

/// A folder that is removed when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tune-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn config() -> Value {
    json!({
        "model_type": "gpt2", "activation_function": "gelu_new", "vocab_size": VOCABULARY, "n_positions": CONTEXT,
        "n_embd": WIDTH, "n_inner": HIDDEN, "n_head": HEADS, "n_layer": LAYERS, "layer_norm_epsilon": EPSILON,
    })
}

/// Tensors as Hugging Face names and lays them out.
fn checkpoint() -> HashMap<String, Tensor> {
    let mut rng = Rng::new(5);
    let mut tensors = HashMap::new();
    let mut put = |name: &str, shape: &[usize]| {
        tensors.insert(name.to_owned(), rng.truncated_normal(shape, 0.5).unwrap());
    };
    put("wte.weight", &[VOCABULARY, WIDTH]);
    put("wpe.weight", &[CONTEXT, WIDTH]);
    put("ln_f.weight", &[WIDTH]);
    put("ln_f.bias", &[WIDTH]);
    for layer in 0..LAYERS {
        for (name, inputs, outputs) in [
            ("attn.c_attn", WIDTH, 3 * WIDTH),
            ("attn.c_proj", WIDTH, WIDTH),
            ("mlp.c_fc", WIDTH, HIDDEN),
            ("mlp.c_proj", HIDDEN, WIDTH),
        ] {
            put(&format!("h.{layer}.{name}.weight"), &[inputs, outputs]);
            put(&format!("h.{layer}.{name}.bias"), &[outputs]);
        }
        for name in ["ln_1", "ln_2"] {
            put(&format!("h.{layer}.{name}.weight"), &[WIDTH]);
            put(&format!("h.{layer}.{name}.bias"), &[WIDTH]);
        }
    }
    tensors
}

const TOKENIZER: &str = r#"{
    "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
    "model": {"type": "WordLevel", "unk_token": "?", "vocab": {"?": 0, "one": 1, "two": 2, "three": 3}}
}"#;

fn write(folder: &Folder, config: &Value, tensors: &HashMap<String, Tensor>) {
    fs::write(folder.0.join("config.json"), config.to_string()).unwrap();
    fs::write(folder.0.join("tokenizer.json"), TOKENIZER).unwrap();
    candle_core::safetensors::save(tensors, folder.0.join("model.safetensors")).unwrap();
}

/// GPT-2 one token at a time, in f64, from the checkpoint's own tensors.
struct ByHand(HashMap<String, Vec<f64>>);

impl ByHand {
    fn new(tensors: &HashMap<String, Tensor>) -> Self {
        let values = |tensor: &Tensor| tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1();
        Self(tensors.iter().map(|(name, tensor)| (name.clone(), values(tensor).unwrap())).collect())
    }

    fn linear(&self, x: &[f64], name: &str) -> Vec<f64> {
        let (weight, bias) = (&self.0[&format!("{name}.weight")], &self.0[&format!("{name}.bias")]);
        let column = |j: usize| (0..x.len()).map(|i| x[i] * weight[i * bias.len() + j]).sum::<f64>();
        (0..bias.len()).map(|j| column(j) + bias[j]).collect()
    }

    fn norm(&self, x: &[f64], name: &str) -> Vec<f64> {
        let (weight, bias) = (&self.0[&format!("{name}.weight")], &self.0[&format!("{name}.bias")]);
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
        (0..x.len()).map(|i| (x[i] - mean) / (variance + EPSILON).sqrt() * weight[i] + bias[i]).collect()
    }

    fn logits(&self, tokens: &[usize]) -> Vec<Vec<f64>> {
        let row = |name: &str, index: usize| &self.0[name][index * WIDTH..(index + 1) * WIDTH];
        let add = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<_>>();
        let mut states: Vec<Vec<f64>> = tokens
            .iter()
            .enumerate()
            .map(|(position, &token)| add(row("wte.weight", token), row("wpe.weight", position)))
            .collect();
        for layer in 0..LAYERS {
            let packed: Vec<_> = states
                .iter()
                .map(|x| {
                    self.linear(&self.norm(x, &format!("h.{layer}.ln_1")), &format!("h.{layer}.attn.c_attn"))
                })
                .collect();
            for i in 0..tokens.len() {
                let d = WIDTH / HEADS;
                let mut attended = Vec::new();
                for head in 0..HEADS {
                    let query = &packed[i][head * d..(head + 1) * d];
                    let key = |j: usize| &packed[j][WIDTH + head * d..WIDTH + (head + 1) * d];
                    let value = |j: usize| &packed[j][2 * WIDTH + head * d..2 * WIDTH + (head + 1) * d];
                    let dot = |j: usize| query.iter().zip(key(j)).map(|(q, k)| q * k).sum::<f64>();
                    let weights: Vec<f64> = (0..=i).map(|j| (dot(j) / (d as f64).sqrt()).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    attended.extend(
                        (0..d).map(|c| (0..=i).map(|j| weights[j] * value(j)[c]).sum::<f64>() / total),
                    );
                }
                let x = add(&states[i], &self.linear(&attended, &format!("h.{layer}.attn.c_proj")));
                let hidden: Vec<f64> = self
                    .linear(&self.norm(&x, &format!("h.{layer}.ln_2")), &format!("h.{layer}.mlp.c_fc"))
                    .into_iter()
                    .map(|x| {
                        let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                        0.5 * x * (1.0 + inner.tanh())
                    })
                    .collect();
                states[i] = add(&x, &self.linear(&hidden, &format!("h.{layer}.mlp.c_proj")));
            }
        }
        let output =
            |x: &[f64], token: usize| x.iter().zip(row("wte.weight", token)).map(|(x, w)| x * w).sum();
        states
            .iter()
            .map(|x| self.norm(x, "ln_f"))
            .map(|x| (0..VOCABULARY).map(|token| output(&x, token)).collect())
            .collect()
    }
}

#[test]
fn logits_agree_with_a_computation_by_hand_with_and_without_the_prefix() {
    let tensors = checkpoint();
    let tokens = [3usize, 0, 10, 7, 7, 1];
    let expected = ByHand::new(&tensors).logits(&tokens);
    for prefix in ["", "transformer."] {
        let folder = Folder::new(&format!("gpt2-{}", prefix.len()));
        let mut named: HashMap<_, _> =
            tensors.iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor.clone())).collect();
        if !prefix.is_empty() {
            named.insert("lm_head.weight".into(), tensors["wte.weight"].clone());
        }
        write(&folder, &config(), &named);
        let (config, weights, _) = load(&folder.0).unwrap();
        let model = Model::new(config, weights).unwrap();
        let input =
            Tensor::from_iter(tokens.map(|token| token as u32), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let logits = model.logits(&input, None).unwrap().to_vec2::<f32>().unwrap();
        for (row, expected) in logits.iter().zip(&expected) {
            for (logit, expected) in row.iter().zip(expected) {
                assert!((f64::from(*logit) - expected).abs() < 2e-5, "{logit} against {expected}");
            }
        }
    }
}

#[test]
fn what_is_saved_loads_as_it_was() {
    let folder = Folder::new("roundtrip");
    let config =
        Config { vocabulary: 256, context: 8, width: 12, hidden: 20, heads: 3, layers: 2, epsilon: 1e-5 };
    let weights = initial_weights(&config, 1).unwrap();
    save(&folder.0, &config, &weights).unwrap();
    let (loaded_config, loaded, tokenizer) = load(&folder.0).unwrap();
    assert_eq!(loaded_config, config);
    assert!(matches!(tokenizer, crate::tokens::Tokenizer::Bytes));
    assert_eq!(loaded.len(), weights.len());
    for (name, tensor) in &weights {
        let difference = (tensor - &loaded[name]).unwrap().abs().unwrap().max_all().unwrap();
        assert!(difference.to_scalar::<f32>().unwrap() <= 0.0, "{name}");
    }
}

#[test]
fn a_folder_that_lacks_something_is_an_error_that_names_it() {
    let folder = Folder::new("lacking");
    let message = |folder: &Folder| format!("{:#}", load(&folder.0).err().unwrap());
    assert!(message(&folder).contains("cannot read the configuration"));

    let mut tensors = checkpoint();
    write(&folder, &config(), &tensors);
    fs::remove_file(folder.0.join("tokenizer.json")).unwrap();
    assert!(message(&folder).contains("has no tokenizer.json"));

    let bias = tensors.remove("h.1.mlp.c_fc.bias").unwrap();
    write(&folder, &config(), &tensors);
    assert!(message(&folder).ends_with("h.1.mlp.c_fc.bias is missing"));

    tensors.insert("h.1.mlp.c_fc.bias".into(), bias.narrow(0, 0, 3).unwrap());
    write(&folder, &config(), &tensors);
    assert!(message(&folder).ends_with("h.1.mlp.c_fc.bias is [3], expected [10]"));

    tensors.insert("h.1.mlp.c_fc.bias".into(), bias);
    tensors.insert(
        "lm_head.weight".into(),
        Tensor::zeros((VOCABULARY, WIDTH), DType::F32, &Device::Cpu).unwrap(),
    );
    write(&folder, &config(), &tensors);
    assert!(message(&folder).contains("lm_head.weight differs"));

    fs::remove_file(folder.0.join("model.safetensors")).unwrap();
    assert!(message(&folder).contains("cannot read the weights"));
}

#[test]
fn configurations_that_would_compute_something_else_are_refused() {
    let refused = |name: &str, value: Value| {
        let mut config = config();
        config[name] = value;
        parse_config(&config).unwrap_err().to_string()
    };
    assert_eq!(refused("n_head", json!(4)), "n_embd = 6 is not a multiple of n_head = 4");
    assert_eq!(refused("n_layer", json!(0)), "n_layer = 0, expected a positive integer");
    assert!(refused("activation_function", json!("relu")).contains("is not supported, only \"gelu_new\""));
    assert!(refused("model_type", json!("llama")).contains("only \"gpt2\""));
    assert!(refused("scale_attn_by_inverse_layer_idx", json!(true)).contains("is not supported"));
}
