//! Products of warpgroups: how their operands lie in shared memory, and their results in registers.

use inducer_attention::{bf16, f16};

use super::{Kernel, machines, random};

const ROWS: usize = 64;

/// A product `c[i][j] = Σ_k a(i, k) b(k, j)` and where the kernel's input has its factors.
struct Product {
    kernel: &'static str,
    columns: usize,
    depth: usize,
    /// Elements of the whole input.
    elements: usize,
    a: fn(i: usize, k: usize) -> usize,
    b: fn(k: usize, j: usize) -> usize,
    /// What lies in c before.
    before: f64,
}

/// A `[a, d]`, B `[n, d]`: A·Bᵀ, of A's last 64 rows.
macro_rules! rows {
    ($type:literal, $a:literal, $d:literal, $n:literal) => {
        Product {
            kernel: concat!("probe_rows_", $type, "_a", $a, "_d", $d, "_n", $n),
            columns: $n,
            depth: $d,
            elements: ($a + $n) * $d,
            a: |i, k| ($a - ROWS + i) * $d + k,
            b: |k, j| ($a + j) * $d + k,
            before: 0.0,
        }
    };
}

/// P `[64, k]`, B `[k, d]`: 1 + P·B.
macro_rules! registers {
    ($type:literal, $d:literal, $k:literal) => {
        Product {
            kernel: concat!("probe_registers_", $type, "_d", $d, "_k", $k),
            columns: $d,
            depth: $k,
            elements: (ROWS + $d) * $k,
            a: |i, k| i * $k + k,
            b: |k, j| ROWS * $k + k * $d + j,
            before: 1.0,
        }
    };
}

/// A `[k, a]`, B `[k, d]`: Aᵀ·B, of A's last 64 columns and B's columns 64 to 127.
macro_rules! columns {
    ($type:literal, $a:literal, $d:literal, $k:literal) => {
        Product {
            kernel: concat!("probe_columns_", $type, "_a", $a, "_d", $d, "_k", $k),
            columns: 64,
            depth: $k,
            elements: ($a + $d) * $k,
            a: |i, k| k * $a + $a - ROWS + i,
            b: |k, j| $a * $k + k * $d + 64 + j,
            before: 0.0,
        }
    };
}

macro_rules! products {
    ($type:literal) => {
        [
            rows!($type, 64, 64, 256),
            rows!($type, 64, 64, 128),
            rows!($type, 64, 128, 64),
            rows!($type, 64, 128, 32),
            rows!($type, 128, 64, 128),
            rows!($type, 64, 256, 16),
            registers!($type, 64, 64),
            registers!($type, 128, 64),
            registers!($type, 256, 64),
            columns!($type, 64, 128, 64),
            columns!($type, 128, 128, 64),
            columns!($type, 64, 128, 128),
        ]
    };
}

impl Product {
    fn expected(&self, values: &[f32], i: usize, j: usize) -> f64 {
        let products =
            (0..self.depth).map(|k| f64::from(values[(self.a)(i, k)]) * f64::from(values[(self.b)(k, j)]));
        // A sum that begins at 0: of none it would be -0.
        products.fold(self.before, |sum, product| sum + product)
    }

    /// Holds the kernel against the sums: small whole numbers, of which nothing is rounded.
    fn check(&self, bits: impl Fn(f32) -> u16) {
        let mut next = random(self.elements as u64);
        let values: Vec<f32> = (0..self.elements).map(|_| (next() % 15) as f32 - 7.0).collect();
        let pack = |pair: &[f32]| u32::from(bits(pair[0])) | u32::from(bits(pair[1])) << 16;
        let input: Vec<u32> = values.chunks_exact(2).map(pack).collect();
        let shared_bytes = self.shared_bytes();
        let kernel = Kernel { name: self.kernel, threads: 128, shared_bytes, in_out: false };
        for machine in machines().iter().filter(|machine| machine.has_warpgroups()) {
            let mut output = vec![0; ROWS * self.columns];
            machine.run(&kernel, 1, &input, &mut output);
            for (i, j) in (0..ROWS).flat_map(|i| (0..self.columns).map(move |j| (i, j))) {
                let got = f64::from(f32::from_bits(output[i * self.columns + j]));
                let expected = self.expected(&values, i, j);
                let name = machine.name();
                let equal = got.to_bits() == expected.to_bits();
                assert!(equal, "{name}, {}: [{i}, {j}] is {got}, not {expected}", self.kernel);
            }
            eprintln!("{}, {}: exact", machine.name(), self.kernel);
        }
    }

    /// What lies in shared memory: all of the input, or what is not in registers.
    fn shared_bytes(&self) -> u32 {
        let in_registers = if self.kernel.starts_with("probe_registers") { ROWS * self.depth } else { 0 };
        2 * (self.elements - in_registers) as u32
    }
}

#[test]
fn products_of_warpgroups_are_where_the_isa_says() {
    for product in products!("f16") {
        product.check(|x| f16::from_f32(x).to_bits());
    }
    for product in products!("bf16") {
        product.check(|x| bf16::from_f32(x).to_bits());
    }
}
