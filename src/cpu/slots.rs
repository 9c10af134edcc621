//! The inducer's weights as rows that join the key and value pipeline.
//!
//! The key slot `[A_kᵀ (r_k); B_k (r_k); b_k (1); A_vᵀ (r_v)]` takes part in the products with Q like keys do, the value
//! slot `[B_v (r_v); b_v (1)]` in those that make O like values do.

use rayon::prelude::*;

use super::kernels::inducer::{Score, Value};
use super::moves::{self, Rows};
use super::simd::Kernels;
use super::workspace::{Carver, Floats};
use crate::attention::Problem;
use crate::inducer::{Activation, Adapter, DownProjection, VirtualKey, VirtualValue};
use crate::tensor::TensorRef;

/// Sizes of the slots and what kind of inducer they belong to.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlotShape {
    pub(super) score: Score,
    pub(super) value: Value,
    pub(super) key_rank: usize,
    pub(super) value_rank: usize,
    pub(super) key_tanh: bool,
    pub(super) value_tanh: bool,
    pub(super) head_dim: usize,
}

impl SlotShape {
    pub(super) fn new(problem: &Problem<'_>) -> Self {
        let tanh = |a: Activation| a == Activation::Tanh;
        let mut shape = Self {
            score: Score::None,
            value: Value::Zero,
            key_rank: problem.key_rank(),
            value_rank: problem.value_rank(),
            key_tanh: false,
            value_tanh: false,
            head_dim: problem.head_dim(),
        };
        let Some(inducer) = problem.attention().inducer else { return shape };
        shape.score = match inducer.key {
            VirtualKey::Query | VirtualKey::Residual(_) => Score::Key,
            VirtualKey::LogitPerHead(_) | VirtualKey::LogitPerToken(_) => Score::Given,
        };
        if let VirtualKey::Residual(a) = inducer.key {
            shape.key_tanh = tanh(a.activation);
        }
        (shape.value, shape.value_tanh) = match inducer.value {
            VirtualValue::Zero => (Value::Zero, false),
            VirtualValue::Residual(a) => (Value::Residual, tanh(a.activation)),
            VirtualValue::Direct(a) => (Value::Direct, tanh(a.activation)),
            VirtualValue::Extended(a) => (Value::Extended, tanh(a.activation)),
        };
        shape
    }

    /// Rows of the key slot that belong to the virtual key.
    pub(super) fn key_rows(&self) -> usize {
        if self.key_rank > 0 { 2 * self.key_rank + 1 } else { 0 }
    }

    /// Rows of the key slot.
    pub(super) fn key_slot_rows(&self) -> usize {
        self.key_rows() + self.value_rank
    }

    /// Rows of the value slot; the extended value has none here.
    pub(super) fn value_slot_rows(&self) -> usize {
        match self.value {
            Value::Residual | Value::Direct => self.value_rank + 1,
            Value::Zero | Value::Extended => 0,
        }
    }

    /// Whether there is a virtual token at all.
    pub(super) fn is_some(&self) -> bool {
        self.score != Score::None
    }
}

/// The packed weights of all heads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slots {
    pub(super) shape: SlotShape,
    key: Floats,
    value: Floats,
    key_bias: Floats,
    value_bias: Floats,
}

/// The packed weights of one head.
#[derive(Clone, Copy)]
pub(super) struct HeadSlots {
    /// `[key_slot_rows, d]`.
    pub(super) key: *mut f32,
    /// `[value_slot_rows, d]`.
    pub(super) value: *mut f32,
    /// `[r_k]`.
    pub(super) key_bias: *mut f32,
    /// `[r_v]`.
    pub(super) value_bias: *mut f32,
}

impl Slots {
    pub(super) fn carve(problem: &Problem<'_>, carver: &mut Carver) -> Self {
        let shape = SlotShape::new(problem);
        let (heads, d) = (problem.query_heads(), shape.head_dim);
        Self {
            shape,
            key: carver.floats(heads * shape.key_slot_rows() * d),
            value: carver.floats(heads * shape.value_slot_rows() * d),
            key_bias: carver.floats(heads * shape.key_rank),
            value_bias: carver.floats(heads * shape.value_rank),
        }
    }

    pub(super) fn head(&self, head: usize) -> HeadSlots {
        let (s, d) = (&self.shape, self.shape.head_dim);
        HeadSlots {
            key: self.key.at(head * s.key_slot_rows() * d),
            value: self.value.at(head * s.value_slot_rows() * d),
            key_bias: self.key_bias.at(head * s.key_rank),
            value_bias: self.value_bias.at(head * s.value_rank),
        }
    }

    /// Packs all heads.
    ///
    /// # Safety
    /// The slots were carved for this problem, and nothing else uses them meanwhile.
    pub(super) unsafe fn pack(&self, k: &Kernels, problem: &Problem<'_>) {
        let Some(inducer) = problem.attention().inducer else { return };
        let (s, d) = (&self.shape, self.shape.head_dim);
        (0..problem.query_heads()).into_par_iter().for_each(|head| {
            let to = self.head(head);
            // SAFETY: a head's slots have the rows that are written here: `carve` counted them with the same shape.
            unsafe {
                if let VirtualKey::Residual(Adapter { down_weight, down_bias, up_weight, up_bias, .. }) =
                    inducer.key
                {
                    transpose(k, down_weight, head, to.key);
                    copy(k, up_weight, head, to.key.add(s.key_rank * d));
                    vector(up_bias, head, to.key.add(2 * s.key_rank * d));
                    vector(down_bias, head, to.key_bias);
                }
                let down_rows = to.key.add(s.key_rows() * d);
                match inducer.value {
                    VirtualValue::Zero => {}
                    VirtualValue::Residual(a) | VirtualValue::Direct(a) => {
                        transpose(k, a.down_weight, head, down_rows);
                        vector(a.down_bias, head, to.value_bias);
                        copy(k, a.up_weight, head, to.value);
                        vector(a.up_bias, head, to.value.add(s.value_rank * d));
                    }
                    VirtualValue::Extended(DownProjection { down_weight, down_bias, .. }) => {
                        transpose(k, down_weight, head, down_rows);
                        vector(down_bias, head, to.value_bias);
                    }
                }
            }
        });
    }
}

/// The rows of one head.
fn rows_of(t: &TensorRef<'_, 3>, head: usize) -> Rows {
    Rows { ptr: t.at([head, 0, 0]), stride: t.stride_bytes(1), dtype: t.dtype() }
}

/// `[r, c]` of one head as `[c, r]`.
unsafe fn transpose(k: &Kernels, t: TensorRef<'_, 3>, head: usize, to: *mut f32) {
    let [_, rows, cols] = t.shape();
    // SAFETY: `to` holds rows·cols floats; rows of adapters are contiguous.
    unsafe {
        if rows.is_multiple_of(k.lanes) {
            moves::load_transposed(k, rows_of(&t, head), rows, cols, to, rows);
        } else {
            for (i, j) in (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j))) {
                *to.add(j * rows + i) = t.get([head, i, j]);
            }
        }
    }
}

/// `[r, c]` of one head.
unsafe fn copy(k: &Kernels, t: TensorRef<'_, 3>, head: usize, to: *mut f32) {
    let [_, rows, cols] = t.shape();
    // SAFETY: `to` holds rows·cols floats; rows of adapters are contiguous.
    unsafe {
        if cols.is_multiple_of(k.lanes) {
            moves::widen(k, rows_of(&t, head), rows, cols, to, cols);
        } else {
            for (i, j) in (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j))) {
                *to.add(i * cols + j) = t.get([head, i, j]);
            }
        }
    }
}

/// `[n]` of one head.
unsafe fn vector(t: TensorRef<'_, 2>, head: usize, to: *mut f32) {
    for i in 0..t.shape()[1] {
        // SAFETY: `to` holds that many floats.
        unsafe { *to.add(i) = t.get([head, i]) };
    }
}
