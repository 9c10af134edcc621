//! Keys and values as the tiles of the main loops see them: the shared prefix and the sequence's own.

use super::moves::Rows;
use crate::attention::Problem;
use crate::dropout::Stream;
use crate::tensor::TensorRef;

use super::query_tile::Segment;

/// A run of keys that a query tile works through.
#[derive(Clone, Copy)]
pub(super) struct KeySource {
    pub(super) k: Rows,
    pub(super) v: Rows,
    /// First key to visit.
    pub(super) first: usize,
    /// One past the last.
    pub(super) end: usize,
    /// Keys that every row sees.
    pub(super) seen_by_all: (usize, usize),
    /// Whether ALiBi applies.
    pub(super) positioned: bool,
    pub(super) stream: Stream,
}

impl KeySource {
    /// The shared prefix.
    pub(super) fn prefix(problem: &Problem<'_>, segment: &Segment) -> Option<Self> {
        let prefix = problem.attention().prefix.filter(|_| problem.prefix_len() > 0)?;
        let head = segment.head / problem.group_size();
        let rows = |t: &TensorRef<'_, 3>| Rows {
            ptr: t.at([head, 0, 0]),
            stride: t.stride_bytes(1),
            dtype: t.dtype(),
        };
        let len = problem.prefix_len();
        Some(Self {
            k: rows(&prefix.k),
            v: rows(&prefix.v),
            first: 0,
            end: len,
            seen_by_all: (0, len),
            positioned: false,
            stream: Stream::Prefix,
        })
    }

    /// The sequence's own keys, numbered from its first, as far as the segment sees them.
    pub(super) fn keys(problem: &Problem<'_>, segment: &Segment) -> Option<Self> {
        let (first, end) = segment.seen();
        if first == end {
            return None;
        }
        let s = &segment.sequence;
        let head = segment.head / problem.group_size();
        let rows = |t: &TensorRef<'_, 4>| Rows {
            ptr: t.at([s.batch, head, s.key_base, 0]),
            stride: t.stride_bytes(2),
            dtype: t.dtype(),
        };
        let a = problem.attention();
        Some(Self {
            k: rows(&a.k),
            v: rows(&a.v),
            first,
            end,
            seen_by_all: segment.seen_by_all(),
            positioned: true,
            stream: Stream::Keys,
        })
    }

    /// The part of this run in `first..end`.
    pub(super) fn clip(mut self, first: usize, end: usize) -> Option<Self> {
        self.first = self.first.max(first);
        self.end = self.end.min(end);
        (self.first < self.end).then_some(self)
    }

    /// Tiles `(first, end, masked)`, cut at multiples of `size`: so their borders do not depend on the rows that look.
    pub(super) fn tiles(&self, size: usize) -> impl Iterator<Item = (usize, usize, bool)> + use<> {
        let (end, all) = (self.end, self.seen_by_all);
        let mut next = self.first;
        std::iter::from_fn(move || {
            if next >= end {
                return None;
            }
            let first = next;
            next = end.min((first / size + 1) * size);
            Some((first, next, first < all.0 || next > all.1))
        })
    }
}
