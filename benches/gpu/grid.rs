//! What is measured on a GPU: problems large enough to fill one, as the field measures them.

#![cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "needs a GPU"))]

use inducer_attention::DType;

use crate::support::shapes::{Case, Mask, Pass};

/// Queries of all batch entries together, where one sequence is not longer already.
const TOKENS: usize = 16384;

/// Heads times head_dim.
const WIDTH: usize = 2048;

/// The problem with as many heads and batch entries as make 16384 tokens of width 2048.
pub(crate) fn case(dtype: DType, mask: Mask, head_dim: usize, n: usize, rank: usize) -> Case {
    let batch = (TOKENS / n.max(1)).max(1);
    Case { heads: (WIDTH / head_dim).max(1), batch, ..Case::new(dtype, mask, head_dim, n, rank) }
}

/// How much is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Extent {
    /// A look.
    Quick,
    /// What is needed to judge a change.
    #[default]
    Standard,
    /// Everything.
    Full,
}

impl Extent {
    /// Most seconds for one line.
    pub(crate) fn seconds(self) -> f64 {
        match self {
            Self::Quick => 0.5,
            Self::Standard => 2.0,
            Self::Full => 5.0,
        }
    }

    /// The problems.
    pub(crate) fn cases(self, rank: usize) -> Vec<Case> {
        use DType::{BF16, F16, F32};
        use Mask::{Causal, Full, Window};
        let grid = |dtypes: &[DType], masks: &[Mask], head_dims: &[usize], lengths: &[usize]| {
            let mut cases = Vec::new();
            for &dtype in dtypes {
                for &head_dim in head_dims {
                    for &mask in masks {
                        cases.extend(lengths.iter().map(|&n| case(dtype, mask, head_dim, n, rank)));
                    }
                }
            }
            cases
        };
        match self {
            Self::Quick => grid(&[BF16], &[Full, Causal], &[128], &[1024, 4096]),
            Self::Standard => [
                grid(&[BF16], &[Full, Causal], &[128], &[512, 2048, 4096, 16384]),
                grid(&[BF16], &[Full, Causal], &[64], &[2048, 4096]),
                grid(&[BF16], &[Full], &[256], &[4096]),
                grid(&[F16, F32], &[Full], &[128], &[2048]),
            ]
            .concat(),
            Self::Full => grid(
                &[BF16, F16, F32],
                &[Full, Causal, Window],
                &[64, 128, 256],
                &[512, 1024, 2048, 4096, 8192, 16384],
            ),
        }
    }
}

/// Small problems that reach every kernel, with masked, full and ragged tiles.
pub(crate) fn smoke(rank: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        for (head_dim, n) in [(40, 100), (64, 193), (128, 193), (256, 100)] {
            for mask in [Mask::Full, Mask::Causal] {
                cases.push(Case { heads: 2, batch: 2, ..Case::new(dtype, mask, head_dim, n, rank) });
            }
        }
    }
    cases
}

/// Fewest bytes that a pass moves through the card's memory: every tensor once. Adapters and their gradients are f32.
pub(crate) fn bytes(case: &Case, pass: Pass, inducer: bool) -> f64 {
    let rows = (case.batch * case.heads * case.n) as f64;
    let tensor = rows * (case.head_dim * case.dtype.size()) as f64;
    let adapters = (case.heads * 2 * (2 * case.head_dim * case.rank + case.head_dim + case.rank) * 4) as f64;
    let (tensors, adapters) = match pass {
        // Q, K, V; O.
        Pass::Forward => (4.0, adapters),
        // Q, K, V, O, dO; dQ, dK, dV.
        Pass::Backward => (8.0, 2.0 * adapters),
    };
    tensors * tensor + rows * 4.0 + if inducer { adapters } else { 0.0 }
}
