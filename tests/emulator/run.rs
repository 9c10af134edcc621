//! Launches of selftest kernels.

use bytemuck::{NoUninit, bytes_of};
use inducer_attention::emulator::{
    CopyTiming, Kernel, Launch, Memory, Options, Policy, Region, Report, kernels, launch,
};

/// Every scheduling policy with every timing of copies and products, for a block of so many warps, with a few seeds where there is
/// something to draw.
pub(crate) fn all_orders(warps: u32) -> Vec<Options> {
    let mut orders = Vec::new();
    let policies = [
        (Policy::RoundRobin, 1),
        (Policy::OneWarpAhead, u64::from(warps)),
        (Policy::Reversed, 1),
        (Policy::Random, 4),
    ];
    for (policy, seeds) in policies {
        for copies in [CopyTiming::Early, CopyTiming::Late, CopyTiming::Random] {
            for seed in 0..seeds {
                orders.push(Options { policy, copies, seed, ..Options::default() });
            }
        }
    }
    orders
}

pub(crate) fn find(name: &str) -> Kernel {
    kernels().into_iter().find(|k| k.name == name).unwrap_or_else(|| panic!("no kernel is called {name}"))
}

/// Runs a kernel as it wants to be run.
pub(crate) fn run<P: NoUninit>(
    name: &str,
    grid: u32,
    params: &P,
    regions: &[Region],
    options: &Options,
) -> Report {
    let kernel = find(name);
    let request = Launch {
        kernel: name,
        grid,
        threads: kernel.threads,
        shared_bytes: kernel.shared_bytes,
        params: bytes_of(params),
        regions,
    };
    // SAFETY: the regions are `Memory`, which nothing else uses meanwhile.
    unsafe { launch(&request, options) }
}

/// Parameters of `instructions.cu` and of most of `faults.cu`: addresses of input and output, and a number.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct Params {
    pub(crate) input: u64,
    pub(crate) output: u64,
    pub(crate) argument: i32,
    pub(crate) padding: i32,
}

impl Params {
    pub(crate) fn new(input: &Memory, output: &Memory, argument: i32) -> Self {
        let address = |memory: &Memory| memory.address() as u64;
        Self { input: address(input), output: address(output), argument, padding: 0 }
    }
}

/// Runs one block on words and returns as many words as asked for. There may be no faults, in any order of execution.
pub(crate) fn transform(name: &str, input: &[u32], outputs: usize, argument: i32) -> Vec<u32> {
    let input = Memory::of(input);
    let mut results = Vec::new();
    for options in all_orders(4) {
        let output = Memory::new(outputs * 4);
        let params = Params::new(&input, &output, argument);
        let report = run(name, 1, &params, &[input.input(), output.output()], &options);
        assert!(report.is_clean(), "{name}, {options:?}: {report}");
        results.push(output.read::<u32>());
    }
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{name}: the order of execution shows");
    results.swap_remove(0)
}
