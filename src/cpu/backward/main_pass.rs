//! The main pass: the plain attention backward with a row factor and a row constant.
//!
//! ```text
//! P = exp(s − lse)    dS = P ∘ (w m̃∘dP − D′)    dP = dO Vᵀ
//! dV = (w P∘m̃)ᵀ dO    dK = σ dSᵀ Q              dQ = σ dS K
//! ```

use rayon::prelude::*;

use super::schedule::{Schedule, Turn};
use super::{BackwardPlan, Pair, ThreadScratch};
use crate::cpu::forward::{transform, transforms};
use crate::cpu::kernels::gradient::{GradientTile, RoundTile};
use crate::cpu::kernels::score::ScoreTile;
use crate::cpu::key_source::KeySource;
use crate::cpu::masked::{Pairing, Visible, gemm_visible};
use crate::cpu::moves::{self, Rows};
use crate::cpu::products::Products;
use crate::cpu::query_tile::{DropoutTile, Lanes, Segment, keep_mask, load_lanes, segment_rows};
use crate::cpu::simd::gemm::{Ahead, Gemm};
use crate::cpu::tiling::{Tiling, spread};
use crate::cpu::workspace::Floats;

/// A tile of keys on its way through the products.
#[derive(Clone, Copy)]
struct Tile {
    from: usize,
    keys: usize,
    lanes: usize,
    /// Whether it is dQ's first.
    first: bool,
}

/// Accumulator of dK or dV for a tile, and the floats between its rows.
type Accumulator = (*mut f32, usize);

/// Rows of an accumulator, to be fetched while a product computes.
fn ahead((ptr, row): Accumulator, rows: usize, cols: usize) -> Ahead {
    Ahead { ptr: ptr.cast_const().cast(), stride: 4 * row, rows, bytes: 4 * cols }
}

impl Tile {
    fn visible(&self, v: &Lanes) -> Visible {
        Visible::new(v, self.lanes, self.from, self.keys)
    }
}

impl BackwardPlan<'_, '_, '_> {
    /// Adds dQ, dK and dV of the pairs `start..end`, step by step.
    pub(super) fn main_pass(&self, start: usize, end: usize) {
        let places = end - start;
        self.clear_prefix(places);
        let most = |of: fn(&Schedule) -> usize| {
            (0..places).map(|place| of(&self.pair_in_band(start, place, 0).1)).max().unwrap_or(0)
        };
        let (bands, steps, parts) = (most(Schedule::bands), most(Schedule::steps), most(Schedule::parts));
        for band in 0..bands {
            if !self.in_place {
                self.clear_keys(start, end, band);
            }
            for step in 0..steps {
                (0..places * parts).into_par_iter().for_each(|task| {
                    let (place, part) = (task / parts, task % parts);
                    let (pair, schedule) = self.pair_in_band(start, place, band);
                    if let Some(turn) = schedule.turn(band, step, part) {
                        self.run_part(&pair, (part, schedule.parts()), turn);
                    }
                });
            }
            if !self.in_place {
                self.finish_keys(start, end, band);
            }
        }
    }

    /// Zeroes the prefix's accumulators.
    fn clear_prefix(&self, places: usize) {
        let floats = places * self.problem.prefix_len() * self.padded;
        for accumulator in [self.d_prefix_k, self.d_prefix_v] {
            // SAFETY: no task runs; carved for a flight.
            unsafe { std::slice::from_raw_parts_mut(accumulator.at(0), floats).fill(0.0) };
        }
    }

    /// Zeroes the accumulators of dK and dV for a band of the keys of the pairs `start..end`.
    fn clear_keys(&self, start: usize, end: usize, band: usize) {
        (0..end - start).into_par_iter().for_each(|place| {
            let (first, end) = self.pair_in_band(start, place, band).0.held;
            for accumulator in [self.d_k, self.d_v] {
                let at = accumulator.at(place * self.max_keys * self.padded);
                // SAFETY: a place's accumulators belong to its task; they hold a band.
                unsafe { std::slice::from_raw_parts_mut(at, (end - first) * self.padded).fill(0.0) };
            }
        });
    }

    /// One of so many parts of a pair's queries against the keys whose turn it is.
    fn run_part(&self, pair: &Pair, (part, parts): (usize, usize), turn: Turn) {
        let (problem, group) = (self.problem, self.problem.group_size());
        let rows = pair.sequence.rows;
        let tiling = Tiling::backward(self.kernels);
        let tiles = rows.div_ceil(tiling.queries);
        let scratch = self.thread_scratch();
        let items = tiles * group;
        for item in items * part / parts..items * (part + 1) / parts {
            let row = item % tiles * tiling.queries;
            let segment = Segment {
                sequence: pair.sequence,
                head: pair.kv_head * group + item / tiles,
                row,
                rows: tiling.queries.min(rows - row),
            };
            let own = KeySource::keys(problem, &segment);
            let sources = match turn {
                Turn::All => [KeySource::prefix(problem, &segment), own],
                Turn::Prefix => [KeySource::prefix(problem, &segment), None],
                Turn::Keys(first, end) => [None, own.and_then(|s| s.clip(first, end))],
            };
            if sources.iter().any(Option::is_some) {
                // SAFETY: a task stays on its thread, whose scratch is its own. Tasks of a step differ in their queries or
                // pair, and in the keys that they add to.
                unsafe { self.run_queries(&scratch, pair, &segment, &sources) };
            }
        }
    }

    /// # Safety
    /// The scratch, the segment's rows of dQ and the sources' rows of dK and dV are this task's alone.
    unsafe fn run_queries(
        &self,
        scratch: &ThreadScratch,
        pair: &Pair,
        segment: &Segment,
        sources: &[Option<KeySource>; 2],
    ) {
        let (k, problem, d) = (self.kernels, self.problem, self.problem.head_dim());
        let lanes = segment.rows.next_multiple_of(k.lanes);
        let v = &scratch.lanes;
        let q = segment_rows(&problem.attention().q, segment);
        let d_o = segment_rows(&self.call().upstream.d_o, segment);
        // SAFETY: scratch was carved for these sizes, rows come from validated views; the table's instruction set is there.
        unsafe {
            v.set_rows(segment, lanes);
            load_lanes(&self.call().saved.lse, segment, lanes, 0.0, v.lse());
            let row = self.row_index(pair, segment.head, segment.row);
            for lane in 0..lanes {
                let exists = lane < segment.rows;
                let lse = *v.lse().add(lane);
                // A row that sees nothing has only hidden keys, whose probability is exp(−∞) whatever is subtracted.
                let seen = lse != f32::NEG_INFINITY;
                *v.lse().add(lane) = if seen { lse * std::f32::consts::LOG2_E } else { 0.0 };
                *v.w().add(lane) = if exists { *self.w.at(row + lane) } else { 0.0 };
                *v.d_prime().add(lane) = if exists { *self.d_prime.at(row + lane) } else { 0.0 };
            }
            let (q_rows, d_o_rows);
            match Products::of(problem, k) {
                Products::F32 => {
                    moves::load_transposed(k, q, segment.rows, d, scratch.qt.at(0), lanes);
                    moves::load_transposed(k, d_o, segment.rows, d, scratch.d_ot.at(0), lanes);
                    q_rows = self.natural_rows(q, segment.rows, scratch.q_rows);
                    d_o_rows = self.natural_rows(d_o, segment.rows, scratch.d_o_rows);
                }
                Products::Bf16 => {
                    moves::load_transposed_pairs(k, q, segment.rows, d, scratch.qt.at(0), lanes);
                    moves::load_transposed_pairs(k, d_o, segment.rows, d, scratch.d_ot.at(0), lanes);
                    q_rows = self.paired_rows(q, segment.rows, scratch.q_rows);
                    d_o_rows = self.paired_rows(d_o, segment.rows, scratch.d_o_rows);
                }
            }
            // A row's constants are not finite where it has seen such a key in any tile, and would give NaN for its hidden
            // keys in every other one.
            let constants =
                |x: *mut f32| std::slice::from_raw_parts(x, segment.rows).iter().all(|x| x.is_finite());
            let rows_finite = [v.lse(), v.w(), v.d_prime()].into_iter().all(constants)
                && moves::all_finite(k, q, segment.rows, d)
                && moves::all_finite(k, d_o, segment.rows, d);
            let mut first = true;
            for source in sources.iter().flatten() {
                for (from, to, masked) in source.tiles(Tiling::backward(k).keys) {
                    let finite = !masked
                        || (rows_finite
                            && moves::all_finite(k, source.k.from(from), to - from, d)
                            && moves::all_finite(k, source.v.from(from), to - from, d));
                    let tile = Tile { from, keys: to - from, lanes, first };
                    let accumulators = self.accumulators(pair, source, from);
                    let key_rows = self.scores(scratch, segment, source, &tile, masked, accumulators[1]);
                    if finite {
                        self.products(
                            scratch,
                            source,
                            &tile,
                            masked,
                            segment.rows,
                            key_rows,
                            (q_rows, d_o_rows),
                            accumulators,
                        );
                    } else {
                        self.visible_products(scratch, source, &tile, segment.rows, (q, d_o), accumulators);
                    }
                    first = false;
                }
            }
            let to = self.d_q_rows(pair, segment.head, segment.row);
            moves::add_transposed(k, scratch.d_qt.at(0), lanes, segment.rows, d, to);
        }
    }

    /// Where a tile's parts of dK and dV are added.
    fn accumulators(&self, pair: &Pair, source: &KeySource, key: usize) -> [Accumulator; 2] {
        let g = &self.call().gradients;
        if source.positioned {
            return [
                self.d_kv_rows(pair, &g.d_k, self.d_k, key),
                self.d_kv_rows(pair, &g.d_v, self.d_v, key),
            ];
        }
        let at = (pair.place * self.problem.prefix_len() + key) * self.padded;
        [(self.d_prefix_k.at(at), self.padded), (self.d_prefix_v.at(at), self.padded)]
    }

    /// `w m̃∘P` and `σ dS` of a tile. Returns its rows of K in the form that products read.
    ///
    /// # Safety
    /// As for [`run_queries`](Self::run_queries); the keys are in the source.
    unsafe fn scores(
        &self,
        scratch: &ThreadScratch,
        segment: &Segment,
        source: &KeySource,
        tile: &Tile,
        masked: bool,
        d_v: Accumulator,
    ) -> Rows {
        let (k, problem, d) = (self.kernels, self.problem, self.problem.head_dim());
        let v = &scratch.lanes;
        let (s, dp) = (scratch.s.at(0), scratch.dp.at(0));
        let products = Products::of(problem, k);
        let bf16 = products == Products::Bf16;
        let Tile { from, keys, lanes, .. } = *tile;
        // SAFETY: scratch was carved for these sizes, keys lie in validated views.
        unsafe {
            let visible = tile.visible(v);
            let gemm = if bf16 { k.gemm_bf16 } else { k.gemm };
            let product = |rows: Rows, to: Floats, b: Floats, c: *mut f32, ahead: Ahead| {
                let a = products.left_factor(k, rows.from(from), keys, d, to.at(0));
                let product = Gemm {
                    m: keys,
                    n: lanes,
                    k: if bf16 { d.div_ceil(2) } else { d },
                    a: a.ptr,
                    a_row: a.stride as isize,
                    a_col: 4,
                    b: b.at(0),
                    b_row: lanes,
                    c,
                    c_row: lanes,
                    accumulate: false,
                    ahead,
                };
                if masked && !bf16 {
                    visible.keys_by_lanes(k, &product);
                } else {
                    gemm(&product);
                }
                a
            };
            // The values are fetched while the scores are computed, then the rows of dV that follow.
            let values = source.v.from(from).ahead(keys, d);
            let key_rows = product(source.k, scratch.k_tile, scratch.qt, s, values);
            product(source.v, scratch.v_tile, scratch.d_ot, dp, ahead(d_v, keys, d));
            let scores = ScoreTile { s, keys, lanes, first_key: from as i32 };
            let mut scale = problem.softmax_scale() * std::f32::consts::LOG2_E;
            let mut softcap = std::ptr::null_mut();
            if transforms(problem) {
                if problem.attention().config.softcap.is_some() {
                    softcap = scratch.softcap.at(0);
                }
                let mut t = transform(problem, segment, source.positioned, v);
                t.derivative = softcap;
                (k.transform)(&scores, &t);
                scale = 1.0;
            }
            if masked {
                (k.mask)(&scores, v.lo(), v.hi());
            }
            let mut keep = std::ptr::null_mut();
            if let Some((mask, factor)) = keep_mask(problem) {
                keep = scratch.keep.at(0);
                let dropout = DropoutTile {
                    mask,
                    scale: factor,
                    stream: source.stream,
                    head: segment.dropout_head(problem),
                    first_row: segment.row,
                    rows: segment.rows,
                    first_key: from,
                    keys,
                };
                for key in 0..keys {
                    std::slice::from_raw_parts_mut(keep.add(key * lanes), lanes).fill(0.0);
                }
                dropout.for_each(|key, lane, factor| *keep.add(key * lanes + lane) = factor);
            }
            (k.gradient)(&GradientTile {
                s,
                dp,
                keys,
                lanes,
                scale,
                sigma: problem.softmax_scale(),
                lse: v.lse(),
                w: v.w(),
                d_prime: v.d_prime(),
                keep,
                softcap,
            });
            key_rows
        }
    }

    /// The three products that take P and dS.
    ///
    /// # Safety
    /// As for [`scores`](Self::scores), after it.
    #[allow(clippy::too_many_arguments, reason = "the loop's own state")]
    unsafe fn products(
        &self,
        scratch: &ThreadScratch,
        source: &KeySource,
        tile: &Tile,
        masked: bool,
        rows: usize,
        key_rows: Rows,
        (q, d_o): ((*const f32, usize), (*const f32, usize)),
        [d_k, d_v]: [Accumulator; 2],
    ) {
        let (k, d) = (self.kernels, self.problem.head_dim());
        let (s, dp) = (scratch.s.at(0), scratch.dp.at(0));
        let Tile { from, keys, lanes, first, .. } = *tile;
        let bf16 = Products::of(self.problem, k) == Products::Bf16;
        // SAFETY: scratch was carved for these sizes; accumulators hold `keys` rows of `padded` floats.
        unsafe {
            let mut d_q = Gemm {
                m: d,
                n: lanes,
                k: keys,
                a: std::ptr::null(),
                a_row: 4,
                a_col: 0,
                b: dp,
                b_row: lanes,
                c: scratch.d_qt.at(0),
                c_row: lanes,
                accumulate: !first,
                ahead: ahead(d_k, keys, d),
            };
            let mut by_key = Gemm {
                m: keys,
                n: self.padded,
                k: rows,
                a: s.cast(),
                a_row: (lanes * 4) as isize,
                a_col: 4,
                b: d_o.0,
                b_row: d_o.1,
                c: d_v.0,
                c_row: d_v.1,
                accumulate: true,
                ahead: source.k.from(from + keys).ahead(source.end.saturating_sub(from + keys).min(keys), d),
            };
            let mut d_s_rows: *const u8 = dp.cast();
            let mut gemm = k.gemm;
            if bf16 {
                gemm = k.gemm_bf16;
                let (p_rows, ds_rows) = (scratch.p_rows.at(0), scratch.ds_rows.at(0));
                let round = |x: *const f32, rows: *mut f32, pairs: *mut f32| {
                    (k.round_bf16)(&RoundTile { x, keys, lanes, rows: rows.cast(), pairs });
                };
                round(s, p_rows, std::ptr::null_mut());
                round(dp, ds_rows, scratch.ds_pairs.at(0));
                moves::interleave_rows(k, source.k.from(from), keys, d, scratch.k_tile.at(0), self.padded);
                d_q.k = keys.div_ceil(2);
                d_q.a = scratch.k_tile.at(0).cast();
                d_q.a_col = (self.padded * 4) as isize;
                d_q.b = scratch.ds_pairs.at(0);
                by_key.k = rows.div_ceil(2);
                by_key.a = p_rows.cast();
                by_key.a_row = (lanes * 2) as isize;
                d_s_rows = ds_rows.cast();
            } else {
                d_q.a = key_rows.ptr;
                d_q.a_col = key_rows.stride as isize;
            }
            let d_k = Gemm {
                a: d_s_rows,
                b: q.0,
                b_row: q.1,
                c: d_k.0,
                c_row: d_k.1,
                ahead: Ahead::NONE,
                ..by_key
            };
            if masked && !bf16 {
                let visible = tile.visible(&scratch.lanes);
                visible.sum_over_keys(k, &d_q);
                visible.sum_over_lanes(k, &by_key);
                visible.sum_over_lanes(k, &d_k);
            } else {
                gemm(&d_q);
                gemm(&by_key);
                gemm(&d_k);
            }
        }
    }

    /// The same products without the hidden pairs, for tiles where such a pair meets a number that is not finite.
    ///
    /// # Safety
    /// As for [`products`](Self::products).
    unsafe fn visible_products(
        &self,
        scratch: &ThreadScratch,
        source: &KeySource,
        tile: &Tile,
        rows: usize,
        (q, d_o): (Rows, Rows),
        [d_k, d_v]: [Accumulator; 2],
    ) {
        let d = self.problem.head_dim();
        let (s, dp) = (scratch.s.at(0), scratch.dp.at(0));
        let Tile { from, keys, lanes, first, .. } = *tile;
        let visible = tile.visible(&scratch.lanes);
        let d_q = Gemm {
            m: d,
            n: lanes,
            k: keys,
            a: std::ptr::null(),
            a_row: 0,
            a_col: 0,
            b: dp,
            b_row: lanes,
            c: scratch.d_qt.at(0),
            c_row: lanes,
            accumulate: !first,
            ahead: Ahead::NONE,
        };
        let by_key = Gemm {
            m: keys,
            n: d,
            k: rows,
            a: s.cast(),
            a_row: (lanes * 4) as isize,
            a_col: 4,
            b: std::ptr::null(),
            b_row: 0,
            c: d_v.0,
            c_row: d_v.1,
            accumulate: true,
            ahead: Ahead::NONE,
        };
        // SAFETY: as for `products`; the replaced operands are rows of the tensors.
        unsafe {
            gemm_visible(&d_q, source.k.from(from), &visible, Pairing::KeysSummed);
            gemm_visible(&by_key, d_o, &visible, Pairing::QueriesSummed);
            let by_key = Gemm { a: dp.cast(), c: d_k.0, c_row: d_k.1, ..by_key };
            gemm_visible(&by_key, q, &visible, Pairing::QueriesSummed);
        }
    }

    /// Rows of Q or dO as the right factor of an f32 product, and the floats between them. They are copied to `to` even where
    /// they could be read in place: all tiles of keys read them, and the caller's rows are rarely an odd number of cache
    /// lines apart.
    ///
    /// # Safety
    /// `n` rows are readable, `to` holds a tile of them.
    pub(super) unsafe fn natural_rows(&self, rows: Rows, n: usize, to: Floats) -> (*const f32, usize) {
        let d = self.problem.head_dim();
        let ld = spread(self.padded);
        // SAFETY: the scratch holds a tile of spread rows.
        unsafe { moves::widen(self.kernels, rows, n, d, to.at(0), ld) };
        (to.at(0), ld)
    }

    /// Rows of Q or dO in pairs, as the right factor of a bf16 product.
    ///
    /// # Safety
    /// As for [`natural_rows`](Self::natural_rows).
    unsafe fn paired_rows(&self, rows: Rows, n: usize, to: Floats) -> (*const f32, usize) {
        let d = self.problem.head_dim();
        // SAFETY: the scratch holds a tile of rows of `padded` floats, twice what pairs of rows take.
        unsafe { moves::interleave_rows(self.kernels, rows, n, d, to.at(0), self.padded) };
        (to.at(0), self.padded)
    }
}
