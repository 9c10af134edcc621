//! The safe layer: slices of the device's memory, lent to one call.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, DeviceSlice, SyncOnDrop};

use super::device_lists::DeviceLists;
use super::engine::{Engine, OTHER_CONTEXT};
use super::lists::Lists;
use super::workspace::Workspace;
use crate::attention::Problem;
use crate::call::{Backward, Forward};
use crate::error::{Error, Result};
use crate::tensor::{Element, Layout, TensorMut, TensorRef};

/// Lends slices of device memory to calls on one stream.
///
/// [`read`](Self::read) and [`write`](Self::write) turn slices (`CudaSlice`, `CudaView`, `CudaViewMut`) into tensors, and make
/// the stream wait for what other streams still do with them. When the scope ends, other streams that come to use the slices wait
/// for its calls. Under graph capture events cannot be waited for: turn the context's event tracking off first (see cudarc).
///
/// ```no_run
/// use inducer_attention::cuda::{DeviceLists, Engine, Scope, context};
/// use inducer_attention::{Attention, Outputs, bf16};
///
/// let context = context(0)?;
/// let engine = Engine::new(&context)?; // once
/// let stream = context.default_stream();
/// let shape = [2, 8, 1024, 128];
/// let zeros = || stream.alloc_zeros::<bf16>(shape.iter().product()).expect("memory of the device");
/// let (q, k, v, mut o) = (zeros(), zeros(), zeros(), zeros());
///
/// let lists; // what a scope lends outlives it
/// let scope = Scope::new(&engine, &stream)?;
/// let attention = Attention::new(scope.read(&q, shape)?, scope.read(&k, shape)?, scope.read(&v, shape)?);
/// let problem = attention.validate()?;
/// lists = DeviceLists::upload(&problem, &stream)?;
/// let call = problem.forward(Outputs::new(scope.write(&mut o, shape)?))?;
/// scope.forward(call, &lists)?;
/// # Ok::<(), inducer_attention::Error>(())
/// ```
pub struct Scope<'s> {
    engine: &'s Engine,
    stream: &'s Arc<CudaStream>,
    lent: RefCell<Lent<'s>>,
}

/// What a scope has lent: address ranges, and what tells other streams when it ends.
#[derive(Default)]
struct Lent<'s> {
    ranges: Vec<(u64, u64)>,
    guards: Vec<SyncOnDrop<'s>>,
}

impl fmt::Debug for Scope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scope({:?})", self.engine)
    }
}

impl<'s> Scope<'s> {
    /// A scope for calls on `stream`.
    ///
    /// # Errors
    /// [`Error::Unexpected`] if the stream is another context's than the engine.
    pub fn new(engine: &'s Engine, stream: &'s Arc<CudaStream>) -> Result<Self> {
        if stream.context() != engine.context() {
            return Err(OTHER_CONTEXT);
        }
        Ok(Self { engine, stream, lent: RefCell::default() })
    }

    /// A slice as a row-major tensor that calls read.
    ///
    /// # Errors
    /// [`Error::BufferTooSmall`], [`Error::SizeOverflow`], [`Error::Unexpected`] for another context's slice.
    pub fn read<T: Element, const R: usize>(
        &self,
        slice: &'s impl DevicePtr<T>,
        shape: [usize; R],
    ) -> Result<TensorRef<'_, R>> {
        self.read_strided(slice, shape, crate::tensor::row_major(shape)?)
    }

    /// As [`read`](Self::read), with strides in elements.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_strided<T: Element, const R: usize>(
        &self,
        slice: &'s impl DevicePtr<T>,
        shape: [usize; R],
        strides: [usize; R],
    ) -> Result<TensorRef<'_, R>> {
        self.check(slice, &shape, &strides)?;
        let (address, guard) = slice.device_ptr(self.stream);
        self.lend(address, slice.num_bytes(), guard);
        // SAFETY: the slice is as long as the view needs and borrowed for longer than the scope; the stream has been made to
        // wait for its writers, and when the scope ends, its later writers are made to wait for the stream.
        unsafe { TensorRef::from_device_parts(address, self.device(), T::DTYPE, shape, strides) }
    }

    /// A slice as a row-major tensor that calls write.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write<T: Element, const R: usize>(
        &self,
        slice: &'s mut impl DevicePtrMut<T>,
        shape: [usize; R],
    ) -> Result<TensorMut<'_, R>> {
        self.write_strided(slice, shape, crate::tensor::row_major(shape)?)
    }

    /// As [`write`](Self::write), with strides in elements.
    ///
    /// # Errors
    /// As [`read`](Self::read), and [`Error::SelfOverlap`].
    pub fn write_strided<T: Element, const R: usize>(
        &self,
        slice: &'s mut impl DevicePtrMut<T>,
        shape: [usize; R],
        strides: [usize; R],
    ) -> Result<TensorMut<'_, R>> {
        self.check(slice, &shape, &strides)?;
        let bytes = slice.num_bytes();
        let (address, guard) = slice.device_ptr_mut(self.stream);
        self.lend(address, bytes, guard);
        // SAFETY: as for reading; the slice is borrowed exclusively.
        unsafe { TensorMut::from_device_parts(address, self.device(), T::DTYPE, shape, strides) }
    }

    /// Enqueues a forward of tensors that this scope has lent.
    ///
    /// # Errors
    /// As [`plan::forward`](super::plan::forward); [`Error::Unexpected`] for tensors of another scope; [`Error::Missing`],
    /// [`Error::Count`], [`Error::Shape`] for lists that do not fit; [`Error::Driver`].
    pub fn forward(&self, call: Forward<'_, '_, '_>, lists: &'s DeviceLists) -> Result<()> {
        self.check_lent(|f| {
            call.problem.for_each_input(&mut *f);
            call.for_each_output(f);
        })?;
        let mut guards = Vec::new();
        let lists = Lists::new(call.problem, &lists.lend(self.stream, &mut guards)?)?;
        // SAFETY: every tensor lies in a slice that is borrowed until this scope ends, when the slices learn what to wait for;
        // the lists were checked, and are lent likewise.
        let result = unsafe { self.engine.forward(call, &lists, self.stream) };
        self.lent.borrow_mut().guards.append(&mut guards);
        result
    }

    /// Bytes of [`Workspace`] that a backward of this problem needs.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), for the lists.
    pub fn backward_workspace(&self, problem: &Problem<'_>, lists: &DeviceLists) -> Result<usize> {
        let lists = Lists::new(problem, &lists.raw(self.stream)?)?;
        Ok(self.engine.backward_workspace(problem, &lists))
    }

    /// Enqueues a backward of tensors that this scope has lent.
    ///
    /// # Errors
    /// As [`plan::backward`](super::plan::backward); otherwise as [`forward`](Self::forward).
    pub fn backward(
        &self,
        call: Backward<'_, '_, '_>,
        lists: &'s DeviceLists,
        workspace: &'s mut Workspace,
    ) -> Result<()> {
        self.check_lent(|f| {
            call.problem.for_each_input(&mut *f);
            call.for_each_view(f);
        })?;
        if workspace.memory.context() != self.engine.context() {
            return Err(Error::Unexpected {
                argument: "workspace",
                reason: "it belongs to another context than the engine",
            });
        }
        let mut guards = Vec::new();
        let lists = Lists::new(call.problem, &lists.lend(self.stream, &mut guards)?)?;
        let bytes = workspace.bytes();
        let (address, guard) = workspace.memory.device_ptr_mut(self.stream);
        guards.push(guard);
        // SAFETY: as for the forward; the workspace is borrowed exclusively until this scope ends.
        let result = unsafe { self.engine.backward(call, &lists, address, bytes, self.stream) };
        self.lent.borrow_mut().guards.append(&mut guards);
        result
    }

    /// Checks that all tensors that `visit` names are this scope's.
    fn check_lent(&self, visit: impl FnOnce(&mut dyn FnMut(&'static str, Layout<'_>))) -> Result<()> {
        let mut foreign = None;
        visit(&mut |argument, layout| {
            if !self.has_lent(&layout) {
                foreign = foreign.or(Some(argument));
            }
        });
        match foreign {
            None => Ok(()),
            Some(argument) => Err(Error::Unexpected { argument, reason: "this scope has not lent it" }),
        }
    }

    fn device(&self) -> u16 {
        self.engine.context().ordinal() as u16
    }

    fn check<T: Element>(
        &self,
        slice: &impl DeviceSlice<T>,
        shape: &[usize],
        strides: &[usize],
    ) -> Result<()> {
        if slice.stream().context() != self.engine.context() {
            return Err(Error::Unexpected {
                argument: "slice",
                reason: "it belongs to another context than the engine",
            });
        }
        crate::tensor::check_buffer(T::DTYPE, shape, strides, slice.len())
    }

    fn lend(&self, address: u64, bytes: usize, guard: SyncOnDrop<'s>) {
        let mut lent = self.lent.borrow_mut();
        lent.ranges.push((address, address + bytes as u64));
        lent.guards.push(guard);
    }

    fn has_lent(&self, layout: &Layout<'_>) -> bool {
        let (start, end) = layout.range();
        let lent = self.lent.borrow();
        start == end || lent.ranges.iter().any(|&(s, e)| s <= start as u64 && end as u64 <= e)
    }
}
