//! Fragments: which element of a matrix lies in which lane's register.

use inducer_attention::{bf16, f16};

use super::{Kernel, machines, random};

/// Row and column of element `half` of register `i` of A (16×16) in lane `lane`; PTX ISA, figures of mma.m16n8k16.
fn place_in_a(lane: usize, i: usize, half: usize) -> (usize, usize) {
    let (group, thread) = (lane / 4, lane % 4);
    let row = if i == 0 || i == 2 { group } else { group + 8 };
    let column = thread * 2 + half + if i < 2 { 0 } else { 8 };
    (row, column)
}

/// Of B (16×8).
fn place_in_b(lane: usize, i: usize, half: usize) -> (usize, usize) {
    let (group, thread) = (lane / 4, lane % 4);
    (thread * 2 + half + if i == 0 { 0 } else { 8 }, group)
}

/// Of C and D (16×8).
fn place_in_c(lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane / 4, lane % 4);
    (if i < 2 { group } else { group + 8 }, thread * 2 + (i & 1))
}

/// A product of one warp.
struct Product {
    a: [[f32; 16]; 16],
    b: [[f32; 8]; 16],
    c: [[f32; 8]; 16],
}

impl Product {
    fn new(mut number: impl FnMut() -> f32) -> Self {
        let mut product = Self { a: [[0.0; 16]; 16], b: [[0.0; 8]; 16], c: [[0.0; 8]; 16] };
        product.a.iter_mut().flatten().for_each(|x| *x = number());
        product.b.iter_mut().flatten().for_each(|x| *x = number());
        product.c.iter_mut().flatten().for_each(|x| *x = number());
        product
    }

    /// Registers of all lanes.
    fn registers(&self, bits: impl Fn(f32) -> u16) -> Vec<u32> {
        let pack = |low: f32, high: f32| u32::from(bits(low)) | u32::from(bits(high)) << 16;
        let mut words = Vec::new();
        for lane in 0..32 {
            for i in 0..4 {
                let [low, high] = [0, 1].map(|half| place_in_a(lane, i, half)).map(|(r, c)| self.a[r][c]);
                words.push(pack(low, high));
            }
            for i in 0..2 {
                let [low, high] = [0, 1].map(|half| place_in_b(lane, i, half)).map(|(r, c)| self.b[r][c]);
                words.push(pack(low, high));
            }
            for i in 0..4 {
                let (row, column) = place_in_c(lane, i);
                words.push(self.c[row][column].to_bits());
            }
        }
        words
    }

    /// C + A·B at a place, and the sum of what was added, by magnitude.
    fn expected(&self, row: usize, column: usize) -> (f64, f64) {
        let products = (0..16).map(|k| f64::from(self.a[row][k]) * f64::from(self.b[k][column]));
        let c = f64::from(self.c[row][column]);
        products.fold((c, c.abs()), |(sum, magnitude), x| (sum + x, magnitude + x.abs()))
    }
}

fn check(kernel: &Kernel, products: &[Product], bits: impl Fn(f32) -> u16, tolerance: f64) {
    let input: Vec<u32> = products.iter().flat_map(|p| p.registers(&bits)).collect();
    for machine in machines() {
        let mut output = vec![0; products.len() * 128];
        machine.run(kernel, products.len() as u32, &input, &mut output);
        let mut worst = 0f64;
        for (number, product) in products.iter().enumerate() {
            for (lane, i) in (0..32).flat_map(|lane| (0..4).map(move |i| (lane, i))) {
                let (row, column) = place_in_c(lane, i);
                let got = f64::from(f32::from_bits(output[number * 128 + lane * 4 + i]));
                let (expected, magnitude) = product.expected(row, column);
                let error = (got - expected).abs() / magnitude.max(f64::MIN_POSITIVE);
                assert!(
                    error <= tolerance,
                    "{}, {}: product {number}, row {row}, column {column} (lane {lane}, register {i}): {got}, not {expected}",
                    machine.name(),
                    kernel.name
                );
                worst = worst.max(error);
            }
        }
        let bits = if worst > 0.0 {
            format!("off by up to 2^{:.1} of the summands", worst.log2())
        } else {
            "exact".into()
        };
        eprintln!("{}, {}: {bits}", machine.name(), kernel.name);
    }
}

/// One element of A and one of B at a time, then whole numbers, of which no sum is rounded: every place is found out.
fn exact_products() -> Vec<Product> {
    let mut products = Vec::new();
    for k in 0..16 {
        let mut one = Product::new(|| 0.0);
        for row in 0..16 {
            one.a[row][k] = row as f32 + 1.0;
        }
        for column in 0..8 {
            one.b[k][column] = 17.0 * (column as f32 + 1.0);
        }
        products.push(one);
    }
    let mut next = random(2);
    products.extend((0..8).map(|_| Product::new(|| (next() % 33) as f32 - 16.0)));
    products
}

/// Numbers of many sizes; the tensor cores' sums are not rounded as f32's are.
fn rounded_products(round: impl Fn(f32) -> f32) -> Vec<Product> {
    let mut next = random(3);
    let mut number = || {
        let fraction = (next() >> 40) as f32 / (1u32 << 24) as f32 - 0.5;
        round(fraction * ((next() % 9) as f32 - 4.0).exp2())
    };
    (0..16).map(|_| Product::new(&mut number)).collect()
}

const F16: Kernel = Kernel::warp("probe_mma_f16");
const BF16: Kernel = Kernel::warp("probe_mma_bf16");

#[test]
fn products_of_whole_numbers_are_exact() {
    check(&F16, &exact_products(), |x| f16::from_f32(x).to_bits(), 0.0);
    check(&BF16, &exact_products(), |x| bf16::from_f32(x).to_bits(), 0.0);
}

#[test]
fn other_products_are_rounded_as_f32_sums_may_be() {
    // Sixteen summands, aligned to the largest and cut off at no less than f32's precision.
    let tolerance = 16.0 * (-23f64).exp2();
    let products = rounded_products(|x| f16::from_f32(x).to_f32());
    check(&F16, &products, |x| f16::from_f32(x).to_bits(), tolerance);
    let products = rounded_products(|x| bf16::from_f32(x).to_f32());
    check(&BF16, &products, |x| bf16::from_f32(x).to_bits(), tolerance);
}

/// PTX ISA, ldmatrix: lanes 8i to 8i + 7 give the rows of matrix i; lane l receives elements 2(l % 4) and the next one of row
/// l / 4, of column l / 4 if transposed.
#[test]
fn matrices_are_loaded_row_by_row_and_column_by_column() {
    let element = |row: usize, column: usize| (row * 8 + column + 1) as u16;
    let mut input: Vec<u32> = (0..32)
        .flat_map(|row| (0..4).map(move |i| (row, i)))
        .map(|(row, i)| u32::from(element(row, 2 * i)) | u32::from(element(row, 2 * i + 1)) << 16)
        .collect();
    // Rows of a matrix need not lie together.
    let rows: Vec<usize> = (0..32).map(|lane| (lane * 11 + 5) % 32).collect();
    input.extend(rows.iter().map(|&row| row as u32));
    for (name, transposed) in [("probe_matrices", false), ("probe_matrices_transposed", true)] {
        let kernel = Kernel { name, threads: 32, shared_bytes: 512, in_out: false };
        for machine in machines() {
            let mut output = vec![0; 128];
            machine.run(&kernel, 1, &input, &mut output);
            for (lane, i) in (0..32).flat_map(|lane| (0..4).map(move |i| (lane, i))) {
                let expected = [0, 1].map(|half| {
                    let (major, minor) = (lane / 4, lane % 4 * 2 + half);
                    let (row, column) = if transposed { (minor, major) } else { (major, minor) };
                    element(rows[8 * i + row], column)
                });
                let word = output[lane * 4 + i];
                let got = [word as u16, (word >> 16) as u16];
                assert_eq!(got, expected, "{}, {name}: lane {lane}, register {i}", machine.name());
            }
        }
    }
}
