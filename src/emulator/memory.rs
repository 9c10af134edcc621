//! Memory for a launch, with room around it.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};

use super::Region;

/// Bytes before and after that belong to no region, so that an access a little beside one does not end in another.
const ROOM: usize = 4096;

/// What a GPU's allocations are aligned to.
const ALIGNMENT: usize = 256;

/// "Device" memory: bytes that one launch after the other may use.
#[derive(Debug)]
pub struct Memory {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: it owns its bytes, and hands out pointers only, whose use is the caller's.
unsafe impl Send for Memory {}
// SAFETY: likewise.
unsafe impl Sync for Memory {}

impl Memory {
    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes + 2 * ROOM, ALIGNMENT).expect("memory of a sensible size")
    }

    /// Memory filled with ones: NaN in every type.
    pub fn new(bytes: usize) -> Self {
        let layout = Self::layout(bytes);
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc(layout) };
        if start.is_null() {
            handle_alloc_error(layout);
        }
        // SAFETY: these are the bytes that were just allocated.
        unsafe { start.write_bytes(0xff, layout.size()) };
        Self { start, bytes }
    }

    /// Memory that holds `content`.
    pub fn of<T: bytemuck::NoUninit>(content: &[T]) -> Self {
        let bytes: &[u8] = bytemuck::cast_slice(content);
        let memory = Self::new(bytes.len());
        // SAFETY: the new memory is as long, and nobody else's.
        unsafe { memory.address().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        memory
    }

    /// Where it begins: a multiple of 256.
    pub fn address(&self) -> *mut u8 {
        // SAFETY: the allocation is longer than that.
        unsafe { self.start.add(ROOM) }
    }

    /// How long it is.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// A copy of what it holds.
    pub fn read<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(&self) -> Vec<T> {
        let mut content = vec![T::zeroed(); self.bytes / size_of::<T>()];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut content);
        // SAFETY: `bytes` is no longer than the memory, all of which was written when it was made.
        unsafe { self.address().copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        content
    }

    /// The region of an input.
    pub fn input(&self) -> Region {
        Region { address: self.address(), bytes: self.bytes, writable: false, initialised: true }
    }

    /// The region of an output, which holds nothing yet.
    pub fn output(&self) -> Region {
        Region { address: self.address(), bytes: self.bytes, writable: true, initialised: false }
    }

    /// The region of something that is read and written.
    pub fn in_out(&self) -> Region {
        Region { address: self.address(), bytes: self.bytes, writable: true, initialised: true }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout.
        unsafe { dealloc(self.start, Self::layout(self.bytes)) };
    }
}
