//! Before the main pass: D′ and w of every row, the adapters' gradients, and the inducer's part of dQ.

use rayon::prelude::*;

use super::{BackwardPlan, Pair, ThreadScratch};
use crate::call::SavedOutput;
use crate::cpu::forward::inducer_tile;
use crate::cpu::kernels::inducer::{InducerGradientTile, Value};
use crate::cpu::moves;
use crate::cpu::query_tile::{Segment, load_lanes, segment_rows};
use crate::cpu::simd::gemm::{Ahead, Gemm};
use crate::cpu::tiling::Tiling;
use crate::inducer::{KeyGradients, ValueGradients};

impl BackwardPlan<'_, '_, '_> {
    /// Prepares the pairs `start..end`.
    ///
    /// Tiles of a head are dealt to its partial sums in whole runs, and every task adds to one of these, flight after
    /// flight, in order of the sequences.
    pub(super) fn prepare(&self, start: usize, end: usize) {
        let partials = self.partials.count.max(1);
        let (heads, group) = (self.problem.query_heads(), self.problem.group_size());
        let tile_rows = Tiling::backward(self.kernels).queries;
        (0..heads * partials).into_par_iter().for_each(|task| {
            let (head, partial) = (task / partials, task % partials);
            let scratch = self.thread_scratch();
            for place in 0..end - start {
                let pair = self.pair(start, place);
                if pair.kv_head != head / group {
                    continue;
                }
                let tiles = pair.sequence.rows.div_ceil(tile_rows);
                for tile in tiles * partial / partials..tiles * (partial + 1) / partials {
                    let row = tile * tile_rows;
                    let rows = tile_rows.min(pair.sequence.rows - row);
                    let segment = Segment { sequence: pair.sequence, head, row, rows };
                    // SAFETY: a task stays on its thread, whose scratch is its own; rows of a head, and its partial
                    // sums, belong to one task.
                    unsafe { self.prepare_tile(&scratch, &pair, &segment, partial) };
                }
            }
        });
    }

    /// # Safety
    /// The scratch, the segment's rows and the partial sum are this task's alone.
    unsafe fn prepare_tile(&self, scratch: &ThreadScratch, pair: &Pair, segment: &Segment, partial: usize) {
        let (k, problem, d) = (self.kernels, self.problem, self.problem.head_dim());
        let call = self.call();
        let lanes = segment.rows.next_multiple_of(k.lanes);
        let v = &scratch.lanes;
        let shape = &self.slots.shape;
        let slots = self.slots.head(segment.head);
        let (qt, d_ot, d_qt) = (scratch.qt.at(0), scratch.d_ot.at(0), scratch.d_qt.at(0));
        let (saved, from_attention) = match &call.saved.output {
            SavedOutput::Output(t) => (t, false),
            SavedOutput::Attention(t) => (t, true),
        };
        let d_o = segment_rows(&call.upstream.d_o, segment);
        // SAFETY: scratch was carved for these sizes, rows come from validated views; the table's instruction set is there.
        unsafe {
            moves::load_transposed(
                k,
                segment_rows(&problem.attention().q, segment),
                segment.rows,
                d,
                qt,
                lanes,
            );
            moves::load_transposed(k, d_o, segment.rows, d, d_ot, lanes);
            moves::load_transposed(k, segment_rows(saved, segment), segment.rows, d, d_qt, lanes);
            (k.dot_rows)(d_ot, d_qt, d, lanes, v.d_o_dot_o());
            v.set_inducer(problem, segment, lanes);
            load_lanes(&call.saved.lse, segment, lanes, 0.0, v.lse());
            match &call.upstream.d_lse {
                Some(t) => load_lanes(t, segment, lanes, 0.0, v.d_lse()),
                None => std::slice::from_raw_parts_mut(v.d_lse(), lanes).fill(0.0),
            }
            if shape.is_some() {
                self.key_products(scratch, segment.head, lanes);
            }
            let forward = inducer_tile(problem, &self.slots, segment.head, lanes, v, &scratch.z, &scratch.f);
            (k.inducer_forward)(&forward);
            match (shape.value, &call.upstream.d_u) {
                (Value::Residual | Value::Direct, _) => (k.gemm)(&Gemm {
                    m: shape.value_slot_rows(),
                    n: lanes,
                    k: d,
                    a: slots.value.cast(),
                    a_row: (d * 4) as isize,
                    a_col: 4,
                    b: d_ot,
                    b_row: lanes,
                    c: scratch.g.at(0),
                    c_row: lanes,
                    accumulate: false,
                    ahead: Ahead::NONE,
                }),
                (Value::Extended, Some(d_u)) => {
                    let rows = segment_rows(d_u, segment);
                    moves::load_transposed(k, rows, segment.rows, shape.value_rank, scratch.g.at(0), lanes);
                }
                (Value::Extended, None) => {
                    std::slice::from_raw_parts_mut(scratch.g.at(0), shape.value_rank * lanes).fill(0.0);
                }
                (Value::Zero, _) => {}
            }
            (k.inducer_backward)(&InducerGradientTile {
                forward,
                g: scratch.g.at(0),
                d_o_dot_o: v.d_o_dot_o(),
                from_attention,
                d_lse: v.d_lse(),
                d_prime: v.d_prime(),
                w: v.w(),
                d_s0: v.d_s0(),
                e: scratch.e.at(0),
                q_factor: v.q_factor(),
            });
            let row = self.row_index(pair, segment.head, segment.row);
            v.w().copy_to_nonoverlapping(self.w.at(row), segment.rows);
            v.d_prime().copy_to_nonoverlapping(self.d_prime.at(row), segment.rows);
            // The inducer's part of dQ; without one, zeros that the main pass adds to.
            (k.scaled_copy)(qt, d_qt, d, lanes, v.q_factor());
            if shape.key_slot_rows() > 0 {
                (k.gemm)(&Gemm {
                    m: d,
                    n: lanes,
                    k: shape.key_slot_rows(),
                    a: slots.key.cast(),
                    a_row: 4,
                    a_col: (d * 4) as isize,
                    b: scratch.e.at(0),
                    b_row: lanes,
                    c: d_qt,
                    c_row: lanes,
                    accumulate: true,
                    ahead: Ahead::NONE,
                });
            }
            moves::store_transposed(
                k,
                d_qt,
                lanes,
                segment.rows,
                d,
                self.d_q_rows(pair, segment.head, segment.row),
            );
            if shape.is_some() {
                self.add_partials(scratch, segment, partial, lanes);
            }
        }
    }

    /// z = key slot · Qᵀ and Q·Q.
    ///
    /// # Safety
    /// As for [`prepare_tile`](Self::prepare_tile), with Qᵀ in place.
    unsafe fn key_products(&self, scratch: &ThreadScratch, head: usize, lanes: usize) {
        let (k, d) = (self.kernels, self.problem.head_dim());
        let qt = scratch.qt.at(0);
        // SAFETY: the slot has key_slot_rows rows of d floats, z as many of `lanes`.
        unsafe {
            (k.gemm)(&Gemm {
                m: self.slots.shape.key_slot_rows(),
                n: lanes,
                k: d,
                a: self.slots.head(head).key.cast(),
                a_row: (d * 4) as isize,
                a_col: 4,
                b: qt,
                b_row: lanes,
                c: scratch.z.at(0),
                c_row: lanes,
                accumulate: false,
                ahead: Ahead::NONE,
            });
            (k.dot_rows)(qt, qt, d, lanes, scratch.lanes.qq());
        }
    }

    /// Adds a tile's part of the adapters' gradients.
    ///
    /// # Safety
    /// As for [`prepare_tile`](Self::prepare_tile), with e, f and the rows' gradients in place.
    unsafe fn add_partials(&self, scratch: &ThreadScratch, segment: &Segment, partial: usize, lanes: usize) {
        let (k, shape) = (self.kernels, &self.slots.shape);
        let gradients = &self.call().gradients;
        let key_wanted = !matches!(gradients.key, KeyGradients::None);
        let value_wanted = !matches!(gradients.value, ValueGradients::None);
        let head = segment.head;
        let v = &scratch.lanes;
        // SAFETY: scratch and partial sums were carved for these sizes.
        unsafe {
            if key_wanted || value_wanted {
                let (rows, stride) = self.natural_rows(
                    segment_rows(&self.problem.attention().q, segment),
                    segment.rows,
                    scratch.q_rows,
                );
                (k.gemm)(&Gemm {
                    m: shape.key_slot_rows(),
                    n: self.padded,
                    k: segment.rows,
                    a: scratch.e.at(0).cast(),
                    a_row: (lanes * 4) as isize,
                    a_col: 4,
                    b: rows,
                    b_row: stride,
                    c: self.partials.key(partial, head),
                    c_row: self.padded,
                    accumulate: true,
                    ahead: Ahead::NONE,
                });
                let bias = self.partials.bias(partial, head);
                let e = scratch.e.at(0);
                (k.add_row_sums)(e, shape.key_rank, lanes, bias);
                let value_rows = e.add(shape.key_rows() * lanes);
                (k.add_row_sums)(value_rows, shape.value_rank, lanes, bias.add(shape.key_rank));
                let logit = bias.add(shape.key_rank + shape.value_rank);
                (k.add_row_sums)(v.d_s0(), 1, lanes, logit);
            }
            if value_wanted && shape.value_slot_rows() > 0 {
                let (rows, stride) = self.natural_rows(
                    segment_rows(&self.call().upstream.d_o, segment),
                    segment.rows,
                    scratch.d_o_rows,
                );
                (k.gemm)(&Gemm {
                    m: shape.value_slot_rows(),
                    n: self.padded,
                    k: segment.rows,
                    a: scratch.f.at(0).cast(),
                    a_row: (lanes * 4) as isize,
                    a_col: 4,
                    b: rows,
                    b_row: stride,
                    c: self.partials.value(partial, head),
                    c_row: self.padded,
                    accumulate: true,
                    ahead: Ahead::NONE,
                });
            }
            if let KeyGradients::LogitPerToken(t) = &gradients.key {
                let ptr = t.at([segment.sequence.batch, head, segment.tensor_row()]);
                for lane in 0..segment.rows {
                    ptr.add(lane * t.stride_bytes(2)).cast::<f32>().write(*v.d_s0().add(lane));
                }
            }
        }
    }
}
