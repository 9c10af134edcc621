//! Launches that do not fit their kernel, and the launches of several OS threads at once.

use inducer_attention::emulator::{Launch, Memory, Options, Region, Report, launch};

use crate::run::{Params, find, run};

fn refused(change: impl Fn(&mut Launch<'_>)) -> Report {
    let (input, output) = (Memory::of(&[0_u32; 512]), Memory::new(512));
    let params = Params::new(&input, &output, 0);
    let kernel = find("selftest_sound_missing_barrier");
    let regions = [input.input(), output.output()];
    let mut request = Launch {
        kernel: &kernel.name,
        grid: 1,
        threads: kernel.threads,
        shared_bytes: kernel.shared_bytes,
        params: bytemuck::bytes_of(&params),
        regions: &regions,
    };
    change(&mut request);
    // SAFETY: the regions are `Memory`, which nothing else uses meanwhile.
    unsafe { launch(&request, &Options::default()) }
}

#[test]
fn a_launch_must_fit_its_kernel() {
    assert!(refused(|_| ()).is_clean());
    assert!(refused(|launch| launch.kernel = "no such kernel").has("launch refused"));
    assert!(refused(|launch| launch.grid = 0).has("launch refused"));
    assert!(refused(|launch| launch.threads = 64).has("launch refused"));
    assert!(refused(|launch| launch.shared_bytes = 511).has("launch refused"));
    assert!(refused(|launch| launch.params = &[0; 8]).has("launch refused"));
}

#[test]
fn regions_must_not_overlap() {
    let memory = Memory::of(&[0_u32; 1024]);
    let whole = memory.in_out();
    // SAFETY: 64 bytes lie within.
    let part = Region { address: unsafe { whole.address.add(64) }, bytes: 64, ..whole };
    let params = Params::new(&memory, &memory, 0);
    let report = run("selftest_sound_missing_barrier", 1, &params, &[whole, part], &Options::default());
    assert!(report.has("launch refused"), "{report}");
}

#[test]
fn os_threads_launch_at_the_same_time() {
    std::thread::scope(|scope| {
        for start in 0..4_u32 {
            scope.spawn(move || {
                let words: Vec<u32> = (start..start + 512).collect();
                let input = Memory::of(&words);
                for round in 0..20 {
                    let output = Memory::new(512);
                    let params = Params::new(&input, &output, 0);
                    let regions = [input.input(), output.output()];
                    let options = Options { seed: round, ..Options::default() };
                    let report = run("selftest_sound_missing_barrier", 1, &params, &regions, &options);
                    assert!(report.is_clean(), "{report}");
                    let expected: Vec<u32> = (start..start + 128).rev().collect();
                    assert_eq!(output.read::<u32>(), expected);
                    let report = run("selftest_fault_missing_barrier", 1, &params, &regions, &options);
                    assert!(!report.is_clean());
                }
            });
        }
    });
}
