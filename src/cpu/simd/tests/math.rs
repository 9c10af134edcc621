//! Elementary functions against `f64`.

use super::{fused, ulps};
use crate::cpu::simd::Kernels;

type Kernel = unsafe fn(*const f32, *mut f32, usize);

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
fn largest_error(kernel: Kernel, x: &[f32], exact: impl Fn(f64) -> f64) -> (f64, f32) {
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

fn map(kernel: Kernel, x: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    // SAFETY: both buffers have the length; callers pass kernels of available tables.
    unsafe { kernel(x.as_ptr(), y.as_mut_ptr(), x.len()) };
    y
}

/// Asserts that a kernel of every table is within `bound` ulp (`unfused` without fused multiply-add) of `exact` on `x`.
fn assert_within(
    name: &str,
    kernel: impl Fn(&Kernels) -> Kernel,
    x: &[f32],
    exact: impl Fn(f64) -> f64,
    bound: f64,
    unfused: f64,
) {
    for kernels in Kernels::all_available() {
        let (error, at) = largest_error(kernel(kernels), x, &exact);
        println!("{:?}: {name} within {error:.3} ulp (at {at})", kernels.set);
        let bound = if fused(kernels) { bound } else { unfused };
        assert!(error <= bound, "{:?}: {name} is {error} ulp off at {at}", kernels.set);
    }
}

#[test]
fn errors_are_within_their_bounds() {
    let x = sweep(-160.0, 140.0, 2_000_000);
    assert_within("exp2", |k| k.exp2, &x, f64::exp2, 1.5, 2.0);
    let sixteen_bits = 3.2e-6 * 2.0_f64.powi(24);
    assert_within("exp2_bf16", |k| k.exp2_bf16, &x, f64::exp2, sixteen_bits, sixteen_bits);
    let x = sweep(-110.0, 95.0, 2_000_000);
    assert_within("exp", |k| k.exp, &x, f64::exp, 1.25, 1.25);
    assert_within("sigmoid", |k| k.sigmoid, &x, |x| 1.0 / (1.0 + (-x).exp()), 2.5, 2.5);
    let x = sweep(-12.0, 12.0, 2_000_000);
    assert_within("tanh", |k| k.tanh, &x, f64::tanh, 2.5, 2.5);
    // Every size of number, near 1 most densely.
    let mut x: Vec<f32> =
        (1..2_000_000).map(|i| f32::from_bits(i * 1065)).filter(|x| x.is_finite()).collect();
    x.extend((0..1_000_000).map(|i| 0.5 + i as f32 / 500_000.0));
    assert_within("ln", |k| k.ln, &x, f64::ln, 1.0, 1.0);
}

/// A function and its values at given arguments.
type Cases = (&'static str, fn(&Kernels) -> Kernel, &'static [(f32, f32)]);

#[test]
fn the_other_functions_at_the_ends() {
    const INFINITY: f32 = f32::INFINITY;
    let cases: [Cases; 4] = [
        (
            "exp",
            |k| k.exp,
            &[
                (-INFINITY, 0.0),
                (-1e30, 0.0),
                (0.0, 1.0),
                (-0.0, 1.0),
                (89.0, INFINITY),
                (INFINITY, INFINITY),
            ],
        ),
        ("ln", |k| k.ln, &[(0.0, -INFINITY), (-0.0, -INFINITY), (1.0, 0.0), (INFINITY, INFINITY)]),
        (
            "tanh",
            |k| k.tanh,
            &[(-INFINITY, -1.0), (-20.0, -1.0), (1e-40, 1e-40), (0.0, 0.0), (30.0, 1.0), (INFINITY, 1.0)],
        ),
        (
            "sigmoid",
            |k| k.sigmoid,
            &[(-INFINITY, 0.0), (-1e30, 0.0), (0.0, 0.5), (1e-9, 0.5), (100.0, 1.0), (INFINITY, 1.0)],
        ),
    ];
    for kernels in Kernels::all_available() {
        for (name, kernel, cases) in &cases {
            for &(x, expected) in *cases {
                let y = map(kernel(kernels), &[x])[0];
                let near = f64::from((y - expected).abs()) <= 2e-7 * f64::from(expected.abs());
                assert!(y == expected || near, "{:?}: {name} {x} = {y}, expected {expected}", kernels.set);
            }
            let y = map(kernel(kernels), &[f32::NAN, -f32::NAN]);
            assert!(y.iter().all(|y| y.is_nan()), "{:?}: {name} of NaN", kernels.set);
        }
        assert!(map(kernels.tanh, &[-0.0])[0].is_sign_negative());
        let negative = map(kernels.ln, &[-1.0, -f32::INFINITY, -1e-40]);
        assert!(negative.iter().all(|y| y.is_nan()), "{:?}: ln of negative numbers", kernels.set);
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
