//! Single instructions against the PTX ISA: what the emulator makes of them, and a GPU where there is one.
//!
//! Kernels and emulator could share a misreading of the ISA, and the expected values here could as well; on a GPU all three meet
//! the instruction itself.

#![cfg(any(feature = "cuda", feature = "emulator"))]

use std::sync::Once;

#[cfg(feature = "emulator")]
mod emulated;
#[cfg(feature = "cuda")]
mod gpu;

mod copies;
mod matrices;
mod numbers;
mod turns;
mod warpgroups;

/// Set it to make a missing GPU a failure.
const REQUIRE_GPU: &str = "INDUCER_ATTENTION_REQUIRE_GPU";

/// Something that runs the kernels of `kernels/probes.cu` and `kernels/probes_sm90.cu`.
trait Machine {
    /// Its name in reports.
    fn name(&self) -> &'static str;

    /// Whether it runs those of `kernels/probes_sm90.cu`.
    fn has_warpgroups(&self) -> bool;

    /// Runs `blocks` blocks; `output` has what lies there before, and gets what lies there after.
    fn run(&self, kernel: &Kernel, blocks: u32, input: &[u32], output: &mut [u32]);
}

/// A kernel.
struct Kernel {
    name: &'static str,
    threads: u32,
    shared_bytes: u32,
    /// Whether the output holds something before.
    in_out: bool,
}

impl Kernel {
    /// One of one warp, without shared memory.
    const fn warp(name: &'static str) -> Self {
        Self { name, threads: 32, shared_bytes: 0, in_out: false }
    }
}

/// All machines here.
fn machines() -> Vec<Box<dyn Machine>> {
    #[allow(unused_mut, reason = "a build without CUDA adds none")]
    let mut all: Vec<Box<dyn Machine>> = vec![
        #[cfg(feature = "emulator")]
        Box::new(emulated::Emulator),
    ];
    #[cfg(feature = "cuda")]
    match gpu::Gpu::open() {
        Ok(gpu) => all.push(Box::new(gpu)),
        Err(reason) => no_gpu(&reason),
    }
    #[cfg(not(feature = "cuda"))]
    no_gpu("this build has no CUDA backend");
    all
}

fn no_gpu(reason: &str) {
    static TOLD: Once = Once::new();
    assert!(std::env::var_os(REQUIRE_GPU).is_none(), "no GPU: {reason}");
    TOLD.call_once(|| eprintln!("left out: instructions on a GPU ({reason})"));
}

/// Numbers that are alike in every run (SplitMix64).
fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}
