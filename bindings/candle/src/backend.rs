//! Where a call runs: on the CPU, or on the GPU that its tensors are on.

use std::marker::PhantomData;
#[cfg(feature = "cuda")]
use std::sync::OnceLock;

use candle_core::{Device, Result, Storage, bail};
use inducer_attention::{Gradients, Outputs, Problem, Saved, TensorMut, TensorRef, Upstream};

use crate::engine;
use crate::storage::{Buffer, CONTEXT, Elements, View, read, wrap, write};

/// What runs the calls of a device's tensors.
pub(crate) enum Backend {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda(crate::cuda::Gpu),
}

impl Backend {
    /// # Errors
    /// What is missing to use a GPU.
    pub(crate) fn of(device: &Device) -> Result<Self> {
        match device {
            Device::Cpu => Ok(Self::Cpu),
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => Ok(Self::Cuda(crate::cuda::Gpu::new(device)?)),
            other => bail!("{CONTEXT}: no engine for {:?}", other.location()),
        }
    }

    /// Begins a call. What it reads and writes outlives the scope.
    ///
    /// # Errors
    /// What the kernels' scope says of the stream.
    #[cfg_attr(not(feature = "cuda"), allow(clippy::unnecessary_wraps, reason = "the CPU is always there"))]
    pub(crate) fn scope(&self) -> Result<Scope<'_>> {
        match self {
            Self::Cpu => Ok(Scope::Cpu(PhantomData)),
            #[cfg(feature = "cuda")]
            Self::Cuda(gpu) => Ok(Scope::Cuda(gpu.scope()?)),
        }
    }
}

/// Lends memory to one call, and runs it.
///
/// On a GPU the call is enqueued on the stream of the tensors' device, and nothing waits for it.
pub(crate) enum Scope<'s> {
    Cpu(PhantomData<&'s ()>),
    #[cfg(feature = "cuda")]
    Cuda(crate::cuda::Scope<'s>),
}

/// Lists of a problem (lengths, positions, slopes) in the memory of the GPU that its tensors are on: copied once, for forward
/// and backward.
#[derive(Default)]
pub(crate) struct Lists {
    #[cfg(feature = "cuda")]
    pub(crate) on_device: OnceLock<inducer_attention::cuda::DeviceLists>,
}

/// A backward's scratch memory on a GPU.
#[derive(Default)]
pub(crate) struct Scratch {
    #[cfg(feature = "cuda")]
    pub(crate) workspace: Option<inducer_attention::cuda::Workspace>,
}

impl<'s> Scope<'s> {
    /// A tensor of `R` dimensions that the call reads.
    pub(crate) fn read<const R: usize>(&self, view: &'s View<'s>) -> Result<TensorRef<'_, R>> {
        match (self, &view.elements) {
            (Self::Cpu(_), Elements::Cpu(storage)) => read(storage, view.name, view.layout),
            #[cfg(feature = "cuda")]
            (Self::Cuda(scope), Elements::Cuda(elements)) => scope.read(view.name, elements, view.layout),
            #[cfg(feature = "cuda")]
            _ => bail!("{CONTEXT}: {} is not on the device of q", view.name),
        }
    }

    /// A row-major tensor of `R` dimensions that the call overwrites.
    pub(crate) fn write<const R: usize>(&self, buffer: &'s mut Buffer) -> Result<TensorMut<'_, R>> {
        let shape = buffer.shape()?;
        match (self, &mut buffer.storage) {
            (Self::Cpu(_), Storage::Cpu(storage)) => write(storage, shape),
            #[cfg(feature = "cuda")]
            (Self::Cuda(scope), Storage::Cuda(storage)) => scope.write(storage, shape),
            _ => bail!("{CONTEXT}: a result is not on the device of q"),
        }
    }

    /// Runs the forward, or enqueues it.
    #[cfg_attr(
        not(feature = "cuda"),
        allow(unused_variables, reason = "the CPU reads the problem's own lists")
    )]
    pub(crate) fn forward(
        &self,
        problem: &Problem<'_>,
        outputs: Outputs<'_>,
        lists: &'s Lists,
    ) -> Result<()> {
        match self {
            Self::Cpu(_) => engine::forward(problem, outputs).map_err(wrap),
            #[cfg(feature = "cuda")]
            Self::Cuda(scope) => scope.forward(problem, outputs, lists).map_err(wrap),
        }
    }

    /// Runs the backward, or enqueues it.
    #[cfg_attr(
        not(feature = "cuda"),
        allow(unused_variables, reason = "the CPU engine has workspaces of its own")
    )]
    pub(crate) fn backward<'a>(
        &self,
        problem: &Problem<'a>,
        saved: Saved<'a>,
        upstream: Upstream<'a>,
        gradients: Gradients<'_>,
        lists: &'s Lists,
        scratch: &'s mut Scratch,
    ) -> Result<()> {
        match self {
            Self::Cpu(_) => engine::backward(problem, saved, upstream, gradients).map_err(wrap),
            #[cfg(feature = "cuda")]
            Self::Cuda(scope) => {
                scope.backward(problem, saved, upstream, gradients, lists, scratch).map_err(wrap)
            }
        }
    }

    /// Ends the call: what it was lent may be used again.
    pub(crate) fn end(self) {
        match self {
            Self::Cpu(_) => {}
            #[cfg(feature = "cuda")]
            Self::Cuda(scope) => drop(scope),
        }
    }
}
