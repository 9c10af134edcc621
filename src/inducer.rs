//! The virtual token that every query has for itself: its key, its value, and their gradients.
//!
//! With the query row Q, down and up projections A, a, B, b per query head, and tanh between them (Chen et al.,
//! *Inducer-tuning: Connecting Prefix-tuning and Adapter-tuning*, EMNLP 2022, section 4.3), the virtual key and its weight are
//!
#![doc = include_str!("equations/virtual_key.md")]
//!
//! the virtual value is
//!
#![doc = include_str!("equations/virtual_value.md")]
//!
//! and [`VirtualValue`] says how it enters the output.

use crate::tensor::{TensorMut, TensorRef};

/// Largest rank of an adapter.
pub const MAX_RANK: usize = 64;

/// What stands between the down and the up projection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Activation {
    /// Hyperbolic tangent, as published.
    #[default]
    Tanh,
    /// Nothing: a linear adapter.
    Identity,
}

/// A low-rank adapter per query head: `x ↦ act(x A + a) B + b`.
///
/// Each tensor is of Q's dtype or f32, all four alike, with a contiguous last dimension. r is 1 to [`MAX_RANK`]; two adapters of
/// one inducer may have different ranks.
#[derive(Clone, Copy, Debug)]
pub struct Adapter<'a> {
    /// A, `[Hq, d, r]`.
    pub down_weight: TensorRef<'a, 3>,
    /// a, `[Hq, r]`.
    pub down_bias: TensorRef<'a, 2>,
    /// B, `[Hq, r, d]`.
    pub up_weight: TensorRef<'a, 3>,
    /// b, `[Hq, d]`.
    pub up_bias: TensorRef<'a, 2>,
    /// Between the two projections.
    pub activation: Activation,
}

/// The half of an adapter that the extended value needs here: `h = act(Q A + a)`.
///
/// The up projection `U·B_v + b_v` belongs to the caller's output projection, as one product
/// `[attn | U]·[W_o ; B_v] + b_v`.
#[derive(Clone, Copy, Debug)]
pub struct DownProjection<'a> {
    /// A, `[Hq, d, r]`.
    pub down_weight: TensorRef<'a, 3>,
    /// a, `[Hq, r]`.
    pub down_bias: TensorRef<'a, 2>,
    /// After the projection.
    pub activation: Activation,
}

/// Where the virtual token's score s0 comes from: `τσ Q·P_k` with a virtual key P_k, or given.
#[derive(Clone, Copy, Debug)]
pub enum VirtualKey<'a> {
    /// `P_k = Q`: the query itself.
    Query,
    /// `P_k = Q + adapter(Q)`.
    Residual(Adapter<'a>),
    /// The score itself, one per query head, `[Hq]`, of Q's dtype or f32: a learned attention sink. Neither scaled nor
    /// adapted; −∞ switches the virtual token off.
    LogitPerHead(TensorRef<'a, 1>),
    /// The score itself, one per query, `[B, Hq, N]` (`[1, Hq, total]` for packed sequences), of Q's dtype or f32; otherwise as
    /// [`LogitPerHead`](Self::LogitPerHead).
    LogitPerToken(TensorRef<'a, 3>),
}

/// What the virtual token adds to the output. attn is the attention over real keys and prefix, λ the virtual token's softmax
/// weight, `Δ = h B + b` the adapter's result, `h = act(Q A + a)` its hidden units.
#[derive(Clone, Copy, Debug)]
pub enum VirtualValue<'a> {
    /// `O = (1−λ) attn`: the token takes softmax mass and gives nothing, as attention sinks do.
    Zero,
    /// `O = attn + λ Δ`.
    Residual(Adapter<'a>),
    /// `O = (1−λ) attn + λ Δ`.
    Direct(Adapter<'a>),
    /// `O = attn` and `U = λ h`, `[B, Hq, N, r]`, for the caller's output projection.
    Extended(DownProjection<'a>),
}

/// The virtual token of every query.
#[derive(Clone, Copy, Debug)]
pub struct Inducer<'a> {
    /// Its score.
    pub key: VirtualKey<'a>,
    /// Its value.
    pub value: VirtualValue<'a>,
    /// Multiplies the score by √position ("adaptive length"). Positions count from 1; given logits are left alone.
    pub adaptive_length: bool,
    /// Positions that override the usual ones for [`adaptive_length`](Self::adaptive_length): `B·N` entries, row-major
    /// (packed: one per row), each 0 or more.
    pub positions: Option<&'a [i32]>,
}

impl<'a> Inducer<'a> {
    /// An inducer with this key and value, without adaptive length.
    pub fn new(key: VirtualKey<'a>, value: VirtualValue<'a>) -> Self {
        Self { key, value, adaptive_length: false, positions: None }
    }
}

/// Shared prefix tokens, `[Hkv, L, d]` each, of Q's dtype: read in place before K and V, seen by every query.
#[derive(Clone, Copy, Debug)]
pub struct Prefix<'a> {
    /// Keys.
    pub k: TensorRef<'a, 3>,
    /// Values.
    pub v: TensorRef<'a, 3>,
}

/// Gradients of the shared prefix, f32, `[Hkv, L, d]` each.
#[derive(Debug)]
pub struct PrefixGradients<'a> {
    /// Gradient of the prefix keys.
    pub k: TensorMut<'a, 3>,
    /// Gradient of the prefix values.
    pub v: TensorMut<'a, 3>,
}

/// Gradients of an [`Adapter`], f32, of the same shapes.
#[derive(Debug)]
pub struct AdapterGradients<'a> {
    /// Gradient of A, `[Hq, d, r]`.
    pub down_weight: TensorMut<'a, 3>,
    /// Gradient of a, `[Hq, r]`.
    pub down_bias: TensorMut<'a, 2>,
    /// Gradient of B, `[Hq, r, d]`.
    pub up_weight: TensorMut<'a, 3>,
    /// Gradient of b, `[Hq, d]`.
    pub up_bias: TensorMut<'a, 2>,
}

/// Gradients of a [`DownProjection`], f32, of the same shapes.
#[derive(Debug)]
pub struct DownProjectionGradients<'a> {
    /// Gradient of A, `[Hq, d, r]`.
    pub down_weight: TensorMut<'a, 3>,
    /// Gradient of a, `[Hq, r]`.
    pub down_bias: TensorMut<'a, 2>,
}

/// Where the gradient of the virtual key's parameters goes; must match the [`VirtualKey`].
#[derive(Debug, Default)]
pub enum KeyGradients<'a> {
    /// Nowhere: there are none, or they are not wanted.
    #[default]
    None,
    /// For [`VirtualKey::Residual`].
    Residual(AdapterGradients<'a>),
    /// For [`VirtualKey::LogitPerHead`], f32 `[Hq]`.
    LogitPerHead(TensorMut<'a, 1>),
    /// For [`VirtualKey::LogitPerToken`], f32 `[B, Hq, N]`.
    LogitPerToken(TensorMut<'a, 3>),
}

/// Where the gradient of the virtual value's parameters goes; must match the [`VirtualValue`].
#[derive(Debug, Default)]
pub enum ValueGradients<'a> {
    /// Nowhere: there are none, or they are not wanted.
    #[default]
    None,
    /// For [`VirtualValue::Residual`] and [`VirtualValue::Direct`].
    Adapter(AdapterGradients<'a>),
    /// For [`VirtualValue::Extended`].
    Extended(DownProjectionGradients<'a>),
}
