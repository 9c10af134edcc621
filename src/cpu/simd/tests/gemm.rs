//! The micro-kernel against one multiply-add at a time.

use half::bf16;

use super::{Numbers, fused};
use crate::cpu::simd::Kernels;
use crate::cpu::simd::gemm::{Ahead, Gemm, K_BLOCK};

/// Operands with guard values around C, the layout of A as asked for.
struct Product {
    m: usize,
    n: usize,
    k: usize,
    a: Vec<u8>,
    a_row: usize,
    a_col: usize,
    b: Vec<f32>,
    b_row: usize,
    c: Vec<f32>,
    c_row: usize,
}

const GUARD: f32 = 123.25;

impl Product {
    /// A is stored exactly as long as needed, misaligned by one byte, and so are B and C: sanitisers and guards see every
    /// access outside.
    fn new(
        (m, n, k): (usize, usize, usize),
        along_k: bool,
        gap: usize,
        mut element: impl FnMut() -> f32,
    ) -> Self {
        let (a_row, a_col) = if along_k { (4 * k + gap, 4) } else { (4, 4 * m + gap) };
        let len = (m.max(1) - 1) * a_row + (k.max(1) - 1) * a_col + 4;
        let mut a = vec![0xFF; 1 + len];
        for i in 0..m {
            for j in 0..k {
                let at = 1 + i * a_row + j * a_col;
                a[at..at + 4].copy_from_slice(&element().to_ne_bytes());
            }
        }
        let b_row = n + gap;
        let b = (0..(k.max(1) - 1) * b_row + n).map(|_| element()).collect();
        let c_row = n + 3;
        let c = vec![GUARD; m * c_row];
        Self { m, n, k, a, a_row, a_col, b, b_row, c, c_row }
    }

    fn a(&self, i: usize, j: usize) -> [u8; 4] {
        let at = 1 + i * self.a_row + j * self.a_col;
        self.a[at..at + 4].try_into().unwrap()
    }

    fn gemm(&mut self, accumulate: bool) -> Gemm {
        Gemm {
            m: self.m,
            n: self.n,
            k: self.k,
            a: self.a[1..].as_ptr(),
            a_row: self.a_row as isize,
            a_col: self.a_col as isize,
            b: self.b.as_ptr(),
            b_row: self.b_row,
            c: self.c.as_mut_ptr(),
            c_row: self.c_row,
            accumulate,
            ahead: Ahead::NONE,
        }
    }
}

fn shapes(lanes: usize) -> Vec<(usize, usize, usize)> {
    let mut shapes = Vec::new();
    if cfg!(miri) {
        // Miri takes about a thousand times as long.
        return vec![(0, lanes, 3), (3, 0, 2), (5, lanes, 0), (13, 3 * lanes, 7), (2, lanes, K_BLOCK + 3)];
    }
    for m in [0, 1, 2, 3, 5, 7, 11, 12, 13, 14, 15, 25, 27, 64] {
        for vectors in [0, 1, 2, 3, 4, 5] {
            for k in [0, 1, 2, 3, 7, 64] {
                shapes.push((m, vectors * lanes, k));
            }
        }
    }
    shapes.push((13, 2 * lanes, 700));
    shapes
}

#[test]
fn gemm_is_a_sum_of_chains_in_the_order_of_k() {
    for kernels in Kernels::all_available() {
        // Whether the table's multiply-add rounds once, seen where the difference is everything.
        let fused = fused(kernels);
        for (case, (m, n, k)) in shapes(kernels.lanes).into_iter().enumerate() {
            for (along_k, gap) in [(true, 0), (true, 8), (false, 0), (false, 12)] {
                let mut numbers = Numbers::new(case as u64);
                let mut p = Product::new((m, n, k), along_k, gap, || numbers.uniform());
                for accumulate in [false, true] {
                    let before = p.c.clone();
                    let g = p.gemm(accumulate);
                    // SAFETY: the operands of a `Product` have its sizes; the table is of an available set.
                    unsafe { (kernels.gemm)(&g) };
                    for i in 0..m {
                        for column in 0..p.c_row {
                            let at = i * p.c_row + column;
                            let mut expected = if accumulate { before[at] } else { 0.0 };
                            if column < n {
                                for from in (0..k).step_by(K_BLOCK) {
                                    let mut chain = 0.0;
                                    for j in from..k.min(from + K_BLOCK) {
                                        let (a, b) =
                                            (f32::from_ne_bytes(p.a(i, j)), p.b[j * p.b_row + column]);
                                        chain = if fused { a.mul_add(b, chain) } else { a * b + chain };
                                    }
                                    expected += chain;
                                }
                            } else {
                                expected = GUARD;
                            }
                            assert!(
                                p.c[at].to_bits() == expected.to_bits(),
                                "{:?} {m}×{n}×{k} accumulate {accumulate}: C({i}, {column}) = {}, expected {expected}",
                                kernels.set,
                                p.c[at],
                            );
                        }
                    }
                }
            }
        }
    }
}

/// A pair of bfloat16 as an element of [`Gemm`].
fn pair(numbers: &mut Numbers) -> f32 {
    let (low, high) = (bf16::from_f32(numbers.uniform()), bf16::from_f32(numbers.uniform()));
    f32::from_bits(u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16)
}

/// The two numbers of a pair.
fn split(pair: f32) -> [f64; 2] {
    let bits = pair.to_bits();
    [f64::from(f32::from_bits(bits << 16)), f64::from(f32::from_bits(bits & 0xFFFF_0000))]
}

#[test]
fn gemm_bf16_is_as_accurate_as_its_accumulator() {
    for kernels in Kernels::all_available() {
        for (case, (m, n, k)) in shapes(kernels.lanes).into_iter().enumerate() {
            for (along_k, gap) in [(true, 8), (false, 12)] {
                let mut numbers = Numbers::new(case as u64);
                let mut p = Product::new((m, n, k), along_k, gap, || pair(&mut numbers));
                let g = p.gemm(false);
                // SAFETY: the operands of a `Product` have its sizes; the table is of an available set.
                unsafe { (kernels.gemm_bf16)(&g) };
                for i in 0..m {
                    for column in 0..n {
                        let (mut exact, mut magnitude) = (0.0, 0.0);
                        for j in 0..k {
                            let a = split(f32::from_ne_bytes(p.a(i, j)));
                            let b = split(p.b[j * p.b_row + column]);
                            exact += a[0] * b[0] + a[1] * b[1];
                            magnitude += (a[0] * b[0]).abs() + (a[1] * b[1]).abs();
                        }
                        let y = p.c[i * p.c_row + column];
                        // Two roundings to f32 per pair at most.
                        let bound = 2.0 * k as f64 * magnitude * f64::from(f32::EPSILON);
                        assert!(
                            (f64::from(y) - exact).abs() <= bound,
                            "{:?} {m}×{n}×{k}: C({i}, {column}) = {y}, expected {exact}",
                            kernels.set,
                        );
                    }
                    assert!(p.c[i * p.c_row + n..(i + 1) * p.c_row].iter().all(|&x| x == GUARD));
                }
            }
        }
    }
}

#[test]
fn gemm_does_not_depend_on_the_tile() {
    for kernels in Kernels::all_available() {
        let lanes = kernels.lanes;
        for kernel in [kernels.gemm, kernels.gemm_bf16] {
            let mut numbers = Numbers::new(7);
            let (m, n, k) = (29, 5 * lanes, 600);
            let mut p = Product::new((m, n, k), true, 4096 - 4 * k % 4096, || pair(&mut numbers));
            let g = p.gemm(false);
            // SAFETY: the operands of a `Product` have its sizes; the table is of an available set.
            unsafe { kernel(&g) };
            let mut one = vec![0.0; lanes];
            for i in 0..m {
                for v in 0..n / lanes {
                    // The same elements as products of their own, in two calls of whole chains.
                    for (from, to) in [(0, K_BLOCK), (K_BLOCK, k)] {
                        let mut g = p.gemm(from > 0);
                        // SAFETY: one row and one vector of columns of the same operands.
                        unsafe {
                            g.a = g.a.offset(i as isize * g.a_row + from as isize * g.a_col);
                            g.b = g.b.add(from * g.b_row + v * lanes);
                            (g.m, g.n, g.k, g.c) = (1, lanes, to - from, one.as_mut_ptr());
                            kernel(&g);
                        }
                    }
                    let at = i * p.c_row + v * lanes;
                    assert_eq!(p.c[at..at + lanes], one, "{:?} row {i} vector {v}", kernels.set);
                }
            }
        }
    }
}
