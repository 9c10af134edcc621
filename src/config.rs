//! The parts of a problem that are settings rather than tensors.

use crate::error::{Error, Result};
use crate::inducer::{Activation, MAX_RANK};

/// Settings of the attention itself.
///
/// The default is plain full attention with scale `1/√head_dim`. Serialised (feature `serde`), fields may be missing and then
/// take their defaults; unknown ones are errors.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct AttentionConfig {
    /// σ, what scores are multiplied by; `1/√head_dim` if none. Must be finite.
    pub softmax_scale: Option<f32>,
    /// Query i sees keys up to its offset position, `i + M − N` where there are no lengths (bottom-right aligned). The same as
    /// `window_right` = 0, and stronger than any other.
    pub causal: bool,
    /// How many keys to the left of its offset position a query sees, besides that position; none is all.
    pub window_left: Option<i64>,
    /// How many keys to the right of its offset position a query sees, besides that position; none is all.
    pub window_right: Option<i64>,
    /// c in `c·tanh(s/c)`, applied to the scaled scores of real keys and prefix. Must be finite and positive; none leaves them
    /// as they are.
    pub softcap: Option<f32>,
    /// Dropout on probabilities and on λ; none drops nothing.
    pub dropout: Option<Dropout>,
}

/// Dropout with inverted scaling: see [`dropout`](crate::dropout) for which entries are dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct Dropout {
    /// Probability of dropping an entry, `0 <= p < 1`; rounded to a multiple of 2⁻¹⁶.
    pub p: f32,
    /// Seed of the Philox stream.
    pub seed: u64,
}

impl AttentionConfig {
    /// Checks every setting for itself.
    ///
    /// # Errors
    /// [`Error::Setting`], [`Error::NegativeWindow`], [`Error::Dropout`].
    pub fn validate(&self) -> Result<()> {
        if let Some(scale) = self.softmax_scale.filter(|s| !s.is_finite()) {
            return Err(Error::Setting {
                argument: "softmax_scale",
                value: scale,
                expected: "a finite number",
            });
        }
        if let Some(cap) = self.softcap.filter(|c| !c.is_finite() || *c <= 0.0) {
            return Err(Error::Setting {
                argument: "softcap",
                value: cap,
                expected: "a finite number over 0, or none",
            });
        }
        for (argument, window) in [("window_left", self.window_left), ("window_right", self.window_right)] {
            if let Some(value) = window.filter(|w| *w < 0) {
                return Err(Error::NegativeWindow { argument, value });
            }
        }
        if let Some(Dropout { p, .. }) = self.dropout.filter(|d| !(0.0..1.0).contains(&d.p)) {
            return Err(Error::Dropout { p });
        }
        Ok(())
    }
}

/// Which member of the family an inducer is: what a checkpoint's configuration records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct InducerConfig {
    /// The virtual key.
    pub key: KeyConfig,
    /// The virtual value.
    pub value: ValueConfig,
    /// Between the projections of the adapters.
    #[cfg_attr(feature = "serde", serde(default))]
    pub activation: Activation,
    /// See [`Inducer::adaptive_length`](crate::Inducer::adaptive_length).
    #[cfg_attr(feature = "serde", serde(default))]
    pub adaptive_length: bool,
}

/// Which kind of virtual key: [`VirtualKey`](crate::VirtualKey) without its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields))]
pub enum KeyConfig {
    /// `P_k = Q`: the query itself.
    Query,
    /// `P_k = Q + adapter(Q)`.
    Residual {
        /// Its rank, 1 to [`MAX_RANK`].
        rank: usize,
    },
    /// A learned score per query head, `[Hq]`: an attention sink.
    LogitPerHead,
    /// A given score per query, `[B, Hq, N]`.
    LogitPerToken,
}

/// Which kind of virtual value: [`VirtualValue`](crate::VirtualValue) without its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields))]
pub enum ValueConfig {
    /// `O = (1−λ) attn`.
    Zero,
    /// `O = attn + λ Δ`.
    Residual {
        /// Its rank, 1 to [`MAX_RANK`].
        rank: usize,
    },
    /// `O = (1−λ) attn + λ Δ`.
    Direct {
        /// Its rank, 1 to [`MAX_RANK`].
        rank: usize,
    },
    /// `O = attn` and `U = λ h`, which goes through the output projection.
    Extended {
        /// Its rank, 1 to [`MAX_RANK`].
        rank: usize,
        /// One up projection `[r, D_out]` for all heads instead of one per head, `[Hq, r, D_out]`.
        #[cfg_attr(feature = "serde", serde(default))]
        shared: bool,
    },
}

impl KeyConfig {
    /// Rank of the adapter, 0 if there is none.
    pub fn rank(self) -> usize {
        match self {
            Self::Residual { rank } => rank,
            Self::Query | Self::LogitPerHead | Self::LogitPerToken => 0,
        }
    }
}

impl ValueConfig {
    /// Rank of the adapter, 0 if there is none.
    pub fn rank(self) -> usize {
        match self {
            Self::Residual { rank } | Self::Direct { rank } | Self::Extended { rank, .. } => rank,
            Self::Zero => 0,
        }
    }
}

impl InducerConfig {
    /// Checks the ranks.
    ///
    /// # Errors
    /// [`Error::Rank`] for a rank of 0 or over [`MAX_RANK`].
    pub fn validate(&self) -> Result<()> {
        if let KeyConfig::Residual { rank } = self.key {
            check_rank("key.rank", rank)?;
        }
        match self.value {
            ValueConfig::Residual { rank }
            | ValueConfig::Direct { rank }
            | ValueConfig::Extended { rank, .. } => check_rank("value.rank", rank),
            ValueConfig::Zero => Ok(()),
        }
    }
}

pub(crate) fn check_rank(argument: &'static str, rank: usize) -> Result<()> {
    if (1..=MAX_RANK).contains(&rank) {
        return Ok(());
    }
    Err(Error::Rank { argument, got: rank, max: MAX_RANK })
}
