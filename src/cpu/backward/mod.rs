//! The backward, in three parts per *flight* of (sequence, key/value head) pairs: **prepare** (row constants, adapter
//! gradients, the inducer's part of dQ), **main** (the plain attention backward: dQ, dK, dV), **finish** (rounding).
//!
//! # Memory
//! Accumulators are f32. For f32 tensors they are the outputs themselves, but for dK and dV where head_dim is no multiple of the
//! vector. Others exist for the pairs of one flight, and a flight holds just enough pairs to keep the threads busy; those of dK
//! and dV hold a band of a long sequence's keys. So scratch stays a small part of the tensors.
//!
//! # Order
//! Within a pair, tasks follow a [`Schedule`]: no two of a step add to the same place, and every place is added to in the
//! order of the steps. It follows from the sequence's lengths and mask, so results depend on neither threads nor batch.

mod finish;
mod main_pass;
mod prepare;
mod schedule;

use std::cmp::Reverse;

use schedule::{Extent, Schedule};

use rayon::prelude::*;

use super::moves::{self, RowsMut};
use super::products::Products;
use super::query_tile::Lanes;
use super::simd::Kernels;
use super::slots::Slots;
use super::tiling::{Tiling, spread};
use super::workspace::{Carver, Floats};
use crate::attention::{Lengths, Problem, Sequence};
use crate::call::Backward;
use crate::tensor::{DType, TensorMut};

/// Most partial sums per head that adapter gradients are gathered in.
const MAX_PARTIALS: usize = 8;

/// What a backward call needs to know and where its scratch lies.
pub(super) struct BackwardPlan<'c, 'p, 'a> {
    kernels: &'static Kernels,
    problem: &'c Problem<'a>,
    call: Option<&'c Backward<'p, 'a, 'c>>,
    slots: Slots,
    /// Pairs of a flight.
    flight: usize,
    /// Most rows of a sequence, and most keys of a band.
    max_rows: usize,
    max_keys: usize,
    /// head_dim in whole vectors: the row length of accumulators and of operands that are products' right factors.
    padded: usize,
    /// Whether dK and dV are their own accumulators.
    in_place: bool,
    partials: Partials,
    /// Row factors w and constants D′, `[flight][group][max_rows]`.
    w: Floats,
    d_prime: Floats,
    /// Accumulators of 16-bit tensors: dQ `[flight][group][max_rows][d]`, dK and dV `[flight][max_keys][padded]`.
    d_q: Floats,
    d_k: Floats,
    d_v: Floats,
    /// Accumulators of the prefix, `[flight][L][padded]`.
    d_prefix_k: Floats,
    d_prefix_v: Floats,
    scratch: Floats,
    scratch_each: usize,
}

/// Partial sums of the adapters' gradients, `[MAX_PARTIALS][Hq]` of each.
#[derive(Clone, Copy)]
struct Partials {
    count: usize,
    heads: usize,
    /// Gradient of the key slot, rows of `padded` floats.
    key: Floats,
    key_each: usize,
    /// Gradient of the value slot, rows of `padded` floats.
    value: Floats,
    value_each: usize,
    /// da_k, da_v and the gradient of a head's logit.
    bias: Floats,
    bias_each: usize,
}

impl Partials {
    fn carve(
        kernels: &Kernels,
        problem: &Problem<'_>,
        slots: &Slots,
        padded: usize,
        carver: &mut Carver,
    ) -> Self {
        let s = &slots.shape;
        let heads = problem.query_heads();
        let tiles = problem.rows().div_ceil(Tiling::backward(kernels).queries);
        let count = if s.is_some() { tiles.div_ceil(4).clamp(1, MAX_PARTIALS) } else { 0 };
        let key_each = s.key_slot_rows() * padded;
        let value_each = s.value_slot_rows() * padded;
        let bias_each = s.key_rank + s.value_rank + 1;
        Self {
            count,
            heads,
            key: carver.floats(count * heads * key_each),
            key_each,
            value: carver.floats(count * heads * value_each),
            value_each,
            bias: carver.floats(count * heads * bias_each),
            bias_each,
        }
    }

    fn key(&self, partial: usize, head: usize) -> *mut f32 {
        self.key.at((partial * self.heads + head) * self.key_each)
    }

    fn value(&self, partial: usize, head: usize) -> *mut f32 {
        self.value.at((partial * self.heads + head) * self.value_each)
    }

    fn bias(&self, partial: usize, head: usize) -> *mut f32 {
        self.bias.at((partial * self.heads + head) * self.bias_each)
    }

    /// # Safety
    /// No one else uses the partial sums.
    unsafe fn clear(&self) {
        let n = self.count * self.heads;
        for (at, each) in
            [(self.key, self.key_each), (self.value, self.value_each), (self.bias, self.bias_each)]
        {
            // SAFETY: carved with these sizes.
            unsafe { std::slice::from_raw_parts_mut(at.at(0), n * each).fill(0.0) };
        }
    }
}

/// One thread's scratch.
#[derive(Clone, Copy)]
struct ThreadScratch {
    /// Qᵀ and dOᵀ `[d][queries]`, f32 or pairs of bf16.
    qt: Floats,
    d_ot: Floats,
    /// dQᵀ `[d][queries]`.
    d_qt: Floats,
    /// Scores, then P; dP, then dS: `[keys][queries]`.
    s: Floats,
    dp: Floats,
    /// Derivative of the softcap, and dropout factors, of a tile.
    softcap: Floats,
    keep: Floats,
    /// Q and dO in spread rows; pairs of rows of `padded` for bf16.
    q_rows: Floats,
    d_o_rows: Floats,
    /// A tile of K and one of V, where they cannot be read in place.
    k_tile: Floats,
    v_tile: Floats,
    /// bf16: P and dS in rows, dS in pairs.
    p_rows: Floats,
    ds_rows: Floats,
    ds_pairs: Floats,
    /// The inducer's products, and what is made of them.
    z: Floats,
    f: Floats,
    g: Floats,
    e: Floats,
    lanes: Lanes,
}

impl ThreadScratch {
    fn carve(problem: &Problem<'_>, kernels: &Kernels, slots: &Slots, carver: &mut Carver) -> Self {
        let d = problem.head_dim();
        let padded = d.next_multiple_of(kernels.lanes);
        let Tiling { queries, keys } = Tiling::backward(kernels);
        let tile = keys * queries;
        let a = problem.attention();
        let when = |yes: bool, n: usize| if yes { n } else { 0 };
        let bf16 = Products::of(problem, kernels) == Products::Bf16;
        let s = &slots.shape;
        Self {
            qt: carver.floats(d * queries),
            d_ot: carver.floats(d * queries),
            d_qt: carver.floats(d * queries),
            s: carver.floats(tile),
            dp: carver.floats(tile),
            softcap: carver.floats(when(a.config.softcap.is_some(), tile)),
            keep: carver.floats(when(a.config.dropout.is_some(), tile)),
            q_rows: carver.floats(queries * spread(padded)),
            d_o_rows: carver.floats(queries * spread(padded)),
            k_tile: carver.floats(Products::left_factor_floats(keys, d)),
            v_tile: carver.floats(Products::left_factor_floats(keys, d)),
            p_rows: carver.floats(when(bf16, tile / 2)),
            ds_rows: carver.floats(when(bf16, tile / 2)),
            ds_pairs: carver.floats(when(bf16, tile / 2)),
            z: carver.floats(s.key_slot_rows() * queries),
            f: carver.floats((s.value_rank + 1) * queries),
            g: carver.floats((s.value_rank + 1) * queries),
            e: carver.floats(s.key_slot_rows() * queries),
            lanes: Lanes::carve(queries, carver),
        }
    }
}

/// A sequence and a key/value head: what dK and dV are gathered for.
#[derive(Clone, Copy)]
struct Pair {
    /// Place in the flight.
    place: usize,
    sequence: Sequence,
    kv_head: usize,
    /// Keys of the sequence whose dK and dV the accumulators hold, from the first to one before the second.
    held: (usize, usize),
}

impl<'c, 'p, 'a> BackwardPlan<'c, 'p, 'a> {
    /// Carves the workspace for a call, or measures it.
    pub(super) fn carve(
        kernels: &'static Kernels,
        problem: &'c Problem<'a>,
        call: Option<&'c Backward<'p, 'a, 'c>>,
        carver: &mut Carver,
    ) -> Self {
        let threads = rayon::current_num_threads();
        let d = problem.head_dim();
        let padded = d.next_multiple_of(kernels.lanes);
        let slots = Slots::carve(problem, carver);
        let partials = Partials::carve(kernels, problem, &slots, padded, carver);
        let wide = problem.dtype() == DType::F32;
        let in_place = wide && d == padded;
        let tile = Tiling::backward(kernels).keys;
        // The longest sequence says how many tasks there are at a time; of several, the one with fewest.
        let (mut longest, mut max_keys) = ((0, Reverse(1)), 0);
        for sequence in (0..problem.sequences()).map(|i| problem.sequence(i)) {
            let schedule = schedule(problem, &sequence, tile, in_place);
            longest = longest.max((sequence.rows, Reverse(schedule.tasks())));
            max_keys = max_keys.max(schedule.most_keys());
        }
        let (max_rows, Reverse(tasks)) = longest;
        let group = problem.group_size();
        let pairs = problem.sequences() * problem.kv_heads();
        let flight = (4 * threads).div_ceil(tasks).min(pairs);
        let rows = flight * group * max_rows;
        let keys = if in_place { 0 } else { flight * max_keys * padded };
        let prefix = flight * problem.prefix_len() * padded;
        let mut one = Carver::measuring();
        ThreadScratch::carve(problem, kernels, &slots, &mut one);
        let scratch_each = one.used() / size_of::<f32>();
        Self {
            kernels,
            problem,
            call,
            slots,
            flight,
            max_rows,
            max_keys,
            padded,
            in_place,
            partials,
            w: carver.floats(rows),
            d_prime: carver.floats(rows),
            d_q: carver.floats(if wide { 0 } else { rows * d }),
            d_k: carver.floats(keys),
            d_v: carver.floats(keys),
            d_prefix_k: carver.floats(prefix),
            d_prefix_v: carver.floats(prefix),
            scratch: carver.floats(scratch_each * threads),
            scratch_each,
        }
    }

    /// Runs the call.
    pub(super) fn run(&self) {
        // SAFETY: carved for this problem, and no task runs yet.
        unsafe {
            self.slots.pack(self.kernels, self.problem);
            self.partials.clear();
        }
        self.clear_outputs();
        let pairs = self.problem.sequences() * self.problem.kv_heads();
        let mut start = 0;
        while start < pairs {
            let end = (start + self.flight).min(pairs);
            self.prepare(start, end);
            self.main_pass(start, end);
            self.finish(start, end);
            start = end;
        }
        self.reduce_partials();
    }

    fn call(&self) -> &'c Backward<'p, 'a, 'c> {
        self.call.expect("a plan that runs was carved for a call")
    }

    fn thread_scratch(&self) -> ThreadScratch {
        let thread = rayon::current_thread_index().unwrap_or(0);
        let mut carver = Carver::over(self.scratch.at(thread * self.scratch_each));
        ThreadScratch::carve(self.problem, self.kernels, &self.slots, &mut carver)
    }

    fn pair(&self, start: usize, place: usize) -> Pair {
        let heads = self.problem.kv_heads();
        let index = start + place;
        Pair { place, sequence: self.problem.sequence(index / heads), kv_head: index % heads, held: (0, 0) }
    }

    /// The same while its accumulators hold a band of its keys.
    fn pair_in_band(&self, start: usize, place: usize, band: usize) -> (Pair, Schedule) {
        let pair = self.pair(start, place);
        let schedule =
            schedule(self.problem, &pair.sequence, Tiling::backward(self.kernels).keys, self.in_place);
        (Pair { held: schedule.band_keys(band), ..pair }, schedule)
    }

    /// Index of a row of a query head in the flight's row vectors.
    fn row_index(&self, pair: &Pair, head: usize, row: usize) -> usize {
        let group = self.problem.group_size();
        (pair.place * group + head % group) * self.max_rows + row
    }

    /// Rows of dQ's accumulator, from local row `row` on.
    fn d_q_rows(&self, pair: &Pair, head: usize, row: usize) -> RowsMut {
        if self.problem.dtype() == DType::F32 {
            let s = &pair.sequence;
            return output_rows(&self.call().gradients.d_q, [s.batch, head, s.row_base + row]);
        }
        let d = self.problem.head_dim();
        let ptr = self.d_q.at(self.row_index(pair, head, row) * d);
        RowsMut { ptr: ptr.cast(), stride: d * 4, dtype: DType::F32 }
    }

    /// dK's (or dV's) accumulator from key `key` on, and the floats between its rows.
    fn d_kv_rows(&self, pair: &Pair, t: &TensorMut<'_, 4>, acc: Floats, key: usize) -> (*mut f32, usize) {
        if self.in_place {
            let s = &pair.sequence;
            return (t.at([s.batch, pair.kv_head, s.key_base + key, 0]).cast(), t.strides()[2]);
        }
        (acc.at((pair.place * self.max_keys + key - pair.held.0) * self.padded), self.padded)
    }

    /// Zeroes what is added to in place, and what no task writes.
    fn clear_outputs(&self) {
        let g = &self.call().gradients;
        let padded = !matches!(self.problem.attention().lengths, Lengths::Full);
        let zero = |t: &TensorMut<'_, 4>| {
            let [b, h, n, d] = t.shape();
            if n == 0 {
                return;
            }
            (0..b * h).into_par_iter().for_each(|i| {
                // SAFETY: every task clears rows of its own.
                unsafe { moves::fill(output_rows(t, [i / h, i % h, 0]), n, d, 0.0) };
            });
        };
        if padded {
            zero(&g.d_q);
        }
        if padded || self.in_place {
            zero(&g.d_k);
            zero(&g.d_v);
        }
        self.clear_small_gradients();
    }
}

/// How a sequence's pairs are worked through.
fn schedule(problem: &Problem<'_>, sequence: &Sequence, tile: usize, in_place: bool) -> Schedule {
    Schedule::new(Extent {
        rows: sequence.rows,
        group: problem.group_size(),
        // Keys behind the last one are zero from the start (`clear_outputs`), and no one's concern here.
        keys: sequence.key_end,
        has_prefix: problem.prefix_len() > 0,
        tile,
        in_place,
        windowed: problem.attention().config.window_left.is_some(),
    })
}

/// Rows of an output `[B, H, N, ·]` from `[batch, head, row]` on.
fn output_rows(t: &TensorMut<'_, 4>, [batch, head, row]: [usize; 3]) -> RowsMut {
    RowsMut { ptr: t.at([batch, head, row, 0]), stride: t.stride_bytes(2), dtype: t.dtype() }
}
