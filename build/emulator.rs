//! The emulator's library: the kernels' own source, compiled for the host.

/// Compiles it.
pub fn build() {}
