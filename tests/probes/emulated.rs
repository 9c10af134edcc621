//! The probes on the emulator, in every order that it knows.

use inducer_attention::emulator::{CopyTiming, Launch, Memory, Options, Policy, launch};

use super::{Kernel, Machine};

/// Runs a probe under every policy and timing; all must agree.
pub(crate) struct Emulator;

impl Machine for Emulator {
    fn name(&self) -> &'static str {
        "emulator"
    }

    fn has_warpgroups(&self) -> bool {
        true
    }

    fn run(&self, kernel: &Kernel, blocks: u32, input: &[u32], output: &mut [u32]) {
        let mut first: Option<Vec<u32>> = None;
        for policy in [Policy::RoundRobin, Policy::OneWarpAhead, Policy::Reversed, Policy::Random] {
            for copies in [CopyTiming::Early, CopyTiming::Late, CopyTiming::Random] {
                let from = Memory::of(input);
                let to = Memory::of(output);
                let addresses = [from.address() as u64, to.address() as u64];
                let mut regions = vec![if kernel.in_out { to.in_out() } else { to.output() }];
                regions.extend((!input.is_empty()).then(|| from.input()));
                let call = Launch {
                    kernel: kernel.name,
                    grid: blocks,
                    threads: kernel.threads,
                    shared_bytes: kernel.shared_bytes,
                    params: bytemuck::bytes_of(&addresses),
                    regions: &regions,
                };
                let options = Options { policy, copies, seed: 1, ..Options::default() };
                // SAFETY: the regions are those of `from` and `to`, which nothing else uses.
                let report = unsafe { launch(&call, &options) };
                assert!(report.is_clean(), "{} with {options:?}:\n{report}", kernel.name);
                let result = to.read();
                let expected = first.get_or_insert_with(|| result.clone());
                assert_eq!(*expected, result, "{} depends on the order: {options:?}", kernel.name);
            }
        }
        output.copy_from_slice(&first.expect("it ran"));
    }
}
