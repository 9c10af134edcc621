//! One call on a candle device's stream.

use std::sync::Arc;

use candle_core::cuda_backend::CudaStorageSlice;
use candle_core::{CudaStorage, Layout, bail};
use inducer_attention::cuda::cudarc::driver::CudaStream;
use inducer_attention::cuda::{DeviceLists, Engine, Workspace};
use inducer_attention::{Gradients, Outputs, Problem, Saved, TensorMut, TensorRef, Upstream};

use super::memory::Elements;
use crate::backend::{Lists, Scratch};
use crate::layout::parts;
use crate::storage::{CONTEXT, wrap};

/// Lends candle's memory to one call, and enqueues it. Nothing waits for the device; memory is freed in the stream's order.
pub(crate) struct Scope<'s> {
    scope: inducer_attention::cuda::Scope<'s>,
    stream: &'s Arc<CudaStream>,
}

impl<'s> Scope<'s> {
    pub(super) fn new(engine: &'s Engine, stream: &'s Arc<CudaStream>) -> inducer_attention::Result<Self> {
        Ok(Self { scope: inducer_attention::cuda::Scope::new(engine, stream)?, stream })
    }

    pub(crate) fn read<const R: usize>(
        &self,
        name: &'static str,
        elements: &'s Elements<'s>,
        layout: &Layout,
    ) -> candle_core::Result<TensorRef<'_, R>> {
        let (shape, strides) = parts(name, layout)?;
        match elements {
            Elements::F32(slice) => self.scope.read_strided(slice, shape, strides),
            Elements::F16(slice) => self.scope.read_strided(slice, shape, strides),
            Elements::BF16(slice) => self.scope.read_strided(slice, shape, strides),
        }
        .map_err(wrap)
    }

    pub(crate) fn write<const R: usize>(
        &self,
        storage: &'s mut CudaStorage,
        shape: [usize; R],
    ) -> candle_core::Result<TensorMut<'_, R>> {
        match &mut storage.slice {
            CudaStorageSlice::F32(slice) => self.scope.write(slice, shape),
            CudaStorageSlice::F16(slice) => self.scope.write(slice, shape),
            CudaStorageSlice::BF16(slice) => self.scope.write(slice, shape),
            _ => bail!("{CONTEXT}: dtype not supported"),
        }
        .map_err(wrap)
    }

    pub(crate) fn forward(
        &self,
        problem: &Problem<'_>,
        outputs: Outputs<'_>,
        lists: &'s Lists,
    ) -> inducer_attention::Result<()> {
        let lists = self.lists(problem, lists)?;
        self.scope.forward(problem.forward(outputs)?, lists)
    }

    pub(crate) fn backward<'a>(
        &self,
        problem: &Problem<'a>,
        saved: Saved<'a>,
        upstream: Upstream<'a>,
        gradients: Gradients<'_>,
        lists: &'s Lists,
        scratch: &'s mut Scratch,
    ) -> inducer_attention::Result<()> {
        let lists = self.lists(problem, lists)?;
        let call = problem.backward(saved, upstream, gradients)?;
        let bytes = self.scope.backward_workspace(problem, lists)?;
        let workspace = scratch.workspace.insert(Workspace::new(self.stream, bytes)?);
        self.scope.backward(call, lists, workspace)
    }

    /// The problem's lists on the device.
    fn lists(&self, problem: &Problem<'_>, lists: &'s Lists) -> inducer_attention::Result<&'s DeviceLists> {
        if let Some(lists) = lists.on_device.get() {
            return Ok(lists);
        }
        let uploaded = DeviceLists::upload(problem, self.stream)?;
        // Another thread's copy, if that was faster, is the same.
        Ok(lists.on_device.get_or_init(|| uploaded))
    }
}
