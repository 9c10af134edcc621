//! The table of kernels, made from `kernels/list.h`, and which of them serves a problem.

use std::cmp::Reverse;

use crate::tensor::DType;

/// What a kernel computes; see the sources in `kernels/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// O, lse, and U or attn.
    Forward,
    /// Row constants, the inducer's part of dQ, partial sums of its gradients.
    BackwardPrepare,
    /// dQ, dK, dV.
    Backward,
    /// Rounding and sums of partial sums.
    BackwardFinish,
}

/// Devices that a kernel is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// All since Ampere.
    Common,
    /// Those of data centres: its blocks take more shared memory of a multiprocessor than every GPU has, up to [`WIDE_SHARED`].
    Wide,
    /// Hopper alone (compute capability 9.0): products of warpgroups.
    Hopper,
}

/// What decides which kernels a device runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// Bytes of shared memory that a block may have.
    pub shared_bytes: u32,
    /// Kernels of [`Tier::Hopper`] may be chosen.
    pub hopper: bool,
    /// How many multiprocessors there are: blocks of those kernels stay there, and take one tile after the other.
    pub multiprocessors: u32,
}

impl Abilities {
    /// What every GPU since Ampere has.
    pub const COMMON: Self = Self { shared_bytes: MOST_SHARED, hopper: false, multiprocessors: 1 };
    /// The least that a data-centre GPU has.
    pub const WIDE: Self = Self { shared_bytes: WIDE_SHARED, hopper: false, multiprocessors: 1 };
    /// What a Hopper GPU has, the largest.
    pub const HOPPER: Self = Self { shared_bytes: HOPPER_SHARED, hopper: true, multiprocessors: 132 };
}

/// One kernel: the fields are those of `kernels/list.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Its symbol, such as `forward_bf16_d128`.
    pub name: &'static str,
    /// What it computes.
    pub pass: Pass,
    /// Type of Q, K and V.
    pub dtype: DType,
    /// It serves head dimensions up to this.
    pub head_dim: u32,
    /// Queries of a tile.
    pub rows: u32,
    /// Keys of a tile, 0 where the pass has none.
    pub keys: u32,
    /// Warps of a block.
    pub warps: u32,
    /// Blocks that should fit a multiprocessor at once, on GPUs with the most shared memory.
    pub blocks: u32,
    /// Devices that it is for.
    pub tier: Tier,
}

/// Shared memory of a block that every GPU since Ampere has, in bytes.
pub const MOST_SHARED: u32 = 99 * 1024;

/// Shared memory of a block that data-centre GPUs have (sm_80, 90, 100), in bytes.
pub const WIDE_SHARED: u32 = 163 * 1024;

/// Shared memory of a block on Hopper, in bytes.
pub const HOPPER_SHARED: u32 = 227 * 1024;

/// Shared memory that the system takes with every block, in bytes (CUDA C++ programming guide, compute capability 8.0 and on).
const RESERVED_SHARED: u32 = 1024;

/// All kernels.
pub static KERNELS: &[Kernel] = &include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

impl Kernel {
    /// The kernel with the narrowest tile that holds `head_dim` columns; of several, the one for the fewest devices that this one is
    /// among. A device is among those of wide kernels if as many of their blocks as should run at once have room.
    pub fn find(pass: Pass, dtype: DType, head_dim: usize, device: Abilities) -> Option<&'static Self> {
        KERNELS
            .iter()
            .filter(|k| k.pass == pass && k.dtype == dtype && k.head_dim as usize >= head_dim)
            .filter(|k| match k.tier {
                Tier::Common => true,
                Tier::Wide => k.shared_bytes_of_blocks() <= device.shared_bytes,
                Tier::Hopper => device.hopper && k.shared_bytes() <= device.shared_bytes,
            })
            .min_by_key(|k| (k.head_dim, Reverse(k.tier)))
    }

    /// What one block would have to be allowed to have where a multiprocessor has room for [`Kernel::blocks`] of these: it keeps
    /// 1 KB for itself with each, and has so much more than a block may have.
    pub fn shared_bytes_of_blocks(&self) -> u32 {
        self.blocks * (self.shared_bytes() + RESERVED_SHARED) - RESERVED_SHARED
    }

    /// Shared memory that a block of it may take, in bytes.
    fn most_shared_bytes(&self) -> u32 {
        match self.tier {
            Tier::Common => MOST_SHARED,
            Tier::Wide => WIDE_SHARED,
            Tier::Hopper => HOPPER_SHARED,
        }
    }

    /// [`shared_bytes`](Self::shared_bytes) of kernels for Hopper.
    fn hopper_shared_bytes(&self) -> u32 {
        let size = self.dtype.size() as u32;
        let row = self.head_dim * size;
        match self.pass {
            Pass::Forward => {
                // Four tiles of K or V; a stage of 32 rows, or two; h and s0; a part of O; sums of rows, four lanes each; tasks
                // and barriers; Q, twice if there is room.
                let part = if self.head_dim > 64 { 32 } else { 64 };
                let stages = if self.head_dim > 128 { 1 } else { 2 };
                let token = stages * 32 * row + self.rows * 16 * 4 + self.rows * 4;
                let others = 4 * self.keys * row + token + self.rows * part * size + 4 * 4 * self.rows + 512;
                let query = self.rows * row;
                others + if 2 * query + others <= HOPPER_SHARED { 2 * query } else { query }
            }
            Pass::Backward => {
                // K and V; two Q and two dO; two dS; two dQ in f32, or one if they are long; the rows' numbers, tasks and barriers.
                let places = if self.rows > 64 { 1 } else { 2 };
                let scores = 2 * self.keys * self.rows * size;
                let sums = places * self.rows * self.head_dim * 4;
                (2 * self.keys + 4 * self.rows) * row + scores + sums + 2 * 12 * self.rows + 1024
            }
            Pass::BackwardPrepare | Pass::BackwardFinish => {
                unreachable!("kernels/list.h has no such pass for Hopper")
            }
        }
    }

    /// Threads of a block.
    pub fn threads(&self) -> u32 {
        self.warps * 32
    }

    /// Bytes of dynamic shared memory; the kernels' sources have the same sums.
    pub fn shared_bytes(&self) -> u32 {
        let size = self.dtype.size() as u32;
        let row = self.head_dim * size;
        let most = self.most_shared_bytes();
        if self.tier == Tier::Hopper {
            return self.hopper_shared_bytes();
        }
        match self.pass {
            // The task; Q; K, and P in its place; V; the sums of the rows, four lanes each, if scores and O leave no registers.
            Pass::Forward => {
                let accumulators = self.rows * (self.keys + self.head_dim) / self.threads();
                let sums = if accumulators >= 192 { 4 * 4 * self.rows } else { 0 };
                128 + (self.rows + self.keys) * row + self.keys * self.rows.max(self.head_dim) * size + sums
            }
            Pass::Backward => {
                // The task; lse, w and D′ of the rows; K, V, Q, dO.
                let all = 384 + 12 * self.rows + 2 * (self.keys + self.rows) * row;
                let scores = self.keys * self.rows * size;
                // dS lies where dO was if there is no other room.
                if all + scores <= most { all + scores } else { all }
            }
            Pass::BackwardPrepare => {
                // The task; Q, dO; 16 coefficients a row; their sums and their largest by warp, a number a row; a stage of 32
                // rows.
                let stage = 32 * row;
                let all = 256
                    + 2 * self.rows * row
                    + 16 * self.rows * size
                    + 4 * (17 * self.warps + self.rows)
                    + stage;
                // One for each adapter if there is room.
                if all + stage <= most { all + stage } else { all }
            }
            Pass::BackwardFinish => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABILITIES: [Abilities; 3] = [Abilities::COMMON, Abilities::WIDE, Abilities::HOPPER];

    #[test]
    fn the_narrowest_kernel_that_fits_is_chosen() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for head_dim in [8, 40, 64, 72, 128, 136, 256] {
                let kernel = Kernel::find(Pass::Forward, dtype, head_dim, Abilities::COMMON).unwrap();
                let tile = kernel.head_dim as usize;
                assert!(tile >= head_dim && (tile == 64 || tile / 2 < head_dim), "{kernel:?} for {head_dim}");
                assert_eq!((kernel.dtype, kernel.pass), (dtype, Pass::Forward));
            }
            assert_eq!(Kernel::find(Pass::Forward, dtype, 264, Abilities::HOPPER), None);
        }
    }

    #[test]
    fn names_are_unique_and_tiles_fit_their_devices() {
        for (i, kernel) in KERNELS.iter().enumerate() {
            assert!(KERNELS[..i].iter().all(|other| other.name != kernel.name), "{}", kernel.name);
            assert!(kernel.shared_bytes() <= kernel.most_shared_bytes(), "{}", kernel.name);
            let is_common = kernel.tier == Tier::Common;
            assert!(is_common || kernel.shared_bytes_of_blocks() > MOST_SHARED, "{}", kernel.name);
        }
    }

    #[test]
    fn kernels_of_a_tier_are_for_those_who_have_what_it_needs() {
        for dtype in [DType::F16, DType::BF16] {
            let chosen = |pass, head_dim| {
                ABILITIES.map(|device| Kernel::find(pass, dtype, head_dim, device).unwrap().tier)
            };
            let all = [Tier::Common, Tier::Wide, Tier::Hopper];
            assert_eq!(chosen(Pass::Forward, 64), [Tier::Common, Tier::Common, Tier::Hopper]);
            assert_eq!(chosen(Pass::Forward, 72), all);
            assert_eq!(chosen(Pass::Forward, 128), all);
            assert_eq!(chosen(Pass::Forward, 256), [Tier::Common, Tier::Common, Tier::Hopper]);
            assert_eq!(chosen(Pass::Backward, 128), all);
            assert_eq!(chosen(Pass::Backward, 256), [Tier::Common, Tier::Wide, Tier::Wide]);
        }
    }
}
