//! A causal transformer with the architecture of GPT-2 (Radford et al., 2019): learned positions, layer norms before
//! attention and MLP, and an output head that shares the token embedding.

use crate::adapter::Adapter;
use crate::layers::{cross_entropy, gelu, layer_norm, linear};
use crate::rng::Rng;
use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::VarBuilder;
use inducer_attention_candle::{AttentionOptions, TensorLayout, VirtualTokens, inducer_attention};
use std::collections::HashMap;

/// The model's dimensions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Config {
    pub(crate) vocabulary: usize,
    /// The longest sequence.
    pub(crate) context: usize,
    pub(crate) width: usize,
    /// Width of the MLP's hidden layer.
    pub(crate) hidden: usize,
    pub(crate) heads: usize,
    pub(crate) layers: usize,
    /// What layer norm adds to the variance.
    pub(crate) epsilon: f64,
}

impl Config {
    /// About a million parameters over bytes.
    pub(crate) const BYTES: Self =
        Self { vocabulary: 256, context: 128, width: 128, hidden: 512, heads: 4, layers: 5, epsilon: 1e-5 };

    pub(crate) fn head_dim(&self) -> usize {
        self.width / self.heads
    }
}

/// Every weight by its name. Products are `x W`, so a weight is `[in, out]`.
pub(crate) type Weights = HashMap<String, Tensor>;

/// Weights to begin training with: normal, in the layers that end a residual branch with a deviation divided by
/// `√(2 layers)`; biases 0, norms' scales 1. GPT-2's deviation of 0.02 everywhere suits its width and its length of
/// training: over the first 300 steps of this small model, larger embeddings learn far faster (2.39 instead of 2.85 nats).
pub(crate) fn initial_weights(config: &Config, seed: u64) -> Result<Weights> {
    const EMBEDDING: f64 = 0.15;
    let Config { vocabulary, context, width, hidden, layers, .. } = *config;
    let inner = 0.6 / (width as f64).sqrt();
    let branch_end = inner / (2.0 * layers as f64).sqrt();
    let mut rng = Rng::new(seed);
    let mut weights = Weights::new();
    weights.insert("wte".into(), rng.truncated_normal((vocabulary, width), EMBEDDING)?);
    weights.insert("wpe".into(), rng.truncated_normal((context, width), EMBEDDING)?);
    let norm = |weights: &mut Weights, name: &str| -> Result<()> {
        weights.insert(format!("{name}.weight"), Tensor::ones(width, DType::F32, &Device::Cpu)?);
        weights.insert(format!("{name}.bias"), Tensor::zeros(width, DType::F32, &Device::Cpu)?);
        Ok(())
    };
    for layer in 0..layers {
        let linears = [
            ("attn.query", width, width, inner),
            ("attn.key", width, width, inner),
            ("attn.value", width, width, inner),
            ("attn.output", width, width, branch_end),
            ("mlp.up", width, hidden, inner),
            ("mlp.down", hidden, width, branch_end),
        ];
        for (name, inputs, outputs, deviation) in linears {
            let weight = rng.truncated_normal((inputs, outputs), deviation)?;
            weights.insert(format!("h.{layer}.{name}.weight"), weight);
            let bias = Tensor::zeros(outputs, DType::F32, &Device::Cpu)?;
            weights.insert(format!("h.{layer}.{name}.bias"), bias);
        }
        norm(&mut weights, &format!("h.{layer}.ln_1"))?;
        norm(&mut weights, &format!("h.{layer}.ln_2"))?;
    }
    norm(&mut weights, "ln_f")?;
    Ok(weights)
}

/// The same weights on a device.
pub(crate) fn on_device(weights: Weights, device: &Device) -> Result<Weights> {
    weights.into_iter().map(|(name, tensor)| Ok((name, tensor.to_device(device)?))).collect()
}

/// The same weights as variables that an optimiser can train.
pub(crate) fn trainable(weights: Weights) -> Result<HashMap<String, Var>> {
    weights.into_iter().map(|(name, tensor)| Ok((name, Var::from_tensor(&tensor)?))).collect()
}

struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    fn load(inputs: usize, outputs: usize, vb: &VarBuilder) -> Result<Self> {
        Ok(Self { weight: vb.get((inputs, outputs), "weight")?, bias: vb.get(outputs, "bias")? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.weight, &self.bias)
    }
}

struct Norm {
    weight: Tensor,
    bias: Tensor,
    epsilon: f32,
}

impl Norm {
    fn load(config: &Config, vb: &VarBuilder) -> Result<Self> {
        let (weight, bias) = (vb.get(config.width, "weight")?, vb.get(config.width, "bias")?);
        Ok(Self { weight, bias, epsilon: config.epsilon as f32 })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, &self.weight, &self.bias, self.epsilon)
    }
}

struct Block {
    norm_1: Norm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    norm_2: Norm,
    up: Linear,
    down: Linear,
}

/// The transformer. Whether it trains depends on whether the weights it was built from are variables.
pub(crate) struct Model {
    pub(crate) config: Config,
    pub(crate) device: Device,
    tokens: Tensor,
    positions: Tensor,
    blocks: Vec<Block>,
    norm: Norm,
    no_bias: Tensor,
}

/// A layer's keys and values, `[B, N, H, d]` each.
pub(crate) type KeysAndValues = Vec<(Tensor, Tensor)>;

impl Model {
    /// Takes the weights by name, all on one device; a missing name or a wrong shape is an error that says which.
    pub(crate) fn new(config: Config, weights: Weights) -> Result<Self> {
        let device = weights.values().next().map_or(Device::Cpu, |weight| weight.device().clone());
        let vb = VarBuilder::from_tensors(weights, DType::F32, &device);
        let Config { width, hidden, .. } = config;
        let blocks = (0..config.layers)
            .map(|layer| {
                let vb = vb.pp(format!("h.{layer}"));
                Ok(Block {
                    norm_1: Norm::load(&config, &vb.pp("ln_1"))?,
                    query: Linear::load(width, width, &vb.pp("attn.query"))?,
                    key: Linear::load(width, width, &vb.pp("attn.key"))?,
                    value: Linear::load(width, width, &vb.pp("attn.value"))?,
                    output: Linear::load(width, width, &vb.pp("attn.output"))?,
                    norm_2: Norm::load(&config, &vb.pp("ln_2"))?,
                    up: Linear::load(width, hidden, &vb.pp("mlp.up"))?,
                    down: Linear::load(hidden, width, &vb.pp("mlp.down"))?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            config,
            tokens: vb.get((config.vocabulary, width), "wte")?,
            positions: vb.get((config.context, width), "wpe")?,
            blocks,
            norm: Norm::load(&config, &vb.pp("ln_f"))?,
            no_bias: Tensor::zeros(config.vocabulary, DType::F32, &device)?,
            device,
        })
    }

    /// Tokens u32 `[B, N]` with N up to the context give logits `[B·N, vocabulary]`.
    pub(crate) fn logits(&self, tokens: &Tensor, adapter: Option<&Adapter>) -> Result<Tensor> {
        self.run(tokens, adapter, None)
    }

    /// Mean cross entropy, in nats, of predicting `targets` from `tokens`, both u32 `[B, N]`, on any device.
    pub(crate) fn loss(
        &self,
        tokens: &Tensor,
        targets: &Tensor,
        adapter: Option<&Adapter>,
    ) -> Result<Tensor> {
        cross_entropy(&self.logits(tokens, adapter)?, &targets.flatten_all()?.to_device(&self.device)?)
    }

    /// What each layer's attention sees of the tokens.
    pub(crate) fn keys_and_values(&self, tokens: &Tensor) -> Result<KeysAndValues> {
        let mut seen = KeysAndValues::new();
        self.run(tokens, None, Some(&mut seen))?;
        Ok(seen)
    }

    fn run(
        &self,
        tokens: &Tensor,
        adapter: Option<&Adapter>,
        mut seen: Option<&mut KeysAndValues>,
    ) -> Result<Tensor> {
        let (batch, length) = tokens.dims2()?;
        let tokens = tokens.to_device(&self.device)?;
        let Config { width, heads, .. } = self.config;
        let embedded = self.tokens.embedding(&tokens.flatten_all()?)?.reshape((batch, length, width))?;
        let mut x = embedded
            .broadcast_add(&self.positions.narrow(0, 0, length)?)?
            .reshape((batch * length, width))?;
        let split = |x: Tensor| x.reshape((batch, length, heads, width / heads));
        let options = AttentionOptions::causal().with_layout(TensorLayout::Bnhd);
        for (layer, block) in self.blocks.iter().enumerate() {
            let adapter = adapter.map(|adapter| adapter.layer(layer));
            let normed = block.norm_1.forward(&x)?;
            let mut query = block.query.forward(&normed)?;
            if let Some(change) = adapter.map(|adapter| adapter.lora_query(&normed)).transpose()?.flatten() {
                query = (query + change)?;
            }
            let (query, key, value) =
                (split(query)?, split(block.key.forward(&normed)?)?, split(block.value.forward(&normed)?)?);
            if let Some(seen) = &mut seen {
                seen.push((key.clone(), value.clone()));
            }
            let attended = match adapter {
                Some(adapter) => adapter.forward(&query, &key, &value, &options)?,
                None => inducer_attention(&query, &key, &value, &VirtualTokens::default(), &options)?,
            };
            let attended = attended.reshape((batch * length, width))?;
            x = (x + block.output.forward(&attended)?)?;
            let hidden = gelu(&block.up.forward(&block.norm_2.forward(&x)?)?)?;
            x = (x + block.down.forward(&hidden)?)?;
        }
        linear(&self.norm.forward(&x)?, &self.tokens.t()?, &self.no_bias)
    }
}
