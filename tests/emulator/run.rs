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

/// A test for each faulty kernel: `catches` is given its name and those of the faults that it must be found to have.
macro_rules! faults {
    ($($name:ident: $($expected:expr),+;)*) => {
        $(#[test]
        fn $name() {
            catches(stringify!($name), &[$($expected),+]);
        })*
    };
}
pub(crate) use faults;

/// A faulty kernel has a fault of one of these names, and no fault of another.
pub(crate) fn expect_only(report: &Report, names: &[&str], kernel: &str, options: &Options) {
    let found = names.iter().any(|name| report.has(name));
    assert!(found, "{kernel}, {options:?}: expected one of {names:?}: {report}");
    let only = report.faults.iter().all(|fault| names.contains(&fault.name.as_str()));
    assert!(only, "{kernel}, {options:?}: expected only {names:?}: {report}");
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
