//! The forward: one pass over the keys per tile of queries, the virtual token folded in at its end.

use rayon::prelude::*;

use super::few_rows::FewRows;
use super::kernels::inducer::{InducerTile, Value};
use super::kernels::score::{ScoreTile, Transform};
use super::kernels::softmax::SoftmaxTile;
use super::key_source::KeySource;
use super::masked::{Pairing, Visible, gemm_visible};
use super::moves::{self, Rows, RowsMut};
use super::products::Products;
use super::query_tile::{DropoutTile, Lanes, Segment, for_each_segment, keep_mask, segment_rows};
use super::simd::Kernels;
use super::simd::gemm::{Ahead, Gemm};
use super::slots::Slots;
use super::tiling::Tiling;
use super::workspace::{Carver, Floats};
use crate::attention::Problem;
use crate::call::Forward;
use crate::tensor::{DType, TensorMut};

/// Lanes of the widest vector.
const MOST_LANES: usize = 16;

/// What a forward call needs to know and where its scratch lies.
pub(super) struct ForwardPlan<'c, 'p, 'a> {
    kernels: &'static Kernels,
    problem: &'c Problem<'a>,
    slots: Slots,
    scratch: Scratch,
    call: Option<&'c Forward<'p, 'a, 'c>>,
}

/// Scratch of all threads: equal pieces, one behind the other.
#[derive(Clone, Copy)]
struct Scratch {
    base: Floats,
    floats_each: usize,
}

/// One thread's scratch.
#[derive(Clone, Copy)]
struct ThreadScratch {
    /// Qᵀ `[d][queries]`.
    qt: Floats,
    /// Q as pairs of bf16 `[d/2][queries]`.
    q_pairs: Floats,
    /// Scores `[keys][queries]`.
    s: Floats,
    /// Probabilities as pairs of bf16 `[keys/2][queries]`.
    p_pairs: Floats,
    /// Oᵀ `[d][queries]`.
    ot: Floats,
    /// A tile of K or V in the form that the products read.
    kv: Floats,
    /// The inducer's products.
    z: Floats,
    /// Rows that multiply the value slot.
    f: Floats,
    few_rows: Option<FewRows>,
    lanes: Lanes,
}

impl ThreadScratch {
    fn carve(problem: &Problem<'_>, kernels: &Kernels, slots: &Slots, carver: &mut Carver) -> Self {
        let d = problem.head_dim();
        let Tiling { queries, keys } = Tiling::forward(kernels);
        let bf16 = Products::of(problem, kernels) == Products::Bf16;
        let pairs = |n: usize| if bf16 { n } else { 0 };
        Self {
            qt: carver.floats(d * queries),
            q_pairs: carver.floats(pairs(d.div_ceil(2) * queries)),
            s: carver.floats(keys * queries),
            p_pairs: carver.floats(pairs(keys / 2 * queries)),
            ot: carver.floats(d * queries),
            kv: carver.floats(Products::left_factor_floats(keys, d)),
            z: carver.floats(slots.shape.key_slot_rows() * queries),
            f: carver.floats((slots.shape.value_rank + 1) * queries),
            few_rows: FewRows::carve(problem, kernels, carver),
            lanes: Lanes::carve(queries, carver),
        }
    }
}

impl ThreadScratch {
    /// What serves a tile of so many lanes, if it is one of few rows.
    fn few_rows(&self, kernels: &Kernels, lanes: usize) -> Option<FewRows> {
        self.few_rows?.serves(kernels, lanes)
    }
}

impl<'c, 'p, 'a> ForwardPlan<'c, 'p, 'a> {
    /// Carves the workspace for a call, or measures it.
    pub(super) fn carve(
        kernels: &'static Kernels,
        problem: &'c Problem<'a>,
        call: Option<&'c Forward<'p, 'a, 'c>>,
        carver: &mut Carver,
    ) -> Self {
        let slots = Slots::carve(problem, carver);
        let mut one = Carver::measuring();
        ThreadScratch::carve(problem, kernels, &slots, &mut one);
        let floats_each = one.used() / size_of::<f32>();
        let base = carver.floats(floats_each * rayon::current_num_threads());
        Self { kernels, problem, slots, scratch: Scratch { base, floats_each }, call }
    }

    /// Runs the call.
    pub(super) fn run(&self) {
        let problem = self.problem;
        // SAFETY: the slots were carved for this problem, and no task runs yet.
        unsafe { self.slots.pack(self.kernels, problem) };
        let together = self.heads_together();
        let tile_rows = Tiling::forward(self.kernels).queries;
        let tiles = problem.rows().div_ceil(tile_rows);
        // Of the query heads that have a key head in common.
        let parts = problem.group_size().div_ceil(together);
        let heads = problem.query_heads() / problem.group_size() * parts;
        (0..problem.batch() * heads * tiles).into_par_iter().for_each(|task| {
            let (batch, rest) = (task / (heads * tiles), task % (heads * tiles));
            let (part, tile) = (rest / tiles, rest % tiles);
            let first = part / parts * problem.group_size() + part % parts * together;
            let count = together.min(problem.group_size() - part % parts * together);
            let start = tile * tile_rows;
            let end = (start + tile_rows).min(problem.rows());
            let thread = rayon::current_thread_index().unwrap_or(0);
            let scratch = self.thread_scratch(thread);
            let covered = for_each_segment(problem, batch, first, (start, end), |segment| {
                // SAFETY: a pool's threads have distinct indices, and a task runs on one thread from beginning to end
                // (it starts no further tasks), so that no one else uses this scratch. Tasks write disjoint rows.
                unsafe {
                    if count > 1 {
                        self.run_heads(&scratch, &segment, count);
                    } else {
                        self.run_segment(&scratch, &segment);
                    }
                }
            });
            for head in first..first + count {
                self.fill_padding(batch, head, covered, end);
            }
        });
    }

    /// How many query heads share a task, and with it one reading of K and V: those of a group where each has one row, and no more than
    /// a vector has lanes. What differs from head to head within a tile of scores keeps them apart.
    fn heads_together(&self) -> usize {
        let (problem, a) = (self.problem, self.problem.attention());
        let alike = a.alibi_slopes.is_none() && a.config.dropout.is_none();
        let one_row = problem.rows() == 1 && FewRows::serve(problem, self.kernels);
        if alike && one_row { problem.group_size().min(self.kernels.lanes) } else { 1 }
    }

    fn thread_scratch(&self, thread: usize) -> ThreadScratch {
        let mut carver = Carver::over(self.scratch.base.at(thread * self.scratch.floats_each));
        ThreadScratch::carve(self.problem, self.kernels, &self.slots, &mut carver)
    }

    fn call(&self) -> &'c Forward<'p, 'a, 'c> {
        self.call.expect("a plan that runs was carved for a call")
    }

    /// Outputs of rows that belong to no sequence.
    fn fill_padding(&self, batch: usize, head: usize, start: usize, end: usize) {
        if start >= end {
            return;
        }
        let out = &self.call().outputs;
        let zero = |t: &TensorMut<'_, 4>| {
            let rows =
                RowsMut { ptr: t.at([batch, head, start, 0]), stride: t.stride_bytes(2), dtype: t.dtype() };
            // SAFETY: these rows of the output belong to this task.
            unsafe { moves::fill(rows, end - start, t.shape()[3], 0.0) };
        };
        zero(&out.o);
        out.u.iter().for_each(zero);
        out.attn.iter().for_each(zero);
        if let Some(lse) = &out.lse {
            let rows =
                RowsMut { ptr: lse.at([batch, head, start]), stride: lse.stride_bytes(2), dtype: DType::F32 };
            // SAFETY: as above.
            unsafe { moves::fill(rows, end - start, 1, f32::NEG_INFINITY) };
        }
    }

    /// # Safety
    /// The scratch is this task's alone, and so are the segment's rows of the outputs.
    unsafe fn run_segment(&self, scratch: &ThreadScratch, segment: &Segment) {
        let (k, problem, d) = (self.kernels, self.problem, self.problem.head_dim());
        let lanes = segment.rows.next_multiple_of(k.lanes);
        let v = &scratch.lanes;
        let (qt, ot) = (scratch.qt.at(0), scratch.ot.at(0));
        let q = segment_rows(&problem.attention().q, segment);
        // SAFETY: scratch was carved for these sizes, rows come from validated views; the table's instruction set is there.
        unsafe {
            moves::load_transposed(k, q, segment.rows, d, qt, lanes);
            if self.slots.shape.is_some() {
                v.set_inducer(problem, segment, lanes);
                self.inducer_products(scratch, segment.head, lanes);
            }
            let any = self.run_tiles(scratch, segment, q, segment.rows, lanes);
            if let Some(few) = scratch.few_rows(k, lanes).filter(|_| any) {
                few.transposed(k, 0, segment.rows, ot);
            }
            self.normalise(scratch, lanes, any);
            self.finish_segment(scratch, segment, lanes);
        }
    }

    /// The same for the only row of `heads` query heads, the segment's and those behind it, which read the same keys.
    ///
    /// # Safety
    /// As for [`run_segment`](Self::run_segment), for all of these heads.
    unsafe fn run_heads(&self, scratch: &ThreadScratch, segment: &Segment, heads: usize) {
        let (k, problem, d) = (self.kernels, self.problem, self.problem.head_dim());
        let lanes = k.lanes;
        let v = &scratch.lanes;
        let a = problem.attention();
        let (qt, ot) = (scratch.qt.at(0), scratch.ot.at(0));
        let few = scratch.few_rows.expect("heads are taken together where it is there");
        // Rows are heads.
        let q = Rows { stride: a.q.stride_bytes(1), ..segment_rows(&a.q, segment) };
        // SAFETY: as in `run_segment`.
        unsafe {
            moves::load_transposed(k, q, heads, d, qt, lanes);
            let any = self.run_tiles(scratch, segment, q, heads, lanes);
            (k.softmax_finish)(v.max(), v.sum(), lanes, v.inverse(), v.lse());
            // From here on each head is alone, in the first lane.
            let (mut inverse, mut lse) = ([0.0; MOST_LANES], [0.0; MOST_LANES]);
            for head in 0..heads {
                (inverse[head], lse[head]) = (*v.inverse().add(head), *v.lse().add(head));
            }
            for head in 0..heads {
                let segment = Segment { head: segment.head + head, ..*segment };
                moves::load_transposed(k, segment_rows(&a.q, &segment), 1, d, qt, lanes);
                if self.slots.shape.is_some() {
                    v.set_inducer(problem, &segment, lanes);
                    self.inducer_products(scratch, segment.head, lanes);
                }
                if any {
                    few.transposed(k, head, 1, ot);
                }
                for lane in 0..lanes {
                    (*v.inverse().add(lane), *v.lse().add(lane)) = (inverse[head], lse[head]);
                }
                self.scale(scratch, lanes, any);
                self.finish_segment(scratch, &segment, lanes);
            }
        }
    }

    /// All tiles of keys for `rows` rows at `q`, which see what the segment's rows see. Returns whether there was one.
    ///
    /// # Safety
    /// As for [`run_segment`](Self::run_segment), with Qᵀ in place.
    unsafe fn run_tiles(
        &self,
        scratch: &ThreadScratch,
        segment: &Segment,
        q: Rows,
        rows: usize,
        lanes: usize,
    ) -> bool {
        let (k, problem, v) = (self.kernels, self.problem, &scratch.lanes);
        // SAFETY: the caller's promise.
        unsafe {
            v.set_rows(segment, lanes);
            for lane in 0..lanes {
                *v.max().add(lane) = f32::NEG_INFINITY;
                *v.sum().add(lane) = 0.0;
            }
            let scale = self.prepare_queries(scratch, q, rows, lanes);
            let mut first = true;
            let sources = [KeySource::prefix(problem, segment), KeySource::keys(problem, segment)];
            let tile = Segment { rows, ..*segment };
            for source in sources.into_iter().flatten() {
                for (from, to, masked) in source.tiles(Tiling::forward(k).keys) {
                    self.run_tile(scratch, &tile, &source, (from, to), masked, scale, lanes, first);
                    first = false;
                }
            }
            !first
        }
    }

    /// lse, and attnᵀ from what was summed up in Oᵀ.
    ///
    /// # Safety
    /// As for [`run_segment`](Self::run_segment).
    unsafe fn normalise(&self, scratch: &ThreadScratch, lanes: usize, any: bool) {
        let (k, v) = (self.kernels, &scratch.lanes);
        // SAFETY: the caller's promise.
        unsafe {
            (k.softmax_finish)(v.max(), v.sum(), lanes, v.inverse(), v.lse());
            self.scale(scratch, lanes, any);
        }
    }

    /// Oᵀ over the sums; 0 if there were no keys at all.
    ///
    /// # Safety
    /// As for [`run_segment`](Self::run_segment).
    unsafe fn scale(&self, scratch: &ThreadScratch, lanes: usize, any: bool) {
        let (k, d, ot) = (self.kernels, self.problem.head_dim(), scratch.ot.at(0));
        // SAFETY: the caller's promise.
        unsafe {
            if any {
                (k.scale_lanes)(ot, d, lanes, scratch.lanes.inverse());
            } else {
                std::slice::from_raw_parts_mut(ot, d * lanes).fill(0.0);
            }
        }
    }

    /// z = key slot · Qᵀ and Q·Q.
    ///
    /// # Safety
    /// As for [`run_segment`](Self::run_segment), with Qᵀ in place.
    unsafe fn inducer_products(&self, scratch: &ThreadScratch, head: usize, lanes: usize) {
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

    /// Makes Q what the scores are formed from, and returns what brings those to units of log2: positive.
    ///
    /// # Safety
    /// As for [`run_segment`](Self::run_segment), with Qᵀ in place.
    unsafe fn prepare_queries(&self, scratch: &ThreadScratch, q: Rows, rows: usize, lanes: usize) -> f32 {
        let (k, d) = (self.kernels, self.problem.head_dim());
        let pairs = Products::of(self.problem, k) == Products::Bf16;
        if pairs {
            // SAFETY: scratch was carved for these sizes.
            unsafe { moves::load_transposed_pairs(k, q, rows, d, scratch.q_pairs.at(0), lanes) };
        }
        if transforms(self.problem) { 1.0 } else { self.problem.softmax_scale() * std::f32::consts::LOG2_E }
    }

    /// One tile of keys: scores, softmax, and their part of O.
    ///
    /// # Safety
    /// As for [`run_segment`](Self::run_segment); the keys are in the source.
    #[allow(clippy::too_many_arguments, reason = "the loop's own state")]
    unsafe fn run_tile(
        &self,
        scratch: &ThreadScratch,
        segment: &Segment,
        source: &KeySource,
        (from, to): (usize, usize),
        masked: bool,
        scale: f32,
        lanes: usize,
        first: bool,
    ) {
        let (k, problem, d) = (self.kernels, self.problem, self.problem.head_dim());
        let v = &scratch.lanes;
        let keys = to - from;
        let s = scratch.s.at(0);
        let products = Products::of(problem, k);
        let pairs = products == Products::Bf16;
        // SAFETY: scratch was carved for these sizes, keys lie in validated views.
        unsafe {
            let visible = masked.then(|| Visible::new(v, lanes, from, keys));
            let ahead = source.v.from(from).ahead(keys, d);
            let few = scratch.few_rows(k, lanes);
            if let Some(few) = few {
                let (qt, kv) = (scratch.qt.at(0), scratch.kv.at(0));
                few.scores(k, qt, segment.rows, source.k.from(from), keys, kv, s, ahead);
            } else {
                let key_rows = products.left_factor(k, source.k.from(from), keys, d, scratch.kv.at(0));
                let gemm = if pairs { k.gemm_bf16 } else { k.gemm };
                let product = Gemm {
                    m: keys,
                    n: lanes,
                    k: if pairs { d.div_ceil(2) } else { d },
                    a: key_rows.ptr,
                    a_row: key_rows.stride as isize,
                    a_col: 4,
                    b: if pairs { scratch.q_pairs.at(0) } else { scratch.qt.at(0) },
                    b_row: lanes,
                    c: s,
                    c_row: lanes,
                    accumulate: false,
                    ahead,
                };
                match visible {
                    Some(visible) if !pairs => visible.keys_by_lanes(k, &product),
                    _ => gemm(&product),
                }
            }
            let tile = ScoreTile { s, keys, lanes, first_key: from as i32 };
            if transforms(problem) {
                (k.transform)(&tile, &transform(problem, segment, source.positioned, v));
            }
            if masked {
                (k.mask)(&tile, v.lo(), v.hi());
            }
            let dropout = keep_mask(problem);
            // Rows that see different keys must not meet in a product where one of those keys is not finite.
            let finite = !masked || moves::all_finite(k, source.v.from(from), keys, d);
            let fused_pairs = pairs && dropout.is_none() && finite;
            let mut rescale = false;
            (k.softmax)(&SoftmaxTile {
                s,
                keys,
                lanes,
                scale,
                max: v.max(),
                sum: v.sum(),
                alpha: v.alpha(),
                rescale: &raw mut rescale,
                pairs: if fused_pairs { scratch.p_pairs.at(0) } else { std::ptr::null_mut() },
            });
            if rescale && !first {
                match few {
                    Some(few) => few.rescale(segment.rows, v.alpha()),
                    None => (k.scale_lanes)(scratch.ot.at(0), d, lanes, v.alpha()),
                }
            }
            if let Some((mask, factor)) = dropout {
                DropoutTile {
                    mask,
                    scale: factor,
                    stream: source.stream,
                    head: segment.dropout_head(problem),
                    first_row: segment.row,
                    rows: segment.rows,
                    first_key: from,
                    keys,
                }
                .for_each(|key, lane, factor| *s.add(key * lanes + lane) *= factor);
            }
            let next = source.k.from(to).ahead(source.end.saturating_sub(to).min(keys), d);
            if let Some(few) = few {
                let (kv, ot) = (scratch.kv.at(0), scratch.ot.at(0));
                let hidden = visible.filter(|_| !finite);
                few.add_values(k, s, segment.rows, source.v.from(from), keys, kv, first, hidden, ot, next);
                return;
            }
            self.add_values(
                scratch,
                source.v.from(from),
                keys,
                lanes,
                first,
                finite,
                fused_pairs,
                visible,
                next,
            );
        }
    }

    /// Oᵀ += Vᵀ·P.
    ///
    /// # Safety
    /// As for [`run_tile`](Self::run_tile).
    #[allow(clippy::too_many_arguments, reason = "the loop's own state")]
    unsafe fn add_values(
        &self,
        scratch: &ThreadScratch,
        values: Rows,
        keys: usize,
        lanes: usize,
        first: bool,
        finite: bool,
        fused_pairs: bool,
        visible: Option<Visible>,
        next: Ahead,
    ) {
        let (k, d) = (self.kernels, self.problem.head_dim());
        let products = Products::of(self.problem, k);
        let s = scratch.s.at(0);
        // SAFETY: scratch was carved for these sizes, keys lie in validated views.
        unsafe {
            let mut product = Gemm {
                m: d,
                n: lanes,
                k: keys,
                a: std::ptr::null(),
                a_row: 4,
                a_col: 0,
                b: s,
                b_row: lanes,
                c: scratch.ot.at(0),
                c_row: lanes,
                accumulate: !first,
                ahead: next,
            };
            if let Some(visible) = visible.filter(|_| !finite) {
                gemm_visible(&product, values, &visible, Pairing::KeysSummed);
                return;
            }
            if products == Products::Bf16 {
                if !fused_pairs {
                    (k.round_bf16)(&super::kernels::gradient::RoundTile {
                        x: s,
                        keys,
                        lanes,
                        rows: std::ptr::null_mut(),
                        pairs: scratch.p_pairs.at(0),
                    });
                }
                let padded = d.next_multiple_of(k.lanes);
                moves::interleave_rows(k, values, keys, d, scratch.kv.at(0), padded);
                product.k = keys.div_ceil(2);
                product.a = scratch.kv.at(0).cast();
                product.a_col = (padded * 4) as isize;
                product.b = scratch.p_pairs.at(0);
                (k.gemm_bf16)(&product);
                return;
            }
            let rows = products.left_factor(k, values, keys, d, scratch.kv.at(0));
            product.a = rows.ptr;
            product.a_col = rows.stride as isize;
            match visible {
                Some(visible) => visible.sum_over_keys(k, &product),
                None => (k.gemm)(&product),
            }
        }
    }

    /// Folds the virtual token in and writes the outputs.
    ///
    /// # Safety
    /// As for [`run_segment`](Self::run_segment), with attnᵀ and lse in place.
    unsafe fn finish_segment(&self, scratch: &ThreadScratch, segment: &Segment, lanes: usize) {
        let (k, d) = (self.kernels, self.problem.head_dim());
        let v = &scratch.lanes;
        let out = &self.call().outputs;
        let ot = scratch.ot.at(0);
        let rows_of = |t: &TensorMut<'_, 4>| RowsMut {
            ptr: t.at([segment.sequence.batch, segment.head, segment.tensor_row(), 0]),
            stride: t.stride_bytes(2),
            dtype: t.dtype(),
        };
        // SAFETY: the segment's rows of the outputs are this task's alone; scratch was carved for these sizes.
        unsafe {
            if let Some(attn) = &out.attn {
                moves::store_transposed(k, ot, lanes, segment.rows, d, rows_of(attn));
            }
            let shape = &self.slots.shape;
            if shape.is_some() {
                let slots = self.slots.head(segment.head);
                (k.inducer_forward)(&inducer_tile(
                    self.problem,
                    &self.slots,
                    segment.head,
                    lanes,
                    v,
                    &scratch.z,
                    &scratch.f,
                ));
                if matches!(shape.value, Value::Zero | Value::Direct) {
                    (k.scale_lanes)(ot, d, lanes, v.rest());
                }
                if matches!(shape.value, Value::Residual | Value::Direct) {
                    (k.gemm)(&Gemm {
                        m: d,
                        n: lanes,
                        k: shape.value_slot_rows(),
                        a: slots.value.cast(),
                        a_row: 4,
                        a_col: (d * 4) as isize,
                        b: scratch.f.at(0),
                        b_row: lanes,
                        c: ot,
                        c_row: lanes,
                        accumulate: true,
                        ahead: Ahead::NONE,
                    });
                }
                if let Some(u) = &out.u {
                    moves::store_transposed(
                        k,
                        scratch.f.at(0),
                        lanes,
                        segment.rows,
                        shape.value_rank,
                        rows_of(u),
                    );
                }
            }
            moves::store_transposed(k, ot, lanes, segment.rows, d, rows_of(&out.o));
            if let Some(lse) = &out.lse {
                let ptr = lse.at([segment.sequence.batch, segment.head, segment.tensor_row()]);
                for lane in 0..segment.rows {
                    ptr.add(lane * lse.stride_bytes(2)).cast::<f32>().write(*v.lse().add(lane));
                }
            }
        }
    }
}

/// The inducer's view of a tile.
#[allow(clippy::too_many_arguments, reason = "the pieces of a tile")]
pub(super) fn inducer_tile(
    problem: &Problem<'_>,
    slots: &Slots,
    head: usize,
    lanes: usize,
    v: &Lanes,
    z: &Floats,
    f: &Floats,
) -> InducerTile {
    let weights = slots.head(head);
    let shape = &slots.shape;
    InducerTile {
        lanes,
        score: shape.score,
        value: shape.value,
        key_rank: shape.key_rank,
        value_rank: shape.value_rank,
        key_tanh: shape.key_tanh,
        value_tanh: shape.value_tanh,
        sigma: problem.softmax_scale(),
        z: z.at(0),
        key_bias: weights.key_bias,
        value_bias: weights.value_bias,
        qq: v.qq(),
        tau: v.tau(),
        lse: v.lse(),
        s0: v.s0(),
        lambda: v.lambda(),
        rest: v.rest(),
        keep: v.keep(),
        f: f.at(0),
    }
}

/// Whether scores need more than a positive factor. The softmax takes the maximum, and the mask puts in −∞, before that
/// factor; one that is not positive must come before them.
pub(super) fn transforms(problem: &Problem<'_>) -> bool {
    let a = problem.attention();
    a.config.softcap.is_some() || a.alibi_slopes.is_some() || problem.softmax_scale() <= 0.0
}

/// Softcap and ALiBi of a segment's rows.
pub(super) fn transform(problem: &Problem<'_>, segment: &Segment, positioned: bool, v: &Lanes) -> Transform {
    let log2_e = std::f32::consts::LOG2_E;
    let sigma = problem.softmax_scale();
    let slope = problem.alibi_slope(segment.sequence.index, segment.head).filter(|_| positioned);
    let cap = problem.attention().config.softcap;
    Transform {
        scale: cap.map_or(sigma * log2_e, |c| sigma / c),
        cap: cap.map_or(0.0, |c| c * log2_e),
        slope: slope.unwrap_or(0.0) * log2_e,
        position: v.position(),
        derivative: std::ptr::null_mut(),
    }
}
