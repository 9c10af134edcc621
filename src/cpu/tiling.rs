//! How large tiles are, and how far apart rows of scratch memory lie.
//!
//! First-level caches have 64 sets of lines. Rows whose distance in lines is a power of two meet in few of them, and a panel
//! of such rows (a vector or two of each) evicts itself long before the cache is full: of 256 bytes each, 128 rows fill
//! their sets. With an odd distance a panel can fill the whole cache. So rows of queries are an odd number of lines long
//! where that was found to help, and copies are laid out in [`spread`] rows.

use super::simd::Kernels;

/// Floats in a cache line.
const LINE: usize = 16;

/// Queries and keys of a tile. Queries are whole vectors of every instruction set.
#[derive(Clone, Copy)]
pub(super) struct Tiling {
    pub(super) queries: usize,
    pub(super) keys: usize,
}

impl Tiling {
    /// Of the forward: Q, O and a tile of scores stay in the second-level cache beside K and V.
    pub(super) fn forward(kernels: &Kernels) -> Self {
        match kernels.lanes {
            LINE => Self { queries: 64, keys: 256 },
            _ => Self { queries: 112, keys: 128 },
        }
    }

    /// Of the backward.
    pub(super) fn backward(kernels: &Kernels) -> Self {
        match kernels.lanes {
            LINE => Self { queries: 128, keys: 128 },
            _ => Self { queries: 112, keys: 96 },
        }
    }
}

/// Whether rows this many bytes apart meet in two sets or one: 16 of them fill those, and what goes down their columns
/// finds each line evicted again. So lie the heads of a `[B, N, H, d]` tensor whose width is a power of two.
pub(super) fn crowded(stride: usize) -> bool {
    stride.is_multiple_of(2048)
}

/// The distance of rows of at least `floats` floats: an odd number of cache lines.
pub(super) fn spread(floats: usize) -> usize {
    (floats.div_ceil(LINE) | 1) * LINE
}
