//! Runs the CUDA kernels' own source on the host, and finds their races (feature `emulator`). A tool for tests.
//!
//! Build a launch as for a GPU, with addresses of this process in the parameters, list the memory that it may touch, and run it:
//! the [`Report`] has a line for every race, every access outside of that memory, every deadlock. The C++ side, and what it
//! looks for, is in `kernels/emulator`.

mod memory;
mod raw;

use std::ffi::{CStr, CString, c_char, c_void};

pub use memory::Memory;

/// A launch.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Name of a kernel in the table.
    pub kernel: &'a str,
    /// Blocks.
    pub grid: u32,
    /// Threads of a block; must be what the kernel is compiled for.
    pub threads: u32,
    /// Bytes of dynamic shared memory, at least what the kernel is compiled for.
    pub shared_bytes: u32,
    /// The bytes of the kernel's parameter struct.
    pub params: &'a [u8],
    /// All memory that it may touch. Regions begin at multiples of 16 and do not overlap.
    pub regions: &'a [Region],
}

/// Memory that a kernel may touch.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// Where it begins.
    pub address: *mut u8,
    /// How long it is.
    pub bytes: usize,
    /// Whether the kernel may write there.
    pub writable: bool,
    /// Whether it holds anything before the launch: if not, reading what the kernel did not write is a fault.
    pub initialised: bool,
}

/// Which thread runs next. Results may not depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// One warp after the other, each as far as it gets.
    #[default]
    RoundRobin = 0,
    /// One warp, chosen by the seed, is driven as far ahead of all others as it can go.
    OneWarpAhead = 1,
    /// The last lane of the last warp first.
    Reversed = 2,
    /// Seeded random.
    Random = 3,
}

/// When asynchronous copies, and products of warpgroups, are done. Results may not depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CopyTiming {
    /// When they are issued.
    Early = 0,
    /// When the thread waits for them: shared memory holds what was there before until then.
    #[default]
    Late = 1,
    /// Somewhere in between, each for itself.
    Random = 2,
}

/// How to run a launch.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who runs next.
    pub policy: Policy,
    /// When copies and products are done.
    pub copies: CopyTiming,
    /// Of everything random; also chooses the warp that is driven ahead.
    pub seed: u64,
    /// Blocks that run at the same time. The others start, in order, when these end.
    pub resident_blocks: u32,
    /// Whether accesses are looked at. Without, only collectives are, and a launch is several times as fast.
    pub detector: bool,
    /// A barrier, fence, wait, commit, acquire or release that does nothing: the end of its file's name, and its line.
    pub disabled: Option<(String, u32)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            copies: CopyTiming::default(),
            seed: 0,
            resident_blocks: 2,
            detector: true,
            disabled: None,
        }
    }
}

/// A fault: each name and place once, however often it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What kind it is, such as `race (read after unsynchronised write)`.
    pub name: String,
    /// Where, and who.
    pub text: String,
}

/// A barrier, fence, wait, commit, acquire or release that a launch came to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site {
    /// The function.
    pub kind: String,
    /// Source file.
    pub file: String,
    /// Line in it.
    pub line: u32,
}

/// What a launch did besides its results.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Distinct faults, at most about twenty.
    pub faults: Vec<Fault>,
    /// What could be disabled.
    pub sites: Vec<Site>,
}

impl Report {
    /// Whether nothing was wrong.
    pub fn is_clean(&self) -> bool {
        self.faults.is_empty()
    }

    /// Whether there is a fault of that name.
    pub fn has(&self, name: &str) -> bool {
        self.faults.iter().any(|fault| fault.name == name)
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_clean() {
            return write!(f, "no faults");
        }
        for fault in &self.faults {
            writeln!(f, "{}: {}", fault.name, fault.text)?;
        }
        Ok(())
    }
}

/// A kernel in the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
    /// Size of its parameter struct.
    pub params_bytes: usize,
}

/// Runs a launch.
///
/// # Safety
///
/// Regions must be valid for reads, and for writes where they are writable, and nothing else may use them meanwhile. Accesses
/// outside of regions are caught before they happen, so parameters may point anywhere; but without
/// [`detector`](Options::detector), they must not.
///
/// # Panics
///
/// If a name holds a zero byte.
pub unsafe fn launch(launch: &Launch<'_>, options: &Options) -> Report {
    let kernel = CString::new(launch.kernel).expect("names hold no zero byte");
    let disabled = options.disabled.as_ref().map(|(file, line)| {
        (
            CString::new(file.as_str()).expect("names hold no zero byte"),
            i32::try_from(*line).unwrap_or(i32::MAX),
        )
    });
    let regions: Vec<raw::Region> = launch
        .regions
        .iter()
        .map(|region| raw::Region {
            address: region.address.cast(),
            bytes: region.bytes as u64,
            writable: region.writable.into(),
            initialised: region.initialised.into(),
        })
        .collect();
    // Kernels read their parameters as the struct that they are: at any of its alignments.
    let mut params = vec![0_u128; launch.params.len().div_ceil(16)];
    bytemuck::cast_slice_mut(&mut params)[..launch.params.len()].copy_from_slice(launch.params);
    let raw_launch = raw::Launch {
        kernel: kernel.as_ptr(),
        grid: launch.grid,
        threads: launch.threads,
        shared_bytes: launch.shared_bytes,
        region_count: u32::try_from(regions.len()).expect("fewer than 2^32 regions"),
        params: params.as_ptr().cast(),
        params_bytes: launch.params.len() as u64,
        regions: regions.as_ptr(),
    };
    let raw_options = raw::Options {
        policy: options.policy as u32,
        copies: options.copies as u32,
        seed: options.seed,
        resident_blocks: options.resident_blocks,
        detector: options.detector.into(),
        disabled_file: disabled.as_ref().map_or(std::ptr::null(), |(file, _)| file.as_ptr()),
        disabled_line: disabled.as_ref().map_or(0, |(_, line)| *line),
        padding: 0,
    };
    let mut report = Report::default();
    // SAFETY: the structs are those of kernels/emulator/emulator.h, and everything they point to lives until the call returns;
    // the caller vouches for the regions. The callbacks get the report and strings that end with zero.
    unsafe {
        raw::inducer_emulator_launch(
            &raw const raw_launch,
            &raw const raw_options,
            (&raw mut report).cast(),
            note_fault,
            note_site,
        );
    }
    report
}

/// All kernels in the table, those of the emulator's own tests among them.
pub fn kernels() -> Vec<Kernel> {
    let mut kernels: Vec<Kernel> = Vec::new();
    // SAFETY: the callback gets the vector back, and strings that end with zero.
    unsafe { raw::inducer_emulator_kernels((&raw mut kernels).cast(), note_kernel) };
    kernels.sort_by(|a, b| a.name.cmp(&b.name));
    kernels
}

/// # Safety
///
/// `text` must end with zero.
unsafe fn string(text: *const c_char) -> String {
    // SAFETY: as the caller promises.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

unsafe extern "C" fn note_fault(report: *mut c_void, name: *const c_char, text: *const c_char) {
    // SAFETY: `launch` passes its report, which it does not touch during the call, and the emulator two strings.
    unsafe { (*report.cast::<Report>()).faults.push(Fault { name: string(name), text: string(text) }) };
}

unsafe extern "C" fn note_site(report: *mut c_void, kind: *const c_char, file: *const c_char, line: i32) {
    // SAFETY: likewise.
    let site = unsafe { Site { kind: string(kind), file: string(file), line: line.unsigned_abs() } };
    // SAFETY: likewise.
    unsafe { (*report.cast::<Report>()).sites.push(site) };
}

unsafe extern "C" fn note_kernel(
    kernels: *mut c_void,
    name: *const c_char,
    threads: u32,
    shared_bytes: u32,
    params_bytes: u64,
) {
    // SAFETY: the emulator passes a string.
    let name = unsafe { string(name) };
    let kernel = Kernel { name, threads, shared_bytes, params_bytes: params_bytes as usize };
    // SAFETY: `kernels` passes its vector, which it does not touch during the call.
    unsafe { (*kernels.cast::<Vec<Kernel>>()).push(kernel) };
}
