//! The module: a layer's trained tensors and what they do in it.

use candle_core::{Result, Tensor, Var, bail};
use candle_nn::{Init, VarBuilder};
use inducer_attention::{KeyConfig, ValueConfig};

use crate::config::{InducerAttentionConfig, Parameter};
use crate::op::{AttentionOutputs, inducer_attention, inducer_attention_outputs};
use crate::options::{AttentionOptions, TensorLayout};
use crate::storage::{CONTEXT, wrap};
use crate::tensors::{
    AdapterTensors, InducerTensors, KeyTensors, PrefixTensors, ValueTensors, VirtualTokens,
};

/// Attention of a frozen layer, tuned by inducers, a shared prefix, LoRA on the queries, or any of them together.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{VarBuilder, VarMap};
/// use inducer_attention_candle::{AttentionOptions, InducerAttention, InducerAttentionConfig};
///
/// let variables = VarMap::new();
/// let vb = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
/// let config = InducerAttentionConfig::new(4, 16).with_inducer(8);
/// let attention = InducerAttention::new(config, vb.pp("layers.0"))?;
/// let q = Tensor::randn(0f32, 1.0, (1, 4, 10, 16), &Device::Cpu)?;
/// let o = attention.forward(&q, &q, &q, &AttentionOptions::causal())?;
/// let gradients = o.sqr()?.sum_all()?.backward()?;
/// assert!(variables.all_vars().iter().all(|v| gradients.get(v).is_some()));
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct InducerAttention {
    config: InducerAttentionConfig,
    /// In the order of the configuration's parameters.
    parameters: Vec<(&'static str, Tensor)>,
    prefix: Option<PrefixTensors>,
    key: Option<KeyTensors>,
    value: Option<ValueTensors>,
    /// B_v and b_v of the extended value.
    up: Option<(Tensor, Tensor)>,
    /// A and B.
    lora: Option<(Tensor, Tensor)>,
    enabled: bool,
}

impl InducerAttention {
    /// Takes the layer's tensors from a variable builder. Those that a [`VarMap`](candle_nn::VarMap) does not have yet begin
    /// as published: weights from a truncated normal distribution (σ 0.01, cut at 2σ), biases 0, LoRA's A normal with
    /// deviation 1/√d_in and its B 0; a prefix with deviation 0.02. See [`with_seed`](Self::with_seed).
    ///
    /// # Errors
    /// A mistake in the configuration; a tensor that the builder does not have or has in another shape.
    #[allow(clippy::needless_pass_by_value, reason = "what every candle module takes")]
    pub fn new(config: InducerAttentionConfig, vb: VarBuilder<'_>) -> Result<Self> {
        Self::with_seed(config, 0, &vb)
    }

    /// [`new`](Self::new) with another seed for the initial values. Seed and full name determine them.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_seed(config: InducerAttentionConfig, seed: u64, vb: &VarBuilder<'_>) -> Result<Self> {
        Self::assemble(config, |Parameter { name, shape, initial }| {
            let fresh = !vb.contains_tensor(name);
            let tensor = vb.get_with_hints(shape.as_slice(), name, Init::Const(0.0))?;
            if fresh && tensor.is_variable() {
                let path = format!("{}.{name}", vb.prefix());
                let values = initial.sample(seed, &path, shape, tensor.dtype(), tensor.device())?;
                Var::from_tensor(&tensor)?.set(&values)?;
            }
            Ok(tensor)
        })
    }

    pub(crate) fn assemble(
        config: InducerAttentionConfig,
        mut get: impl FnMut(&Parameter) -> Result<Tensor>,
    ) -> Result<Self> {
        config.validate().map_err(wrap)?;
        let mut parameters = Vec::new();
        for parameter in config.parameters() {
            parameters.push((parameter.name, get(&parameter)?));
        }
        let find = |name: &str| match parameters.iter().find(|(n, _)| *n == name) {
            Some((_, tensor)) => Ok(tensor.clone()),
            None => bail!("{CONTEXT}: the configuration has no {name}"),
        };
        let adapter = |part: &str| {
            Ok::<_, candle_core::Error>(AdapterTensors {
                down_weight: find(&format!("{part}.down_weight"))?,
                down_bias: find(&format!("{part}.down_bias"))?,
                up_weight: find(&format!("{part}.up_weight"))?,
                up_bias: find(&format!("{part}.up_bias"))?,
            })
        };
        let prefix = if config.prefix_length > 0 {
            Some(PrefixTensors { k: find("prefix.k")?, v: find("prefix.v")? })
        } else {
            None
        };
        let key = match config.inducer.map(|i| i.key) {
            Some(KeyConfig::Query) => Some(KeyTensors::Query),
            Some(KeyConfig::Residual { .. }) => Some(KeyTensors::Residual(adapter("key")?)),
            Some(KeyConfig::LogitPerHead) => Some(KeyTensors::LogitPerHead(find("key.logit")?)),
            Some(KeyConfig::LogitPerToken) | None => None,
        };
        let value = match config.inducer.map(|i| i.value) {
            Some(ValueConfig::Zero) => Some(ValueTensors::Zero),
            Some(ValueConfig::Residual { .. }) => Some(ValueTensors::Residual(adapter("value")?)),
            Some(ValueConfig::Direct { .. }) => Some(ValueTensors::Direct(adapter("value")?)),
            Some(ValueConfig::Extended { .. }) => Some(ValueTensors::Extended {
                down_weight: find("value.down_weight")?,
                down_bias: find("value.down_bias")?,
            }),
            None => None,
        };
        let up = match value {
            Some(ValueTensors::Extended { .. }) => Some((find("value.up_weight")?, find("value.up_bias")?)),
            _ => None,
        };
        let lora = match config.lora_q {
            Some(_) => Some((find("lora_q.down_weight")?, find("lora_q.up_weight")?)),
            None => None,
        };
        Ok(Self { config, parameters, prefix, key, value, up, lora, enabled: true })
    }

    /// The configuration.
    pub fn config(&self) -> &InducerAttentionConfig {
        &self.config
    }

    /// The trained tensors by name, in a fixed order.
    pub fn named_tensors(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        self.parameters.iter().map(|(name, tensor)| (*name, tensor))
    }

    /// The trained tensors that are variables, for an optimiser.
    ///
    /// # Errors
    /// None in practice; candle's conversion returns a result.
    pub fn variables(&self) -> Result<Vec<Var>> {
        self.named_tensors().filter(|(_, t)| t.is_variable()).map(|(_, t)| Var::from_tensor(t)).collect()
    }

    /// Switches the tuning on or off. Off is exactly the frozen layer: plain attention, no change of queries or output.
    pub fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
    }

    /// Whether the tuning is on.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Sets the prefix to given keys and values, `[Hkv, L, d]` each: training begins better from those of real tokens than
    /// from random ones.
    ///
    /// # Errors
    /// There is no prefix, it is not a variable, or shape or dtype differ.
    pub fn set_prefix(&self, k: &Tensor, v: &Tensor) -> Result<()> {
        let Some(prefix) = &self.prefix else { bail!("{CONTEXT}: the configuration has no prefix") };
        for (name, to, from) in [("prefix.k", &prefix.k, k), ("prefix.v", &prefix.v, v)] {
            if !to.is_variable() {
                bail!("{CONTEXT}: {name} is not a variable");
            }
            if to.shape() != from.shape() {
                bail!("{CONTEXT}: {name}: shape {:?}, expected {:?}", from.shape(), to.shape());
            }
            Var::from_tensor(to)?.set(&from.to_dtype(to.dtype())?.contiguous()?)?;
        }
        Ok(())
    }

    /// Attention of q `[B, Hq, N, d]` over k and v `[B, Hkv, M, d]` and the virtual tokens; see
    /// [`inducer_attention`](crate::inducer_attention).
    ///
    /// # Errors
    /// Anything that does not fit; the extended value, which goes through [`forward_outputs`](Self::forward_outputs) and
    /// [`project`](Self::project); a configuration with logits per token.
    pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions) -> Result<Tensor> {
        let (tokens, options) = self.prepare(q, k, None, options)?;
        inducer_attention(q, k, v, &tokens, &options)
    }

    /// [`forward`](Self::forward) with all results: O, lse and, for the extended value, U.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), but the extended value is welcome.
    pub fn forward_outputs(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        options: &AttentionOptions,
    ) -> Result<AttentionOutputs> {
        let (tokens, options) = self.prepare(q, k, None, options)?;
        inducer_attention_outputs(q, k, v, &tokens, &options)
    }

    /// [`forward_outputs`](Self::forward_outputs) for a configuration with logits per token: `[B, Hq, N]`, computed by the
    /// caller.
    ///
    /// # Errors
    /// As [`forward_outputs`](Self::forward_outputs); another configuration.
    pub fn forward_with_logits(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        logits: &Tensor,
        options: &AttentionOptions,
    ) -> Result<AttentionOutputs> {
        let (tokens, options) = self.prepare(q, k, Some(logits), options)?;
        inducer_attention_outputs(q, k, v, &tokens, &options)
    }

    /// What LoRA adds to the query projection of the layer's input x `[…, d_in]`: `α/r · x A B`, `[…, Hq·d]`. None without
    /// LoRA or when switched off.
    ///
    /// # Errors
    /// x has another width.
    pub fn lora_query(&self, x: &Tensor) -> Result<Option<Tensor>> {
        let (Some((down, up)), Some(config), true) = (&self.lora, self.config.lora_q, self.enabled) else {
            return Ok(None);
        };
        if x.dims().last() != Some(&config.d_in) {
            bail!("{CONTEXT}: lora_query: x has shape {:?}, expected [..., {}]", x.dims(), config.d_in);
        }
        let (down, up) = (down.to_dtype(x.dtype())?, up.to_dtype(x.dtype())?);
        let hidden = x.reshape(((), config.d_in))?.matmul(&down)?;
        let change = (hidden * (config.alpha / config.rank as f64))?.matmul(&up)?;
        let mut shape = x.dims().to_vec();
        shape.pop();
        shape.push(self.config.num_heads * self.config.head_dim);
        Ok(Some(change.reshape(shape)?))
    }

    /// The output projection `O W_o + b_o`, and for the extended value `[attn | U]·[W_o ; B_v] + b_v + b_o`, either as one
    /// matrix product. `w_o` is `[Hq·d, D_out]` (the transposed weight of a [`candle_nn::Linear`]), the bias `[D_out]`, the
    /// result `[B, N, D_out]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn project(&self, outputs: &AttentionOutputs, w_o: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let InducerAttentionConfig { num_heads: heads, head_dim, .. } = self.config;
        let (inner, width) = w_o.dims2()?;
        if inner != heads * head_dim {
            bail!(
                "{CONTEXT}: w_o: shape {:?}, expected [Hq*d, D_out] = [{}, D_out]",
                w_o.dims(),
                heads * head_dim
            );
        }
        let rows = match outputs.layout {
            TensorLayout::Bnhd => outputs.packed.clone(),
            TensorLayout::Bhnd => outputs.packed.transpose(1, 2)?,
        };
        let (batch, n, _, _) = rows.dims4()?;
        let (weight, up_bias) = match (&outputs.u, &self.up) {
            (None, _) => (w_o.clone(), None),
            (Some(_), None) => {
                bail!("{CONTEXT}: project: there is a U, but this layer's value is not the extended one")
            }
            (Some(_), Some((up, up_bias))) => {
                if up.dims().last() != Some(&width) {
                    bail!(
                        "{CONTEXT}: w_o: shape {:?}, expected [{inner}, {}]: the up projection has that width",
                        w_o.dims(),
                        self.config.output_width()
                    );
                }
                let up = up.to_dtype(w_o.dtype())?;
                let up = if up.rank() == 2 {
                    let (rank, _) = up.dims2()?;
                    up.unsqueeze(0)?.broadcast_as((heads, rank, width))?
                } else {
                    up
                };
                // attn and U of one head lie side by side, so the rows of the weights do as well.
                let weight = Tensor::cat(&[&w_o.reshape((heads, head_dim, width))?, &up], 1)?;
                (weight.reshape(((), width))?, Some(up_bias.to_dtype(w_o.dtype())?))
            }
        };
        let product = rows.reshape((batch * n, weight.dim(0)?))?.matmul(&weight)?;
        let bias = match (bias, up_bias) {
            (Some(bias), Some(up_bias)) => Some((bias + up_bias)?),
            (Some(bias), None) => Some(bias.clone()),
            (None, up_bias) => up_bias,
        };
        let product = match bias {
            Some(bias) => product.broadcast_add(&bias)?,
            None => product,
        };
        product.reshape((batch, n, width))
    }

    /// The virtual tokens of a call, and its options.
    fn prepare(
        &self,
        q: &Tensor,
        k: &Tensor,
        logits: Option<&Tensor>,
        options: &AttentionOptions,
    ) -> Result<(VirtualTokens, AttentionOptions)> {
        let heads = if options.layout == TensorLayout::Bnhd { 2 } else { 1 };
        for (name, tensor, expected) in [("q", q, self.config.num_heads), ("k", k, self.config.num_kv_heads)]
        {
            if tensor.rank() == 4 && tensor.dim(heads)? != expected {
                bail!(
                    "{CONTEXT}: {name}: shape {:?} in layout {:?}, expected {expected} heads",
                    tensor.dims(),
                    options.layout
                );
            }
        }
        let per_token = matches!(self.config.inducer.map(|i| i.key), Some(KeyConfig::LogitPerToken));
        if per_token != logits.is_some() {
            bail!(
                "{CONTEXT}: key.logit: {}",
                if per_token {
                    "the configuration has logits per token; use forward_with_logits"
                } else {
                    "given, but the configuration has no logits per token"
                }
            );
        }
        let mut options = options.clone();
        if !self.enabled {
            options.positions = None;
            return Ok((VirtualTokens::default(), options));
        }
        let key = logits.map(|t| KeyTensors::LogitPerToken(t.clone())).or_else(|| self.key.clone());
        let inducer = match (self.config.inducer, key, self.value.clone()) {
            (Some(config), Some(key), Some(value)) => Some(InducerTensors {
                key,
                value,
                activation: config.activation,
                adaptive_length: config.adaptive_length,
            }),
            _ => None,
        };
        Ok((VirtualTokens { prefix: self.prefix.clone(), inducer }, options))
    }
}
