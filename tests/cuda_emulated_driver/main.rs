//! The CUDA backend from end to end without a GPU: on a CUDA driver whose kernels run on the emulator
//! (`kernels/emulator/driver`). What it runs is cudarc, the engine, scopes, lists, workspaces and graphs as they are; what it
//! cannot tell is whether nvcc's code does the same as the kernels' source, and whether the real driver is as this one.

#![cfg(all(feature = "cuda", feature = "emulator", target_os = "linux"))]

mod agreement;
mod call;
#[path = "../common/mod.rs"]
mod common;
mod driver;
mod graphs;
mod launch_path;
mod missing;
mod refused;
mod streams;
mod world;
