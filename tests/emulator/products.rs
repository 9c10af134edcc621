//! Products of warpgroups against plain sums: tiles are laid out here by what the PTX ISA says of 128-byte swizzle, element by
//! element, and fragments by its figures.

use half::{bf16, f16};

use crate::run::transform;

const ROWS: usize = 64;
/// What is summed over: two atoms along K, the second one not full.
const DEPTH: usize = 80;

/// How a tile lies in shared memory: where it begins, and bytes from one atom to the next in both directions.
#[derive(Clone, Copy)]
struct Layout {
    begin: usize,
    transposed: bool,
    leading: usize,
    stride: usize,
}

impl Layout {
    /// Room for everything that is not the tile, so that a wrong distance does not hit by chance.
    fn new(begin: usize, transposed: bool, extent: usize) -> Self {
        if transposed {
            // Blocks of 64 columns one after the other, each with all of K; or the other way about.
            if extent.is_multiple_of(128) {
                Self { begin, transposed, leading: (DEPTH / 8 + 1) * 1024, stride: 1024 }
            } else {
                Self { begin, transposed, leading: 1024, stride: extent.div_ceil(64) * 1024 + 2048 }
            }
        } else {
            Self { begin, transposed, leading: 16, stride: DEPTH.div_ceil(64) * 1024 + 1024 }
        }
    }

    /// Byte of element (i, k): `i` counts rows of A or columns of B.
    fn byte(self, i: usize, k: usize) -> usize {
        let (row, column) = if self.transposed { (k, i) } else { (i, k) };
        let to_next_64 = if self.transposed { self.leading } else { 1024 };
        let atom = self.begin + row / 8 * self.stride + column / 64 * to_next_64;
        atom + row % 8 * 128 + ((column % 64 / 8) ^ (row % 8)) * 16 + column % 8 * 2
    }

    /// What the descriptor of product `step` says: start, leading, stride.
    fn place(self, step: usize) -> [u32; 3] {
        let start = if self.transposed { step * 2 * self.stride } else { step / 4 * 1024 + step % 4 * 32 }
            + self.begin;
        [start as u32, self.leading as u32, self.stride as u32]
    }
}

/// Row and column of register word `i` of c, in a warpgroup.
fn c_place(thread: usize, i: usize) -> (usize, usize) {
    let (warp, lane) = (thread / 32, thread % 32);
    (warp * 16 + lane / 4 + (i / 2 % 2) * 8, i / 4 * 8 + lane % 4 * 2 + i % 2)
}

/// Row and column of the low half of register word `i` of A.
fn a_place(thread: usize, i: usize) -> (usize, usize) {
    let (warp, lane) = (thread / 32, thread % 32);
    (warp * 16 + lane / 4 + i % 2 * 8, lane % 4 * 2 + i / 2 * 8)
}

/// Bits of the kernels' argument.
const ACCUMULATE: i32 = 1;
const TRANSPOSE_A: i32 = 2;
const TRANSPOSE_B: i32 = 4;
const IN_REGISTERS: i32 = 8;

#[derive(Clone, Copy, Debug)]
struct Form {
    columns: usize,
    is_f16: bool,
    argument: i32,
}

impl Form {
    fn all(columns: usize) -> Vec<Self> {
        let arguments =
            (0..16).filter(|argument| argument & (IN_REGISTERS | TRANSPOSE_A) != IN_REGISTERS | TRANSPOSE_A);
        arguments
            .flat_map(|argument| [false, true].map(|is_f16| Self { columns, is_f16, argument }))
            .collect()
    }

    fn has(self, bit: i32) -> bool {
        self.argument & bit != 0
    }

    fn bits(self, x: f32) -> u16 {
        if self.is_f16 { f16::from_f32(x).to_bits() } else { bf16::from_f32(x).to_bits() }
    }

    fn run(self, a: &[[f32; DEPTH]], b: &[[f32; DEPTH]], c: &[Vec<f32>]) -> Vec<Vec<f32>> {
        let a_layout = Layout::new(0, self.has(TRANSPOSE_A), ROWS);
        let a_bytes =
            (0..ROWS).map(|i| (0..DEPTH).map(|k| a_layout.byte(i, k)).max().unwrap()).max().unwrap();
        let b_begin = (a_bytes + 2).next_multiple_of(1024) + 1024;
        let b_layout = Layout::new(b_begin, self.has(TRANSPOSE_B), self.columns);
        let mut image = vec![0_u16; 100 * 1024];
        // Numbers that would spoil every sum that they come into.
        image.fill(self.bits(f32::NAN));
        let mut end = 0;
        for (layout, matrix) in [(a_layout, a), (b_layout, b)] {
            for (i, row) in matrix.iter().enumerate() {
                for (k, &x) in row.iter().enumerate() {
                    let at = layout.byte(i, k);
                    image[at / 2] = self.bits(x);
                    end = end.max(at + 2);
                }
            }
        }
        image.truncate(end.next_multiple_of(1024) / 2);
        let (steps, blocks) = (DEPTH / 16, self.columns / 8);
        let mut words = vec![steps as u32, image.len() as u32 / 2];
        for step in 0..steps {
            words.extend(a_layout.place(step));
            words.extend(b_layout.place(step));
        }
        for thread in 0..128 {
            for (step, i) in (0..steps).flat_map(|step| (0..4).map(move |i| (step, i))) {
                let (row, column) = a_place(thread, i);
                let of = |k: usize| u32::from(self.bits(a[row][k]));
                words.push(of(step * 16 + column) | of(step * 16 + column + 1) << 16);
            }
        }
        for thread in 0..128 {
            words.extend(
                (0..blocks * 4).map(|i| c_place(thread, i)).map(|(row, column)| c[row][column].to_bits()),
            );
        }
        words.extend(image.chunks(2).map(|pair| u32::from(pair[0]) | u32::from(pair[1]) << 16));
        let name = format!("selftest_product_{}_{}", self.columns, if self.is_f16 { "f16" } else { "bf16" });
        let result = transform(&name, &words, 128 * blocks * 4, self.argument);
        let mut sums = vec![vec![f32::NAN; self.columns]; ROWS];
        for (at, &word) in result.iter().enumerate() {
            let (row, column) = c_place(at / (blocks * 4), at % (blocks * 4));
            sums[row][column] = f32::from_bits(word);
        }
        sums
    }
}

/// Small whole numbers without a pattern: sums are exact, and no two elements can be swapped unseen.
fn draw(state: &mut u32) -> f32 {
    *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    ((*state >> 24) % 17) as f32 - 8.0
}

fn multiplies(columns: usize) {
    let mut state = columns as u32;
    let mut matrix = |rows: usize| -> Vec<[f32; DEPTH]> {
        (0..rows).map(|_| [(); DEPTH].map(|()| draw(&mut state))).collect()
    };
    let (a, b) = (matrix(ROWS), matrix(columns));
    let mut row = || (0..columns).map(|_| draw(&mut state)).collect();
    let c: Vec<Vec<f32>> = (0..ROWS).map(|_| row()).collect();
    for form in Form::all(columns) {
        let sums = form.run(&a, &b, &c);
        for (i, j) in (0..ROWS).flat_map(|i| (0..columns).map(move |j| (i, j))) {
            let product: f32 = (0..DEPTH).map(|k| a[i][k] * b[j][k]).sum();
            let expected = if form.has(ACCUMULATE) { c[i][j] + product } else { product };
            assert_eq!(sums[i][j], expected, "{form:?}: row {i}, column {j}");
        }
    }
}

#[test]
fn products_of_16_columns() {
    multiplies(16);
}

#[test]
fn products_of_32_columns() {
    multiplies(32);
}

#[test]
fn products_of_64_columns() {
    multiplies(64);
}

#[test]
fn products_of_128_columns() {
    multiplies(128);
}

#[test]
fn products_of_256_columns() {
    multiplies(256);
}
