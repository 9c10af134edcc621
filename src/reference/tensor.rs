//! A dense row-major array of f64.

use std::ops::{Index, IndexMut};

/// A dense row-major array of f64 with any number of dimensions.
///
/// ```
/// use inducer_attention::reference::Tensor;
/// let mut t = Tensor::zeros(&[2, 3]);
/// t[[1, 2]] = 5.0;
/// assert_eq!(t.row([1]), &[0.0, 0.0, 5.0]);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// The extent of each dimension.
    pub shape: Vec<usize>,
    /// The elements, last dimension fastest; as many as the product of the extents.
    pub data: Vec<f64>,
}

impl Tensor {
    /// A tensor from its elements.
    ///
    /// # Panics
    ///
    /// If the number of elements is not the product of the extents.
    pub fn new(shape: &[usize], data: Vec<f64>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "elements of a tensor of shape {shape:?}");
        Self { shape: shape.to_vec(), data }
    }

    /// A tensor of one value.
    pub fn full(shape: &[usize], value: f64) -> Self {
        Self { shape: shape.to_vec(), data: vec![value; shape.iter().product()] }
    }

    /// A tensor of zeros.
    pub fn zeros(shape: &[usize]) -> Self {
        Self::full(shape, 0.0)
    }

    /// A tensor whose elements come from a function of their flat index.
    pub fn from_fn(shape: &[usize], element: impl FnMut(usize) -> f64) -> Self {
        Self { shape: shape.to_vec(), data: (0..shape.iter().product()).map(element).collect() }
    }

    /// The last dimension at an index of all the others.
    ///
    /// # Panics
    ///
    /// If the index does not have one coordinate fewer than the tensor dimensions, or is out of bounds.
    pub fn row<const D: usize>(&self, index: [usize; D]) -> &[f64] {
        let (start, len) = self.row_range(index);
        &self.data[start..start + len]
    }

    /// The last dimension at an index of all the others, to write.
    ///
    /// # Panics
    ///
    /// As [`row`](Self::row).
    pub fn row_mut<const D: usize>(&mut self, index: [usize; D]) -> &mut [f64] {
        let (start, len) = self.row_range(index);
        &mut self.data[start..start + len]
    }

    /// ‖self − expected‖ / ‖expected‖ over all elements, in the Euclidean norm; the absolute norm where `expected` is 0.
    ///
    /// Equal infinities (the lse of an empty row) count as no difference; a NaN or any other disagreement about what is
    /// finite gives infinity.
    ///
    /// # Panics
    ///
    /// If the shapes differ.
    pub fn relative_error(&self, expected: &Self) -> f64 {
        assert_eq!(self.shape, expected.shape, "shapes of the compared tensors");
        let (mut difference, mut norm) = (0.0, 0.0);
        for (&a, &e) in self.data.iter().zip(&expected.data) {
            if a.is_infinite() && e.is_infinite() && a.is_sign_positive() == e.is_sign_positive() {
                continue;
            }
            if !(a.is_finite() && e.is_finite()) {
                return f64::INFINITY;
            }
            difference += (a - e) * (a - e);
            norm += e * e;
        }
        if norm == 0.0 { difference.sqrt() } else { (difference / norm).sqrt() }
    }

    fn row_range<const D: usize>(&self, index: [usize; D]) -> (usize, usize) {
        assert_eq!(D + 1, self.shape.len(), "coordinates of a row of a tensor of shape {:?}", self.shape);
        let len = self.shape[D];
        (self.offset(&index) * len, len)
    }

    /// The position of `index` among the leading dimensions.
    fn offset(&self, index: &[usize]) -> usize {
        index.iter().zip(&self.shape).fold(0, |offset, (&i, &extent)| {
            assert!(i < extent, "index {index:?} of a tensor of shape {:?}", self.shape);
            offset * extent + i
        })
    }
}

impl<const D: usize> Index<[usize; D]> for Tensor {
    type Output = f64;

    fn index(&self, index: [usize; D]) -> &f64 {
        assert_eq!(D, self.shape.len(), "coordinates of a tensor of shape {:?}", self.shape);
        &self.data[self.offset(&index)]
    }
}

impl<const D: usize> IndexMut<[usize; D]> for Tensor {
    fn index_mut(&mut self, index: [usize; D]) -> &mut f64 {
        assert_eq!(D, self.shape.len(), "coordinates of a tensor of shape {:?}", self.shape);
        let offset = self.offset(&index);
        &mut self.data[offset]
    }
}

/// `Σ_c a_c b_c`.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `y += factor · x`.
pub(super) fn add_scaled(y: &mut [f64], factor: f64, x: &[f64]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += factor * x;
    }
}

#[cfg(test)]
// What is compared here is exactly representable.
#[allow(clippy::float_cmp)]
mod tests {
    use super::*;

    #[test]
    fn relative_error_sees_what_is_not_finite() {
        let t = |data: &[f64]| Tensor::new(&[data.len()], data.to_vec());
        assert_eq!(t(&[3.0, 4.0]).relative_error(&t(&[3.0, 4.0])), 0.0);
        assert!((t(&[3.0, 4.5]).relative_error(&t(&[3.0, 4.0])) - 0.1).abs() < 1e-15);
        assert_eq!(t(&[0.5]).relative_error(&t(&[0.0])), 0.5);
        assert_eq!(t(&[f64::NEG_INFINITY, 1.0]).relative_error(&t(&[f64::NEG_INFINITY, 1.0])), 0.0);
        for wrong in [f64::NAN, f64::INFINITY, 0.0] {
            assert_eq!(t(&[wrong, 1.0]).relative_error(&t(&[f64::NEG_INFINITY, 1.0])), f64::INFINITY);
        }
    }
}
