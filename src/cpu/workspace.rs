//! Scratch memory: reserved by the caller, carved up by the engine.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use crate::error::{Error, Result};

/// Alignment of the workspace and of every piece carved from it: a cache line, and the widest vector.
const ALIGN: usize = 64;

/// Scratch memory of forward and backward calls.
///
/// A call needs as many bytes as [`Engine::forward_workspace`](super::Engine::forward_workspace) or
/// [`backward_workspace`](super::Engine::backward_workspace) say, and allocates nothing else. Contents between calls do not
/// matter, so one workspace serves all calls of a thread.
#[derive(Debug)]
pub struct Workspace {
    ptr: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory is owned and plain.
unsafe impl Send for Workspace {}
// SAFETY: a shared workspace gives no access to its memory.
unsafe impl Sync for Workspace {}

impl Workspace {
    /// An empty workspace; allocates nothing.
    pub const fn new() -> Self {
        Self { ptr: NonNull::dangling(), bytes: 0 }
    }

    /// A workspace of at least `bytes` bytes.
    pub fn with_bytes(bytes: usize) -> Self {
        let mut workspace = Self::new();
        workspace.reserve(bytes);
        workspace
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Grows it to at least `bytes` bytes. It never shrinks.
    ///
    /// # Panics
    /// If `bytes` exceeds the address type, as a vector of that size would.
    pub fn reserve(&mut self, bytes: usize) {
        if self.try_reserve(bytes).is_err() {
            handle_alloc_error(Self::layout(bytes).expect("the workspace exceeds the address type"));
        }
    }

    /// As [`reserve`](Self::reserve), for callers that can do without.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if there is not so much memory; the workspace is as it was.
    pub fn try_reserve(&mut self, bytes: usize) -> Result<()> {
        if bytes <= self.bytes {
            return Ok(());
        }
        let layout = Self::layout(bytes).ok_or(Error::OutOfMemory { bytes })?;
        // SAFETY: the layout's size is not 0, as bytes > self.bytes >= 0.
        let new = NonNull::new(unsafe { alloc(layout) }).ok_or(Error::OutOfMemory { bytes })?;
        self.free();
        (self.ptr, self.bytes) = (new, bytes);
        Ok(())
    }

    pub(super) fn carver(&mut self) -> Carver {
        Carver { base: self.ptr.as_ptr(), used: 0 }
    }

    fn layout(bytes: usize) -> Option<Layout> {
        Layout::from_size_align(bytes, ALIGN).ok()
    }

    fn free(&mut self) {
        if let Some(layout) = Self::layout(self.bytes).filter(|layout| layout.size() > 0) {
            // SAFETY: allocated by `try_reserve` with this very layout.
            unsafe { dealloc(self.ptr.as_ptr(), layout) };
        }
    }
}

impl Default for Workspace {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        self.free();
    }
}

/// Deals out pieces of a workspace; over no workspace, measures how large one must be.
///
/// The same code carves and measures, so that the size known in advance is the size that is used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Carver {
    base: *mut u8,
    used: usize,
}

impl Carver {
    /// Measures: pieces are null.
    pub(super) fn measuring() -> Self {
        Self { base: std::ptr::null_mut(), used: 0 }
    }

    /// Deals out the memory at `base`.
    pub(super) fn over(base: *mut f32) -> Self {
        Self { base: base.cast(), used: 0 }
    }

    /// A piece of `n` floats, uninitialised.
    pub(super) fn floats(&mut self, n: usize) -> Floats {
        let at = self.used;
        self.used += (n * size_of::<f32>()).next_multiple_of(ALIGN);
        Floats(if self.base.is_null() { self.base } else { self.base.wrapping_add(at) }.cast())
    }

    /// Bytes dealt out so far.
    pub(super) fn used(&self) -> usize {
        self.used
    }
}

/// A piece of the workspace. Copies name the same memory; who uses it sees to it that no two tasks meet there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Floats(*mut f32);

// SAFETY: a plain address; uses of it say why they do not race.
unsafe impl Send for Floats {}
// SAFETY: as above.
unsafe impl Sync for Floats {}

impl Floats {
    /// The address of float `i`.
    pub(super) fn at(self, i: usize) -> *mut f32 {
        self.0.wrapping_add(i)
    }
}
