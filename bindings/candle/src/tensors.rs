//! What is learned, as candle tensors: shared prefix and inducer.

use candle_core::Tensor;
use inducer_attention::Activation;

/// What attention sees besides K and V. The default is nothing: plain attention.
#[derive(Clone, Debug, Default)]
pub struct VirtualTokens {
    /// Tokens shared by all queries.
    pub prefix: Option<PrefixTensors>,
    /// Every query's own token.
    pub inducer: Option<InducerTensors>,
}

/// Shared prefix tokens, `[Hkv, L, d]` each; f32 or of Q's dtype.
#[derive(Clone, Debug)]
pub struct PrefixTensors {
    /// Keys.
    pub k: Tensor,
    /// Values.
    pub v: Tensor,
}

/// The virtual token of every query.
#[derive(Clone, Debug)]
pub struct InducerTensors {
    /// Its score.
    pub key: KeyTensors,
    /// Its value.
    pub value: ValueTensors,
    /// Between the projections of the adapters.
    pub activation: Activation,
    /// Multiplies the score by √position; see [`inducer_attention::Inducer::adaptive_length`].
    pub adaptive_length: bool,
}

/// A low-rank adapter per query head, `x ↦ act(x A + a) B + b`; all four f32 or of Q's dtype.
#[derive(Clone, Debug)]
pub struct AdapterTensors {
    /// A, `[Hq, d, r]`.
    pub down_weight: Tensor,
    /// a, `[Hq, r]`.
    pub down_bias: Tensor,
    /// B, `[Hq, r, d]`.
    pub up_weight: Tensor,
    /// b, `[Hq, d]`.
    pub up_bias: Tensor,
}

/// Where the virtual token's score comes from; see [`inducer_attention::VirtualKey`].
#[derive(Clone, Debug)]
pub enum KeyTensors {
    /// `P_k = Q`.
    Query,
    /// `P_k = Q + adapter(Q)`.
    Residual(AdapterTensors),
    /// The score itself, per head, `[Hq]`.
    LogitPerHead(Tensor),
    /// The score itself, per query, `[B, Hq, N]`.
    LogitPerToken(Tensor),
}

/// What the virtual token adds; see [`inducer_attention::VirtualValue`].
#[derive(Clone, Debug)]
pub enum ValueTensors {
    /// Nothing: it only takes softmax mass.
    Zero,
    /// `O = attn + λ Δ`.
    Residual(AdapterTensors),
    /// `O = (1−λ) attn + λ Δ`.
    Direct(AdapterTensors),
    /// `O = attn` and `U = λ h`, for the output projection.
    Extended {
        /// A, `[Hq, d, r]`.
        down_weight: Tensor,
        /// a, `[Hq, r]`.
        down_bias: Tensor,
    },
}

impl InducerTensors {
    /// An inducer with this key and value, tanh between the projections, without adaptive length.
    pub fn new(key: KeyTensors, value: ValueTensors) -> Self {
        Self { key, value, activation: Activation::default(), adaptive_length: false }
    }
}

/// A tensor with the name that errors give it.
pub(crate) type Named<'t> = (&'static str, &'t Tensor);

impl AdapterTensors {
    fn named(&self, names: [&'static str; 4]) -> Vec<Named<'_>> {
        names.into_iter().zip([&self.down_weight, &self.down_bias, &self.up_weight, &self.up_bias]).collect()
    }

    fn map<E>(&self, f: &mut impl FnMut(&Tensor) -> Result<Tensor, E>) -> Result<Self, E> {
        Ok(Self {
            down_weight: f(&self.down_weight)?,
            down_bias: f(&self.down_bias)?,
            up_weight: f(&self.up_weight)?,
            up_bias: f(&self.up_bias)?,
        })
    }
}

impl PrefixTensors {
    pub(crate) fn named(&self) -> Vec<Named<'_>> {
        vec![("prefix.k", &self.k), ("prefix.v", &self.v)]
    }
}

impl KeyTensors {
    pub(crate) fn named(&self) -> Vec<Named<'_>> {
        match self {
            Self::Query => Vec::new(),
            Self::Residual(a) => {
                a.named(["key.down_weight", "key.down_bias", "key.up_weight", "key.up_bias"])
            }
            Self::LogitPerHead(t) | Self::LogitPerToken(t) => vec![("key.logit", t)],
        }
    }

    fn map<E>(&self, f: &mut impl FnMut(&Tensor) -> Result<Tensor, E>) -> Result<Self, E> {
        Ok(match self {
            Self::Query => Self::Query,
            Self::Residual(a) => Self::Residual(a.map(f)?),
            Self::LogitPerHead(t) => Self::LogitPerHead(f(t)?),
            Self::LogitPerToken(t) => Self::LogitPerToken(f(t)?),
        })
    }
}

impl ValueTensors {
    pub(crate) fn named(&self) -> Vec<Named<'_>> {
        match self {
            Self::Zero => Vec::new(),
            Self::Residual(a) | Self::Direct(a) => {
                a.named(["value.down_weight", "value.down_bias", "value.up_weight", "value.up_bias"])
            }
            Self::Extended { down_weight, down_bias } => {
                vec![("value.down_weight", down_weight), ("value.down_bias", down_bias)]
            }
        }
    }

    fn map<E>(&self, f: &mut impl FnMut(&Tensor) -> Result<Tensor, E>) -> Result<Self, E> {
        Ok(match self {
            Self::Zero => Self::Zero,
            Self::Residual(a) => Self::Residual(a.map(f)?),
            Self::Direct(a) => Self::Direct(a.map(f)?),
            Self::Extended { down_weight, down_bias } => {
                Self::Extended { down_weight: f(down_weight)?, down_bias: f(down_bias)? }
            }
        })
    }
}

impl VirtualTokens {
    /// Every tensor, in the order prefix, key, value: the three groups whose gradients are computed together.
    pub(crate) fn groups(&self) -> [Vec<Named<'_>>; 3] {
        let inducer = self.inducer.as_ref();
        [
            self.prefix.as_ref().map(PrefixTensors::named).unwrap_or_default(),
            inducer.map(|i| i.key.named()).unwrap_or_default(),
            inducer.map(|i| i.value.named()).unwrap_or_default(),
        ]
    }

    /// The same tokens with every tensor of the prefix and of the inducer replaced.
    pub(crate) fn map<E>(
        &self,
        mut prefix: impl FnMut(&Tensor) -> Result<Tensor, E>,
        mut inducer: impl FnMut(&Tensor) -> Result<Tensor, E>,
    ) -> Result<Self, E> {
        Ok(Self {
            prefix: match &self.prefix {
                Some(p) => Some(PrefixTensors { k: prefix(&p.k)?, v: prefix(&p.v)? }),
                None => None,
            },
            inducer: match &self.inducer {
                Some(i) => Some(InducerTensors {
                    key: i.key.map(&mut inducer)?,
                    value: i.value.map(&mut inducer)?,
                    activation: i.activation,
                    adaptive_length: i.adaptive_length,
                }),
                None => None,
            },
        })
    }

    /// Rank of the extended value, none if the value is another.
    pub(crate) fn extended_rank(&self) -> Option<usize> {
        match self.inducer.as_ref().map(|i| &i.value) {
            Some(ValueTensors::Extended { down_weight, .. }) => down_weight.dims().last().copied(),
            _ => None,
        }
    }
}
