//! Lists of a problem (lengths, boundaries of packed sequences, positions, slopes) as kernels read them: by address.

use crate::attention::{Lengths, Problem};
use crate::error::{Error, Result};

/// A list in the memory of the device that runs the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawList {
    /// Address of its first entry.
    pub address: u64,
    /// How many there are.
    pub len: usize,
}

/// Lists by address; entries are i32, slopes f32.
///
/// A problem whose lists are known to the device alone is described with [`Lengths::Full`] and without positions and slopes;
/// packed sequences have a batch of 1.
#[derive(Clone, Copy, Debug, Default)]
pub struct RawLists {
    /// `[B]`; see [`Lengths::Padded`], likewise for the next two.
    pub query_lengths: Option<RawList>,
    /// `[B]`.
    pub key_lengths: Option<RawList>,
    /// `[B]`.
    pub key_starts: Option<RawList>,
    /// `[sequences + 1]`; see [`Lengths::Packed`]. Both or none.
    pub cu_seqlens_q: Option<RawList>,
    /// `[sequences + 1]`.
    pub cu_seqlens_k: Option<RawList>,
    /// `[B·N]`; see [`Inducer::positions`](crate::Inducer::positions).
    pub positions: Option<RawList>,
    /// `[Hq]` or `[sequences, Hq]`; see [`Attention::alibi_slopes`](crate::Attention::alibi_slopes).
    pub alibi_slopes: Option<RawList>,
    /// No packed sequence has more rows; N if none. Saves blocks that find nothing to do. Results of longer sequences' rows beyond are
    /// undefined.
    pub max_rows: Option<usize>,
    /// No packed sequence has more keys; M if none. As `max_rows`, for the keys' gradients.
    pub max_keys: Option<usize>,
}

/// Where a problem's lists are, and what the launch must know of their contents.
///
/// Kernels clamp what they read: a list that disagrees with the tensors gives wrong results in its own rows, and never a read
/// outside of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lists {
    pub(super) query_lengths: u64,
    pub(super) key_lengths: u64,
    pub(super) key_starts: u64,
    pub(super) cu_seqlens_q: u64,
    pub(super) cu_seqlens_k: u64,
    pub(super) positions: u64,
    pub(super) alibi_slopes: u64,
    /// Slopes are `[sequences, Hq]` rather than `[Hq]`.
    pub(super) alibi_per_sequence: bool,
    /// Batch entries, or packed sequences.
    pub(super) sequences: usize,
    /// No sequence has more rows.
    pub(super) max_rows: usize,
    /// No sequence has more keys.
    pub(super) max_keys: usize,
}

impl Lists {
    /// Whether sequences may differ in length.
    pub(super) fn has_lengths(&self) -> bool {
        [self.query_lengths, self.key_lengths, self.key_starts, self.cu_seqlens_q]
            .iter()
            .any(|&list| list != 0)
    }

    /// The problem's own lists, where they are: in host memory, for the emulator.
    ///
    /// # Panics
    /// Never: a problem's own lists fit it.
    pub fn of(problem: &Problem<'_>) -> Self {
        Self::new(problem, &RawLists::of(problem)).expect("a problem's own lists fit it")
    }

    /// Checks that lists fit a problem: there are as many entries as it has batch entries, rows and heads, and every list of its
    /// own is there.
    ///
    /// # Errors
    /// [`Error::Count`], [`Error::Missing`], [`Error::NullPointer`], and [`Error::Shape`] for packed sequences in a batch.
    pub fn new(problem: &Problem<'_>, raw: &RawLists) -> Result<Self> {
        let (batch, rows, heads) = (problem.batch(), problem.rows(), problem.query_heads());
        let own = RawLists::of(problem);
        // Nothing reads an empty list.
        let needed = |list: Option<RawList>| list.is_some_and(|list| list.len > 0);
        if raw.cu_seqlens_q.is_some() && batch != 1 {
            return Err(Error::Shape {
                argument: "q",
                got: problem.attention().q.shape().to_vec(),
                expected: "[1, Hq, total_q, d] for packed sequences".into(),
            });
        }
        let sequences = raw.cu_seqlens_q.map_or(batch, |list| list.len.saturating_sub(1));
        let place = |argument, list: Option<RawList>, needed: bool, counts: &[usize]| match list {
            None if needed => Err(Error::Missing { argument, reason: "the problem has such a list" }),
            None => Ok(0),
            Some(list) if !counts.contains(&list.len) => {
                let expected = counts.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
                Err(Error::Count { argument, got: list.len, expected })
            }
            Some(list) if list.address == 0 && list.len > 0 => {
                Err(Error::NullPointer { argument, elements: list.len })
            }
            Some(list) => Ok(list.address),
        };
        let packed = raw.cu_seqlens_q.is_some() || raw.cu_seqlens_k.is_some();
        let slopes =
            place("alibi_slopes", raw.alibi_slopes, needed(own.alibi_slopes), &[heads, sequences * heads])?;
        let list = |argument, raw, own: Option<RawList>, count| place(argument, raw, needed(own), &[count]);
        Ok(Self {
            query_lengths: list("query_lengths", raw.query_lengths, own.query_lengths, batch)?,
            key_lengths: list("key_lengths", raw.key_lengths, own.key_lengths, batch)?,
            key_starts: list("key_starts", raw.key_starts, own.key_starts, batch)?,
            cu_seqlens_q: place(
                "cu_seqlens_q",
                raw.cu_seqlens_q,
                packed || own.cu_seqlens_q.is_some(),
                &[sequences + 1],
            )?,
            cu_seqlens_k: place("cu_seqlens_k", raw.cu_seqlens_k, packed, &[sequences + 1])?,
            positions: list("positions", raw.positions, own.positions, batch * rows)?,
            alibi_slopes: slopes,
            alibi_per_sequence: raw.alibi_slopes.is_some_and(|list| list.len != heads),
            sequences,
            // Where nothing is packed, tensors are as long as they are.
            max_rows: raw.max_rows.filter(|_| packed).map_or(rows, |n| n.min(rows)),
            max_keys: raw.max_keys.filter(|_| packed).map_or(problem.keys(), |n| n.min(problem.keys())),
        })
    }

    /// Whether sequences are packed.
    pub(super) fn packed(&self) -> bool {
        self.cu_seqlens_q != 0
    }

    /// Sequences, and for packed ones what is behind the last as one more: its rows' results are 0.
    pub(super) fn parts(&self) -> usize {
        self.sequences + usize::from(self.packed())
    }
}

impl RawLists {
    /// The problem's own lists, in host memory.
    pub fn of(problem: &Problem<'_>) -> Self {
        fn raw<T>(list: &[T]) -> RawList {
            RawList { address: list.as_ptr() as u64, len: list.len() }
        }
        let attention = problem.attention();
        let mut lists = Self::default();
        match attention.lengths {
            Lengths::Full => {}
            Lengths::Padded { query_lengths, key_lengths, key_starts } => {
                lists.query_lengths = query_lengths.map(raw);
                lists.key_lengths = key_lengths.map(raw);
                lists.key_starts = key_starts.map(raw);
            }
            Lengths::Packed { cu_seqlens_q, cu_seqlens_k } => {
                lists.cu_seqlens_q = Some(raw(cu_seqlens_q));
                lists.cu_seqlens_k = Some(raw(cu_seqlens_k));
                lists.max_rows = Some(longest(cu_seqlens_q));
                lists.max_keys = Some(longest(cu_seqlens_k));
            }
        }
        lists.positions = attention.inducer.and_then(|i| i.positions).map(raw);
        lists.alibi_slopes = attention.alibi_slopes.map(raw);
        lists
    }
}

fn longest(boundaries: &[i32]) -> usize {
    boundaries.windows(2).map(|w| (w[1] - w[0]) as usize).max().unwrap_or(0)
}
