//! Checked access to the micro-kernels, for `benches/microkernels.rs`. Not part of the public interface.

use super::InstructionSet;
use super::simd::gemm::{Ahead, Gemm};
use super::simd::{Kernels, PEAK_CHAINS};

/// The kernels of an instruction set that this processor has.
#[derive(Clone, Copy)]
pub struct MicroKernels(&'static Kernels);

/// One operand of a product: elements, and the distances between consecutive rows and columns in elements.
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    /// The elements; for products of bfloat16, the bits of a pair.
    pub data: &'a [f32],
    /// Distance between rows.
    pub row: usize,
    /// Distance between columns.
    pub column: usize,
}

impl MicroKernels {
    /// The kernels of every instruction set of this processor, best first.
    pub fn all() -> Vec<Self> {
        Kernels::all_available().into_iter().map(Self).collect()
    }

    /// Which instruction set.
    pub fn set(self) -> InstructionSet {
        self.0.set
    }

    /// `f32` lanes of a vector.
    pub fn lanes(self) -> usize {
        self.0.lanes
    }

    /// Whether bfloat16 products are done in hardware.
    pub fn bf16_dot(self) -> bool {
        self.0.bf16_dot
    }

    /// Runs `steps` rounds of independent multiply-adds on registers (or of bfloat16 dot products) and returns how many
    /// floating-point operations that was.
    pub fn peak(self, bf16: bool, steps: usize) -> f64 {
        let mut out = 0.0;
        let kernel = if bf16 { self.0.dot_peak } else { self.0.fma_peak };
        // SAFETY: `out` is writable; the table is of an available instruction set.
        unsafe { kernel(steps, &raw mut out) };
        std::hint::black_box(out);
        let per_lane = if bf16 { 4.0 } else { 2.0 };
        steps as f64 * PEAK_CHAINS as f64 * self.0.lanes as f64 * per_lane
    }

    /// C (+)= A·B for `m`×`k` A, `k`×`n` B with adjacent columns, `m`×`n` C with rows `c_row` apart.
    ///
    /// # Panics
    ///
    /// If an operand is too small or `n` is not a multiple of the lanes.
    #[allow(clippy::too_many_arguments, reason = "the sizes and operands of a matrix product")]
    pub fn gemm(
        self,
        bf16: bool,
        (m, n, k): (usize, usize, usize),
        a: Operand<'_>,
        b: Operand<'_>,
        c: &mut [f32],
        c_row: usize,
        accumulate: bool,
    ) {
        assert!(n.is_multiple_of(self.0.lanes) && b.column == 1, "whole vectors");
        if m == 0 || n == 0 {
            return;
        }
        assert!(k == 0 || (m - 1) * a.row + (k - 1) * a.column < a.data.len(), "A too small");
        assert!(k == 0 || (k - 1) * b.row + n <= b.data.len(), "B too small");
        assert!((m - 1) * c_row + n <= c.len() && c_row >= n, "C too small");
        let product = Gemm {
            m,
            n,
            k,
            a: a.data.as_ptr().cast(),
            a_row: 4 * a.row as isize,
            a_col: 4 * a.column as isize,
            b: b.data.as_ptr(),
            b_row: b.row,
            c: c.as_mut_ptr(),
            c_row,
            accumulate,
            ahead: Ahead::NONE,
        };
        let kernel = if bf16 { self.0.gemm_bf16 } else { self.0.gemm };
        // SAFETY: the operands hold what the sizes name, as just checked, and C is borrowed exclusively; the table is of
        // an available instruction set.
        unsafe { kernel(&product) };
    }

    /// y = f(x), element by element.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    pub fn map(self, function: Function, x: &[f32], y: &mut [f32]) {
        assert_eq!(x.len(), y.len(), "as many results as arguments");
        let kernel = match function {
            Function::Exp2 => self.0.exp2,
            Function::Exp2Bf16 => self.0.exp2_bf16,
            Function::Exp => self.0.exp,
            Function::Ln => self.0.ln,
            Function::Tanh => self.0.tanh,
            Function::Sigmoid => self.0.sigmoid,
        };
        // SAFETY: both slices have the length; the table is of an available instruction set.
        unsafe { kernel(x.as_ptr(), y.as_mut_ptr(), x.len()) };
    }
}

/// An elementary function.
#[derive(Clone, Copy, Debug)]
pub enum Function {
    /// 2^x.
    Exp2,
    /// 2^x for results that are rounded to 16 bits.
    Exp2Bf16,
    /// e^x.
    Exp,
    /// ln x.
    Ln,
    /// tanh x.
    Tanh,
    /// 1/(1 + e^−x).
    Sigmoid,
}

impl Function {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Exp2, Self::Exp2Bf16, Self::Exp, Self::Ln, Self::Tanh, Self::Sigmoid];
}
