//! Tiles of queries: which rows they are and what those rows need besides Q.

use super::moves::Rows;
use super::workspace::{Carver, Floats};
use crate::attention::{Lengths, Problem, Sequence};
use crate::dropout::{KeepMask, Stream};
use crate::inducer::VirtualKey;
use crate::tensor::{TensorRef, read};

/// Neighbouring rows of one sequence, in one query head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) sequence: Sequence,
    pub(super) head: usize,
    /// First row, local to the sequence.
    pub(super) row: usize,
    pub(super) rows: usize,
}

impl Segment {
    /// First row in the tensors.
    pub(super) fn tensor_row(&self) -> usize {
        self.sequence.row_base + self.row
    }

    /// Keys that some row sees, `(first, end)`.
    pub(super) fn seen(&self) -> (usize, usize) {
        let (first, _) = self.sequence.visible(self.row);
        let (_, end) = self.sequence.visible(self.row + self.rows - 1);
        (first, end.max(first))
    }

    /// Keys that every row sees, `(first, end)`; may be empty with `first > end`.
    pub(super) fn seen_by_all(&self) -> (usize, usize) {
        let (first, _) = self.sequence.visible(self.row + self.rows - 1);
        let (_, end) = self.sequence.visible(self.row);
        (first, end)
    }

    /// What dropout counts heads by.
    pub(super) fn dropout_head(&self, problem: &Problem<'_>) -> u32 {
        // Fits: validated.
        (self.sequence.index * problem.query_heads() + self.head) as u32
    }
}

/// Calls `f` with the sequences' parts of tensor rows `start..end` of one batch entry, and returns the first row behind
/// which there is only padding.
pub(super) fn for_each_segment(
    problem: &Problem<'_>,
    batch: usize,
    head: usize,
    (start, end): (usize, usize),
    mut f: impl FnMut(Segment),
) -> usize {
    if let Lengths::Packed { cu_seqlens_q, .. } = problem.attention().lengths {
        // The last sequence that begins at or before the start; empty ones in between have no rows.
        let first = cu_seqlens_q.partition_point(|&c| c as usize <= start).saturating_sub(1);
        let mut covered = start;
        for index in first..problem.sequences() {
            let sequence = problem.sequence(index);
            let from = sequence.row_base.max(start);
            let to = (sequence.row_base + sequence.rows).min(end);
            if sequence.row_base >= end {
                break;
            }
            if from < to {
                f(Segment { sequence, head, row: from - sequence.row_base, rows: to - from });
                covered = to;
            }
        }
        return covered;
    }
    let sequence = problem.sequence(batch);
    let to = sequence.rows.min(end);
    if start < to {
        f(Segment { sequence, head, row: start, rows: to - start });
        return to;
    }
    start
}

/// Per-lane numbers of a query tile.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lanes {
    width: usize,
    base: Floats,
}

macro_rules! lane_vectors {
    ($($(#[$doc:meta])* $name:ident = $index:literal),* ; $count:literal) => {
        impl Lanes {
            const COUNT: usize = $count;
            $($(#[$doc])* pub(super) fn $name(&self) -> *mut f32 { self.base.at($index * self.width) })*
        }
    };
}

lane_vectors! {
    /// Running maximum of the softmax.
    max = 0,
    /// Running sum of the softmax.
    sum = 1,
    /// Factor of what has been accumulated.
    alpha = 2,
    /// One over the sum.
    inverse = 3,
    /// lse, natural log.
    lse = 4,
    /// Q·Q.
    qq = 5,
    /// τ.
    tau = 6,
    /// Score of the virtual token.
    s0 = 7,
    /// λ.
    lambda = 8,
    /// Dropout factor of λ.
    keep = 9,
    /// w.
    w = 10,
    /// D′.
    d_prime = 11,
    /// ds0.
    d_s0 = 12,
    /// dLSE.
    d_lse = 13,
    /// dO·O.
    d_o_dot_o = 14,
    /// 2τσ ds0.
    q_factor = 15,
    /// 1 − λ.
    rest = 16 ;
    20
}

impl Lanes {
    pub(super) fn carve(width: usize, carver: &mut Carver) -> Self {
        Self { width, base: carver.floats(Self::COUNT * width) }
    }

    /// First key that the row sees.
    pub(super) fn lo(&self) -> *mut i32 {
        self.base.at(17 * self.width).cast()
    }

    /// One past the last key that the row sees.
    pub(super) fn hi(&self) -> *mut i32 {
        self.base.at(18 * self.width).cast()
    }

    /// Key position of the row.
    pub(super) fn position(&self) -> *mut i32 {
        self.base.at(19 * self.width).cast()
    }

    /// Fills in what depends on the rows' numbers alone: keys seen, positions. Lanes behind the rows repeat the last row.
    ///
    /// # Safety
    /// `lanes` is at most the width, and no one else uses these vectors.
    pub(super) unsafe fn set_rows(&self, segment: &Segment, lanes: usize) {
        for lane in 0..lanes {
            let row = segment.row + lane.min(segment.rows - 1);
            let (lo, hi) = segment.sequence.visible(row);
            let position =
                (row as i64 + segment.sequence.offset).clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32;
            // SAFETY: lane < lanes <= width.
            unsafe {
                *self.lo().add(lane) = lo as i32;
                *self.hi().add(lane) = hi as i32;
                *self.position().add(lane) = position;
            }
        }
    }

    /// Fills in what the virtual token needs: τ, the given logit, the dropout factor of λ.
    ///
    /// # Safety
    /// As for [`set_rows`](Self::set_rows).
    pub(super) unsafe fn set_inducer(&self, problem: &Problem<'_>, segment: &Segment, lanes: usize) {
        let mask = keep_mask(problem);
        let key = problem.attention().inducer.map(|i| i.key);
        for lane in 0..lanes {
            let row = segment.row + lane;
            let exists = lane < segment.rows;
            let tau = if exists { problem.adaptive_factor(&segment.sequence, row) } else { 1.0 };
            let keep = match mask {
                Some((mask, scale)) if exists => {
                    let kept = mask.keep_lambda(segment.dropout_head(problem), row as u32);
                    if kept { scale } else { 0.0 }
                }
                _ => 1.0,
            };
            // SAFETY: lane < lanes <= width.
            unsafe {
                *self.tau().add(lane) = tau;
                *self.keep().add(lane) = keep;
                match key {
                    Some(VirtualKey::LogitPerHead(t)) => *self.s0().add(lane) = t.get([segment.head]),
                    Some(VirtualKey::LogitPerToken(t)) => {
                        *self.s0().add(lane) = if exists {
                            t.get([segment.sequence.batch, segment.head, segment.tensor_row() + lane])
                        } else {
                            0.0
                        };
                    }
                    _ => {}
                }
            }
        }
    }
}

/// The dropout mask of a problem and the factor of kept entries.
pub(super) fn keep_mask(problem: &Problem<'_>) -> Option<(KeepMask, f32)> {
    problem.attention().config.dropout.map(|d| {
        let mask = KeepMask::new(d.p, d.seed);
        (mask, mask.scale() as f32)
    })
}

/// Reads a row of numbers per query, such as lse, into lanes; lanes behind the rows get `otherwise`.
///
/// # Safety
/// `to` holds `lanes` floats; the tensor has the segment's rows.
pub(super) unsafe fn load_lanes(
    t: &TensorRef<'_, 3>,
    segment: &Segment,
    lanes: usize,
    otherwise: f32,
    to: *mut f32,
) {
    let ptr = t.at([segment.sequence.batch, segment.head, segment.tensor_row()]);
    let stride = t.stride_bytes(2);
    for lane in 0..lanes {
        // SAFETY: rows of the segment are in the tensor; `to` holds `lanes` floats.
        unsafe {
            *to.add(lane) =
                if lane < segment.rows { read(t.dtype(), ptr.add(lane * stride)) } else { otherwise };
        }
    }
}

/// The rows of a segment in a tensor `[B, Hq, N, ·]`.
pub(super) fn segment_rows(t: &TensorRef<'_, 4>, segment: &Segment) -> Rows {
    Rows {
        ptr: t.at([segment.sequence.batch, segment.head, segment.tensor_row(), 0]),
        stride: t.stride_bytes(2),
        dtype: t.dtype(),
    }
}

/// A tile of dropout factors.
pub(super) struct DropoutTile {
    pub(super) mask: KeepMask,
    pub(super) scale: f32,
    pub(super) stream: Stream,
    pub(super) head: u32,
    pub(super) first_row: usize,
    pub(super) rows: usize,
    pub(super) first_key: usize,
    pub(super) keys: usize,
}

impl DropoutTile {
    /// Calls `f(key, lane, factor)` for every entry of the tile, in no particular order.
    pub(super) fn for_each(&self, mut f: impl FnMut(usize, usize, f32)) {
        let (row_end, key_end) = (self.first_row + self.rows, self.first_key + self.keys);
        for row_block in self.first_row / 16..row_end.div_ceil(16) {
            for key_block in self.first_key / 16..key_end.div_ceil(16) {
                for r in 0..8 {
                    for t in 0..4 {
                        let entries = self.mask.group(
                            self.stream,
                            self.head,
                            (row_block * 8 + r) as u32,
                            (key_block * 4 + t) as u32,
                        );
                        for (e, &bits) in entries.iter().enumerate() {
                            let row = row_block * 16 + (e / 4) * 8 + r;
                            let key = key_block * 16 + (e / 2 % 2) * 8 + 2 * t + e % 2;
                            if (self.first_row..row_end).contains(&row)
                                && (self.first_key..key_end).contains(&key)
                            {
                                let kept = u32::from(bits) < self.mask.threshold();
                                let factor = if kept { self.scale } else { 0.0 };
                                f(key - self.first_key, row - self.first_row, factor);
                            }
                        }
                    }
                }
            }
        }
    }
}
