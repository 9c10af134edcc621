//! Every vector operation against its definition, lane by lane.

#![allow(unsafe_op_in_unsafe_fn, reason = "vector operations under the contract of `Vector`")]

use super::Numbers;
use crate::cpu::simd::portable::Portable;
use crate::cpu::simd::vector::Vector;

const MAX: usize = 16;

/// What a lane should be, of the lanes of the operands.
type OfFloats = fn(f32, f32, f32) -> f32;
type OfMasks = fn(bool, bool) -> bool;
type OfIntegers = fn(i32, i32) -> i32;

unsafe fn lanes<V: Vector>(x: V) -> Vec<f32> {
    let mut out = [0.0; MAX];
    x.store(out.as_mut_ptr());
    out[..V::LANES].to_vec()
}

unsafe fn ints<V: Vector>(x: V::Int) -> Vec<i32> {
    let mut out = [0; MAX];
    V::store_i32(x, out.as_mut_ptr());
    out[..V::LANES].to_vec()
}

fn same(x: f32, y: f32) -> bool {
    x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan())
}

#[inline(always)]
unsafe fn check<V: Vector>() {
    let specials = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 1.0, -2.5, 3.5, 0.5, 1e-40];
    let mut numbers = Numbers::new(11);
    for _ in 0..200 {
        let (mut x, mut y, mut z) = ([0.0; MAX], [0.0; MAX], [0.0; MAX]);
        let (mut p, mut q, mut r) = ([0; MAX], [0; MAX], [0; MAX]);
        for i in 0..MAX {
            for array in [&mut x, &mut y, &mut z] {
                let special = numbers.next_u32() as usize % (2 * specials.len());
                array[i] = specials.get(special).copied().unwrap_or(8.0 * numbers.uniform());
            }
            for array in [&mut p, &mut q, &mut r] {
                let wide = numbers.next_u32() as i32;
                array[i] = [wide, wide >> 29, i32::MIN, i32::MAX, 0][numbers.next_u32() as usize % 5];
            }
        }
        let (a, b, c) = (V::load(x.as_ptr()), V::load(y.as_ptr()), V::load(z.as_ptr()));
        let (s, t, u) = (V::load_i32(p.as_ptr()), V::load_i32(q.as_ptr()), V::load_i32(r.as_ptr()));

        let results: [(&str, Vec<f32>, OfFloats); 12] = [
            ("add", lanes(a.add(b)), |x, y, _| x + y),
            ("sub", lanes(a.sub(b)), |x, y, _| x - y),
            ("mul", lanes(a.mul(b)), |x, y, _| x * y),
            ("div", lanes(a.div(b)), |x, y, _| x / y),
            ("max", lanes(V::max(a, b)), |x, y, _| if x > y { x } else { y }),
            ("min", lanes(V::min(a, b)), |x, y, _| if x < y { x } else { y }),
            ("abs", lanes(a.abs()), |x, _, _| x.abs()),
            ("copy_sign", lanes(a.copy_sign(b)), |x, y, _| x.copysign(y)),
            ("round", lanes(V::round(a)), |x, _, _| {
                // The portable one rounds by an addition, which turns −0 into 0.
                if x == 0.0 { 0.0 } else { x.round_ties_even() }
            }),
            ("select", lanes(V::select(V::lt(a, b), b, c)), |x, y, z| if x < y { y } else { z }),
            ("keep", lanes(V::keep(V::le(a, b), c)), |x, y, z| if x <= y { z } else { 0.0 }),
            ("eq", lanes(V::select(V::eq(a, b), b, c)), |x, y, z| if x == y { y } else { z }),
        ];
        for (name, result, expected) in results {
            for i in 0..V::LANES {
                let expected = expected(x[i], y[i], z[i]);
                let zeros = name == "round" && result[i] == expected;
                assert!(
                    same(result[i], expected) || zeros,
                    "{name} {} {} {} = {}",
                    x[i],
                    y[i],
                    z[i],
                    result[i]
                );
            }
        }

        let (lt, le) = (V::lt(a, b), V::le(b, c));
        let masks: [(&str, u32, OfMasks); 3] = [
            ("and", V::mask_bits(V::mask_and(lt, le)), |x, y| x && y),
            ("or", V::mask_bits(V::mask_or(lt, le)), |x, y| x || y),
            ("and not", V::mask_bits(V::mask_and_not(lt, le)), |x, y| x && !y),
        ];
        for (name, bits, expected) in masks {
            let expected: u32 =
                (0..V::LANES).map(|i| u32::from(expected(x[i] < y[i], y[i] <= z[i])) << i).sum();
            assert_eq!(bits, expected, "{name}");
        }
        assert_eq!(V::any(lt), (0..V::LANES).any(|i| x[i] < y[i]));
        assert_eq!(V::all(lt), (0..V::LANES).all(|i| x[i] < y[i]));
        assert!(V::all(V::lt(V::zero(), V::splat(1.0))) && !V::any(V::lt(V::zero(), V::zero())));

        let in_range = V::mask_bits(V::in_range(s, t, u));
        let (low, high) = V::mul_wide_u32(s, t);
        let integers: [(&str, Vec<i32>, OfIntegers); 6] = [
            ("add", ints::<V>(V::add_i32(s, t)), i32::wrapping_add),
            ("and", ints::<V>(V::and_i32(s, t)), |p, q| p & q),
            ("xor", ints::<V>(V::xor_i32(s, t)), |p, q| p ^ q),
            ("low", ints::<V>(low), i32::wrapping_mul),
            ("high", ints::<V>(high), |p, q| ((u64::from(p as u32) * u64::from(q as u32)) >> 32) as i32),
            ("shift", ints::<V>(V::shift_right_u32::<7>(s)), |p, _| (p as u32 >> 7) as i32),
        ];
        for (name, result, expected) in integers {
            for i in 0..V::LANES {
                assert_eq!(result[i], expected(p[i], q[i]), "{name} {} {}", p[i], q[i]);
            }
        }
        for i in 0..V::LANES {
            assert_eq!(in_range >> i & 1 == 1, q[i] <= p[i] && p[i] < r[i], "{} in {}..{}", p[i], q[i], r[i]);
            assert_eq!(lanes(V::convert_i32(s))[i], p[i] as f32);
            assert_eq!(lanes(V::from_bits(s))[i].to_bits(), p[i] as u32);
        }
        assert_eq!(ints::<V>(a.to_bits())[0], x[0].to_bits() as i32);
        assert_eq!(ints::<V>(V::splat_i32(7)), vec![7; V::LANES]);

        let finite = V::load(numbers.many(MAX).as_ptr());
        let values = lanes(finite);
        let sum: f64 = values.iter().map(|&x| f64::from(x)).sum();
        assert!((f64::from(finite.reduce_add()) - sum).abs() < 1e-5);
        assert_eq!(finite.reduce_max(), values.iter().copied().fold(f32::MIN, f32::max));
    }
}

#[test]
fn portable() {
    // SAFETY: every processor has the portable set.
    unsafe { check::<Portable>() };
}

#[cfg(target_arch = "x86_64")]
#[test]
fn x86_64() {
    use crate::cpu::InstructionSet;
    use crate::cpu::simd::{avx2::Avx2, avx512::Avx512};

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn avx2() {
        // SAFETY: this function has the set's features, and its caller checked that the processor has them.
        unsafe { check::<Avx2>() };
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn avx512() {
        // SAFETY: as above.
        unsafe { check::<Avx512<false>>() };
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn avx512_bf16() {
        // SAFETY: as above.
        unsafe { check::<Avx512<true>>() };
    }
    if InstructionSet::Avx2.is_available() {
        // SAFETY: just checked.
        unsafe { avx2() };
    }
    if InstructionSet::Avx512.is_available() {
        // SAFETY: just checked.
        unsafe { avx512() };
    }
    if InstructionSet::Avx512Bf16.is_available() {
        // SAFETY: just checked.
        unsafe { avx512_bf16() };
    }
}
