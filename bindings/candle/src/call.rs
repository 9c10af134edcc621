//! One call of the operation over detached tensors: forward and backward through the engine, without a graph.

use candle_core::{DType, Result, Tensor};
use inducer_attention::{
    Adapter, AdapterGradients, Attention, DownProjection, DownProjectionGradients, Gradients, Inducer,
    KeyGradients, Outputs, Prefix, PrefixGradients, Problem, Saved, SavedOutput, TensorMut, TensorRef,
    Upstream, ValueGradients, VirtualKey, VirtualValue,
};

use crate::engine;
use crate::options::{AttentionOptions, TensorLayout};
use crate::storage::{Borrowed, Buffer, CONTEXT, check_supported, wrap};
use crate::tensors::{KeyTensors, Named, ValueTensors, VirtualTokens};

/// The inputs of one call, detached from every graph, with contiguous last dimensions.
pub(crate) struct Call {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tokens: VirtualTokens,
    options: AttentionOptions,
}

/// What the forward computes.
pub(crate) struct Results {
    /// O, or `[attn | U]` along the last dimension for the extended value; in the layout of the options.
    pub(crate) main: Buffer,
    pub(crate) lse: Option<Buffer>,
    pub(crate) attn: Option<Buffer>,
}

/// What the backward needs of the forward.
pub(crate) struct SavedTensors {
    pub(crate) main: Tensor,
    pub(crate) lse: Tensor,
    pub(crate) attn: Option<Tensor>,
}

/// The inputs that gradients flow to, in one order everywhere: Q, K, V, prefix, key, value.
pub(crate) fn sources<'t>(
    q: &'t Tensor,
    k: &'t Tensor,
    v: &'t Tensor,
    tokens: &'t VirtualTokens,
) -> Vec<Named<'t>> {
    [("q", q), ("k", k), ("v", v)].into_iter().chain(tokens.groups().into_iter().flatten()).collect()
}

impl Call {
    /// Prepares the inputs; their shapes are checked when the call runs.
    pub(crate) fn new(
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        tokens: &VirtualTokens,
        options: &AttentionOptions,
    ) -> Result<Self> {
        for (name, tensor) in sources(q, k, v, tokens) {
            check_supported(name, tensor)?;
        }
        let prepare = |t: &Tensor| last_contiguous(&t.detach());
        // The engine takes prefix tokens of Q's dtype; trained ones are often f32.
        let prefix = |t: &Tensor| last_contiguous(&t.detach().to_dtype(q.dtype())?);
        Ok(Self {
            q: prepare(q)?,
            k: prepare(k)?,
            v: prepare(v)?,
            tokens: tokens.map(prefix, prepare)?,
            options: options.clone(),
        })
    }

    /// Runs the forward. lse is computed if wanted, attn if the options say so and lse is wanted.
    pub(crate) fn forward(&self, lse: bool) -> Result<Results> {
        let rank = self.tokens.extended_rank().unwrap_or(0);
        self.with_problem(|problem| {
            let (batch, heads) = (problem.batch(), problem.query_heads());
            let (rows, head_dim) = (problem.rows(), problem.head_dim());
            let row_major = |width: usize| self.dims([batch, heads, rows, width]);
            let mut main = Buffer::zeros(self.q.dtype(), row_major(head_dim + rank).to_vec())?;
            let mut lse = if lse { Some(Buffer::zeros(DType::F32, (batch, heads, rows))?) } else { None };
            let mut attn = if self.options.save_attention && lse.is_some() {
                Some(Buffer::zeros(self.q.dtype(), row_major(head_dim).to_vec())?)
            } else {
                None
            };
            let o = self.bhnd_mut(main.view()?)?;
            let (o, u) = if problem.is_extended() {
                let (o, u) = o.split_at(3, head_dim).map_err(wrap)?;
                (o, Some(u))
            } else {
                (o, None)
            };
            let outputs = Outputs {
                o,
                lse: lse.as_mut().map(Buffer::view).transpose()?,
                u,
                attn: match &mut attn {
                    Some(attn) => Some(self.bhnd_mut(attn.view()?)?),
                    None => None,
                },
            };
            engine::forward(problem, outputs).map_err(wrap)?;
            Ok(Results { main, lse, attn })
        })
    }

    /// Runs the backward: one gradient for each of [`sources`] that is wanted, of that source's shape, f32 for the virtual
    /// tokens and of Q's dtype for Q, K and V. Absent upstream gradients are 0.
    pub(crate) fn backward(
        &self,
        saved: &SavedTensors,
        d_main: Option<&Tensor>,
        d_lse: Option<&Tensor>,
        wanted: &[bool],
    ) -> Result<Vec<Option<Tensor>>> {
        let groups = self.tokens.groups();
        let mut rest = &wanted[3..];
        let group_wanted = groups.each_ref().map(|group| {
            let (these, others) = rest.split_at(group.len());
            rest = others;
            these.contains(&true)
        });
        let mut inputs = Vec::new();
        for t in [&self.q, &self.k, &self.v] {
            inputs.push(Buffer::zeros(t.dtype(), t.shape())?);
        }
        let mut virtual_tokens: [Vec<Buffer>; 3] = Default::default();
        for ((buffers, group), wanted) in virtual_tokens.iter_mut().zip(&groups).zip(group_wanted) {
            for (_, t) in group.iter().filter(|_| wanted) {
                buffers.push(Buffer::zeros(DType::F32, t.shape())?);
            }
        }

        // Upstream gradients may be broadcast views; a missing dO is one row of zeros seen from everywhere.
        let d_main = match d_main {
            Some(t) => last_contiguous(t)?,
            None => zero_row(&saved.main)?,
        };
        let d_main = Borrowed::new("d_o", &d_main);
        let d_lse = d_lse.map(|t| Borrowed::new("d_lse", t));
        let main = Borrowed::new("saved.o", &saved.main);
        let lse = Borrowed::new("saved.lse", &saved.lse);
        let attn = saved.attn.as_ref().map(|t| Borrowed::new("saved.attn", t));
        self.with_problem(|problem| {
            let head_dim = problem.head_dim();
            let d_main = self.bhnd(d_main.view()?)?;
            let width = d_main.shape()[3];
            let upstream = Upstream {
                d_o: d_main.narrow(3, 0, head_dim).map_err(wrap)?,
                d_lse: d_lse.as_ref().map(Borrowed::view).transpose()?,
                d_u: if problem.is_extended() {
                    Some(d_main.narrow(3, head_dim, width).map_err(wrap)?)
                } else {
                    None
                },
            };
            let output = match &attn {
                Some(attn) => SavedOutput::Attention(self.bhnd(attn.view()?)?),
                None => SavedOutput::Output(self.bhnd(main.view()?)?.narrow(3, 0, head_dim).map_err(wrap)?),
            };
            let saved = Saved { output, lse: lse.view()? };
            let [d_q, d_k, d_v] = &mut inputs[..] else { unreachable!("three inputs") };
            let [prefix, key, value] = &mut virtual_tokens;
            let gradients = Gradients {
                d_q: self.bhnd_mut(d_q.view()?)?,
                d_k: self.bhnd_mut(d_k.view()?)?,
                d_v: self.bhnd_mut(d_v.view()?)?,
                prefix: match &mut prefix[..] {
                    [k, v] => Some(PrefixGradients { k: k.view()?, v: v.view()? }),
                    _ => None,
                },
                key: match (self.tokens.inducer.as_ref().map(|i| &i.key), &mut key[..]) {
                    (Some(KeyTensors::LogitPerToken(_)), [logit]) => {
                        KeyGradients::LogitPerToken(logit.view()?)
                    }
                    (_, [logit]) => KeyGradients::LogitPerHead(logit.view()?),
                    (_, [a, b, c, d]) => KeyGradients::Residual(adapter_gradients(a, b, c, d)?),
                    _ => KeyGradients::None,
                },
                value: match &mut value[..] {
                    [a, b, c, d] => ValueGradients::Adapter(adapter_gradients(a, b, c, d)?),
                    [a, b] => ValueGradients::Extended(DownProjectionGradients {
                        down_weight: a.view()?,
                        down_bias: b.view()?,
                    }),
                    _ => ValueGradients::None,
                },
            };
            engine::backward(problem, saved, upstream, gradients).map_err(wrap)
        })?;

        let mut gradients: Vec<Option<Tensor>> = inputs.into_iter().map(|b| Some(b.into_tensor())).collect();
        for (buffers, group) in virtual_tokens.into_iter().zip(&groups) {
            if buffers.is_empty() {
                gradients.extend(group.iter().map(|_| None));
            } else {
                gradients.extend(buffers.into_iter().map(|b| Some(b.into_tensor())));
            }
        }
        for (gradient, _) in gradients.iter_mut().zip(wanted).filter(|(_, wanted)| !**wanted) {
            *gradient = None;
        }
        Ok(gradients)
    }

    /// Validates the problem over locked inputs and hands it on.
    fn with_problem<R>(&self, f: impl FnOnce(&Problem<'_>) -> Result<R>) -> Result<R> {
        let borrowed: Vec<Borrowed<'_>> = sources(&self.q, &self.k, &self.v, &self.tokens)
            .into_iter()
            .map(|(name, t)| Borrowed::new(name, t))
            .collect();
        let mut views = Views(borrowed.iter());
        let mut attention =
            Attention::new(self.bhnd(views.next()?)?, self.bhnd(views.next()?)?, self.bhnd(views.next()?)?);
        attention.config = self.options.config;
        attention.lengths = self.options.lengths.borrowed();
        attention.alibi_slopes = self.options.alibi_slopes.as_deref();
        if self.tokens.prefix.is_some() {
            attention.prefix = Some(Prefix { k: views.next()?, v: views.next()? });
        }
        if let Some(inducer) = &self.tokens.inducer {
            let activation = inducer.activation;
            let key = match inducer.key {
                KeyTensors::Query => VirtualKey::Query,
                KeyTensors::Residual(_) => VirtualKey::Residual(views.adapter(activation)?),
                KeyTensors::LogitPerHead(_) => VirtualKey::LogitPerHead(views.next()?),
                KeyTensors::LogitPerToken(_) => VirtualKey::LogitPerToken(views.next()?),
            };
            let value = match inducer.value {
                ValueTensors::Zero => VirtualValue::Zero,
                ValueTensors::Residual(_) => VirtualValue::Residual(views.adapter(activation)?),
                ValueTensors::Direct(_) => VirtualValue::Direct(views.adapter(activation)?),
                ValueTensors::Extended { .. } => VirtualValue::Extended(DownProjection {
                    down_weight: views.next()?,
                    down_bias: views.next()?,
                    activation,
                }),
            };
            attention.inducer = Some(Inducer {
                key,
                value,
                adaptive_length: inducer.adaptive_length,
                positions: self.options.positions.as_deref(),
            });
        } else if self.options.positions.is_some() {
            return Err(wrap(inducer_attention::Error::Unexpected {
                argument: "positions",
                reason: "there is no inducer",
            }));
        }
        f(&attention.validate().map_err(wrap)?)
    }

    /// The dimensions of a tensor in the layout of the options.
    fn dims(&self, [b, h, n, d]: [usize; 4]) -> [usize; 4] {
        match self.options.layout {
            TensorLayout::Bhnd => [b, h, n, d],
            TensorLayout::Bnhd => [b, n, h, d],
        }
    }

    fn bhnd<'t>(&self, t: TensorRef<'t, 4>) -> Result<TensorRef<'t, 4>> {
        t.permute(self.dims([0, 1, 2, 3])).map_err(wrap)
    }

    fn bhnd_mut<'t>(&self, t: TensorMut<'t, 4>) -> Result<TensorMut<'t, 4>> {
        t.permute(self.dims([0, 1, 2, 3])).map_err(wrap)
    }
}

/// Hands out the locked inputs one after the other.
struct Views<'b>(std::slice::Iter<'b, Borrowed<'b>>);

impl<'b> Views<'b> {
    fn next<const R: usize>(&mut self) -> Result<TensorRef<'b, R>> {
        match self.0.next() {
            Some(borrowed) => borrowed.view(),
            None => candle_core::bail!("{CONTEXT}: too few inputs"),
        }
    }

    fn adapter(&mut self, activation: inducer_attention::Activation) -> Result<Adapter<'b>> {
        Ok(Adapter {
            down_weight: self.next()?,
            down_bias: self.next()?,
            up_weight: self.next()?,
            up_bias: self.next()?,
            activation,
        })
    }
}

fn adapter_gradients<'b>(
    down_weight: &'b mut Buffer,
    down_bias: &'b mut Buffer,
    up_weight: &'b mut Buffer,
    up_bias: &'b mut Buffer,
) -> Result<AdapterGradients<'b>> {
    Ok(AdapterGradients {
        down_weight: down_weight.view()?,
        down_bias: down_bias.view()?,
        up_weight: up_weight.view()?,
        up_bias: up_bias.view()?,
    })
}

/// The tensor itself if its last dimension is contiguous, otherwise a copy.
fn last_contiguous(t: &Tensor) -> Result<Tensor> {
    match (t.dims().last(), t.stride().last()) {
        (Some(&size), Some(&stride)) if size > 1 && stride != 1 => t.contiguous(),
        _ => Ok(t.clone()),
    }
}

/// Zeros of a tensor's shape that take up one row of memory.
fn zero_row(like: &Tensor) -> Result<Tensor> {
    let width = like.dims().last().copied().unwrap_or(0);
    Tensor::zeros(width, like.dtype(), like.device())?.broadcast_as(like.shape())
}
