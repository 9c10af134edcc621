//! The CPU engine: flash-style tiles on all cores.
//!
//! Queries lie in the lanes of vectors: scores are formed transposed, a tile `[keys][queries]` at a time, so that the
//! softmax needs no operation across lanes and K and V are read in place, element by element, as the broadcast factor of a
//! matrix product. Everything a tile does is one micro-kernel (`simd::gemm`) and a handful of lane-wise loops (`kernels`).
//!
//! A row's result is a fixed sequence of operations in its own lane. It depends neither on the number of threads nor on the
//! other rows of the tile, the batch or the packing. (Where a mask cuts through a tile that holds a number that is not
//! finite, hidden pairs are left out one by one: the other rows stay right, but their last bits may differ.)

mod backward;
mod few_rows;
mod forward;
mod kernels;
mod key_source;
mod masked;
mod moves;
mod products;
mod query_tile;
pub(crate) mod simd;
mod slots;
mod tiling;
mod trimmed;
mod workspace;

#[doc(hidden)]
pub mod microkernels;

pub use simd::InstructionSet;
pub use workspace::Workspace;

use crate::attention::{Problem, expect_memory};
use crate::call::{Backward, Forward};
use crate::error::{Error, Result};
use crate::tensor::Memory;
use simd::Kernels;
use workspace::Carver;

/// The CPU engine with the kernels of one instruction set.
///
/// Work runs on the rayon pool that the caller is in, or the global one; results do not depend on its size.
///
/// # Accuracy
/// Products of f32 and f16 tensors are computed in f32; those of bf16 tensors as dot products of bf16 pairs, accumulated in f32,
/// where the instruction set has them, in f32 elsewhere. Softmax, λ and the adapters' tanh are f32, with functions good to 2.5
/// units in the last place or better; probabilities that go into a product of bf16 pairs are rounded to bf16.
///
/// What the tests demand of results x against the f64 oracle: in f32 ‖x − ref‖ ≤ 1e-6·‖ref‖ forward and 5e-6·‖ref‖ backward for
/// logits up to 10, in proportion to the largest logit beyond that; in 16 bits at most twice the error of the same computation
/// done naively in that type. Where nearly all of a gradient cancels, errors are in proportion to its terms.
#[derive(Clone, Copy)]
pub struct Engine {
    kernels: &'static Kernels,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Engine({:?})", self.kernels.set)
    }
}

impl Default for Engine {
    fn default() -> Self {
        Self::detect()
    }
}

impl Engine {
    /// The engine with the best instruction set of this processor.
    pub fn detect() -> Self {
        Self { kernels: Kernels::detect() }
    }

    /// The engine with a given instruction set, if this processor has it.
    pub fn with(set: InstructionSet) -> Option<Self> {
        Kernels::for_set(set).map(|kernels| Self { kernels })
    }

    /// Which instruction set it uses.
    pub fn instruction_set(&self) -> InstructionSet {
        self.kernels.set
    }

    /// Bytes of workspace that a forward of this problem needs on the current rayon pool.
    pub fn forward_workspace(&self, problem: &Problem<'_>) -> usize {
        let mut carver = Carver::measuring();
        forward::ForwardPlan::carve(self.kernels, problem, None, &mut carver);
        carver.used()
    }

    /// Bytes of workspace that a backward of this problem, with all gradients, needs on the current rayon pool.
    pub fn backward_workspace(&self, problem: &Problem<'_>) -> usize {
        let mut carver = Carver::measuring();
        backward::BackwardPlan::carve(self.kernels, problem, None, &mut carver);
        carver.used()
    }

    /// Computes O and whatever else the call has room for; the [crate's front page](crate) has the equations.
    ///
    /// # Errors
    /// [`Error::WorkspaceTooSmall`], [`Error::Memory`] for tensors of a device, before anything is written.
    #[allow(clippy::needless_pass_by_value, reason = "a call is made once: its outputs are lent for it")]
    pub fn forward(&self, call: Forward<'_, '_, '_>, workspace: &mut Workspace) -> Result<()> {
        expect_memory("q", call.problem.memory(), Memory::Host)?;
        check(workspace, self.forward_workspace(call.problem))?;
        let mut carver = workspace.carver();
        forward::ForwardPlan::carve(self.kernels, call.problem, Some(&call), &mut carver).run();
        Ok(())
    }

    /// Computes the gradients that the call has room for; the [crate's front page](crate#the-backward) has the equations.
    ///
    /// # Errors
    /// [`Error::WorkspaceTooSmall`], [`Error::Memory`] for tensors of a device, before anything is written.
    #[allow(clippy::needless_pass_by_value, reason = "a call is made once: its outputs are lent for it")]
    pub fn backward(&self, call: Backward<'_, '_, '_>, workspace: &mut Workspace) -> Result<()> {
        expect_memory("q", call.problem.memory(), Memory::Host)?;
        check(workspace, self.backward_workspace(call.problem))?;
        let mut carver = workspace.carver();
        backward::BackwardPlan::carve(self.kernels, call.problem, Some(&call), &mut carver).run();
        Ok(())
    }
}

fn check(workspace: &Workspace, needed: usize) -> Result<()> {
    if workspace.bytes() < needed {
        return Err(Error::WorkspaceTooSmall { got: workspace.bytes(), needed });
    }
    Ok(())
}
