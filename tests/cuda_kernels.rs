//! The table of kernels and the launch structs agree with the C++ sources, as the emulator has compiled them.

#![cfg(feature = "emulator")]

use std::collections::BTreeMap;
use std::mem::size_of;

use inducer_attention::cuda::kernels::{KERNELS, Pass};
use inducer_attention::cuda::params::{BackwardParams, ForwardParams};
use inducer_attention::emulator;

#[test]
fn the_table_agrees_with_the_sources() {
    let there: BTreeMap<_, _> = emulator::kernels().into_iter().map(|k| (k.name.clone(), k)).collect();
    for kernel in KERNELS {
        // A pass whose source is still to be written has no kernel there.
        let Some(compiled) = there.get(kernel.name) else { continue };
        assert_eq!(kernel.threads(), compiled.threads, "threads of {}", kernel.name);
        assert_eq!(kernel.shared_bytes(), compiled.shared_bytes, "shared memory of {}", kernel.name);
        let params = match kernel.pass {
            Pass::Forward => size_of::<ForwardParams>(),
            Pass::BackwardPrepare | Pass::Backward | Pass::BackwardFinish => size_of::<BackwardParams>(),
        };
        assert_eq!(params, compiled.params_bytes, "parameters of {}", kernel.name);
    }
    assert!(KERNELS.iter().any(|k| there.contains_key(k.name)), "the emulator has no kernel of the table");
}
