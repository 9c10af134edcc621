//! The attention problem: described once, validated once.
//!
//! [`Attention`] is what a caller writes down. [`Attention::validate`] turns it into a [`Problem`], which proves that
//! shapes, dtypes, lengths and settings fit together, so that no backend can fail on them.

use crate::config::{AttentionConfig, check_rank};
use crate::error::{Error, Result};
use crate::inducer::{Adapter, DownProjection, Inducer, Prefix, VirtualKey, VirtualValue};
use crate::tensor::{DType, Layout, Memory, TensorRef};

/// Largest `head_dim`.
pub const MAX_HEAD_DIM: usize = 256;

/// Which rows and keys of each batch entry exist.
#[derive(Clone, Copy, Debug, Default)]
pub enum Lengths<'a> {
    /// All of them.
    #[default]
    Full,
    /// Padded batches. Each list has B entries.
    Padded {
        /// Rows of Q that exist, 0 to N; all if none. Where given, the offset of query i is `i + key_length − query_length`.
        /// The rows behind are padding: their outputs are 0 (lse −∞), and they take no part in gradients.
        query_lengths: Option<&'a [i32]>,
        /// Keys that exist, 0 to M, counted from the left; all if none.
        key_lengths: Option<&'a [i32]>,
        /// First key that exists, 0 to M (left padding); 0 if none.
        key_starts: Option<&'a [i32]>,
    },
    /// Packed sequences: Q is `[1, Hq, total_q, d]`, K and V are `[1, Hkv, total_k, d]`, and sequence s has rows
    /// `cu_seqlens_q[s]..cu_seqlens_q[s+1]` and keys `cu_seqlens_k[s]..cu_seqlens_k[s+1]`. Both lists start at 0, never
    /// decrease and end at or before the total.
    Packed {
        /// Row boundaries, one more than there are sequences.
        cu_seqlens_q: &'a [i32],
        /// Key boundaries, one more than there are sequences.
        cu_seqlens_k: &'a [i32],
    },
}

/// An attention problem as a caller describes it; the [crate's front page](crate) has the equations.
///
/// Softcap and ALiBi, where given, change the scores of real keys (the prefix has no position, so no ALiBi) to
///
#[doc = include_str!("equations/scores_full.md")]
///
/// ```
/// use inducer_attention::{Attention, TensorRef};
/// let (q, k, v) = (vec![0f32; 2 * 4 * 10 * 64], vec![0f32; 2 * 2 * 12 * 64], vec![0f32; 2 * 2 * 12 * 64]);
/// let mut attention = Attention::new(
///     TensorRef::new(&q, [2, 4, 10, 64])?,
///     TensorRef::new(&k, [2, 2, 12, 64])?,
///     TensorRef::new(&v, [2, 2, 12, 64])?,
/// );
/// attention.config.causal = true;
/// let problem = attention.validate()?;
/// assert_eq!((problem.query_heads(), problem.kv_heads()), (4, 2));
/// # Ok::<(), inducer_attention::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Q, `[B, Hq, N, d]`; f32, f16 or bf16.
    pub q: TensorRef<'a, 4>,
    /// K, `[B, Hkv, M, d]`, of Q's dtype; Hq is a multiple of Hkv.
    pub k: TensorRef<'a, 4>,
    /// V, `[B, Hkv, M, d]`, of Q's dtype.
    pub v: TensorRef<'a, 4>,
    /// Settings.
    pub config: AttentionConfig,
    /// Tokens shared by all queries, before K and V.
    pub prefix: Option<Prefix<'a>>,
    /// Which rows and keys exist.
    pub lengths: Lengths<'a>,
    /// ALiBi slopes, `[Hq]` or `[B, Hq]` (packed: B counts sequences): `−slope·|offset − j|` is added after softcap.
    pub alibi_slopes: Option<&'a [f32]>,
    /// Every query's own token; none is plain attention.
    pub inducer: Option<Inducer<'a>>,
}

impl<'a> Attention<'a> {
    /// Plain full attention over Q, K and V; set the other fields for more.
    pub fn new(q: TensorRef<'a, 4>, k: TensorRef<'a, 4>, v: TensorRef<'a, 4>) -> Self {
        Self {
            q,
            k,
            v,
            config: AttentionConfig::default(),
            prefix: None,
            lengths: Lengths::Full,
            alibi_slopes: None,
            inducer: None,
        }
    }

    /// Checks everything and returns a problem that a backend cannot fail on.
    ///
    /// # Errors
    /// One [`Error`] for the first mistake found, naming the argument.
    pub fn validate(&self) -> Result<Problem<'a>> {
        let [batch, query_heads, rows, head_dim] = self.q.shape();
        let [_, kv_heads, keys, _] = self.k.shape();
        for (argument, dimension, size) in
            [("q", "head_dim", head_dim), ("q", "heads", query_heads), ("k", "heads", kv_heads)]
        {
            if size == 0 {
                return Err(Error::ZeroDimension { argument, dimension });
            }
        }
        if head_dim > MAX_HEAD_DIM {
            return Err(Error::HeadDim { got: head_dim, max: MAX_HEAD_DIM });
        }
        let dtype = self.q.dtype();
        for (argument, t) in [("k", &self.k), ("v", &self.v)] {
            expect_shape(argument, &t.shape(), &[batch, kv_heads, keys, head_dim], "[B, Hkv, M, d]")?;
            expect_dtype(argument, t.dtype(), dtype, "that of q")?;
        }
        if query_heads % kv_heads != 0 {
            return Err(Error::GroupedHeads { query_heads, kv_heads });
        }
        for (argument, t) in [("q", &self.q), ("k", &self.k), ("v", &self.v)] {
            contiguous_last(argument, &t.shape(), &t.strides())?;
        }
        // Masks and dropout count rows and keys in 31 bits, heads of all entries in 32.
        for (argument, size) in [("q", rows), ("k", keys)] {
            if i32::try_from(size).is_err() {
                return Err(Error::SizeOverflow {
                    argument,
                    sizes: vec![size],
                    expected: "rows and keys must be fewer than 2^31",
                });
            }
        }
        self.config.validate()?;
        let prefix_len = self.validate_prefix(kv_heads, head_dim, dtype)?;
        let sequences = self.validate_lengths(batch, rows, keys)?;
        if sequences.checked_mul(query_heads).is_none_or(|n| u32::try_from(n).is_err()) {
            return Err(Error::SizeOverflow {
                argument: "q",
                sizes: vec![sequences, query_heads],
                expected: "batch entries times query heads must be fewer than 2^32",
            });
        }
        if let Some(slopes) = self.alibi_slopes {
            if slopes.len() != query_heads && slopes.len() != sequences * query_heads {
                return Err(Error::Count {
                    argument: "alibi_slopes",
                    got: slopes.len(),
                    expected: format!("Hq = {query_heads} or B*Hq = {}", sequences * query_heads),
                });
            }
            if let Some(&value) = slopes.iter().find(|s| !s.is_finite()) {
                return Err(Error::Setting { argument: "alibi_slopes", value, expected: "finite numbers" });
            }
        }
        if let Some(inducer) = &self.inducer {
            self.validate_inducer(inducer)?;
        }
        let softmax_scale =
            self.config.softmax_scale.unwrap_or_else(|| (1.0 / (head_dim as f64).sqrt()) as f32);
        let problem = Problem { attention: *self, softmax_scale, sequences, prefix_len };
        let mut mixed = Ok(());
        problem.for_each_input(|argument, layout| {
            if mixed.is_ok() {
                mixed = expect_memory(argument, layout.memory, problem.memory());
            }
        });
        mixed.map(|()| problem)
    }

    fn validate_prefix(&self, kv_heads: usize, head_dim: usize, dtype: DType) -> Result<usize> {
        let Some(prefix) = &self.prefix else { return Ok(0) };
        let len = prefix.k.shape()[1];
        for (argument, t) in [("prefix.k", &prefix.k), ("prefix.v", &prefix.v)] {
            expect_shape(argument, &t.shape(), &[kv_heads, len, head_dim], "[Hkv, L, d]")?;
            expect_dtype(argument, t.dtype(), dtype, "that of q")?;
            contiguous_last(argument, &t.shape(), &t.strides())?;
        }
        if i32::try_from(len).is_err() {
            return Err(Error::SizeOverflow {
                argument: "prefix.k",
                sizes: vec![len],
                expected: "prefix tokens must be fewer than 2^31",
            });
        }
        Ok(len)
    }

    /// Checks the lengths and returns the number of sequences.
    fn validate_lengths(&self, batch: usize, rows: usize, keys: usize) -> Result<usize> {
        match self.lengths {
            Lengths::Full => Ok(batch),
            Lengths::Padded { query_lengths, key_lengths, key_starts } => {
                for (argument, list, max, name) in [
                    ("query_lengths", query_lengths, rows, "N"),
                    ("key_lengths", key_lengths, keys, "M"),
                    ("key_starts", key_starts, keys, "M"),
                ] {
                    let Some(list) = list else { continue };
                    expect_count(argument, list.len(), batch, "B")?;
                    let bad = list.iter().position(|&n| usize::try_from(n).map_or(true, |n| n > max));
                    if let Some(index) = bad {
                        return Err(Error::Length {
                            argument,
                            index,
                            value: list[index].into(),
                            expected: format!("0 to {name} = {max}"),
                        });
                    }
                }
                Ok(batch)
            }
            Lengths::Packed { cu_seqlens_q, cu_seqlens_k } => {
                if batch != 1 {
                    return Err(Error::Shape {
                        argument: "q",
                        got: self.q.shape().to_vec(),
                        expected: "[1, Hq, total_q, d] for packed sequences".into(),
                    });
                }
                validate_cu_seqlens("cu_seqlens_q", cu_seqlens_q, rows)?;
                validate_cu_seqlens("cu_seqlens_k", cu_seqlens_k, keys)?;
                expect_count("cu_seqlens_k", cu_seqlens_k.len(), cu_seqlens_q.len(), "len(cu_seqlens_q)")?;
                Ok(cu_seqlens_q.len() - 1)
            }
        }
    }

    fn validate_inducer(&self, inducer: &Inducer<'_>) -> Result<()> {
        let [batch, heads, rows, head_dim] = self.q.shape();
        let dtype = self.q.dtype();
        match &inducer.key {
            VirtualKey::Query => {}
            VirtualKey::Residual(adapter) => {
                validate_adapter(adapter, heads, head_dim, dtype, &KEY_NAMES)?;
            }
            VirtualKey::LogitPerHead(logit) => {
                expect_shape("key.logit", &logit.shape(), &[heads], "[Hq]")?;
                parameter_dtype("key.logit", logit.dtype(), dtype)?;
            }
            VirtualKey::LogitPerToken(logit) => {
                expect_shape("key.logit", &logit.shape(), &[batch, heads, rows], "[B, Hq, N]")?;
                parameter_dtype("key.logit", logit.dtype(), dtype)?;
            }
        }
        match &inducer.value {
            VirtualValue::Zero => {}
            VirtualValue::Residual(adapter) | VirtualValue::Direct(adapter) => {
                validate_adapter(adapter, heads, head_dim, dtype, &VALUE_NAMES)?;
            }
            VirtualValue::Extended(down) => {
                validate_down(down, heads, head_dim, dtype, &VALUE_NAMES)?;
            }
        }
        let given = matches!(inducer.key, VirtualKey::LogitPerHead(_) | VirtualKey::LogitPerToken(_));
        if given && inducer.adaptive_length {
            return Err(Error::Unexpected {
                argument: "adaptive_length",
                reason: "a given logit is taken as it is",
            });
        }
        if let Some(positions) = inducer.positions {
            if !inducer.adaptive_length {
                return Err(Error::Unexpected {
                    argument: "positions",
                    reason: "only adaptive_length uses them",
                });
            }
            expect_count("positions", positions.len(), batch * rows, "B*N")?;
            if let Some(index) = positions.iter().position(|&p| p < 0) {
                return Err(Error::Length {
                    argument: "positions",
                    index,
                    value: positions[index].into(),
                    expected: "0 or more".into(),
                });
            }
        }
        Ok(())
    }
}

/// Names of an adapter's tensors in error messages: down weight and bias, up weight and bias.
type AdapterNames = [&'static str; 4];
const KEY_NAMES: AdapterNames = ["key.down_weight", "key.down_bias", "key.up_weight", "key.up_bias"];
const VALUE_NAMES: AdapterNames =
    ["value.down_weight", "value.down_bias", "value.up_weight", "value.up_bias"];

fn validate_down(
    down: &DownProjection<'_>,
    heads: usize,
    head_dim: usize,
    dtype: DType,
    names: &AdapterNames,
) -> Result<usize> {
    let rank = down.down_weight.shape()[2];
    check_rank(names[0], rank)?;
    expect_shape(names[0], &down.down_weight.shape(), &[heads, head_dim, rank], "[Hq, d, r]")?;
    expect_shape(names[1], &down.down_bias.shape(), &[heads, rank], "[Hq, r]")?;
    parameter_dtype(names[0], down.down_weight.dtype(), dtype)?;
    expect_dtype(names[1], down.down_bias.dtype(), down.down_weight.dtype(), "that of the down weight")?;
    contiguous_last(names[0], &down.down_weight.shape(), &down.down_weight.strides())?;
    contiguous_last(names[1], &down.down_bias.shape(), &down.down_bias.strides())?;
    Ok(rank)
}

fn validate_adapter(
    adapter: &Adapter<'_>,
    heads: usize,
    head_dim: usize,
    dtype: DType,
    names: &AdapterNames,
) -> Result<()> {
    let Adapter { down_weight, down_bias, up_weight, up_bias, activation } = *adapter;
    let down = DownProjection { down_weight, down_bias, activation };
    let rank = validate_down(&down, heads, head_dim, dtype, names)?;
    expect_shape(names[2], &up_weight.shape(), &[heads, rank, head_dim], "[Hq, r, d]")?;
    expect_shape(names[3], &up_bias.shape(), &[heads, head_dim], "[Hq, d]")?;
    for (argument, got) in [(names[2], up_weight.dtype()), (names[3], up_bias.dtype())] {
        expect_dtype(argument, got, down_weight.dtype(), "that of the down weight")?;
    }
    contiguous_last(names[2], &up_weight.shape(), &up_weight.strides())?;
    contiguous_last(names[3], &up_bias.shape(), &up_bias.strides())
}

fn validate_cu_seqlens(argument: &'static str, list: &[i32], total: usize) -> Result<()> {
    let Some(&first) = list.first() else {
        return Err(Error::Count { argument, got: 0, expected: "at least 1".into() });
    };
    let bad = |index: usize, expected: String| Error::CuSeqlens {
        argument,
        index,
        value: list[index].into(),
        expected,
    };
    if first != 0 {
        return Err(bad(0, "0".into()));
    }
    if let Some(i) = list.windows(2).position(|w| w[1] < w[0]) {
        return Err(bad(i + 1, format!("at least the entry before it, {}", list[i])));
    }
    let last = list.len() - 1;
    if usize::try_from(list[last]).map_or(true, |n| n > total) {
        return Err(bad(last, format!("at most the {total} packed rows")));
    }
    Ok(())
}

pub(crate) fn expect_shape(
    argument: &'static str,
    got: &[usize],
    expected: &[usize],
    names: &str,
) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    Err(Error::Shape { argument, got: got.to_vec(), expected: format!("{names} = {expected:?}") })
}

pub(crate) fn expect_dtype(argument: &'static str, got: DType, expected: DType, why: &str) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    Err(Error::DType { argument, got, expected: format!("{expected}, {why}") })
}

pub(crate) fn expect_memory(argument: &'static str, got: Memory, expected: Memory) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    Err(Error::Memory { argument, got, expected })
}

/// Adapters and given logits are of Q's dtype or f32.
fn parameter_dtype(argument: &'static str, got: DType, dtype: DType) -> Result<()> {
    if got == dtype || got == DType::F32 {
        return Ok(());
    }
    Err(Error::DType { argument, got, expected: format!("{dtype}, that of q, or f32") })
}

pub(crate) fn contiguous_last(argument: &'static str, shape: &[usize], strides: &[usize]) -> Result<()> {
    match (shape.last(), strides.last()) {
        (Some(&size), Some(&stride)) if size > 1 && stride != 1 => {
            Err(Error::LastDimensionStrided { argument, stride })
        }
        _ => Ok(()),
    }
}

fn expect_count(argument: &'static str, got: usize, expected: usize, name: &str) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    Err(Error::Count { argument, got, expected: format!("{name} = {expected}") })
}

/// A validated attention problem.
///
/// Its existence proves that shapes, dtypes, lengths and settings fit together.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a> {
    attention: Attention<'a>,
    softmax_scale: f32,
    sequences: usize,
    prefix_len: usize,
}

impl<'a> Problem<'a> {
    /// The description that was validated.
    pub fn attention(&self) -> &Attention<'a> {
        &self.attention
    }

    /// Q's dtype, that of K, V and O as well.
    pub fn dtype(&self) -> DType {
        self.attention.q.dtype()
    }

    /// Where all tensors are.
    pub fn memory(&self) -> Memory {
        self.attention.q.memory()
    }

    /// B, the batch dimension of the tensors (1 for packed sequences).
    pub fn batch(&self) -> usize {
        self.attention.q.shape()[0]
    }

    /// Hq.
    pub fn query_heads(&self) -> usize {
        self.attention.q.shape()[1]
    }

    /// Hkv.
    pub fn kv_heads(&self) -> usize {
        self.attention.k.shape()[1]
    }

    /// Hq / Hkv: how many query heads share a key/value head.
    pub fn group_size(&self) -> usize {
        self.query_heads() / self.kv_heads()
    }

    /// N, the rows of Q's tensor.
    pub fn rows(&self) -> usize {
        self.attention.q.shape()[2]
    }

    /// M, the rows of K's tensor; the shared prefix is not counted.
    pub fn keys(&self) -> usize {
        self.attention.k.shape()[2]
    }

    /// d.
    pub fn head_dim(&self) -> usize {
        self.attention.q.shape()[3]
    }

    /// σ, given or `1/√d`.
    pub fn softmax_scale(&self) -> f32 {
        self.softmax_scale
    }

    /// L, the shared prefix tokens.
    pub fn prefix_len(&self) -> usize {
        self.prefix_len
    }

    /// Batch entries, or packed sequences.
    pub fn sequences(&self) -> usize {
        self.sequences
    }

    /// Rank of the virtual key's adapter, 0 if there is none.
    pub fn key_rank(&self) -> usize {
        match self.attention.inducer.map(|i| i.key) {
            Some(VirtualKey::Residual(a)) => a.down_weight.shape()[2],
            _ => 0,
        }
    }

    /// Rank of the virtual value's adapter, 0 if there is none.
    pub fn value_rank(&self) -> usize {
        match self.attention.inducer.map(|i| i.value) {
            Some(VirtualValue::Residual(a) | VirtualValue::Direct(a)) => a.down_weight.shape()[2],
            Some(VirtualValue::Extended(a)) => a.down_weight.shape()[2],
            _ => 0,
        }
    }

    /// True if U is an output.
    pub fn is_extended(&self) -> bool {
        matches!(self.attention.inducer.map(|i| i.value), Some(VirtualValue::Extended(_)))
    }

    /// Sequence `index`'s place in the tensors.
    ///
    /// # Panics
    /// If `index` is not under [`sequences`](Self::sequences).
    pub fn sequence(&self, index: usize) -> Sequence {
        assert!(index < self.sequences, "sequence {index} of {}", self.sequences);
        let config = &self.attention.config;
        let at = |list: Option<&[i32]>, otherwise: usize| list.map_or(otherwise, |l| l[index] as usize);
        let (batch, row_base, rows, key_base, key_start, key_end, offset) = match self.attention.lengths {
            Lengths::Full => {
                let (n, m) = (self.rows(), self.keys());
                (index, 0, n, 0, 0, m, m as i64 - n as i64)
            }
            Lengths::Padded { query_lengths, key_lengths, key_starts } => {
                let (n, m) = (self.rows(), self.keys());
                let (rows, end) = (at(query_lengths, n), at(key_lengths, m));
                let offset =
                    if query_lengths.is_some() { end as i64 - rows as i64 } else { m as i64 - n as i64 };
                (index, 0, rows, 0, at(key_starts, 0).min(end), end, offset)
            }
            Lengths::Packed { cu_seqlens_q, cu_seqlens_k } => {
                let span = |cu: &[i32]| (cu[index] as usize, (cu[index + 1] - cu[index]) as usize);
                let ((row_base, rows), (key_base, keys)) = (span(cu_seqlens_q), span(cu_seqlens_k));
                (0, row_base, rows, key_base, 0, keys, keys as i64 - rows as i64)
            }
        };
        Sequence {
            index,
            batch,
            row_base,
            rows,
            key_base,
            key_start,
            key_end,
            offset,
            left: config.window_left.unwrap_or(i64::MAX),
            right: if config.causal { 0 } else { config.window_right.unwrap_or(i64::MAX) },
        }
    }

    /// Rows of the tensors that belong to no sequence, as `(batch index, first row, end row)`: padding, whose outputs
    /// are 0.
    pub fn padding_rows(&self) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
        let end = self.rows();
        let tail = match self.attention.lengths {
            Lengths::Packed { cu_seqlens_q, .. } => cu_seqlens_q.last().map(|&n| (0, n as usize, end)),
            _ => None,
        };
        let padded = match self.attention.lengths {
            Lengths::Padded { query_lengths: Some(lengths), .. } => lengths,
            _ => &[],
        };
        tail.into_iter()
            .chain(padded.iter().enumerate().map(move |(b, &n)| (b, n as usize, end)))
            .filter(|(_, start, end)| start < end)
    }

    /// ALiBi slope of a sequence and query head.
    pub fn alibi_slope(&self, sequence: usize, head: usize) -> Option<f32> {
        let heads = self.query_heads();
        self.attention.alibi_slopes.map(
            |s| {
                if s.len() == heads { s[head] } else { s[sequence * heads + head] }
            },
        )
    }

    /// τ: what the virtual token's score is multiplied by in local row `row` of a sequence.
    pub fn adaptive_factor(&self, sequence: &Sequence, row: usize) -> f32 {
        let Some(inducer) = self.attention.inducer.filter(|i| i.adaptive_length) else {
            return 1.0;
        };
        let position = match inducer.positions {
            Some(p) => i64::from(p[sequence.batch * self.rows() + sequence.row_base + row]),
            None if self.attention.config.causal => (row as i64 + sequence.offset + 1).max(1),
            None => row as i64 + 1,
        };
        (position as f64).sqrt() as f32
    }

    /// Every list of numbers with its name, for overlap checks: Rust's borrows exclude overlaps, callers from C do not.
    pub(crate) fn for_each_list(&self, mut f: impl FnMut(&'static str, Layout<'_>)) {
        let mut integers = |argument, list: Option<&[i32]>| {
            if let Some(list) = list {
                f(argument, Layout::of_list(list, &[list.len()]));
            }
        };
        match self.attention.lengths {
            Lengths::Full => {}
            Lengths::Padded { query_lengths, key_lengths, key_starts } => {
                integers("query_lengths", query_lengths);
                integers("key_lengths", key_lengths);
                integers("key_starts", key_starts);
            }
            Lengths::Packed { cu_seqlens_q, cu_seqlens_k } => {
                integers("cu_seqlens_q", Some(cu_seqlens_q));
                integers("cu_seqlens_k", Some(cu_seqlens_k));
            }
        }
        integers("positions", self.attention.inducer.and_then(|inducer| inducer.positions));
        if let Some(slopes) = self.attention.alibi_slopes {
            f("alibi_slopes", Layout::of_list(slopes, &[slopes.len()]));
        }
    }

    /// Every input tensor with its name, for overlap checks.
    pub(crate) fn for_each_input(&self, mut f: impl FnMut(&'static str, Layout<'_>)) {
        let a = &self.attention;
        f("q", a.q.layout());
        f("k", a.k.layout());
        f("v", a.v.layout());
        if let Some(p) = &a.prefix {
            f("prefix.k", p.k.layout());
            f("prefix.v", p.v.layout());
        }
        let Some(inducer) = &a.inducer else { return };
        let mut adapter = |names: &AdapterNames, t: &Adapter<'_>| {
            f(names[0], t.down_weight.layout());
            f(names[1], t.down_bias.layout());
            f(names[2], t.up_weight.layout());
            f(names[3], t.up_bias.layout());
        };
        if let VirtualKey::Residual(t) = &inducer.key {
            adapter(&KEY_NAMES, t);
        }
        if let VirtualValue::Residual(t) | VirtualValue::Direct(t) = &inducer.value {
            adapter(&VALUE_NAMES, t);
        }
        if let VirtualValue::Extended(t) = &inducer.value {
            f(VALUE_NAMES[0], t.down_weight.layout());
            f(VALUE_NAMES[1], t.down_bias.layout());
        }
        match &inducer.key {
            VirtualKey::LogitPerHead(t) => f("key.logit", t.layout()),
            VirtualKey::LogitPerToken(t) => f("key.logit", t.layout()),
            VirtualKey::Query | VirtualKey::Residual(_) => {}
        }
    }
}

/// One batch entry or packed sequence: where it lies, and which keys its rows see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Its number.
    pub index: usize,
    /// Batch index in the tensors.
    pub batch: usize,
    /// Its first row in Q.
    pub row_base: usize,
    /// Its rows.
    pub rows: usize,
    /// Its first key in K and V; keys below count from here.
    pub key_base: usize,
    /// First key that exists.
    pub key_start: usize,
    /// One past the last key that exists.
    pub key_end: usize,
    /// Row i stands at key position `i + offset`.
    pub offset: i64,
    left: i64,
    right: i64,
}

impl Sequence {
    /// The keys that local row `row` sees, `(first, end)`, empty if `first == end`. Both bounds never decrease with the row.
    pub fn visible(&self, row: usize) -> (usize, usize) {
        let position = row as i64 + self.offset;
        let (start, end) = (self.key_start as i64, self.key_end as i64);
        let end = position.saturating_add(self.right).saturating_add(1).clamp(start, end);
        let first = position.saturating_sub(self.left).clamp(start, end);
        (first as usize, end as usize)
    }
}
