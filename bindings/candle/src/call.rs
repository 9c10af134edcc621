//! One call of the operation over detached tensors: forward and backward through a backend, without a graph.

use candle_core::{DType, Result, Tensor};
use inducer_attention::{
    Adapter, AdapterGradients, Attention, DownProjection, DownProjectionGradients, Gradients, Inducer,
    KeyGradients, Outputs, Prefix, PrefixGradients, Saved, SavedOutput, TensorMut, TensorRef, Upstream,
    ValueGradients, VirtualKey, VirtualValue,
};

use crate::backend::{Backend, Lists, Scope, Scratch};
use crate::device::check_supported;
use crate::layout::{last_contiguous, packed_width, readable_rows};
use crate::options::{AttentionOptions, TensorLayout};
use crate::storage::{Buffer, CONTEXT, Locked, View, wrap};
use crate::tensors::{KeyTensors, Named, ValueTensors, VirtualTokens};

/// The inputs of one call, detached from every graph, with contiguous last dimensions.
pub(crate) struct Call {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tokens: VirtualTokens,
    options: AttentionOptions,
    lists: Lists,
}

/// What the forward computes.
pub(crate) struct Results {
    /// O, or `[attn | U]` along the last dimension for the extended value; in the layout of the options. On a GPU rows of the
    /// latter may end with padding behind [`Call::width`] elements.
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
            check_supported(name, tensor, q)?;
        }
        let rows = |t: &Tensor| readable_rows(&t.detach());
        // The engines take prefix tokens of Q's dtype; trained ones are often f32.
        let prefix = |t: &Tensor| readable_rows(&t.detach().to_dtype(q.dtype())?);
        let inducer = |t: &Tensor| last_contiguous(&t.detach());
        Ok(Self {
            q: rows(q)?,
            k: rows(k)?,
            v: rows(v)?,
            tokens: tokens.map(prefix, inducer)?,
            options: options.clone(),
            lists: Lists::default(),
        })
    }

    /// Elements of a row of the main result.
    pub(crate) fn width(&self) -> usize {
        self.q.dims().last().copied().unwrap_or(0) + self.rank()
    }

    fn rank(&self) -> usize {
        self.tokens.extended_rank().unwrap_or(0)
    }

    /// Runs the forward. lse is computed if wanted, attn if the options say so and lse is wanted.
    pub(crate) fn forward(&self, lse: bool) -> Result<Results> {
        let (device, dtype) = (self.q.device(), self.q.dtype());
        let backend = Backend::of(device)?;
        // A scope's memory is declared before it.
        let (mut main, mut lse_buffer, mut attn) = (None, None, None);
        let locked = self.lock();
        let views = views(&locked)?;
        let scope = backend.scope()?;
        let attention = self.attention(&scope, &views)?;
        let problem = attention.validate().map_err(wrap)?;

        let (batch, heads) = (problem.batch(), problem.query_heads());
        let (rows, head_dim) = (problem.rows(), problem.head_dim());
        let row_major = |width: usize| self.dims([batch, heads, rows, width]).to_vec();
        let width = packed_width(head_dim, self.rank(), device.is_cuda());
        let main_view = scope.write(main.insert(Buffer::new(device, dtype, row_major(width))?))?;
        let o = self.bhnd_mut(main_view)?;
        let (o, u) = if problem.is_extended() {
            let (o, rest) = o.split_at(3, head_dim).map_err(wrap)?;
            let (u, _) = rest.split_at(3, self.rank()).map_err(wrap)?;
            (o, Some(u))
        } else {
            (o, None)
        };
        let mut outputs = Outputs { o, lse: None, u, attn: None };
        if lse {
            let buffer = Buffer::new(device, DType::F32, (batch, heads, rows))?;
            outputs.lse = Some(scope.write(lse_buffer.insert(buffer))?);
        }
        if lse && self.options.save_attention {
            let buffer = Buffer::new(device, dtype, row_major(head_dim))?;
            outputs.attn = Some(self.bhnd_mut(scope.write(attn.insert(buffer))?)?);
        }
        scope.forward(&problem, outputs, &self.lists)?;
        scope.end();
        match main {
            Some(main) => Ok(Results { main, lse: lse_buffer, attn }),
            None => candle_core::bail!("{CONTEXT}: the forward has no result"),
        }
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
        let device = self.q.device();
        let mut inputs = Vec::new();
        for t in [&self.q, &self.k, &self.v] {
            inputs.push(Buffer::new(device, t.dtype(), t.shape())?);
        }
        let mut virtual_tokens: [Vec<Buffer>; 3] = Default::default();
        for ((buffers, group), wanted) in virtual_tokens.iter_mut().zip(&groups).zip(group_wanted) {
            for (_, t) in group.iter().filter(|_| wanted) {
                buffers.push(Buffer::new(device, DType::F32, t.shape())?);
            }
        }

        // Upstream gradients may be broadcast views; a missing dO is one row of zeros seen from everywhere.
        let d_main = match d_main {
            Some(t) => readable_rows(t)?,
            None => zero_row(&saved.main)?,
        };
        let backend = Backend::of(device)?;
        let mut scratch = Scratch::default();
        let mut locked = self.lock();
        let sources = locked.len();
        locked.push(Locked::new("d_o", &d_main));
        locked.push(Locked::new("saved.o", &saved.main));
        locked.push(Locked::new("saved.lse", &saved.lse));
        locked.extend(saved.attn.as_ref().map(|t| Locked::new("saved.attn", t)));
        locked.extend(d_lse.map(|t| Locked::new("d_lse", t)));
        let views = views(&locked)?;
        let scope = backend.scope()?;
        let (source_views, others) = views.split_at(sources);
        let attention = self.attention(&scope, source_views)?;
        let problem = attention.validate().map_err(wrap)?;

        let mut others = Views { scope: &scope, views: others.iter() };
        let (head_dim, width) = (problem.head_dim(), self.width());
        let d_main = self.bhnd(others.next()?)?;
        let d_u =
            if problem.is_extended() { Some(d_main.narrow(3, head_dim, width).map_err(wrap)?) } else { None };
        let d_o = d_main.narrow(3, 0, head_dim).map_err(wrap)?;
        let main = self.bhnd(others.next()?)?.narrow(3, 0, head_dim).map_err(wrap)?;
        let lse = others.next()?;
        let output = if saved.attn.is_some() {
            SavedOutput::Attention(self.bhnd(others.next()?)?)
        } else {
            SavedOutput::Output(main)
        };
        let d_lse = if d_lse.is_some() { Some(others.next()?) } else { None };

        let [d_q, d_k, d_v] = &mut inputs[..] else { unreachable!("three inputs") };
        let [prefix, key, value] = &mut virtual_tokens;
        let gradients = Gradients {
            d_q: self.bhnd_mut(scope.write(d_q)?)?,
            d_k: self.bhnd_mut(scope.write(d_k)?)?,
            d_v: self.bhnd_mut(scope.write(d_v)?)?,
            prefix: match &mut prefix[..] {
                [k, v] => Some(PrefixGradients { k: scope.write(k)?, v: scope.write(v)? }),
                _ => None,
            },
            key: match (self.tokens.inducer.as_ref().map(|i| &i.key), &mut key[..]) {
                (Some(KeyTensors::LogitPerToken(_)), [logit]) => {
                    KeyGradients::LogitPerToken(scope.write(logit)?)
                }
                (_, [logit]) => KeyGradients::LogitPerHead(scope.write(logit)?),
                (_, [a, b, c, d]) => KeyGradients::Residual(adapter_gradients(&scope, [a, b, c, d])?),
                _ => KeyGradients::None,
            },
            value: match &mut value[..] {
                [a, b, c, d] => ValueGradients::Adapter(adapter_gradients(&scope, [a, b, c, d])?),
                [a, b] => ValueGradients::Extended(DownProjectionGradients {
                    down_weight: scope.write(a)?,
                    down_bias: scope.write(b)?,
                }),
                _ => ValueGradients::None,
            },
        };
        scope.backward(
            &problem,
            Saved { output, lse },
            Upstream { d_o, d_lse, d_u },
            gradients,
            &self.lists,
            &mut scratch,
        )?;
        scope.end();

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

    /// Read locks on all inputs, in the order of [`sources`].
    fn lock(&self) -> Vec<Locked<'_>> {
        let sources = sources(&self.q, &self.k, &self.v, &self.tokens);
        sources.into_iter().map(|(name, t)| Locked::new(name, t)).collect()
    }

    /// The problem over locked inputs, in the order of [`sources`].
    fn attention<'x, 's>(&'x self, scope: &'x Scope<'s>, views: &'s [View<'s>]) -> Result<Attention<'x>> {
        let mut views = Views { scope, views: views.iter() };
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
        Ok(attention)
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

/// Views of everything that is locked.
fn views<'l>(locked: &'l [Locked<'_>]) -> Result<Vec<View<'l>>> {
    locked.iter().map(Locked::view).collect()
}

/// Lends views to a call, one after the other.
struct Views<'x, 's> {
    scope: &'x Scope<'s>,
    views: std::slice::Iter<'s, View<'s>>,
}

impl<'x> Views<'x, '_> {
    fn next<const R: usize>(&mut self) -> Result<TensorRef<'x, R>> {
        match self.views.next() {
            Some(view) => self.scope.read(view),
            None => candle_core::bail!("{CONTEXT}: too few inputs"),
        }
    }

    fn adapter(&mut self, activation: inducer_attention::Activation) -> Result<Adapter<'x>> {
        Ok(Adapter {
            down_weight: self.next()?,
            down_bias: self.next()?,
            up_weight: self.next()?,
            up_bias: self.next()?,
            activation,
        })
    }
}

fn adapter_gradients<'x, 's>(
    scope: &'x Scope<'s>,
    [down_weight, down_bias, up_weight, up_bias]: [&'s mut Buffer; 4],
) -> Result<AdapterGradients<'x>> {
    Ok(AdapterGradients {
        down_weight: scope.write(down_weight)?,
        down_bias: scope.write(down_bias)?,
        up_weight: scope.write(up_weight)?,
        up_bias: scope.write(up_bias)?,
    })
}

/// Zeros of a tensor's shape that take up one row of memory.
fn zero_row(like: &Tensor) -> Result<Tensor> {
    let width = like.dims().last().copied().unwrap_or(0);
    Tensor::zeros(width, like.dtype(), like.device())?.broadcast_as(like.shape())
}
