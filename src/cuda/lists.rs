//! Lists of a problem (lengths, boundaries of packed sequences, positions, slopes) as kernels read them: by address.

use crate::attention::{Lengths, Problem};

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
    /// The problem's own lists, where they are: in host memory, for the emulator.
    pub fn of(problem: &Problem<'_>) -> Self {
        Self::placed(problem, |list| list.as_ptr() as u64)
    }

    /// The problem's own lists, at the addresses that `place` gives to them.
    pub(super) fn placed(problem: &Problem<'_>, mut place: impl FnMut(&[u8]) -> u64) -> Self {
        let attention = problem.attention();
        let (rows, keys) = (problem.rows(), problem.keys());
        let mut lists =
            Self { sequences: problem.sequences(), max_rows: rows, max_keys: keys, ..Self::default() };
        let mut integers = |list: &[i32]| place(bytemuck::cast_slice(list));
        match attention.lengths {
            Lengths::Full => {}
            Lengths::Padded { query_lengths, key_lengths, key_starts } => {
                lists.query_lengths = query_lengths.map_or(0, &mut integers);
                lists.key_lengths = key_lengths.map_or(0, &mut integers);
                lists.key_starts = key_starts.map_or(0, &mut integers);
            }
            Lengths::Packed { cu_seqlens_q, cu_seqlens_k } => {
                lists.cu_seqlens_q = integers(cu_seqlens_q);
                lists.cu_seqlens_k = integers(cu_seqlens_k);
                lists.max_rows = longest(cu_seqlens_q);
                lists.max_keys = longest(cu_seqlens_k);
            }
        }
        lists.positions = attention.inducer.and_then(|i| i.positions).map_or(0, &mut integers);
        if let Some(slopes) = attention.alibi_slopes {
            lists.alibi_slopes = place(bytemuck::cast_slice(slopes));
            lists.alibi_per_sequence = slopes.len() != problem.query_heads();
        }
        lists
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

fn longest(boundaries: &[i32]) -> usize {
    boundaries.windows(2).map(|w| (w[1] - w[0]) as usize).max().unwrap_or(0)
}
