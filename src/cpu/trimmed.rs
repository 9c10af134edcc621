//! Products over tiles that a mask cuts, without what no one sees.
//!
//! The keys that a lane sees are an interval whose ends never decrease with the lane (`Sequence::visible`), so what is
//! visible of a tile lies between two staircases. Products are cut into a few lanes, or a few keys, each with the
//! interval that any of them sees. What is left out is exactly zero, or is masked afterwards: results are the same to
//! the bit as those of the whole product, as long as a tile has no more keys, nor queries, than a chain of multiply-adds
//! has steps ([`K_BLOCK`](super::simd::gemm::K_BLOCK)).

use super::masked::Visible;
use super::simd::Kernels;
use super::simd::gemm::{Ahead, Gemm};

/// Keys in a strip of a product that has a row per key: a few strips of every micro-kernel.
const STRIP: usize = 24;

impl Visible {
    /// Keys of the tile that lanes `from..to` see, counted from its first.
    ///
    /// # Safety
    /// `lo` and `hi` hold those lanes.
    unsafe fn keys_of(&self, from: usize, to: usize) -> (usize, usize) {
        let within =
            |key: i32| (key as usize).clamp(self.first_key, self.first_key + self.keys) - self.first_key;
        // SAFETY: the caller's promise.
        let (first, end) = unsafe { (within(*self.lo.add(from)), within(*self.hi.add(to - 1))) };
        (first, end.max(first))
    }

    /// Lanes that see any of the keys `from..to` of the tile.
    ///
    /// # Safety
    /// `lo` and `hi` hold the tile's lanes.
    unsafe fn lanes_of(&self, from: usize, to: usize) -> (usize, usize) {
        // SAFETY: the caller's promise.
        let (lo, hi) = unsafe {
            (std::slice::from_raw_parts(self.lo, self.lanes), std::slice::from_raw_parts(self.hi, self.lanes))
        };
        let (from, to) = ((self.first_key + from) as i32, (self.first_key + to) as i32);
        let first = hi.partition_point(|&hi| hi <= from);
        (first, lo.partition_point(|&lo| lo < to).max(first))
    }

    /// Lanes that go together, `(first, how many)`: a register block's columns.
    fn groups(&self, kernels: &Kernels) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (lanes, width) = (self.lanes, kernels.panel);
        (0..lanes).step_by(width).map(move |lane| (lane, width.min(lanes - lane)))
    }

    /// `C[key][lane] = A(key, ·)·B[·][lane]` where the lanes of a group see the key; elsewhere C keeps what it held.
    ///
    /// # Safety
    /// Operands are as [`Gemm`] says, with a row of C per key and a column per lane; `lo` and `hi` hold the tile's lanes.
    pub(super) unsafe fn keys_by_lanes(&self, kernels: &Kernels, g: &Gemm) {
        let mut ahead = g.ahead;
        for (lane, n) in self.groups(kernels) {
            // SAFETY: within the tile's lanes, by the caller's promise.
            let (first, end) = unsafe { self.keys_of(lane, lane + n) };
            if first < end {
                // SAFETY: a part of the product.
                unsafe {
                    (kernels.gemm)(&Gemm {
                        m: end - first,
                        n,
                        a: g.a.offset(first as isize * g.a_row),
                        b: g.b.add(lane),
                        c: g.c.add(first * g.c_row + lane),
                        ahead,
                        ..*g
                    });
                }
                ahead = Ahead::NONE;
            }
        }
    }

    /// `C[·][lane] (+)= Σ_key A(·, key)·B[key][lane]`, B being zero where a lane does not see the key.
    ///
    /// # Safety
    /// As for [`keys_by_lanes`](Self::keys_by_lanes), with a column of C per lane.
    pub(super) unsafe fn sum_over_keys(&self, kernels: &Kernels, g: &Gemm) {
        let mut ahead = g.ahead;
        for (lane, n) in self.groups(kernels) {
            // SAFETY: as above.
            let (first, end) = unsafe { self.keys_of(lane, lane + n) };
            if first < end || !g.accumulate {
                // SAFETY: a part of the product.
                unsafe {
                    (kernels.gemm)(&Gemm {
                        n,
                        k: end - first,
                        a: g.a.offset(first as isize * g.a_col),
                        b: g.b.add(first * g.b_row + lane),
                        c: g.c.add(lane),
                        ahead,
                        ..*g
                    });
                }
                ahead = Ahead::NONE;
            }
        }
    }

    /// `C[key] (+)= Σ_lane A(key, lane)·B[lane]` over the first `g.k` lanes, A being zero where a lane does not see the key.
    ///
    /// # Safety
    /// As for [`keys_by_lanes`](Self::keys_by_lanes), with a row of C per key.
    pub(super) unsafe fn sum_over_lanes(&self, kernels: &Kernels, g: &Gemm) {
        for key in (0..self.keys).step_by(STRIP) {
            let m = STRIP.min(self.keys - key);
            // SAFETY: within the tile's keys, by the caller's promise.
            let (first, end) = unsafe { self.lanes_of(key, key + m) };
            let end = end.min(g.k);
            let first = first.min(end);
            if first < end || !g.accumulate {
                // SAFETY: a part of the product.
                unsafe {
                    (kernels.gemm)(&Gemm {
                        m,
                        k: end - first,
                        a: g.a.offset(key as isize * g.a_row + first as isize * g.a_col),
                        b: g.b.add(first * g.b_row),
                        c: g.c.add(key * g.c_row),
                        ..*g
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::tests::Numbers;

    /// What lanes see of 40 keys from number 100 on: all of them, a diagonal, a band, nothing at all, a diagonal that begins
    /// behind the tile.
    fn staircases(lanes: usize) -> Vec<(Vec<i32>, Vec<i32>)> {
        let rows = |f: &dyn Fn(i32) -> (i32, i32)| (0..lanes as i32).map(f).unzip();
        vec![
            rows(&|_| (0, 1000)),
            rows(&|lane| (0, 101 + lane)),
            rows(&|lane| (95 + lane, 107 + lane)),
            rows(&|_| (200, 200)),
            rows(&|lane| (0, 141 + 3 * lane)),
            rows(&|lane| (0, 60 + 2 * lane)),
        ]
    }

    #[test]
    fn nothing_is_left_out_but_zeros() {
        const KEYS: usize = 40;
        const D: usize = 10;
        for kernels in Kernels::all_available() {
            let lanes = 5 * kernels.lanes;
            let mut numbers = Numbers::new(1);
            let (keys, queries) = (numbers.many(KEYS * D), numbers.many(D * lanes));
            let rows = numbers.many(lanes * 2 * kernels.lanes);
            for (lo, hi) in staircases(lanes) {
                let sees = |lane: usize, key: usize| (lo[lane]..hi[lane]).contains(&(100 + key as i32));
                let visible = Visible { lo: lo.as_ptr(), hi: hi.as_ptr(), lanes, first_key: 100, keys: KEYS };
                let mut p = numbers.many(KEYS * lanes);
                for (at, p) in p.iter_mut().enumerate() {
                    if !sees(at % lanes, at / lanes) {
                        *p = 0.0;
                    }
                }
                for accumulate in [false, true] {
                    let product = |m, n, k, a: &[f32], a_row, a_col, b: &[f32]| Gemm {
                        m,
                        n,
                        k,
                        a: a.as_ptr().cast(),
                        a_row,
                        a_col,
                        b: b.as_ptr(),
                        b_row: n,
                        c: std::ptr::null_mut(),
                        c_row: n,
                        accumulate,
                        ahead: Ahead::NONE,
                    };
                    // Scores, the output's product, and dK's over all lanes but the last three.
                    let scores = product(KEYS, lanes, D, &keys, 4 * D as isize, 4, &queries);
                    let output = product(D, lanes, KEYS, &keys, 4, 4 * D as isize, &p);
                    let d_k = product(KEYS, 2 * kernels.lanes, lanes - 3, &p, 4 * lanes as isize, 4, &rows);
                    for (which, g) in [scores, output, d_k].into_iter().enumerate() {
                        let before = vec![0.5f32; g.m * g.n];
                        let (mut whole, mut trimmed) = (before.clone(), before);
                        // SAFETY: operands and results have the products' sizes, the staircases the lanes.
                        unsafe {
                            (kernels.gemm)(&Gemm { c: whole.as_mut_ptr(), ..g });
                            let g = Gemm { c: trimmed.as_mut_ptr(), ..g };
                            match which {
                                0 => visible.keys_by_lanes(kernels, &g),
                                1 => visible.sum_over_keys(kernels, &g),
                                _ => visible.sum_over_lanes(kernels, &g),
                            }
                        }
                        for at in 0..whole.len() {
                            if which > 0 || sees(at % lanes, at / lanes) {
                                assert_eq!(
                                    whole[at].to_bits(),
                                    trimmed[at].to_bits(),
                                    "{:?}, product {which}, accumulate {accumulate}, element {at}",
                                    kernels.set,
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}
