//! What is trained while the model stays frozen: a shared prefix, inducers, or low-rank changes of the query projection.

use crate::model::{Config, Model};
use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use inducer_attention_candle::{
    InducerAttention, InducerAttentionConfig, LoraConfig, load_adapter, save_adapter,
};
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

    /// The best of 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2 and 0.4 on the byte model, as far up as losses fell.
    pub(crate) fn learning_rate(self) -> f64 {
        match self {
            Self::Prefix => 0.2,
            Self::Inducer => 0.05,
            Self::InducerLora | Self::Lora => 0.02,
        }
    }

    /// One layer's settings. Inducers have rank `rank`; the other methods come as near to their number of parameters as
    /// ranks and lengths allow.
    pub(crate) fn recipe(self, rank: usize, config: &Config) -> InducerAttentionConfig {
        let plain = InducerAttentionConfig::new(config.heads, config.head_dim());
        let budget = plain.with_inducer(rank).num_parameters();
        // As many units of a size as make up a number of parameters, at least one.
        let units = |parameters: usize, unit: InducerAttentionConfig| {
            let unit = unit.num_parameters();
            ((parameters + unit / 2) / unit).max(1)
        };
        // α = r: the change of the queries is x A B.
        let lora = |rank: usize| LoraConfig { rank, alpha: rank as f64, d_in: config.width };
        match self {
            Self::Prefix => plain.with_prefix(units(budget, plain.with_prefix(1))),
            Self::Inducer => plain.with_inducer(rank),
            Self::InducerLora => {
                let half = plain.with_inducer(rank.div_ceil(2));
                let rest = budget.saturating_sub(half.num_parameters());
                half.with_lora_q(lora(units(rest, plain.with_lora_q(lora(1)))))
            }
            Self::Lora => plain.with_lora_q(lora(units(budget, plain.with_lora_q(lora(1))))),
        }
    }
}

/// The trained parameters of all layers.
pub(crate) struct Adapter {
    layers: Vec<InducerAttention>,
}

impl Adapter {
    /// The published initial values. A prefix begins as the keys and values of `text` (u32, at least as long as the prefix
    /// and not longer than the context), which trains better than random ones.
    pub(crate) fn new(
        recipe: InducerAttentionConfig,
        model: &Model,
        text: &[u32],
        seed: u64,
    ) -> Result<Self> {
        let variables = VarMap::new();
        let vb = VarBuilder::from_varmap(&variables, DType::F32, &model.device);
        let layers = (0..model.config.layers)
            .map(|layer| InducerAttention::with_seed(recipe, seed, &vb.pp(layer_name(layer))))
            .collect::<candle_core::Result<Vec<_>>>()?;
        let length = recipe.prefix_length;
        if length > 0 {
            let room = text.len().min(model.config.context);
            ensure!(
                length <= room,
                "a prefix of {length} tokens cannot begin as a text of {room}; take a lower --rank"
            );
            let text = Tensor::new(&text[..length], &model.device)?.unsqueeze(0)?;
            for (layer, (keys, values)) in layers.iter().zip(model.keys_and_values(&text)?) {
                let by_head = |x: &Tensor| x.squeeze(0)?.transpose(0, 1);
                layer.set_prefix(&by_head(&keys)?, &by_head(&values)?)?;
            }
        }
        Ok(Self { layers })
    }

    pub(crate) fn layer(&self, index: usize) -> &InducerAttention {
        &self.layers[index]
    }

    /// What an optimiser trains, in a fixed order.
    pub(crate) fn variables(&self) -> Result<Vec<Var>> {
        Ok(self
            .layers
            .iter()
            .map(InducerAttention::variables)
            .collect::<candle_core::Result<Vec<_>>>()?
            .concat())
    }

    /// Trained numbers.
    pub(crate) fn parameters(&self) -> usize {
        self.layers.iter().map(|layer| layer.config().num_parameters()).sum()
    }

    /// Writes parameters and settings as safetensors.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let names: Vec<_> = (0..self.layers.len()).map(layer_name).collect();
        Ok(save_adapter(path, names.iter().map(String::as_str).zip(&self.layers))?)
    }

    /// Reads what [`Adapter::save`] wrote.
    pub(crate) fn load(path: &Path, config: &Config, device: &Device) -> Result<Self> {
        let mut loaded = load_adapter(path, device)?;
        let layers: Vec<_> =
            (0..config.layers).filter_map(|layer| loaded.remove(&layer_name(layer))).collect();
        ensure!(
            layers.len() == config.layers,
            "{} has {} of {} layers",
            path.display(),
            layers.len(),
            config.layers
        );
        Ok(Self { layers })
    }
}

fn layer_name(layer: usize) -> String {
    format!("h.{layer}.attn")
}

#[cfg(test)]
mod tests {
    use super::{Adapter, Method};
    use crate::model::{Config, Model, initial_weights};
    use candle_core::{Device, Tensor};

    const TINY: Config =
        Config { vocabulary: 256, context: 16, width: 24, hidden: 30, heads: 3, layers: 2, epsilon: 1e-5 };

    fn model_and_text() -> anyhow::Result<(Model, Vec<u32>)> {
        Ok((Model::new(TINY, initial_weights(&TINY, 1)?)?, (0..40).collect()))
    }

    #[test]
    fn methods_get_about_as_many_parameters() {
        for config in [Config::BYTES, Config { width: 768, heads: 12, layers: 12, ..Config::BYTES }] {
            let budget = Method::Inducer.recipe(8, &config).num_parameters() as f64;
            for method in Method::ALL {
                let parameters = method.recipe(8, &config).num_parameters() as f64;
                assert!(
                    (parameters / budget - 1.0).abs() < 0.03,
                    "{}: {parameters} of {budget}",
                    method.name()
                );
            }
        }
    }

    #[test]
    fn what_is_saved_loads_as_it_was() -> anyhow::Result<()> {
        let (model, text) = model_and_text()?;
        let tokens = Tensor::new(&text[..12], &Device::Cpu)?.unsqueeze(0)?;
        for method in Method::ALL {
            let adapter = Adapter::new(method.recipe(2, &TINY), &model, &text, 7)?;
            let path = std::env::temp_dir().join(format!("tune-{}-{}", method.name(), std::process::id()));
            adapter.save(&path)?;
            let loaded = Adapter::load(&path, &TINY, &Device::Cpu);
            std::fs::remove_file(&path)?;
            let loaded = loaded?;
            let logits = |adapter: &Adapter| -> anyhow::Result<Vec<f32>> {
                Ok(model.logits(&tokens, Some(adapter))?.flatten_all()?.to_vec1()?)
            };
            assert_eq!(logits(&adapter)?, logits(&loaded)?);
            assert_eq!(adapter.parameters(), loaded.parameters());
        }
        Ok(())
    }

    #[test]
    fn every_parameter_gets_a_gradient_and_the_frozen_model_none() -> anyhow::Result<()> {
        let weights = initial_weights(&TINY, 1)?;
        let (_, text) = model_and_text()?;
        let model = Model::new(TINY, weights.clone())?;
        let tokens = Tensor::new(&text[..24], &Device::Cpu)?.reshape((2, 12))?;
        for method in Method::ALL {
            let adapter = Adapter::new(method.recipe(2, &TINY), &model, &text, 7)?;
            let gradients = model.loss(&tokens, &tokens, Some(&adapter))?.backward()?;
            let variables = adapter.variables()?;
            assert!(variables.iter().all(|variable| gradients.get(variable).is_some()), "{}", method.name());
            let count: usize = variables.iter().map(|variable| variable.elem_count()).sum();
            assert_eq!(count, adapter.parameters());
            for (name, weight) in &weights {
                assert!(gradients.get(weight).is_none(), "{}: {name}", method.name());
            }
        }
        Ok(())
    }

    /// The same text with and without its beginning taken away into the prefix, positions aside.
    #[test]
    fn a_prefix_begins_as_the_keys_and_values_of_the_text() -> anyhow::Result<()> {
        let config = Config { layers: 1, ..TINY };
        let mut weights = initial_weights(&config, 1)?;
        let nowhere = weights["wpe"].zeros_like()?;
        weights.insert("wpe".into(), nowhere);
        let model = Model::new(config, weights)?;
        let text: Vec<u32> = (60..76).collect();
        let mut recipe = Method::Prefix.recipe(2, &config);
        recipe.prefix_length = 5;
        let adapter = Adapter::new(recipe, &model, &text, 7)?;
        let tokens = |range: std::ops::Range<usize>| Tensor::new(&text[range], &Device::Cpu)?.unsqueeze(0);
        let whole = model.logits(&tokens(0..16)?, None)?.narrow(0, 5, 11)?;
        let rest = model.logits(&tokens(5..16)?, Some(&adapter))?;
        let difference = (whole - rest)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(difference < 1e-6, "{difference}");
        Ok(())
    }
}
