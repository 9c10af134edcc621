//! Each instruction against what the PTX ISA says of it, written down again here.

use half::{bf16, f16};

use crate::run::transform;

/// A number type of `mma`, by its kernel's name.
trait Half: Copy {
    const MMA: &'static str;
    fn bits(value: f32) -> u16;
}

impl Half for f16 {
    const MMA: &'static str = "selftest_mma_f16";
    fn bits(value: f32) -> u16 {
        f16::from_f32(value).to_bits()
    }
}

impl Half for bf16 {
    const MMA: &'static str = "selftest_mma_bf16";
    fn bits(value: f32) -> u16 {
        bf16::from_f32(value).to_bits()
    }
}

/// Fragments for mma.m16n8k16 with floating point type: where element i of a lane's fragment lies in its matrix.
fn a_place(lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane % 4);
    let row = if i < 2 || (4..6).contains(&i) { group } else { group + 8 };
    let column = thread * 2 + (i & 1) + if i >= 4 { 8 } else { 0 };
    (row, column)
}

fn b_place(lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane % 4);
    (thread * 2 + (i & 1) + if i >= 2 { 8 } else { 0 }, group)
}

fn c_place(lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane % 4);
    (if i < 2 { group } else { group + 8 }, thread * 2 + (i & 1))
}

type A = [[f32; 16]; 16];
type B = [[f32; 8]; 16];
type C = [[f32; 8]; 16];

fn multiply<T: Half>(a: &A, b: &B, c: &C) -> C {
    let mut words = Vec::new();
    for lane in 0..32 {
        let pair = |low: f32, high: f32| u32::from(T::bits(low)) | u32::from(T::bits(high)) << 16;
        let a_of = |i: usize| a[a_place(lane, i).0][a_place(lane, i).1];
        let b_of = |i: usize| b[b_place(lane, i).0][b_place(lane, i).1];
        words.extend((0..4).map(|r| pair(a_of(2 * r), a_of(2 * r + 1))));
        words.extend((0..2).map(|r| pair(b_of(2 * r), b_of(2 * r + 1))));
        words.extend((0..4).map(|i| c[c_place(lane, i).0][c_place(lane, i).1].to_bits()));
    }
    let result = transform(T::MMA, &words, 128, 0);
    let mut d = [[0.0; 8]; 16];
    for lane in 0..32 {
        for i in 0..4 {
            let (row, column) = c_place(lane, i);
            d[row][column] = f32::from_bits(result[lane * 4 + i]);
        }
    }
    d
}

#[test]
fn the_fragments_of_a_lane_are_those_of_the_figures() {
    // Read off figures 79 to 81 of the PTX ISA: T5 is in the second row and the second pair of columns.
    let t5: Vec<_> = (0..8).map(|i| a_place(5, i)).collect();
    assert_eq!(t5, [(1, 2), (1, 3), (9, 2), (9, 3), (1, 10), (1, 11), (9, 10), (9, 11)]);
    assert_eq!((0..4).map(|i| b_place(5, i)).collect::<Vec<_>>(), [(2, 1), (3, 1), (10, 1), (11, 1)]);
    assert_eq!((0..4).map(|i| c_place(5, i)).collect::<Vec<_>>(), [(1, 2), (1, 3), (9, 2), (9, 3)]);
    assert_eq!(a_place(31, 7), (15, 15));
    assert_eq!(b_place(31, 3), (15, 7));
    assert_eq!(c_place(31, 3), (15, 7));
}

fn mma_multiplies<T: Half>() {
    // Small whole numbers without a pattern: sums are exact, and no two fragments can be swapped unseen.
    let mut state = 1_u32;
    let mut draw = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 24) % 17) as f32 - 8.0
    };
    let (mut a, mut b, mut c) = ([[0.0; 16]; 16], [[0.0; 8]; 16], [[0.0; 8]; 16]);
    a.iter_mut().flatten().for_each(|x| *x = draw());
    b.iter_mut().flatten().for_each(|x| *x = draw());
    c.iter_mut().flatten().for_each(|x| *x = draw());
    let d = multiply::<T>(&a, &b, &c);
    for (row, column) in (0..16).flat_map(|row| (0..8).map(move |column| (row, column))) {
        let expected: f32 = c[row][column] + (0..16).map(|k| a[row][k] * b[k][column]).sum::<f32>();
        assert_eq!(d[row][column], expected, "row {row}, column {column}");
    }
}

#[test]
fn mma_multiplies_f16() {
    mma_multiplies::<f16>();
}

#[test]
fn mma_multiplies_bf16() {
    mma_multiplies::<bf16>();
}

/// One element at a time: column n of D is column k of A where B has a single one at (k, n).
#[test]
fn mma_places_every_element() {
    let mut a = [[0.0; 16]; 16];
    for (row, column) in (0..16).flat_map(|row| (0..16).map(move |column| (row, column))) {
        a[row][column] = (row * 16 + column) as f32;
    }
    for k in 0..16 {
        let n = k % 8;
        let mut b = [[0.0; 8]; 16];
        b[k][n] = 1.0;
        let d = multiply::<bf16>(&a, &b, &[[0.0; 8]; 16]);
        for (row, column) in (0..16).flat_map(|row| (0..8).map(move |column| (row, column))) {
            let expected = if column == n { a[row][k] } else { 0.0 };
            assert_eq!(d[row][column], expected, "k {k}, row {row}, column {column}");
        }
    }
}

#[test]
fn mma_keeps_what_is_not_finite_in_its_row() {
    let mut a = [[1.0; 16]; 16];
    a[3][5] = f32::INFINITY;
    a[9][0] = f32::NAN;
    a[12][2] = f32::INFINITY;
    a[12][3] = f32::NEG_INFINITY;
    let d = multiply::<f16>(&a, &[[1.0; 8]; 16], &[[0.5; 8]; 16]);
    for (row, values) in d.iter().enumerate() {
        match row {
            3 => assert!(values.iter().all(|&x| x == f32::INFINITY)),
            9 | 12 => assert!(values.iter().all(|x| x.is_nan())),
            _ => assert!(values.iter().all(|&x| x == 16.5)),
        }
    }
}

/// Subnormal f16 and products that f16 could not hold count in full.
#[test]
fn mma_products_are_exact() {
    let mut a = [[0.0; 16]; 16];
    let mut b = [[0.0; 8]; 16];
    a[0][0] = f16::from_bits(1).to_f32();
    b[0][0] = 0.5;
    a[1][1] = 60000.0;
    b[1][1] = 60000.0;
    let d = multiply::<f16>(&a, &b, &[[0.0; 8]; 16]);
    assert_eq!(d[0][0], 2.0_f32.powi(-25));
    let factor = f16::from_f32(60000.0).to_f32();
    assert_eq!(d[1][1], factor * factor);
}

/// Four matrices whose elements all differ, and addresses of their rows in an order of their own.
fn load(transposed: bool) {
    let element = |matrix: usize, row: usize, column: usize| (matrix * 64 + row * 8 + column + 1) as u32;
    let row_of_lane = |lane: usize| (lane * 13 + 7) % 32;
    let mut words = Vec::new();
    for row in 0..32 {
        for pair in 0..4 {
            words.push(element(row / 8, row % 8, 2 * pair) | element(row / 8, row % 8, 2 * pair + 1) << 16);
        }
    }
    words.extend((0..32).map(|lane| row_of_lane(lane) as u32));
    let name = if transposed { "selftest_load_matrices_transposed" } else { "selftest_load_matrices" };
    let result = transform(name, &words, 128, 0);
    // Row r of what the instruction calls matrix m is at the address that lane 8m + r brings.
    let seen = |matrix: usize, row: usize, column: usize| {
        let at = row_of_lane(8 * matrix + row);
        element(at / 8, at % 8, column)
    };
    for lane in 0..32 {
        for matrix in 0..4 {
            let (major, minor) = (lane / 4, lane % 4 * 2);
            let (low, high) = if transposed {
                (seen(matrix, minor, major), seen(matrix, minor + 1, major))
            } else {
                (seen(matrix, major, minor), seen(matrix, major, minor + 1))
            };
            assert_eq!(result[lane * 4 + matrix], low | high << 16, "lane {lane}, matrix {matrix}");
        }
    }
}

#[test]
fn ldmatrix_gives_each_lane_its_elements() {
    load(false);
}

#[test]
fn ldmatrix_transposes() {
    load(true);
}

/// Bits of numbers that all differ.
fn distinct() -> Vec<u32> {
    (0..32).map(|lane| (lane as f32 + 0.5).to_bits()).collect()
}

#[test]
fn shuffle_takes_from_the_lane_asked_for() {
    let words = distinct();
    for lane in [0, 1, 5, 31, 32, 37, -1] {
        let result = transform("selftest_shuffle", &words, 32, lane);
        let from = (lane & 31) as usize;
        assert!(result.iter().all(|&x| x == words[from]), "lane {lane}");
    }
    // Lane l asks lane 5l, of which the low five bits count.
    let result = transform("selftest_shuffle_each", &words, 32, 5);
    for lane in 0..32 {
        assert_eq!(result[lane], words[lane * 5 % 32], "lane {lane}");
    }
}

#[test]
fn shuffle_xor_exchanges() {
    let words = distinct();
    for mask in [1, 2, 4, 8, 16, 21, 31] {
        let result = transform("selftest_shuffle_xor", &words, 32, mask);
        for lane in 0..32 {
            assert_eq!(result[lane], words[lane ^ mask as usize], "lane {lane}, mask {mask}");
        }
    }
}

#[test]
fn votes_are_a_warps_own() {
    for truth in [None, Some(0), Some(17), Some(31), Some(32), Some(63)] {
        let words: Vec<u32> = (0..64).map(|thread| u32::from(Some(thread) == truth)).collect();
        let result = transform("selftest_warp_any", &words, 64, 0);
        for thread in 0..64 {
            let expected = truth.is_some_and(|t| t / 32 == thread / 32);
            assert_eq!(result[thread as usize], u32::from(expected), "true in {truth:?}, thread {thread}");
        }
    }
}

#[test]
fn a_barrier_tells_all_threads_whether_any_value_is_true() {
    for (first, second) in [(None, Some(3)), (Some(40), None), (Some(0), Some(63)), (None, None)] {
        let one = |truth: Option<u32>| (0..64).map(move |thread| u32::from(Some(thread) == truth));
        let words: Vec<u32> = one(first).chain(one(second)).collect();
        let result = transform("selftest_sync_threads_or", &words, 128, 0);
        for pair in result.chunks(2) {
            assert_eq!(pair, [u32::from(first.is_some()), u32::from(second.is_some())]);
        }
    }
}

#[test]
fn pack_rounds_to_nearest_even() {
    let ulp = |bits: u32| f32::from_bits(bits);
    let mut numbers = vec![
        0.0,
        -0.0,
        1.0,
        -2.5,
        65504.0,
        65519.996,
        65520.0,
        -65520.0,
        1e30,
        f32::MAX,
        f32::INFINITY,
        f32::NEG_INFINITY,
        // Ties of bf16 and f16, to the even side below and above.
        ulp(0x3f80_8000),
        ulp(0x3f81_8000),
        ulp(0x3f80_8001),
        ulp(0x3f80_1000),
        ulp(0x3f80_3000),
        ulp(0x3f80_1001),
        // Subnormal in f16, and where they end.
        6.0e-8,
        2.0_f32.powi(-25),
        2.0_f32.powi(-25) * 1.0001,
        -3.0 * 2.0_f32.powi(-25),
        6.1e-5,
        2.0_f32.powi(-14),
        2.0_f32.powi(-14) - 2.0_f32.powi(-26),
        1e-40,
    ];
    let mut state = 7_u32;
    while numbers.len() < 64 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let number = f32::from_bits(state);
        if number.is_finite() {
            numbers.push(number);
        }
    }
    let words: Vec<u32> = numbers.iter().map(|x| x.to_bits()).collect();
    let result = transform("selftest_pack", &words, 6 * 32, 0);
    for (pair, out) in numbers.chunks(2).zip(result.chunks(6)) {
        let f = [f16::from_f32(pair[0]), f16::from_f32(pair[1])];
        let b = [bf16::from_f32(pair[0]), bf16::from_f32(pair[1])];
        let word = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
        assert_eq!(out[0], word(f[0].to_bits(), f[1].to_bits()), "{pair:?} to f16");
        assert_eq!(out[1], word(b[0].to_bits(), b[1].to_bits()), "{pair:?} to bf16");
        let back = [f[0].to_f32(), f[1].to_f32(), b[0].to_f32(), b[1].to_f32()];
        assert_eq!(out[2..], back.map(f32::to_bits), "{pair:?} and back");
    }
}

#[test]
fn pack_keeps_nan() {
    let mut words = vec![0x7fc0_0000_u32; 64];
    words[1] = 0x7f80_0001;
    words[2] = 0xffff_ffff;
    let result = transform("selftest_pack", &words, 6 * 32, 0);
    for out in result.chunks(6) {
        assert_eq!(out[..2], [0x7fff_7fff, 0x7fff_7fff]);
        assert!(out[2..].iter().all(|&x| f32::from_bits(x).is_nan()));
    }
}

#[test]
fn exp2_flushes_what_is_subnormal() {
    let mut numbers = [0.0_f32; 32];
    let some =
        [0.0, 1.0, -1.0, 0.5, -126.0, -126.5, -149.0, -1000.0, 128.0, f32::NEG_INFINITY, f32::INFINITY];
    numbers[..some.len()].copy_from_slice(&some);
    numbers[some.len()] = f32::NAN;
    let words: Vec<u32> = numbers.iter().map(|x| x.to_bits()).collect();
    let result: Vec<f32> =
        transform("selftest_exp2", &words, 32, 0).into_iter().map(f32::from_bits).collect();
    for (x, y) in some.iter().zip(&result) {
        let exact = x.exp2();
        let expected = if exact < f32::MIN_POSITIVE { 0.0 } else { exact };
        assert!((y - expected).abs() <= 2.0 * f32::EPSILON * expected || *y == expected, "2^{x} is not {y}");
    }
    assert!(result[some.len()].is_nan());
}
