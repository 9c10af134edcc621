//! What to launch for a call: kernels, grids, parameters, and the workspace they share.
//!
//! Plans know neither the driver nor the emulator: addresses are whatever the call's views say.

mod backward;
mod forward;

use bytemuck::{Pod, bytes_of};

pub use backward::{Settings, SumOrder, backward, backward_workspace};
pub use forward::forward;

use super::convert;
use super::kernels::{Abilities, Kernel, Pass};
use super::lists::Lists;
use super::params::{BackwardParams, ForwardParams};
use crate::attention::Problem;
use crate::error::{Error, Result};

/// Blocks that a launch can have along its first dimension.
const MAX_BLOCKS: u32 = i32::MAX as u32;

/// One kernel launch: a grid of `blocks × 1 × 1` blocks of [`Kernel::threads`] threads with [`Kernel::shared_bytes`] bytes of
/// dynamic shared memory.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// Blocks of the grid.
    pub blocks: u32,
}

/// Launches of one call, in order; each takes the same parameters by value.
#[derive(Clone, Debug)]
pub struct Plan<P> {
    params: P,
    launches: [Option<Launch>; 3],
}

impl<P: Pod> Plan<P> {
    /// What every launch is given.
    pub fn params(&self) -> &P {
        &self.params
    }

    /// [`params`](Self::params) as bytes.
    pub fn params_bytes(&self) -> &[u8] {
        bytes_of(&self.params)
    }

    /// The launches; none where there is nothing to write.
    pub fn launches(&self) -> impl Iterator<Item = Launch> + '_ {
        self.launches.iter().copied().flatten()
    }
}

/// A forward's plan.
pub type ForwardPlan = Plan<ForwardParams>;
/// A backward's plan.
pub type BackwardPlan = Plan<BackwardParams>;

/// Whether the kernels take the problem: its head dimension, and how the rows of its inputs are aligned.
///
/// # Errors
/// [`Error::DeviceHeadDim`], [`Error::NullPointer`], [`Error::Misaligned`].
pub fn check(problem: &Problem<'_>) -> Result<()> {
    convert::problem(problem, &Lists::of(problem)).map(|_| ())
}

/// The kernel for a problem that [`convert::problem`] has taken.
fn find(pass: Pass, problem: &Problem<'_>, device: Abilities) -> &'static Kernel {
    Kernel::find(pass, problem.dtype(), problem.head_dim(), device)
        .expect("the table has kernels of every pass for every dtype up to the largest head dimension")
}

/// A launch with as many blocks as the product of the factors.
fn launch(kernel: &'static Kernel, factors: [usize; 3]) -> Result<Option<Launch>> {
    let blocks = factors.into_iter().try_fold(1u128, |n, f| n.checked_mul(f as u128)).unwrap_or(u128::MAX);
    if blocks > MAX_BLOCKS.into() {
        return Err(Error::TooManyBlocks { pass: kernel.name, blocks, max: MAX_BLOCKS });
    }
    Ok((blocks > 0).then_some(Launch { kernel, blocks: blocks as u32 }))
}
