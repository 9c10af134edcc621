//! What a card can do at most: its units, by its maker's figures, at their highest clock; and which of the two ceilings bounds a pass.

use inducer_attention::DType;

/// What the driver says of a card.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Card {
    /// Its name.
    pub(crate) name: String,
    /// Major and minor compute capability.
    pub(crate) capability: (i32, i32),
    /// Multiprocessors.
    pub(crate) multiprocessors: u32,
    /// Highest clock of the multiprocessors, in Hz.
    pub(crate) clock: f64,
    /// Bytes per second of its memory.
    pub(crate) bandwidth: f64,
    /// Bytes of its second-level cache.
    pub(crate) l2_bytes: usize,
    /// Bytes of memory.
    pub(crate) memory_bytes: usize,
    /// Threads that a multiprocessor holds.
    pub(crate) threads_per_multiprocessor: u32,
}

impl Card {
    /// Operations per second of the units that compute a type: dense products of 16-bit matrices summed in f32, or multiply-adds
    /// of f32. None for an architecture that this table does not know.
    pub(crate) fn peak(&self, dtype: DType) -> Option<f64> {
        // Consumer cards run sums in f32 at half the rate of the professional ones.
        let half = if self.name.contains("GeForce") || self.name.contains("TITAN") { 2.0 } else { 1.0 };
        // Per multiprocessor and clock, from the architectures' white papers.
        let per_clock = match (dtype, self.capability) {
            (DType::F32, (8, 0)) => 128.0,
            (DType::F32, (8 | 9 | 10 | 12, _)) => 256.0,
            (DType::F16 | DType::BF16, (8, 0)) => 2048.0,
            (DType::F16 | DType::BF16, (8 | 12, _)) => 1024.0 / half,
            (DType::F16 | DType::BF16, (9, _)) => 4096.0,
            (DType::F16 | DType::BF16, (10, _)) => 8192.0,
            _ => return None,
        };
        Some(per_clock * f64::from(self.multiprocessors) * self.clock)
    }
}

/// Which ceiling bounds a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    /// Tensor cores.
    Tensor,
    /// Multiply-adds of f32.
    Fma,
    /// Memory.
    Bandwidth,
}

impl Bound {
    /// Its name in results.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tensor => "tensor",
            Self::Fma => "fma",
            Self::Bandwidth => "memory",
        }
    }
}

/// Seconds that a pass takes at least, and why.
pub(crate) fn floor(card: &Card, dtype: DType, flop: f64, bytes: f64) -> Option<(f64, Bound)> {
    let (compute, memory) = (flop / card.peak(dtype)?, bytes / card.bandwidth);
    Some(if memory > compute {
        (memory, Bound::Bandwidth)
    } else {
        (compute, if dtype == DType::F32 { Bound::Fma } else { Bound::Tensor })
    })
}
