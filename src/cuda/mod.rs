//! The CUDA backend: handwritten kernels for every GPU since Ampere. The kernels' own source is tested on
//! an emulator, and they have passed the same tests on an H200.
//!
//! - [`plan`] turns a call into launches; it needs no GPU, and the emulator's tests use it as well (feature `emulator`).
//! - With feature `cuda`, `Engine` loads the kernels into a context of cudarc's and enqueues raw calls, `Scope` lends slices of
//!   device memory to calls safely, and `DeviceLists` holds lengths on the device.
//!
//! Kernels are compiled when the crate is built and a CUDA compiler is found; without one, the crate builds all the same, and
//! making an engine is [`Error::NoKernels`](crate::Error::NoKernels). A missing driver or device is an error value, too.
//!
//! # What the kernels ask for
//!
//! Everything that a [`Problem`](crate::Problem) can be is computed if
//!
//! - the head dimension is a multiple of [`HEAD_DIM_MULTIPLE`];
//! - rows of Q, K, V and prefix begin at multiples of 16 bytes, and in the backward those of the saved O or attn and of dO;
//! - rows of O, attn, dQ, dK and dV begin at multiples of two elements.
//!
//! Anything else is [`Error::DeviceHeadDim`](crate::Error::DeviceHeadDim) or [`Error::Misaligned`](crate::Error::Misaligned).
//!
//! # Environment variables of the build
//!
//! - `NVCC`, `CUDA_HOME`, `CUDA_PATH`, `CUDA_ROOT`: where the compiler is. They are looked at in this order, then `PATH` and
//!   `/usr/local/cuda`.
//! - `CUDARC_CUDA_VERSION`, such as `13000`: for cudarc, where it does not know the nvcc in `PATH`.
//! - `INDUCER_ATTENTION_CUDA_ARCHS`: targets, such as `80,90`. Otherwise those of the machine's GPUs; if it has none, one per
//!   generation. PTX is always there for GPUs that come later.
//! - `INDUCER_ATTENTION_CUDA_LINEINFO`: set to `1`, the same code carries the lines of the source that it comes from, which a
//!   profiler shows beside its counters.
//! - `INDUCER_ATTENTION_CUDA_FATBINS`: a folder of prebuilt fatbins with a `SHA256SUMS`, instead of compiling.

mod convert;
pub mod kernels;
mod lists;
pub mod params;
pub mod plan;

#[cfg(feature = "cuda")]
mod device_lists;
#[cfg(feature = "cuda")]
mod driver;
#[cfg(feature = "cuda")]
mod engine;
#[cfg(feature = "cuda")]
mod images;
#[cfg(feature = "cuda")]
mod scope;
#[cfg(feature = "cuda")]
mod workspace;

pub use convert::HEAD_DIM_MULTIPLE;
pub use lists::{Lists, RawList, RawLists};

/// The folder of the emulated driver, for tests that load it instead of the real one.
#[cfg(all(feature = "cuda", feature = "emulator", target_os = "linux"))]
#[doc(hidden)]
pub const EMULATED_DRIVER: &str = concat!(env!("OUT_DIR"), "/emulated_driver");

#[cfg(feature = "cuda")]
pub use cudarc;
#[cfg(feature = "cuda")]
pub use device_lists::DeviceLists;
#[cfg(feature = "cuda")]
pub use driver::{context, device_count, driver_present};
#[cfg(feature = "cuda")]
pub use engine::{Engine, Resources};
#[cfg(feature = "cuda")]
pub use images::{compiler_report, fatbins};
#[cfg(feature = "cuda")]
pub use scope::Scope;
#[cfg(feature = "cuda")]
pub use workspace::Workspace;
