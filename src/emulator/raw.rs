//! The C interface, as in `kernels/emulator/emulator.h`.

use std::ffi::{c_char, c_void};

#[repr(C)]
pub(super) struct Region {
    pub(super) address: *mut c_void,
    pub(super) bytes: u64,
    pub(super) writable: u32,
    pub(super) initialised: u32,
}

#[repr(C)]
pub(super) struct Options {
    pub(super) policy: u32,
    pub(super) copies: u32,
    pub(super) seed: u64,
    pub(super) resident_blocks: u32,
    pub(super) detector: u32,
    pub(super) disabled_file: *const c_char,
    pub(super) disabled_line: i32,
    pub(super) padding: i32,
}

#[repr(C)]
pub(super) struct Launch {
    pub(super) kernel: *const c_char,
    pub(super) grid: u32,
    pub(super) threads: u32,
    pub(super) shared_bytes: u32,
    pub(super) region_count: u32,
    pub(super) params: *const c_void,
    pub(super) params_bytes: u64,
    pub(super) regions: *const Region,
}

pub(super) type NoteFault = unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char);
pub(super) type NoteSite = unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char, i32);
pub(super) type NoteKernel = unsafe extern "C" fn(*mut c_void, *const c_char, u32, u32, u64);

unsafe extern "C" {
    pub(super) fn inducer_emulator_launch(
        launch: *const Launch,
        options: *const Options,
        context: *mut c_void,
        fault: NoteFault,
        site: NoteSite,
    ) -> u64;
    pub(super) fn inducer_emulator_kernels(context: *mut c_void, kernel: NoteKernel);
}
