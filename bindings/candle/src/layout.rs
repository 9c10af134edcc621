//! candle's layouts as the engines take them.

use candle_core::{DType, Layout, Result, Shape, Tensor};

use crate::storage::wrap;

/// The CUDA kernels copy rows of Q, K, V, O and prefix in pieces of this many bytes, and rows must begin at multiples of it.
const ROW_ALIGNMENT: usize = 16;

/// Elements of any type that make up a multiple of [`ROW_ALIGNMENT`].
const ROW_ELEMENTS: usize = 8;

/// Shape and strides, in elements, of a tensor of `R` dimensions.
pub(crate) fn parts<const R: usize>(
    argument: &'static str,
    layout: &Layout,
) -> Result<([usize; R], [usize; R])> {
    match (layout.dims().try_into(), layout.stride().try_into()) {
        (Ok(shape), Ok(strides)) => Ok((shape, strides)),
        _ => Err(wrong_rank(argument, layout.shape(), R)),
    }
}

/// The error for a tensor that has not `rank` dimensions.
pub(crate) fn wrong_rank(argument: &'static str, shape: &Shape, rank: usize) -> candle_core::Error {
    wrap(inducer_attention::Error::Shape {
        argument,
        got: shape.dims().to_vec(),
        expected: format!("{rank} dimensions"),
    })
}

/// Whether elements of the last dimension lie next to each other.
fn is_last_contiguous(layout: &Layout) -> bool {
    match (layout.dims().last(), layout.stride().last()) {
        (Some(&size), Some(&stride)) => size <= 1 || stride == 1,
        _ => true,
    }
}

/// Whether every row, along the last dimension, begins at a multiple of [`ROW_ALIGNMENT`] from the beginning of the memory,
/// which CUDA aligns to 256 bytes.
fn are_rows_aligned(layout: &Layout, dtype: DType) -> bool {
    let aligned = |elements: usize| (elements * dtype.size_in_bytes()).is_multiple_of(ROW_ALIGNMENT);
    let rows = layout.dims().len().saturating_sub(1);
    aligned(layout.start_offset())
        && layout.dims().iter().zip(layout.stride()).take(rows).all(|(&n, &stride)| n <= 1 || aligned(stride))
}

/// The tensor itself if its last dimension is contiguous, otherwise a copy.
pub(crate) fn last_contiguous(t: &Tensor) -> Result<Tensor> {
    if is_last_contiguous(t.layout()) { Ok(t.clone()) } else { t.contiguous() }
}

/// As [`last_contiguous`], and a copy as well where the CUDA kernels cannot read the rows in place.
pub(crate) fn readable_rows(t: &Tensor) -> Result<Tensor> {
    let t = last_contiguous(t)?;
    if t.device().is_cuda() && !are_rows_aligned(t.layout(), t.dtype()) {
        t.force_contiguous()
    } else {
        Ok(t)
    }
}

/// Elements of a row of `[attn | U]`, which ends with padding where the CUDA kernels need it.
pub(crate) fn packed_width(head_dim: usize, rank: usize, cuda: bool) -> usize {
    let width = head_dim + rank;
    if cuda && rank > 0 { width.next_multiple_of(ROW_ELEMENTS) } else { width }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn layout(shape: &[usize], strides: &[usize], offset: usize) -> Layout {
        Layout::new(shape.into(), strides.to_vec(), offset)
    }

    #[test]
    fn parts_are_those_of_the_view() -> Result<()> {
        // Q, K and V of one projection, [B, N, 3·H·d] with H = 2, d = 8.
        let qkv = Tensor::zeros((2, 5, 48), DType::F32, &Device::Cpu)?.reshape((2, 5, 6, 8))?;
        let v = qkv.narrow(2, 4, 2)?;
        assert_eq!(parts::<4>("v", v.layout())?, ([2, 5, 2, 8], [240, 48, 8, 1]));
        assert_eq!(v.layout().start_offset(), 32);
        let v = v.transpose(1, 2)?;
        assert_eq!(parts::<4>("v", v.layout())?, ([2, 2, 5, 8], [240, 8, 48, 1]));
        let message = parts::<3>("v", v.layout()).unwrap_err().to_string();
        assert!(message.contains('v') && message.contains("3 dimensions"), "{message}");
        Ok(())
    }

    #[test]
    fn rows_are_aligned_where_kernels_can_copy_them() {
        let aligned = |strides: &[usize], offset, dtype| {
            are_rows_aligned(&layout(&[2, 3, 4, 8], strides, offset), dtype)
        };
        assert!(aligned(&[96, 32, 8, 1], 0, DType::F32));
        assert!(aligned(&[96, 32, 8, 1], 8, DType::BF16));
        // An offset or a stride of 12 elements is 48 bytes in f32, 24 in 16 bits.
        for (strides, offset) in [([96, 32, 8, 1], 12), ([96, 12, 24, 1], 0)] {
            assert!(aligned(&strides, offset, DType::F32));
            assert!(!aligned(&strides, offset, DType::F16));
        }
        assert!(!aligned(&[90, 30, 10, 1], 0, DType::F32));
        // Broadcast, and a stride that leads nowhere.
        assert!(aligned(&[0, 0, 0, 1], 0, DType::BF16));
        assert!(are_rows_aligned(&layout(&[1, 8], &[3, 1], 0), DType::F32));
        assert!(are_rows_aligned(&layout(&[], &[], 0), DType::F32));
    }

    #[test]
    fn packed_rows_are_padded_for_the_kernels_alone() {
        assert_eq!(packed_width(64, 5, false), 69);
        assert_eq!(packed_width(64, 5, true), 72);
        assert_eq!(packed_width(64, 8, true), 72);
        assert_eq!(packed_width(12, 0, true), 12);
    }

    #[test]
    fn only_what_cannot_be_read_is_copied() -> Result<()> {
        let t = Tensor::zeros((2, 3, 5), DType::F32, &Device::Cpu)?;
        assert_eq!(readable_rows(&t)?.id(), t.id());
        let turned = t.transpose(1, 2)?;
        assert_eq!(readable_rows(&turned)?.stride(), [15, 3, 1]);
        // A dimension of one entry has no stride that matters.
        let one = t.narrow(1, 0, 1)?.transpose(1, 2)?;
        assert_eq!(readable_rows(&one)?.stride(), one.stride());
        Ok(())
    }
}
