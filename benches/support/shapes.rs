//! What is measured: the grid of problems, and how much work each of them is.

use std::fmt;

use inducer_attention::{AttentionConfig, DType};

/// Keys to the left that a query sees under [`Mask::Window`], besides its own position.
pub(crate) const WINDOW: usize = 255;

/// Queries times heads times batch entries of a problem, where one head of one entry is not more already.
const ROWS: usize = 8192;

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mask {
    /// All.
    Full,
    /// Those up to its own position.
    Causal,
    /// The last [`WINDOW`] + 1 up to its own position.
    Window,
}

impl Mask {
    /// The setting that says so.
    pub(crate) fn config(self) -> AttentionConfig {
        AttentionConfig {
            causal: self != Self::Full,
            window_left: (self == Self::Window).then_some(WINDOW as i64),
            ..AttentionConfig::default()
        }
    }

    /// Pairs of a query and a key that count as work, of `n` queries and `n` keys.
    ///
    /// Causal masks count half of all, as is usual; the diagonal makes it `n/2` more.
    pub(crate) fn pairs(self, n: usize) -> f64 {
        let all = n as f64;
        match self {
            Self::Full => all * all,
            Self::Causal => all * all / 2.0,
            Self::Window => {
                let width = (WINDOW + 1).min(n) as f64;
                // The first queries see 1, 2, … keys until the window is full.
                all * width - width * (width - 1.0) / 2.0
            }
        }
    }
}

impl fmt::Display for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Full => "full",
            Self::Causal => "causal",
            Self::Window => "window",
        })
    }
}

/// How Q, K, V, O and their gradients lie in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Layout {
    /// `[B, H, N, d]`: a head's rows side by side.
    #[default]
    Bhnd,
    /// `[B, N, H, d]`: as a projection writes them, a head's rows apart by all heads' width.
    Bnhd,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Bhnd => "bhnd",
            Self::Bnhd => "bnhd",
        })
    }
}

/// Which half of training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// O and lse.
    Forward,
    /// All gradients.
    Backward,
}

impl Pass {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Forward, Self::Backward];
}

impl fmt::Display for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Forward => "fwd",
            Self::Backward => "bwd",
        })
    }
}

/// One problem: self-attention of `n` queries and keys, with an inducer of one rank for key and value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Case {
    /// Of Q, K, V and O; adapters are f32.
    pub(crate) dtype: DType,
    /// Which keys queries see.
    pub(crate) mask: Mask,
    /// d.
    pub(crate) head_dim: usize,
    /// N = M.
    pub(crate) n: usize,
    /// H = Hq = Hkv.
    pub(crate) heads: usize,
    /// B.
    pub(crate) batch: usize,
    /// r_k = r_v.
    pub(crate) rank: usize,
    /// Of all tensors with a row per query or key.
    pub(crate) layout: Layout,
}

impl Case {
    /// The problem with as many heads and batch entries as make sizes of different length about equally long to measure.
    pub(crate) fn new(dtype: DType, mask: Mask, head_dim: usize, n: usize, rank: usize) -> Self {
        let entries = (ROWS / n.max(1)).max(1);
        let heads = entries.min(4);
        Self { dtype, mask, head_dim, n, heads, batch: entries / heads, rank, layout: Layout::Bhnd }
    }

    /// What filters match against.
    pub(crate) fn label(&self, pass: Pass) -> String {
        let Self { dtype, mask, head_dim, n, layout, .. } = self;
        format!("{pass} {dtype} {mask} d{head_dim} n{n} {layout}")
    }

    /// Floating-point operations of the attention products: 4·pairs·d·H·B forward and 2.5 times that backward.
    pub(crate) fn attention_flop(&self, pass: Pass) -> f64 {
        let forward = 4.0 * self.mask.pairs(self.n) * (self.head_dim * self.heads * self.batch) as f64;
        match pass {
            Pass::Forward => forward,
            Pass::Backward => 2.5 * forward,
        }
    }

    /// Floating-point operations of the inducer's products, of 2·d·r per query each.
    ///
    /// Forward: Q·A_k, Q·B_kᵀ, Q·A_v, h·B_v. Backward: the first three again, dO·B_vᵀ, the three that enter dQ (u·B_k,
    /// dz_k·A_kᵀ, dz_v·A_vᵀ), and dA_k, dB_k, dA_v, dB_v.
    pub(crate) fn inducer_flop(&self, pass: Pass) -> f64 {
        let products = match pass {
            Pass::Forward => 4.0,
            Pass::Backward => 11.0,
        };
        products * 2.0 * (self.head_dim * self.rank * self.n * self.heads * self.batch) as f64
    }
}

/// How much is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Extent {
    /// A look, in some ten seconds.
    Quick,
    /// What is needed to judge a change, in under two minutes.
    #[default]
    Standard,
    /// Everything, in half an hour.
    Full,
}

impl Extent {
    /// Seconds for one comparison.
    pub(crate) fn seconds(self) -> f64 {
        match self {
            Self::Quick => 0.3,
            Self::Standard => 1.2,
            Self::Full => 3.0,
        }
    }

    /// The problems.
    pub(crate) fn cases(self, rank: usize) -> Vec<Case> {
        let (dtypes, masks, head_dims, lengths): (&[_], &[_], &[_], &[_]) = match self {
            Self::Quick => (&[DType::F32, DType::BF16], &[Mask::Full, Mask::Causal], &[128], &[512, 2048]),
            Self::Standard => {
                (&[DType::F32, DType::BF16], &[Mask::Full, Mask::Causal], &[64, 128], &[512, 2048, 4096])
            }
            Self::Full => (
                &[DType::F32, DType::F16, DType::BF16],
                &[Mask::Full, Mask::Causal, Mask::Window],
                &[64, 128, 256],
                &[512, 1024, 2048, 4096, 8192, 16384],
            ),
        };
        let mut cases = Vec::new();
        for &dtype in dtypes {
            for &mask in masks {
                for &head_dim in head_dims {
                    cases.extend(lengths.iter().map(|&n| Case::new(dtype, mask, head_dim, n, rank)));
                }
            }
        }
        if self != Self::Quick {
            // Four heads of 128: rows 2 KB apart, as caches like them least.
            let case = |n| Case::new(DType::F32, Mask::Full, 128, n, rank);
            cases.extend([512, 2048].map(|n| Case { layout: Layout::Bnhd, ..case(n) }));
        }
        cases
    }
}
