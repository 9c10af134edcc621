//! What is trained while the model stays frozen: a shared prefix, inducers, or low-rank changes of the query projection.

use crate::model::{Config, Model};
use crate::rng::Rng;
use anyhow::Context;
use candle_core::{Device, Result, Tensor, Var};
use candle_nn::VarBuilder;
use inducer_attention_candle::{
    AdapterTensors, InducerTensors, KeyTensors, PrefixTensors, ValueTensors, VirtualTokens,
};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// The ways of tuning that the run compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// Trained keys and values that come before the real ones and are shared by all queries (Li and Liang, 2021).
    Prefix,
    /// Every query has its own virtual key and value (Chen et al., 2022).
    Inducer,
    /// Inducers with half of the parameters, LoRA on the query projection with the other half: the paper's best variant.
    InducerLora,
    /// A low-rank change of the query projection alone (Hu et al., 2022).
    Lora,
}

impl Method {
    pub(crate) const ALL: [Self; 4] = [Self::Prefix, Self::Inducer, Self::InducerLora, Self::Lora];

    /// For tables and legends.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Prefix => "prefix-tuning",
            Self::Inducer => "inducer-tuning",
            Self::InducerLora => "inducer-tuning + LoRA",
            Self::Lora => "LoRA on Q",
        }
    }

    /// For file names and options.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Prefix => "prefix",
            Self::Inducer => "inducer",
            Self::InducerLora => "inducer-lora",
            Self::Lora => "lora",
        }
    }

    /// The best of a few tried on the byte model.
    pub(crate) fn learning_rate(self) -> f64 {
        match self {
            Self::Prefix => 1e-2,
            Self::Inducer | Self::InducerLora | Self::Lora => 5e-3,
        }
    }
}

/// Sizes of the parts; 0 leaves a part out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Recipe {
    /// Prefix tokens of each layer.
    pub(crate) prefix: usize,
    /// Rank of the virtual key's and the virtual value's adapter.
    pub(crate) inducer: usize,
    /// Rank of the query projection's change.
    pub(crate) lora: usize,
}

impl Recipe {
    /// As near as ranks allow to the number of parameters that inducers of rank `rank` have.
    pub(crate) fn new(method: Method, rank: usize, config: &Config) -> Self {
        let budget = Self { prefix: 0, inducer: rank, lora: 0 }.parameters(config);
        let one = |recipe: Self| recipe.parameters(config);
        let prefix = |budget: usize| (budget / one(Self { prefix: 1, inducer: 0, lora: 0 })).max(1);
        let lora = |budget: usize| (budget / one(Self { prefix: 0, inducer: 0, lora: 1 })).max(1);
        match method {
            Method::Prefix => Self { prefix: prefix(budget), inducer: 0, lora: 0 },
            Method::Inducer => Self { prefix: 0, inducer: rank, lora: 0 },
            Method::InducerLora => {
                let half = Self { prefix: 0, inducer: rank.div_ceil(2), lora: 0 };
                Self { lora: lora(budget.saturating_sub(half.parameters(config))), ..half }
            }
            Method::Lora => Self { prefix: 0, inducer: 0, lora: lora(budget) },
        }
    }

    /// Trained parameters of the whole model.
    pub(crate) fn parameters(&self, config: &Config) -> usize {
        self.shapes(config).iter().map(|(_, shape, _)| shape.iter().product::<usize>()).sum::<usize>()
            * config.layers
    }

    /// One layer's tensors: name, shape, deviation of the initial values.
    fn shapes(&self, config: &Config) -> Vec<(&'static str, Vec<usize>, f64)> {
        /// Of the published initialisation.
        const INDUCER: f64 = 0.01;
        let (heads, d, width) = (config.heads, config.head_dim(), config.width);
        let mut shapes = Vec::new();
        if self.prefix > 0 {
            shapes.push(("prefix.key", vec![heads, self.prefix, d], 0.02));
            shapes.push(("prefix.value", vec![heads, self.prefix, d], 0.02));
        }
        if self.inducer > 0 {
            let r = self.inducer;
            shapes.push(("key.down_weight", vec![heads, d, r], INDUCER));
            shapes.push(("key.down_bias", vec![heads, r], INDUCER));
            shapes.push(("key.up_weight", vec![heads, r, d], INDUCER));
            shapes.push(("key.up_bias", vec![heads, d], INDUCER));
            shapes.push(("value.down_weight", vec![heads, d, r], INDUCER));
            shapes.push(("value.down_bias", vec![heads, r], INDUCER));
            shapes.push(("value.up_weight", vec![heads, r, d], INDUCER));
            shapes.push(("value.up_bias", vec![heads, d], INDUCER));
        }
        if self.lora > 0 {
            shapes.push(("query.lora_a", vec![width, self.lora], 1.0 / (width as f64).sqrt()));
            shapes.push(("query.lora_b", vec![self.lora, width], 0.0));
        }
        shapes
    }
}

/// One layer's part.
pub(crate) struct LayerAdapter {
    /// What the layer's attention sees besides its keys and values.
    pub(crate) tokens: VirtualTokens,
    /// `[width, r]` and `[r, width]`.
    lora: Option<(Tensor, Tensor)>,
}

impl LayerAdapter {
    /// What LoRA adds to the queries that are projected from `x`, both `[T, width]`.
    pub(crate) fn query_change(&self, x: &Tensor) -> Result<Option<Tensor>> {
        self.lora.as_ref().map(|(a, b)| x.matmul(a)?.matmul(b)).transpose()
    }
}

/// The trained parameters and how they act on each layer.
pub(crate) struct Adapter {
    pub(crate) variables: BTreeMap<String, Var>,
    layers: Vec<LayerAdapter>,
}

impl Adapter {
    /// Initial values: the inducers' as published, LoRA's as published. A prefix begins as the keys and values of `text`
    /// (u32, at least as long as the prefix), which trains far better than random ones.
    pub(crate) fn new(recipe: Recipe, model: &Model, text: &[u32], seed: u64) -> Result<Self> {
        let mut rng = Rng::new(seed);
        let mut variables = BTreeMap::new();
        for layer in 0..model.config.layers {
            for (name, shape, deviation) in recipe.shapes(&model.config) {
                let values = rng.truncated_normal(shape, deviation)?;
                variables.insert(format!("h.{layer}.attn.{name}"), Var::from_tensor(&values)?);
            }
        }
        if recipe.prefix > 0 {
            let text = Tensor::new(&text[..recipe.prefix], &Device::Cpu)?.unsqueeze(0)?;
            for (layer, (keys, values)) in model.keys_and_values(&text)?.iter().enumerate() {
                let by_head = |x: &Tensor| x.squeeze(0)?.transpose(0, 1)?.contiguous();
                variables[&format!("h.{layer}.attn.prefix.key")].set(&by_head(keys)?)?;
                variables[&format!("h.{layer}.attn.prefix.value")].set(&by_head(values)?)?;
            }
        }
        Self::assemble(recipe, &model.config, variables)
    }

    fn assemble(recipe: Recipe, config: &Config, variables: BTreeMap<String, Var>) -> Result<Self> {
        let tensors: HashMap<_, _> =
            variables.iter().map(|(name, variable)| (name.clone(), variable.as_tensor().clone())).collect();
        let vb = VarBuilder::from_tensors(tensors, candle_core::DType::F32, &Device::Cpu);
        let shapes: HashMap<_, _> =
            recipe.shapes(config).into_iter().map(|(name, shape, _)| (name, shape)).collect();
        let layers = (0..config.layers)
            .map(|layer| {
                let vb = vb.pp(format!("h.{layer}.attn"));
                let get = |name: &str| vb.get(shapes[name].as_slice(), name);
                let residual = |part: &str| -> Result<AdapterTensors> {
                    Ok(AdapterTensors {
                        down_weight: get(&format!("{part}.down_weight"))?,
                        down_bias: get(&format!("{part}.down_bias"))?,
                        up_weight: get(&format!("{part}.up_weight"))?,
                        up_bias: get(&format!("{part}.up_bias"))?,
                    })
                };
                let mut tokens = VirtualTokens::default();
                if recipe.prefix > 0 {
                    tokens.prefix = Some(PrefixTensors { k: get("prefix.key")?, v: get("prefix.value")? });
                }
                if recipe.inducer > 0 {
                    let (key, value) = (residual("key")?, residual("value")?);
                    tokens.inducer =
                        Some(InducerTensors::new(KeyTensors::Residual(key), ValueTensors::Residual(value)));
                }
                let lora =
                    if recipe.lora > 0 { Some((get("query.lora_a")?, get("query.lora_b")?)) } else { None };
                Ok(LayerAdapter { tokens, lora })
            })
            .collect::<Result<_>>()?;
        Ok(Self { variables, layers })
    }

    pub(crate) fn layer(&self, index: usize) -> &LayerAdapter {
        &self.layers[index]
    }

    /// Writes the parameters as safetensors.
    pub(crate) fn save(&self, path: &Path) -> anyhow::Result<()> {
        let tensors: HashMap<_, _> = self
            .variables
            .iter()
            .map(|(name, variable)| (name.clone(), variable.as_detached_tensor()))
            .collect();
        candle_core::safetensors::save(&tensors, path)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads what [`Adapter::save`] wrote.
    pub(crate) fn load(path: &Path, recipe: Recipe, config: &Config) -> anyhow::Result<Self> {
        let tensors = candle_core::safetensors::load(path, &Device::Cpu)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let variables = tensors
            .into_iter()
            .map(|(name, tensor)| Ok((name, Var::from_tensor(&tensor)?)))
            .collect::<Result<_>>()?;
        Ok(Self::assemble(recipe, config, variables)?)
    }
}

#[cfg(test)]
mod tests {
    use super::{Adapter, Method, Recipe};
    use crate::attention::Attention;
    use crate::model::{Config, Model, initial_weights};
    use candle_core::{Device, Tensor};

    const TINY: Config =
        Config { vocabulary: 256, context: 16, width: 24, hidden: 30, heads: 3, layers: 2, epsilon: 1e-5 };

    #[test]
    fn methods_get_about_as_many_parameters() {
        for config in [Config::BYTES, Config { width: 768, heads: 12, layers: 12, ..Config::BYTES }] {
            let budget = Recipe::new(Method::Inducer, 8, &config).parameters(&config) as f64;
            for method in Method::ALL {
                let parameters = Recipe::new(method, 8, &config).parameters(&config) as f64;
                assert!(
                    (parameters / budget - 1.0).abs() < 0.05,
                    "{}: {parameters} of {budget}",
                    method.name()
                );
            }
        }
    }

    #[test]
    fn what_is_saved_loads_as_it_was() -> anyhow::Result<()> {
        let model = Model::new(TINY, initial_weights(&TINY, 1)?)?;
        let text: Vec<u32> = (0..40).collect();
        let tokens = Tensor::new(&text[..12], &Device::Cpu)?.unsqueeze(0)?;
        for method in Method::ALL {
            let recipe = Recipe::new(method, 2, &TINY);
            let adapter = Adapter::new(recipe, &model, &text, 7)?;
            let path = std::env::temp_dir().join(format!("tune-{}-{}", method.name(), std::process::id()));
            adapter.save(&path)?;
            let loaded = Adapter::load(&path, recipe, &TINY);
            std::fs::remove_file(&path)?;
            let loaded = loaded?;
            let logits = |adapter: &Adapter| -> anyhow::Result<Vec<f32>> {
                Ok(model.logits(&tokens, Some(adapter), Attention::Fused)?.flatten_all()?.to_vec1()?)
            };
            assert_eq!(logits(&adapter)?, logits(&loaded)?);
            assert_eq!(adapter.variables.len(), loaded.variables.len());
        }
        Ok(())
    }

    #[test]
    fn every_parameter_gets_a_gradient_and_the_frozen_model_none() -> anyhow::Result<()> {
        let weights = initial_weights(&TINY, 1)?;
        let model = Model::new(TINY, weights.clone())?;
        let text: Vec<u32> = (0..40).collect();
        let tokens = Tensor::new(&text[..24], &Device::Cpu)?.reshape((2, 12))?;
        for method in Method::ALL {
            let adapter = Adapter::new(Recipe::new(method, 2, &TINY), &model, &text, 7)?;
            let gradients = model.loss(&tokens, &tokens, Some(&adapter), Attention::Fused)?.backward()?;
            for (name, variable) in &adapter.variables {
                assert!(gradients.get(variable).is_some(), "{}: {name}", method.name());
            }
            for (name, weight) in &weights {
                assert!(gradients.get(weight).is_none(), "{}: {name}", method.name());
            }
        }
        Ok(())
    }
}
