//! Layout changes against element-by-element loops.

use half::{bf16, f16};

use super::Numbers;
use crate::cpu::simd::Kernels;
use crate::cpu::simd::pack::{Natural, NaturalMut};
use crate::tensor::DType;

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// Reads an element.
fn get(dtype: DType, bytes: &[u8]) -> f32 {
    match dtype {
        DType::F32 => f32::from_ne_bytes(bytes[..4].try_into().unwrap()),
        DType::F16 => f16::from_ne_bytes(bytes[..2].try_into().unwrap()).to_f32(),
        DType::BF16 => bf16::from_ne_bytes(bytes[..2].try_into().unwrap()).to_f32(),
    }
}

/// The bytes of an element, rounded to its type.
fn bytes(dtype: DType, x: f32) -> Vec<u8> {
    match dtype {
        DType::F32 => x.to_ne_bytes().to_vec(),
        DType::F16 => f16::from_f32(x).to_ne_bytes().to_vec(),
        DType::BF16 => bf16::from_f32(x).to_ne_bytes().to_vec(),
    }
}

/// A natural matrix in a buffer that ends with its last element.
struct Matrix {
    dtype: DType,
    /// `f32` for its alignment.
    data: Vec<f32>,
    len: usize,
    stride: usize,
    rows: usize,
    cols: usize,
}

impl Matrix {
    fn new(dtype: DType, rows: usize, cols: usize, gap: usize, numbers: &mut Numbers) -> Self {
        let stride = (cols + gap) * dtype.size();
        let len = if rows == 0 { 0 } else { (rows - 1) * stride + cols * dtype.size() };
        let mut this = Self { dtype, data: vec![0.0; len.div_ceil(4)], len, stride, rows, cols };
        for element in this.bytes_mut().chunks_mut(dtype.size()) {
            element.copy_from_slice(&bytes(dtype, numbers.uniform()));
        }
        this
    }

    fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.data)[..self.len]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.data)[..self.len]
    }

    fn at(&self, i: usize, j: usize) -> f32 {
        get(self.dtype, &self.bytes()[i * self.stride + j * self.dtype.size()..])
    }

    /// Zero outside.
    fn or_zero(&self, i: usize, j: usize) -> f32 {
        if i < self.rows && j < self.cols { self.at(i, j) } else { 0.0 }
    }

    fn rows(&self) -> Natural {
        let data = self.data.as_ptr().cast();
        Natural { dtype: self.dtype, data, stride: self.stride as isize, rows: self.rows, cols: self.cols }
    }

    fn rows_mut(&mut self) -> NaturalMut {
        let data = self.data.as_mut_ptr().cast();
        NaturalMut { dtype: self.dtype, data, stride: self.stride as isize, rows: self.rows, cols: self.cols }
    }
}

/// Runs `check` on every table, type and a set of shapes around the blocks' edges.
fn for_all(mut check: impl FnMut(&Kernels, Matrix, &mut Numbers)) {
    for kernels in Kernels::all_available() {
        let n = kernels.lanes;
        let mut numbers = Numbers::new(3);
        for dtype in DTYPES {
            for rows in [0, 1, 2, n - 1, n, n + 1, 2 * n, 3 * n + 5] {
                for cols in [1, 2, 3, n - 1, n, n + 1, 2 * n, 4 * n + 3] {
                    for gap in [0, 5] {
                        let natural = Matrix::new(dtype, rows, cols, gap, &mut numbers);
                        check(kernels, natural, &mut numbers);
                    }
                }
            }
        }
    }
}

fn padded(kernels: &Kernels, len: usize) -> usize {
    len.next_multiple_of(kernels.lanes) + kernels.lanes
}

fn pair(low: f32, high: f32) -> u32 {
    u32::from(bf16::from_f32(low).to_bits()) | u32::from(bf16::from_f32(high).to_bits()) << 16
}

#[test]
fn transposed_and_back() {
    for_all(|kernels, mut natural, numbers| {
        let (rows, cols) = (natural.rows, natural.cols);
        let ld = padded(kernels, rows);
        let mut packed = vec![f32::NAN; cols * ld];
        // SAFETY: buffers of the sizes named; the table is of an available set.
        unsafe { (kernels.pack_transposed)(&natural.rows(), packed.as_mut_ptr(), ld, 0.75) };
        for j in 0..cols {
            for i in 0..ld {
                let expected = 0.75 * natural.or_zero(i, j);
                assert_eq!(packed[j * ld + i], expected, "{:?} ({i}, {j})", kernels.set);
            }
        }

        let mut pairs = vec![f32::NAN; cols.div_ceil(2) * ld];
        // SAFETY: as above.
        unsafe { (kernels.pack_transposed_pairs_bf16)(&natural.rows(), pairs.as_mut_ptr(), ld, 0.75) };
        for t in 0..cols.div_ceil(2) {
            for i in 0..ld {
                let expected = pair(0.75 * natural.or_zero(i, 2 * t), 0.75 * natural.or_zero(i, 2 * t + 1));
                assert_eq!(pairs[t * ld + i].to_bits(), expected, "{:?} ({i}, {t})", kernels.set);
            }
        }

        let values = numbers.many(cols * ld);
        for add in [false, true] {
            let before = natural.bytes().to_vec();
            let kernel = if add { kernels.unpack_transposed_add } else { kernels.unpack_transposed };
            // SAFETY: as above.
            unsafe { kernel(values.as_ptr(), ld, &natural.rows_mut(), 3.0) };
            let expected = |i: usize, j: usize, old: &[u8]| {
                let old = if add { get(natural.dtype, old) } else { 0.0 };
                bytes(natural.dtype, 3.0 * values[j * ld + i] + old)
            };
            assert_rows(kernels, &natural, &before, expected);
        }
    });
}

/// Asserts that the elements of `natural` are as `expected` from (row, column, old bytes) and the gaps as `before`.
fn assert_rows(
    kernels: &Kernels,
    natural: &Matrix,
    before: &[u8],
    expected: impl Fn(usize, usize, &[u8]) -> Vec<u8>,
) {
    let mut all = before.to_vec();
    let size = natural.dtype.size();
    for i in 0..natural.rows {
        for j in 0..natural.cols {
            let at = i * natural.stride + j * size;
            all[at..at + size].copy_from_slice(&expected(i, j, &before[at..]));
        }
    }
    assert_eq!(natural.bytes(), all, "{:?} {:?}", kernels.set, natural.dtype);
}

#[test]
fn rows_and_back() {
    for_all(|kernels, mut natural, numbers| {
        let (rows, cols) = (natural.rows, natural.cols);
        let ld = padded(kernels, cols);
        let mut wide = vec![f32::NAN; rows * ld];
        // SAFETY: buffers of the sizes named; the table is of an available set.
        unsafe { (kernels.widen_rows)(&natural.rows(), wide.as_mut_ptr(), ld, 0.75) };
        for i in 0..rows {
            for j in 0..ld {
                assert_eq!(wide[i * ld + j], 0.75 * natural.or_zero(i, j), "{:?} ({i}, {j})", kernels.set);
            }
        }

        let mut pairs = vec![f32::NAN; rows.div_ceil(2) * ld];
        // SAFETY: as above.
        unsafe { (kernels.interleave_rows_bf16)(&natural.rows(), pairs.as_mut_ptr(), ld) };
        for t in 0..rows.div_ceil(2) {
            for j in 0..ld {
                let expected = pair(natural.or_zero(2 * t, j), natural.or_zero(2 * t + 1, j));
                assert_eq!(pairs[t * ld + j].to_bits(), expected, "{:?} ({t}, {j})", kernels.set);
            }
        }

        for ld in [ld, cols] {
            let values = numbers.many(rows * ld);
            let before = natural.bytes().to_vec();
            // SAFETY: as above.
            unsafe { (kernels.narrow_rows)(values.as_ptr(), ld, &natural.rows_mut(), 3.0) };
            assert_rows(kernels, &natural, &before, |i, j, _| bytes(natural.dtype, 3.0 * values[i * ld + j]));
        }
    });
}

#[test]
fn narrowing_rounds_to_nearest_even() {
    // Every 16-bit value, the midpoints above them and their neighbours; infinities, NaNs and subnormals among them.
    // Miri takes about a thousand times as long.
    let x: Vec<f32> = (0..=u16::MAX)
        .step_by(if cfg!(miri) { 509 } else { 1 })
        .flat_map(|bits| {
            let bf16 = u32::from(bits) << 16;
            let half = f16::from_bits(bits).to_f32();
            let next = f16::from_bits(bits.wrapping_add(1)).to_f32();
            let middle = f64::midpoint(f64::from(half), f64::from(next)) as f32;
            let halves = [half, middle, middle.next_up(), middle.next_down()];
            [bf16, bf16 | 0x7FFF, bf16 | 0x8000, bf16 | 0x8001].map(f32::from_bits).into_iter().chain(halves)
        })
        .collect();
    for kernels in Kernels::all_available() {
        for dtype in [DType::F16, DType::BF16] {
            let mut y = vec![0_u16; x.len()];
            let dst = NaturalMut { dtype, data: y.as_mut_ptr().cast(), stride: 0, rows: 1, cols: x.len() };
            // SAFETY: one row of that length; the table is of an available set.
            unsafe { (kernels.narrow_rows)(x.as_ptr(), x.len(), &dst, 1.0) };
            for (&x, y) in x.iter().zip(y) {
                let y = y.to_ne_bytes();
                if x.is_nan() {
                    assert!(get(dtype, &y).is_nan(), "{:?} {dtype}: NaN {:#x}", kernels.set, x.to_bits());
                } else {
                    assert_eq!(y.to_vec(), bytes(dtype, x), "{:?} {dtype}: {x:e}", kernels.set);
                }
            }
        }
    }
}
