//! Prepares what is not Rust: the table of kernels, their fatbins (feature `cuda`), the emulator's library (feature
//! `emulator`). Without these features it does nothing.

// Modules of a script are all private.
#![allow(unreachable_pub)]
#[cfg(any(feature = "cuda", feature = "emulator"))]
#[path = "build/kernel_list.rs"]
mod kernel_list;

#[cfg(any(feature = "cuda", feature = "emulator"))]
#[path = "build/elsewhere.rs"]
mod elsewhere;
#[cfg(feature = "cuda")]
#[path = "build/fatbins.rs"]
mod fatbins;
#[cfg(any(feature = "cuda", feature = "emulator"))]
#[path = "build/includes.rs"]
mod includes;
#[cfg(feature = "cuda")]
#[path = "build/nvcc.rs"]
mod nvcc;
#[cfg(any(feature = "cuda", feature = "emulator"))]
#[path = "build/pool.rs"]
mod pool;
#[cfg(all(feature = "cuda", feature = "emulator"))]
#[path = "build/probes.rs"]
mod probes;

#[cfg(feature = "emulator")]
#[path = "build/emulator.rs"]
mod emulator;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    #[cfg(any(feature = "cuda", feature = "emulator"))]
    kernel_list::generate();
    #[cfg(feature = "cuda")]
    fatbins::build();
    // For tests, which have both features.
    #[cfg(all(feature = "cuda", feature = "emulator"))]
    probes::build();
    #[cfg(feature = "emulator")]
    emulator::build();
}
