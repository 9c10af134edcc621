//! After the main pass: accumulators become outputs, partial sums become gradients.

use rayon::prelude::*;

use super::{BackwardPlan, output_rows};
use crate::cpu::moves::{self, write};
use crate::cpu::workspace::Floats;
use crate::inducer::{AdapterGradients, KeyGradients, ValueGradients};
use crate::tensor::{DType, TensorMut};

impl BackwardPlan<'_, '_, '_> {
    /// Rounds dK and dV of the pairs `start..end` in a band of their keys.
    pub(super) fn finish_keys(&self, start: usize, end: usize, band: usize) {
        let gradients = &self.call().gradients;
        (0..end - start).into_par_iter().for_each(|place| {
            let (pair, _) = self.pair_in_band(start, place, band);
            let (s, (first, end)) = (&pair.sequence, pair.held);
            if first == end {
                return;
            }
            for (t, acc) in [(&gradients.d_k, self.d_k), (&gradients.d_v, self.d_v)] {
                let (from, ld) = self.d_kv_rows(&pair, t, acc, first);
                let to = output_rows(t, [s.batch, pair.kv_head, s.key_base + first]);
                // SAFETY: a pair's rows of the outputs belong to its task; accumulators hold the band's.
                unsafe {
                    moves::narrow(self.kernels, from, ld, end - first, self.problem.head_dim(), to);
                };
            }
        });
    }

    /// Rounds dQ of the pairs `start..end`, and adds the prefix's accumulators to its gradients.
    pub(super) fn finish(&self, start: usize, end: usize) {
        let (problem, gradients) = (self.problem, &self.call().gradients);
        let (d, group) = (problem.head_dim(), problem.group_size());
        (0..end - start).into_par_iter().for_each(|place| {
            let pair = self.pair(start, place);
            let s = &pair.sequence;
            // SAFETY: a pair's rows of the outputs belong to its task; accumulators hold as many.
            unsafe {
                if problem.dtype() != DType::F32 {
                    for head in pair.kv_head * group..(pair.kv_head + 1) * group {
                        if s.rows > 0 {
                            let from = self.d_q_rows(&pair, head, 0);
                            let to = output_rows(&gradients.d_q, [s.batch, head, s.row_base]);
                            moves::narrow(self.kernels, from.ptr.cast(), d, s.rows, d, to);
                        }
                    }
                }
            }
        });
        let Some(prefix) = &gradients.prefix else { return };
        for place in 0..end - start {
            let head = self.pair(start, place).kv_head;
            for (t, acc) in [(&prefix.k, self.d_prefix_k), (&prefix.v, self.d_prefix_v)] {
                self.add_prefix(t, acc, place, head);
            }
        }
    }

    fn add_prefix(&self, t: &TensorMut<'_, 3>, acc: Floats, place: usize, head: usize) {
        let [_, len, d] = t.shape();
        for i in 0..len {
            let row = acc.at((place * len + i) * self.padded);
            for c in 0..d {
                // SAFETY: no task runs; the accumulator has `len` rows of `padded` floats for every place.
                unsafe { *t.at([head, i, c]).cast::<f32>() += *row.add(c) };
            }
        }
    }

    /// Zeroes the gradients that are added to, or that rows outside all sequences would leave unwritten.
    pub(super) fn clear_small_gradients(&self) {
        let g = &self.call().gradients;
        if let Some(prefix) = &g.prefix {
            for t in [&prefix.k, &prefix.v] {
                let [heads, len, d] = t.shape();
                each([heads, len, d], |[h, i, c]| set(t.at([h, i, c]), 0.0));
            }
        }
        if let KeyGradients::LogitPerToken(t) = &g.key {
            each(t.shape(), |index| set(t.at(index), 0.0));
        }
    }

    /// Sums the partial sums and writes the adapters' gradients.
    pub(super) fn reduce_partials(&self) {
        let p = &self.partials;
        let heads = self.problem.query_heads();
        // The first partial sum takes the others.
        (0..heads).into_par_iter().for_each(|head| {
            for partial in 1..p.count {
                for (to, from, n) in [
                    (p.key(0, head), p.key(partial, head), p.key_each),
                    (p.value(0, head), p.value(partial, head), p.value_each),
                    (p.bias(0, head), p.bias(partial, head), p.bias_each),
                ] {
                    for i in 0..n {
                        // SAFETY: a head's partial sums belong to its task.
                        unsafe { *to.add(i) += *from.add(i) };
                    }
                }
            }
        });
        let (shape, ld) = (&self.slots.shape, self.padded);
        let (rk, rv) = (shape.key_rank, shape.value_rank);
        // SAFETY: no task runs any more, and indices stay within what was carved.
        let key = |head: usize, row: usize, c: usize| unsafe { *p.key(0, head).add(row * ld + c) };
        // SAFETY: as above.
        let value = |head: usize, row: usize, c: usize| unsafe { *p.value(0, head).add(row * ld + c) };
        // SAFETY: as above.
        let bias = |head: usize, i: usize| unsafe { *p.bias(0, head).add(i) };
        let down = |weight: &TensorMut<'_, 3>, bias_to: &TensorMut<'_, 2>, row: usize, at: usize| {
            each(weight.shape(), |[h, c, r]| set(weight.at([h, c, r]), key(h, row + r, c)));
            each(bias_to.shape(), |[h, r]| set(bias_to.at([h, r]), bias(h, at + r)));
        };
        match &self.call().gradients.key {
            KeyGradients::Residual(AdapterGradients { down_weight, down_bias, up_weight, up_bias }) => {
                down(down_weight, down_bias, 0, 0);
                each(up_weight.shape(), |[h, r, c]| set(up_weight.at([h, r, c]), key(h, rk + r, c)));
                each(up_bias.shape(), |[h, c]| set(up_bias.at([h, c]), key(h, 2 * rk, c)));
            }
            KeyGradients::LogitPerHead(t) => each(t.shape(), |[h]| set(t.at([h]), bias(h, rk + rv))),
            KeyGradients::LogitPerToken(_) | KeyGradients::None => {}
        }
        match &self.call().gradients.value {
            ValueGradients::Adapter(AdapterGradients { down_weight, down_bias, up_weight, up_bias }) => {
                down(down_weight, down_bias, shape.key_rows(), rk);
                each(up_weight.shape(), |[h, r, c]| set(up_weight.at([h, r, c]), value(h, r, c)));
                each(up_bias.shape(), |[h, c]| set(up_bias.at([h, c]), value(h, rv, c)));
            }
            ValueGradients::Extended(g) => down(&g.down_weight, &g.down_bias, shape.key_rows(), rk),
            ValueGradients::None => {}
        }
    }
}

/// Writes one f32 of a gradient.
fn set(at: *mut u8, x: f32) {
    // SAFETY: callers pass the address of an element of an f32 output, and no task runs.
    unsafe { write(DType::F32, at, x) };
}

/// Calls `f` for every index of a shape.
fn each<const R: usize>(shape: [usize; R], mut f: impl FnMut([usize; R])) {
    let n: usize = shape.iter().product();
    for i in 0..n {
        let mut index = [0; R];
        let mut rest = i;
        for k in (0..R).rev() {
            index[k] = rest % shape[k];
            rest /= shape[k];
        }
        f(index);
    }
}
