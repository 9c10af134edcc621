//! What the oracle computes: every tensor owned, every option a field.

use super::Tensor;
use crate::dropout::KeepMask;
use crate::inducer::Activation;

/// One call of inducer attention, in f64.
///
/// Start from [`Problem::new`], plain attention, and set what differs.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// Queries `[B, Hq, N, d]`.
    pub q: Tensor,
    /// Keys `[B, Hkv, M, d]`; query head `h` uses key head `h / (Hq / Hkv)`.
    pub k: Tensor,
    /// Values `[B, Hkv, M, d]`.
    pub v: Tensor,
    /// Tokens that come before the keys, the same for every batch entry, seen by every query.
    pub prefix: Option<Prefix>,
    /// σ, the factor of every product Q·K.
    pub softmax_scale: f64,
    /// Whether query `i` sees only keys `j ≤ offset_i`.
    pub causal: bool,
    /// Query `i` sees only keys `j ≥ offset_i − window_left`.
    pub window_left: Option<usize>,
    /// Query `i` sees only keys `j ≤ offset_i + window_right`.
    pub window_right: Option<usize>,
    /// Per batch entry, keys `j ≥ length` are masked.
    pub key_lengths: Option<Vec<usize>>,
    /// Per batch entry, keys `j < start` are masked.
    pub key_starts: Option<Vec<usize>>,
    /// Per batch entry, rows `i ≥ length` are padding: O, U = 0, lse = −∞, no gradient. Where these are given,
    /// `offset_i = i + key length − query length`, otherwise `offset_i = i + M − N`.
    pub query_lengths: Option<Vec<usize>>,
    /// Packed sequences; then B = 1 and the three lengths above are absent. Each sequence has its own rows, columns,
    /// lengths and offset; rows and keys outside all sequences are padding.
    pub cu_seqlens: Option<CuSeqlens>,
    /// `c`: scores become `c·tanh(s/c)`.
    pub softcap: Option<f64>,
    /// `ALiBi` slopes, `[Hq]`, or `[B, Hq]` with B the number of batch entries or packed sequences.
    pub alibi_slopes: Option<Tensor>,
    /// Dropout of probabilities and of λ.
    pub dropout: Option<KeepMask>,
    /// The virtual token of every query; without it this is plain attention.
    pub inducer: Option<Inducer>,
}

/// Shared prefix tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Prefix {
    /// Keys `[Hkv, L, d]`.
    pub k: Tensor,
    /// Values `[Hkv, L, d]`.
    pub v: Tensor,
}

/// Where packed sequences begin and end: sequence `s` has the rows `q[s]..q[s + 1]` and the keys `k[s]..k[s + 1]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CuSeqlens {
    /// Boundaries among the rows of Q, one more than there are sequences.
    pub q: Vec<usize>,
    /// Boundaries among the rows of K and V, one more than there are sequences.
    pub k: Vec<usize>,
}

/// The virtual token that every query has.
#[derive(Clone, Debug, PartialEq)]
pub struct Inducer {
    /// How its logit s0 comes about.
    pub key: VirtualKey,
    /// What it adds to the output.
    pub value: VirtualValue,
    /// Whether `τ_i = √position_i` multiplies s0 (never a given logit); otherwise `τ_i = 1`.
    pub adaptive_length: bool,
    /// Positions `[B, N]` (packed: `[1, total_q]`), counted from 1. By default `max(1, offset_i + 1)` when causal,
    /// `i + 1` otherwise.
    pub positions: Option<Tensor>,
}

/// How the virtual token's logit s0 comes about.
#[derive(Clone, Debug, PartialEq)]
pub enum VirtualKey {
    /// The query itself: `P_k = Q`.
    Query,
    /// `P_k = Q + act(Q A_k + a_k) B_k + b_k`.
    Residual(Adapter),
    /// s0 given per head, `[Hq]`; −∞ switches the virtual token off.
    LogitPerHead(Tensor),
    /// s0 given per row, `[B, Hq, N]` (packed: `[1, Hq, total_q]`).
    LogitPerToken(Tensor),
}

/// What the virtual token adds to the output.
#[derive(Clone, Debug, PartialEq)]
pub enum VirtualValue {
    /// `O = (1 − λ) attn`.
    Zero,
    /// `O = attn + λ Δ`.
    Residual(Adapter),
    /// `O = (1 − λ) attn + λ Δ`.
    Direct(Adapter),
    /// `O = attn` and `U = λ h`; see [`extended_forward`](super::extended_forward) for what the caller makes of U.
    Extended(Down),
}

/// A bottleneck per query head: `act(x A + a) B + b`.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// A, a and the activation.
    pub down: Down,
    /// B and b.
    pub up: Up,
}

/// The first half of an [`Adapter`]: `act(x A + a)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Down {
    /// A `[Hq, d, r]`.
    pub weight: Tensor,
    /// a `[Hq, r]`.
    pub bias: Tensor,
    /// The nonlinearity.
    pub activation: Activation,
}

/// The second half of an [`Adapter`]: `h B + b`.
#[derive(Clone, Debug, PartialEq)]
pub struct Up {
    /// B `[Hq, r, d]`.
    pub weight: Tensor,
    /// b `[Hq, d]`.
    pub bias: Tensor,
}

impl Problem {
    /// Plain attention without masks, with `σ = 1/√d`.
    ///
    /// # Panics
    ///
    /// If Q has no dimension at all.
    pub fn new(q: Tensor, k: Tensor, v: Tensor) -> Self {
        let softmax_scale = 1.0 / (*q.shape.last().expect("Q has a last dimension") as f64).sqrt();
        Self {
            q,
            k,
            v,
            prefix: None,
            softmax_scale,
            causal: false,
            window_left: None,
            window_right: None,
            key_lengths: None,
            key_starts: None,
            query_lengths: None,
            cu_seqlens: None,
            softcap: None,
            alibi_slopes: None,
            dropout: None,
            inducer: None,
        }
    }

    /// `r_v` where the value is extended.
    pub fn extended_rank(&self) -> Option<usize> {
        match &self.inducer.as_ref()?.value {
            VirtualValue::Extended(down) => Some(down.bias.shape[1]),
            _ => None,
        }
    }

    /// Every tensor that has a gradient, by name, in the order of [`Gradients::named`](super::Gradients::named).
    pub fn parameters_mut(&mut self) -> Vec<(&'static str, &mut Tensor)> {
        let mut parameters = vec![("q", &mut self.q), ("k", &mut self.k), ("v", &mut self.v)];
        if let Some(prefix) = &mut self.prefix {
            parameters.extend([("prefix.k", &mut prefix.k), ("prefix.v", &mut prefix.v)]);
        }
        if let Some(inducer) = &mut self.inducer {
            match &mut inducer.key {
                VirtualKey::Query => {}
                VirtualKey::Residual(Adapter { down, up }) => parameters.extend([
                    ("key.down_weight", &mut down.weight),
                    ("key.down_bias", &mut down.bias),
                    ("key.up_weight", &mut up.weight),
                    ("key.up_bias", &mut up.bias),
                ]),
                VirtualKey::LogitPerHead(logit) | VirtualKey::LogitPerToken(logit) => {
                    parameters.push(("logit", logit));
                }
            }
            match &mut inducer.value {
                VirtualValue::Zero => {}
                VirtualValue::Residual(Adapter { down, up }) | VirtualValue::Direct(Adapter { down, up }) => {
                    parameters.extend([
                        ("value.down_weight", &mut down.weight),
                        ("value.down_bias", &mut down.bias),
                        ("value.up_weight", &mut up.weight),
                        ("value.up_bias", &mut up.bias),
                    ]);
                }
                VirtualValue::Extended(down) => parameters
                    .extend([("value.down_weight", &mut down.weight), ("value.down_bias", &mut down.bias)]),
            }
        }
        parameters
    }

    /// Panics unless all shapes and lengths agree: a wrong oracle must not pass for an answer.
    pub(super) fn assert_consistent(&self) {
        let &[batch, q_heads, queries, d] = &self.q.shape[..] else { panic!("Q is [B, Hq, N, d]") };
        let &[_, kv_heads, keys, _] = &self.k.shape[..] else { panic!("K is [B, Hkv, M, d]") };
        assert_eq!(self.k.shape, [batch, kv_heads, keys, d], "K");
        assert_eq!(self.v.shape, self.k.shape, "V");
        assert_eq!(q_heads % kv_heads, 0, "Hq is a multiple of Hkv");
        if let Some(prefix) = &self.prefix {
            assert_eq!(prefix.k.shape, [kv_heads, prefix.k.shape[1], d], "prefix K");
            assert_eq!(prefix.v.shape, prefix.k.shape, "prefix V");
        }
        let within = |lengths: &Option<Vec<usize>>, limit: usize, name: &str| {
            if let Some(lengths) = lengths {
                assert_eq!(lengths.len(), batch, "{name}");
                assert!(lengths.iter().all(|&length| length <= limit), "{name} are at most {limit}");
            }
        };
        within(&self.key_lengths, keys, "key_lengths");
        within(&self.key_starts, keys, "key_starts");
        within(&self.query_lengths, queries, "query_lengths");
        let mut sequences = batch;
        if let Some(cu) = &self.cu_seqlens {
            assert_eq!(batch, 1, "packed sequences have one batch entry");
            assert!(
                self.key_lengths.is_none() && self.key_starts.is_none() && self.query_lengths.is_none(),
                "packed sequences have no other lengths"
            );
            assert_eq!(cu.q.len(), cu.k.len(), "as many query as key sequences");
            sequences = cu.q.len() - 1;
            for (boundaries, total) in [(&cu.q, queries), (&cu.k, keys)] {
                assert!(boundaries.is_sorted(), "cu_seqlens do not decrease");
                assert!(boundaries[sequences] <= total, "cu_seqlens end within the tensor");
            }
        }
        if let Some(slopes) = &self.alibi_slopes {
            let fits = slopes.shape == [q_heads] || slopes.shape == [sequences, q_heads];
            assert!(fits, "ALiBi slopes are [Hq] or [B, Hq]");
        }
        if let Some(inducer) = &self.inducer {
            match &inducer.key {
                VirtualKey::Query => {}
                VirtualKey::Residual(adapter) => adapter.assert_consistent(q_heads, d),
                VirtualKey::LogitPerHead(logit) => {
                    assert_eq!(logit.shape, [q_heads], "logit per head");
                }
                VirtualKey::LogitPerToken(logit) => {
                    assert_eq!(logit.shape, [batch, q_heads, queries], "logit per token");
                }
            }
            match &inducer.value {
                VirtualValue::Zero => {}
                VirtualValue::Residual(adapter) | VirtualValue::Direct(adapter) => {
                    adapter.assert_consistent(q_heads, d);
                }
                VirtualValue::Extended(down) => down.assert_consistent(q_heads, d),
            }
            if let Some(positions) = &inducer.positions {
                assert_eq!(positions.shape, [batch, queries], "positions");
            }
        }
    }
}

impl Adapter {
    fn assert_consistent(&self, heads: usize, d: usize) {
        self.down.assert_consistent(heads, d);
        assert_eq!(self.up.weight.shape, [heads, self.down.bias.shape[1], d], "up_weight");
        assert_eq!(self.up.bias.shape, [heads, d], "up_bias");
    }
}

impl Down {
    fn assert_consistent(&self, heads: usize, d: usize) {
        let &[_, rank] = &self.bias.shape[..] else { panic!("down_bias is [Hq, r]") };
        assert_eq!(self.bias.shape, [heads, rank], "down_bias");
        assert_eq!(self.weight.shape, [heads, d, rank], "down_weight");
    }
}
