//! Settings of one call.

use inducer_attention::{AttentionConfig, Lengths};

/// Settings of one call. The default is full attention with scale `1/√d` over `[B, H, N, d]` tensors.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AttentionOptions {
    /// Scale, causal mask, window, softcap, dropout.
    pub config: AttentionConfig,
    /// Which rows and keys exist.
    pub lengths: SequenceLengths,
    /// ALiBi slopes, `[Hq]` or `[B, Hq]`.
    pub alibi_slopes: Option<Vec<f32>>,
    /// Positions for adaptive length, `B·N` entries; see [`inducer_attention::Inducer::positions`].
    pub positions: Option<Vec<i32>>,
    /// Order of the dimensions of Q, K, V, O and U.
    pub layout: TensorLayout,
    /// Keeps attn besides O for the backward. In 16 bits gradients are more accurate from it where the virtual value is many
    /// times larger than attn, at the price of one more tensor of O's size. Of no use in f32.
    pub save_attention: bool,
}

impl AttentionOptions {
    /// Causal attention, otherwise the default.
    pub fn causal() -> Self {
        Self { config: AttentionConfig { causal: true, ..AttentionConfig::default() }, ..Self::default() }
    }

    /// The same options for tensors of another layout.
    #[must_use]
    pub fn with_layout(self, layout: TensorLayout) -> Self {
        Self { layout, ..self }
    }
}

/// Order of the dimensions of Q, K, V, O and U.
///
/// lse and logits per token are `[B, H, N]` in either.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TensorLayout {
    /// `[B, H, N, d]`.
    #[default]
    Bhnd,
    /// `[B, N, H, d]`: what a projection gives after a reshape. Neither forward nor backward then copies or transposes
    /// anything, so this is the faster one in training.
    Bnhd,
}

/// Which rows and keys exist: [`Lengths`] with its lists owned, because the backward needs them later.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SequenceLengths {
    /// All of them.
    #[default]
    Full,
    /// Padded batches, lists of B entries.
    Padded {
        /// Rows of Q that exist.
        query_lengths: Option<Vec<i32>>,
        /// Keys that exist, counted from the left.
        key_lengths: Option<Vec<i32>>,
        /// First key that exists.
        key_starts: Option<Vec<i32>>,
    },
    /// Packed sequences, B = 1: N and M count the rows of all sequences.
    Packed {
        /// Row boundaries, one more than there are sequences.
        cu_seqlens_q: Vec<i32>,
        /// Key boundaries, one more than there are sequences.
        cu_seqlens_k: Vec<i32>,
    },
}

impl SequenceLengths {
    pub(crate) fn borrowed(&self) -> Lengths<'_> {
        match self {
            Self::Full => Lengths::Full,
            Self::Padded { query_lengths, key_lengths, key_starts } => Lengths::Padded {
                query_lengths: query_lengths.as_deref(),
                key_lengths: key_lengths.as_deref(),
                key_starts: key_starts.as_deref(),
            },
            Self::Packed { cu_seqlens_q, cu_seqlens_k } => Lengths::Packed { cu_seqlens_q, cu_seqlens_k },
        }
    }
}
