//! Every table that this processor can run, against naive loops and `f64`.

#![allow(clippy::float_cmp, reason = "exact values are expected")]

use super::Kernels;
use super::gemm::Gemm;

/// A reproducible stream of numbers in [−1, 1).
pub(super) struct Numbers(u64);

impl Numbers {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn next_u32(&mut self) -> u32 {
        // Knuth's MMIX multiplier; the upper half of the state is good enough.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    pub(super) fn uniform(&mut self) -> f32 {
        (self.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(super) fn vec(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.uniform()).collect()
    }
}

/// Distance between `y` and the exact `exact` in units in the last place of `f32` at `exact`; below the smallest normal
/// number, where results may be flushed to zero, anything from zero to that number counts as right.
pub(super) fn ulps(y: f32, exact: f64) -> f64 {
    if exact.is_nan() || y.is_nan() {
        return if exact.is_nan() && y.is_nan() { 0.0 } else { f64::INFINITY };
    }
    if f64::from(y) == exact {
        return 0.0;
    }
    // Beyond the largest f32 by more than half a unit, infinity is the right answer.
    if y.is_infinite()
        && y.is_sign_positive() == (exact > 0.0)
        && exact.abs() >= f64::from(f32::MAX) * (1.0 + 2e-8)
    {
        return 0.0;
    }
    if exact.abs() < f64::from(f32::MIN_POSITIVE) && y.abs() <= f32::MIN_POSITIVE {
        return 0.0;
    }
    let exponent = exact.abs().max(f64::from(f32::MIN_POSITIVE)).log2().floor();
    (f64::from(y) - exact).abs() / (exponent - 23.0).exp2()
}

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
    fn new(m: usize, n: usize, k: usize, along_k: bool, gap: usize, seed: u64) -> Self {
        let mut numbers = Numbers::new(seed);
        let (a_row, a_col) = if along_k { (4 * k + gap, 4) } else { (4, 4 * m + gap) };
        let len = (m.max(1) - 1) * a_row + (k.max(1) - 1) * a_col + 4;
        let mut a = vec![0xFF; 1 + len];
        for i in 0..m {
            for j in 0..k {
                let at = 1 + i * a_row + j * a_col;
                a[at..at + 4].copy_from_slice(&numbers.uniform().to_ne_bytes());
            }
        }
        let b_row = n + gap;
        let b = numbers.vec((k.max(1) - 1) * b_row + n);
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
        }
    }
}

fn shapes(lanes: usize) -> Vec<(usize, usize, usize)> {
    let mut shapes = Vec::new();
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
fn gemm_is_one_chain_in_the_order_of_k() {
    for kernels in Kernels::all_available() {
        // Whether the table's multiply-add rounds once, seen where the difference is everything.
        let fused = fused(kernels);
        for (case, (m, n, k)) in shapes(kernels.lanes).into_iter().enumerate() {
            for (along_k, gap) in [(true, 0), (true, 8), (false, 0), (false, 12)] {
                let mut p = Product::new(m, n, k, along_k, gap, case as u64);
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
                                for j in 0..k {
                                    let (a, b) = (f32::from_ne_bytes(p.a(i, j)), p.b[j * p.b_row + column]);
                                    expected = if fused { a.mul_add(b, expected) } else { a * b + expected };
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

/// Whether the multiply-add of a table rounds once.
fn fused(kernels: &Kernels) -> bool {
    let x = 1.0 + f32::EPSILON;
    let b = vec![x; kernels.lanes];
    let mut c = vec![-(x * x); kernels.lanes];
    let g = Gemm {
        m: 1,
        n: kernels.lanes,
        k: 1,
        a: (&raw const x).cast(),
        a_row: 4,
        a_col: 4,
        b: b.as_ptr(),
        b_row: 0,
        c: c.as_mut_ptr(),
        c_row: 0,
        accumulate: true,
    };
    // SAFETY: one row of one vector, and one scalar.
    unsafe { (kernels.gemm)(&g) };
    c[0] != 0.0
}

/// All `f32` of a sweep: `count` values spread evenly over [lo, hi], and values around zero of every size.
fn sweep(lo: f32, hi: f32, count: usize) -> Vec<f32> {
    let mut x: Vec<f32> = (0..=count)
        .map(|i| (f64::from(lo) + (f64::from(hi) - f64::from(lo)) * i as f64 / count as f64) as f32)
        .collect();
    for exponent in -149..8 {
        for step in 0..64 {
            let magnitude = f64::from(exponent).exp2() * (1.0 + f64::from(step) / 64.0);
            x.extend([magnitude as f32, -magnitude as f32].into_iter().filter(|x| (lo..=hi).contains(x)));
        }
    }
    x
}

/// The largest error of `kernel` over `x` in ulps of `exact`, and where.
fn largest_error(
    kernel: unsafe fn(*const f32, *mut f32, usize),
    x: &[f32],
    exact: impl Fn(f64) -> f64,
) -> (f64, f32) {
    let mut y = vec![0.0; x.len()];
    // SAFETY: both buffers have the length; callers pass kernels of available tables.
    unsafe { kernel(x.as_ptr(), y.as_mut_ptr(), x.len()) };
    let mut worst = (0.0, 0.0);
    for (&x, &y) in x.iter().zip(&y) {
        let error = ulps(y, exact(f64::from(x)));
        if error > worst.0 {
            worst = (error, x);
        }
    }
    worst
}

fn map(kernel: unsafe fn(*const f32, *mut f32, usize), x: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    // SAFETY: both buffers have the length; callers pass kernels of available tables.
    unsafe { kernel(x.as_ptr(), y.as_mut_ptr(), x.len()) };
    y
}

#[test]
fn exp2_is_within_its_bound() {
    let x = sweep(-160.0, 140.0, 3_000_000);
    for kernels in Kernels::all_available() {
        let (error, at) = largest_error(kernels.exp2, &x, f64::exp2);
        println!("{:?}: exp2 within {error:.3} ulp (at {at})", kernels.set);
        assert!(error <= if fused(kernels) { 1.5 } else { 2.0 }, "{:?}: {error} ulp at {at}", kernels.set);
        let (error, at) = largest_error(kernels.exp2_bf16, &x, f64::exp2);
        println!("{:?}: exp2_bf16 within {error:.3} ulp (at {at})", kernels.set);
        assert!(error <= 3.2e-6 * 2.0_f64.powi(24), "{:?}: {error} ulp at {at}", kernels.set);
    }
}

#[test]
fn exp2_at_the_ends() {
    let x =
        [f32::NEG_INFINITY, -1e30, -151.0, 0.0, -0.0, 1.0, -1.0, 127.0, -126.0, 128.0, 1e30, f32::INFINITY];
    let expected = [0.0, 0.0, 0.0, 1.0, 1.0, 2.0, 0.5, 2.0_f32.powi(127), f32::MIN_POSITIVE]
        .into_iter()
        .chain([f32::INFINITY; 3])
        .collect::<Vec<_>>();
    for kernels in Kernels::all_available() {
        assert_eq!(map(kernels.exp2, &x), expected, "{:?}", kernels.set);
        assert_eq!(map(kernels.exp2_bf16, &x), expected, "{:?}", kernels.set);
        assert!(map(kernels.exp2, &[f32::NAN, 0.0, -f32::NAN])[0].is_nan(), "{:?}", kernels.set);
        assert!(map(kernels.exp2, &[f32::NAN, 0.0, -f32::NAN])[2].is_nan(), "{:?}", kernels.set);
        assert_eq!(map(kernels.exp2, &[f32::NAN, 0.0, -f32::NAN])[1], 1.0, "{:?}", kernels.set);
    }
}
