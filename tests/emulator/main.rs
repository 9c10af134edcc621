//! The emulator that runs the CUDA kernels on the host: its instructions against the tables of the PTX ISA, and the faults
//! that it must find. The kernels run here are in `kernels/emulator/selftest`.

// Instructions are held to numbers that are exactly representable.
#![allow(clippy::float_cmp)]

mod copies;
mod faults;
mod instructions;
mod launch;
mod products;
mod run;
mod warpgroups;

use inducer_attention::cuda::kernels::KERNELS;
use inducer_attention::emulator::kernels;

#[test]
fn the_table_lists_the_forward_kernels() {
    let table = kernels();
    for kernel in KERNELS.iter().filter(|k| k.name.starts_with("forward")) {
        let found = table.iter().find(|k| k.name == kernel.name);
        let found = found.unwrap_or_else(|| panic!("{} is not in the emulator's table", kernel.name));
        assert_eq!(found.threads, kernel.threads(), "{}", kernel.name);
    }
}
