//! Configuration of the module: which parameters a layer has, of which shapes.

use inducer_attention::{Error, InducerConfig, KeyConfig, MAX_HEAD_DIM, Result, ValueConfig};
use serde::{Deserialize, Serialize};

use crate::init::Initial;

/// Configuration of [`InducerAttention`](crate::InducerAttention); a checkpoint records it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InducerAttentionConfig {
    /// Hq.
    pub num_heads: usize,
    /// Hkv, a divisor of Hq.
    pub num_kv_heads: usize,
    /// d, 1 to 256.
    pub head_dim: usize,
    /// Every query's own token; none is plain attention.
    #[serde(default)]
    pub inducer: Option<InducerConfig>,
    /// L, tokens shared by all queries.
    #[serde(default)]
    pub prefix_length: usize,
    /// Low-rank change of the query projection.
    #[serde(default)]
    pub lora_q: Option<LoraConfig>,
    /// Width of the output projection, for the extended value; Hq·d if none.
    #[serde(default)]
    pub d_out: Option<usize>,
}

/// A low-rank change `α/r · x A B` of the query projection (Hu et al., *LoRA*, 2021).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// r.
    pub rank: usize,
    /// α.
    pub alpha: f64,
    /// Width of the layer's input x.
    pub d_in: usize,
}

/// One tensor of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Its name in checkpoints and variable builders.
    pub name: &'static str,
    /// Its shape.
    pub shape: Vec<usize>,
    /// How it begins.
    pub initial: Initial,
}

/// Deviation of the published initialisation, a normal distribution cut at two deviations.
const PUBLISHED_DEVIATION: f64 = 0.01;

/// Deviation of a random prefix, that of token embeddings in GPT-2. Training is better begun from the keys and values of
/// real tokens: see [`InducerAttention::set_prefix`](crate::InducerAttention::set_prefix).
const PREFIX_DEVIATION: f64 = 0.02;

/// Where a learned sink begins: λ = sigmoid(−6 − lse) is below 0.3 % of the softmax mass unless all scores are negative.
const INITIAL_SINK: f64 = -6.0;

impl InducerAttentionConfig {
    /// Plain multi-head attention; set the other fields for more.
    pub fn new(num_heads: usize, head_dim: usize) -> Self {
        Self {
            num_heads,
            num_kv_heads: num_heads,
            head_dim,
            inducer: None,
            prefix_length: 0,
            lora_q: None,
            d_out: None,
        }
    }

    /// Inducer-tuning as published: residual virtual key and value of this rank, tanh between the projections.
    #[must_use]
    pub fn with_inducer(self, rank: usize) -> Self {
        let inducer = InducerConfig {
            key: KeyConfig::Residual { rank },
            value: ValueConfig::Residual { rank },
            activation: inducer_attention::Activation::Tanh,
            adaptive_length: false,
        };
        Self { inducer: Some(inducer), ..self }
    }

    /// Prefix-tuning with this many tokens.
    #[must_use]
    pub fn with_prefix(self, prefix_length: usize) -> Self {
        Self { prefix_length, ..self }
    }

    /// LoRA on the query projection.
    #[must_use]
    pub fn with_lora_q(self, lora: LoraConfig) -> Self {
        Self { lora_q: Some(lora), ..self }
    }

    /// Width of the output projection.
    pub fn output_width(&self) -> usize {
        self.d_out.unwrap_or(self.num_heads.saturating_mul(self.head_dim))
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// The core's [`Error`] that names the setting.
    pub fn validate(&self) -> Result<()> {
        for (dimension, size) in [
            ("num_heads", self.num_heads),
            ("num_kv_heads", self.num_kv_heads),
            ("head_dim", self.head_dim),
            ("d_out", self.d_out.unwrap_or(1)),
            ("lora_q.rank", self.lora_q.map_or(1, |l| l.rank)),
            ("lora_q.d_in", self.lora_q.map_or(1, |l| l.d_in)),
        ] {
            if size == 0 {
                return Err(Error::ZeroDimension { argument: "config", dimension });
            }
        }
        if self.head_dim > MAX_HEAD_DIM {
            return Err(Error::HeadDim { got: self.head_dim, max: MAX_HEAD_DIM });
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            return Err(Error::GroupedHeads { query_heads: self.num_heads, kv_heads: self.num_kv_heads });
        }
        if let Some(lora) = self.lora_q.filter(|l| !l.alpha.is_finite()) {
            return Err(Error::Setting {
                argument: "lora_q.alpha",
                value: lora.alpha as f32,
                expected: "a finite number",
            });
        }
        if let Some(inducer) = &self.inducer {
            inducer.validate()?;
        }
        let extended = matches!(self.inducer.map(|i| i.value), Some(ValueConfig::Extended { .. }));
        if self.d_out.is_some() && !extended {
            return Err(Error::Unexpected {
                argument: "d_out",
                reason: "only the extended value goes through the output projection",
            });
        }
        if self.checked_parameters().is_none() {
            return Err(Error::SizeOverflow {
                argument: "config",
                sizes: vec![self.num_heads, self.head_dim, self.prefix_length, self.output_width()],
                expected: "the size of the parameters must fit the address type",
            });
        }
        Ok(())
    }

    /// The trained tensors of a layer, in a fixed order.
    pub fn parameters(&self) -> Vec<Parameter> {
        let Self { num_heads: heads, num_kv_heads: kv_heads, head_dim: d, .. } = *self;
        let mut all = Vec::new();
        let mut add = |name, shape: &[usize], initial| {
            all.push(Parameter { name, shape: shape.to_vec(), initial });
        };
        // Weights as published, biases 0: Δ and P_k − Q are then of order 1e-3, and the residual forms start at the frozen
        // layer.
        let weight = Initial::TruncatedNormal { deviation: PUBLISHED_DEVIATION };
        match self.inducer.map(|i| i.key) {
            Some(KeyConfig::Residual { rank }) => {
                add("key.down_weight", &[heads, d, rank], weight);
                add("key.down_bias", &[heads, rank], Initial::Zero);
                add("key.up_weight", &[heads, rank, d], weight);
                add("key.up_bias", &[heads, d], Initial::Zero);
            }
            Some(KeyConfig::LogitPerHead) => {
                add("key.logit", &[heads], Initial::Constant { value: INITIAL_SINK });
            }
            None | Some(KeyConfig::Query | KeyConfig::LogitPerToken) => {}
        }
        match self.inducer.map(|i| i.value) {
            Some(ValueConfig::Residual { rank } | ValueConfig::Direct { rank }) => {
                add("value.down_weight", &[heads, d, rank], weight);
                add("value.down_bias", &[heads, rank], Initial::Zero);
                add("value.up_weight", &[heads, rank, d], weight);
                add("value.up_bias", &[heads, d], Initial::Zero);
            }
            Some(ValueConfig::Extended { rank, shared }) => {
                let width = self.output_width();
                add("value.down_weight", &[heads, d, rank], weight);
                add("value.down_bias", &[heads, rank], Initial::Zero);
                if shared {
                    add("value.up_weight", &[rank, width], weight);
                } else {
                    add("value.up_weight", &[heads, rank, width], weight);
                }
                add("value.up_bias", &[width], Initial::Zero);
            }
            None | Some(ValueConfig::Zero) => {}
        }
        if self.prefix_length > 0 {
            let prefix = Initial::TruncatedNormal { deviation: PREFIX_DEVIATION };
            add("prefix.k", &[kv_heads, self.prefix_length, d], prefix);
            add("prefix.v", &[kv_heads, self.prefix_length, d], prefix);
        }
        if let Some(LoraConfig { rank, d_in, .. }) = self.lora_q {
            let deviation = 1.0 / (d_in.max(1) as f64).sqrt();
            add("lora_q.down_weight", &[d_in, rank], Initial::Normal { deviation });
            add("lora_q.up_weight", &[rank, heads.saturating_mul(d)], Initial::Zero);
        }
        all
    }

    /// Trained numbers of a layer.
    pub fn num_parameters(&self) -> usize {
        self.checked_parameters().unwrap_or(usize::MAX)
    }

    /// The same, none if their size in bytes overflows.
    fn checked_parameters(&self) -> Option<usize> {
        let sizes = self.parameters().into_iter().map(|p| {
            p.shape
                .iter()
                .try_fold(1usize, |n, &s| n.checked_mul(s))
                .filter(|n| *n <= isize::MAX as usize / 8)
        });
        sizes.into_iter().try_fold(0usize, |sum, n| sum.checked_add(n?))
    }
}
