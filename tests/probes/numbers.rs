//! Rounding, and the error of functions against f64.

use inducer_attention::{bf16, f16};

use super::{Kernel, machines, random};

/// Numbers where rounding goes wrong first, and random bits.
fn numbers() -> Vec<f32> {
    let mut numbers =
        vec![0.0, -0.0, 1.0, -1.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN];
    // Halfway between neighbours of f16 and bf16, and just beside; the largest; where they overflow; subnormals.
    for base in
        [1.0f32, 3.0, 1024.0, 65504.0, 65519.0, 65520.0, 6.1e-5, 5.96e-8, 2.98e-8, 1e-40, 3.3e38, 1.17e-38]
    {
        for step in [0u32, 1 << 12, 1 << 13, 3 << 12, 1 << 15, 1 << 16, 3 << 15] {
            for offset in [-1i32, 0, 1] {
                numbers.push(f32::from_bits((base.to_bits() + step).wrapping_add_signed(offset)));
            }
        }
    }
    let mut next = random(4);
    numbers.extend((0..512).map(|_| f32::from_bits(next() as u32)));
    let missing = numbers.len().next_multiple_of(64) - numbers.len();
    numbers.extend(std::iter::repeat_n(1.0, missing));
    numbers
}

/// PTX ISA, cvt.rn: to nearest even; subnormals are kept, too large numbers become infinite, any NaN a NaN.
#[test]
fn conversions_round_to_nearest_even() {
    let numbers = numbers();
    let input: Vec<u32> = numbers.iter().map(|x| x.to_bits()).collect();
    for machine in machines() {
        let mut output = vec![0; input.len() / 2 * 6];
        machine.run(&Kernel::warp("probe_conversions"), (input.len() / 64) as u32, &input, &mut output);
        for (pair, got) in numbers.chunks_exact(2).zip(output.chunks_exact(6)) {
            for (i, &x) in pair.iter().enumerate() {
                let half = |word: u32| (word >> (16 * i)) as u16;
                let (f16_bits, bf16_bits) = (half(got[0]), half(got[3]));
                let (f16_back, bf16_back) = (f32::from_bits(got[1 + i]), f32::from_bits(got[4 + i]));
                let name = machine.name();
                if x.is_nan() {
                    assert!(
                        f16::from_bits(f16_bits).is_nan() && bf16::from_bits(bf16_bits).is_nan(),
                        "{name}: NaN"
                    );
                    assert!(f16_back.is_nan() && bf16_back.is_nan(), "{name}: NaN, widened");
                    continue;
                }
                assert_eq!(f16_bits, f16::from_f32(x).to_bits(), "{name}: {x:e} to f16, half {i}");
                assert_eq!(bf16_bits, bf16::from_f32(x).to_bits(), "{name}: {x:e} to bf16, half {i}");
                assert_eq!(f16_back.to_bits(), f16::from_f32(x).to_f32().to_bits(), "{name}: {x:e} from f16");
                assert_eq!(
                    bf16_back.to_bits(),
                    bf16::from_f32(x).to_f32().to_bits(),
                    "{name}: {x:e} from bf16"
                );
            }
        }
    }
}

/// Distance between f32's neighbours at `x`.
fn ulp(x: f64) -> f64 {
    let exponent = x.abs().log2().floor().max(-126.0);
    (exponent - 23.0).exp2()
}

/// Units in the last place by which each function may be off, and where it is asked.
type Function = (&'static str, fn(f64) -> f64, f64, fn(f32) -> bool);

/// `exp2_fast` as the PTX ISA states ex2.approx.ftz: results under 2^-126 are 0. The others as arch/ states them, and half a
/// unit more for libraries of the host that are not as good.
const FUNCTIONS: [Function; 7] = [
    ("exp2_fast", |x| x.exp2(), 2.5, |x| x < 128.0 && x.exp2() >= f32::MIN_POSITIVE),
    ("exp_accurate", |x| x.exp(), 2.5, |x| x < 88.7 && x > -87.3),
    ("log2_accurate", |x| x.abs().log2(), 2.5, |x| x.abs() >= f32::MIN_POSITIVE),
    ("tanh_accurate", f64::tanh, 3.0, |x| x.abs() >= f32::MIN_POSITIVE),
    ("sqrt_accurate", |x| x.abs().sqrt(), 1.0, |x| x.abs() >= f32::MIN_POSITIVE),
    // 2 / x, as the PTX ISA states div.approx.ftz.
    ("divide_fast", |x| 2.0 / x, 2.0, |x| (2.0 * f32::MIN_POSITIVE..8e37).contains(&x.abs())),
    // A relative error of 2^-23, as it states sqrt.approx.ftz.
    ("sqrt_fast", |x| x.abs().sqrt(), 2.0, |x| x.abs() >= f32::MIN_POSITIVE),
];

#[test]
fn functions_are_as_accurate_as_stated() {
    let mut next = random(5);
    let mut numbers: Vec<f32> = (0..4096).map(|_| (next() >> 40) as f32 / (1u32 << 24) as f32).collect();
    // Fractions, softmax's exponents, and all sizes.
    for (i, x) in numbers.iter_mut().enumerate() {
        *x = match i % 4 {
            0 => *x,
            1 => -30.0 * *x,
            2 => 300.0 * (*x - 0.5),
            _ => (*x - 0.5) * ((next() % 60) as f32 - 40.0).exp2(),
        };
    }
    let input: Vec<u32> = numbers.iter().map(|x| x.to_bits()).collect();
    for machine in machines() {
        let mut output = vec![0; input.len() * FUNCTIONS.len()];
        machine.run(&Kernel::warp("probe_functions"), (input.len() / 32) as u32, &input, &mut output);
        for (f, (name, exact, most, applies)) in FUNCTIONS.into_iter().enumerate() {
            let mut worst = (0.0, 0.0);
            for (i, &x) in numbers.iter().enumerate().filter(|(_, x)| applies(**x)) {
                let (got, expected) =
                    (f64::from(f32::from_bits(output[i * FUNCTIONS.len() + f])), exact(f64::from(x)));
                let error = (got - expected).abs() / ulp(expected);
                assert!(error <= most, "{}: {name}({x:e}) = {got:e}, not {expected:e}", machine.name());
                if error > worst.0 {
                    worst = (error, x);
                }
            }
            eprintln!("{}: {name} is off by up to {:.2} ulp, at {:e}", machine.name(), worst.0, worst.1);
        }
    }
}

#[test]
#[allow(clippy::float_cmp, reason = "these values are exact")]
fn functions_at_their_limits() {
    let mut numbers =
        vec![0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 128.0, 127.0, -126.0, -127.0, -150.0];
    numbers.resize(31, 1e-42);
    numbers.push(1e38);
    let input: Vec<u32> = numbers.iter().map(|x: &f32| x.to_bits()).collect();
    for machine in machines() {
        let mut output = vec![0; 32 * FUNCTIONS.len()];
        machine.run(&Kernel::warp("probe_functions"), 1, &input, &mut output);
        let at = |i: usize, f: usize| f32::from_bits(output[i * FUNCTIONS.len() + f]);
        let exp2: Vec<f32> = (0..11).map(|i| at(i, 0)).collect();
        let name = machine.name();
        assert_eq!(exp2[..4], [1.0, 1.0, f32::INFINITY, 0.0], "{name}");
        assert!(exp2[4].is_nan(), "{name}");
        let (most, least) = (127f32.exp2(), f32::MIN_POSITIVE);
        assert_eq!(exp2[5..], [f32::INFINITY, most, least, 0.0, 0.0, 1.0], "{name}");
        assert_eq!([at(2, 1), at(3, 1)], [f32::INFINITY, 0.0], "{name}: exp");
        assert_eq!([at(0, 2), at(2, 2)], [f32::NEG_INFINITY, f32::INFINITY], "{name}: log2");
        assert_eq!([at(2, 3), at(3, 3)], [1.0, -1.0], "{name}: tanh");
        assert_eq!(
            [at(0, 5), at(2, 5), at(3, 5), at(31, 5)],
            [f32::INFINITY, 0.0, 0.0, 0.0],
            "{name}: 2 / x"
        );
        assert!((1..6).filter(|&f| f != 4).all(|f| at(4, f).is_nan()), "{name}: NaN");
    }
}

/// PTX ISA, mul.hi.u32.
#[test]
fn high_halves_of_products() {
    let mut next = random(6);
    let mut input: Vec<u32> = (0..256).map(|_| next() as u32).collect();
    input[..4].fill(u32::MAX);
    for machine in machines() {
        let mut output = vec![0; 128];
        machine.run(&Kernel::warp("probe_products"), 4, &input, &mut output);
        let expected = input.chunks_exact(2).map(|p| ((u64::from(p[0]) * u64::from(p[1])) >> 32) as u32);
        assert_eq!(output, expected.collect::<Vec<_>>(), "{}", machine.name());
    }
}
