//! Seeded faults in what warpgroups do, as `faults.rs`, and barriers in shared memory from phase to phase.

use half::bf16;
use inducer_attention::emulator::{CopyTiming, Memory, Options, Report};

use crate::run::{Params, all_orders, expect_only, faults, find, run};

const READ_AFTER_WRITE: &str = "race (read after unsynchronised write)";
const WRITE_AFTER_READ: &str = "race (write after unsynchronised read)";
const WRITE_AFTER_WRITE: &str = "race (write after write)";
const OUT_OF_BOUNDS: &str = "out of bounds";
const UNINITIALISED: &str = "uninitialised shared read";
const MISALIGNED: &str = "misaligned";
const DIVERGENT: &str = "divergent lanes at collective";
const DEADLOCK: &str = "deadlock";
const NOT_FENCED: &str = "shared write not fenced for the async proxy";
const NO_FENCE: &str = "wgmma without fence";
const TOUCHED: &str = "registers of a product under way were touched";
const TOUCHED_AFTER: &str = "registers of a product were touched after its fence";
const OPERANDS_DIFFER: &str = "operands of a warpgroup's product differ";
const NOT_ALIGNED: &str = "matrix not aligned to 1024 bytes";
const WITHIN_COLUMNS: &str = "matrix begins within a product's columns";
const UNSUPPORTED: &str = "matrix descriptor with an unsupported field";
const NOT_INITIALISED: &str = "mbarrier not initialised";
const INITIALISED_TWICE: &str = "mbarrier initialised twice";
const MBARRIER_COUNT: &str = "mbarrier with a wrong count";
const BEYOND_COUNT: &str = "mbarrier arrival beyond its phase's count";
const LEFT_WITHIN: &str = "mbarrier left within a phase";
const BARRIER_TOUCHED: &str = "mbarrier accessed as memory";
const NAMED_COUNT: &str = "named barrier with a wrong count";
const REGISTER_COUNT: &str = "register count that is no multiple of 8 from 24 to 256";
const REGISTERS_DIFFER: &str = "warps of a warpgroup hand over different registers";

/// What a kernel made of small numbers without a pattern, and what was wrong with it.
fn attempt(name: &str, options: &Options) -> (Report, Vec<u32>) {
    let mut state = 1_u32;
    let mut draw = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        u32::from(bf16::from_f32(((state >> 24) % 9) as f32 - 4.0).to_bits())
    };
    let words: Vec<u32> = (0..2048 + 512).map(|_| draw() | draw() << 16).collect();
    let (input, output) = (Memory::of(&words), Memory::new(512));
    let report = run(name, 1, &Params::new(&input, &output, 0), &[input.input(), output.output()], options);
    (report, output.read())
}

/// The faulty kernel has, in every order, a fault of one of these names, and no fault of another. Without the fault it has none,
/// and the same results in every order.
fn catches(name: &str, names: &[&str]) {
    let mut results: Option<Vec<u32>> = None;
    for options in all_orders(find(&format!("selftest_fault_hopper_{name}")).threads / 32) {
        let (report, _) = attempt(&format!("selftest_fault_hopper_{name}"), &options);
        expect_only(&report, names, name, &options);
        let (sound, result) = attempt(&format!("selftest_sound_hopper_{name}"), &options);
        assert!(sound.is_clean(), "without the fault of {name}, {options:?}: {sound}");
        let first = results.get_or_insert_with(|| result.clone());
        assert_eq!(*first, result, "{name}, {options:?}: the order of execution shows");
    }
}

// Where several names stand, the order of execution decides, or what follows from the first one.
faults! {
    unfenced_store: NOT_FENCED;
    fenced_by_some: NOT_FENCED;
    fenced_by_reader: NOT_FENCED;
    stored_behind_fence: NOT_FENCED;
    unfenced_copy: NOT_FENCED;
    fence_before_wait: NOT_FENCED;
    fence_as_barrier: READ_AFTER_WRITE;
    unwritten_row: UNINITIALISED;
    product_without_fence: NO_FENCE;
    product_without_commit: TOUCHED;
    product_without_wait: TOUCHED;
    second_group_without_fence: NO_FENCE;
    lax_product_wait: TOUCHED;
    scaled_after_fence: TOUCHED_AFTER;
    operand_after_fence: TOUCHED_AFTER;
    written_under_way: TOUCHED;
    operand_written_under_way: TOUCHED;
    operand_of_sum: TOUCHED;
    refill_under_way: WRITE_AFTER_READ;
    copy_under_way: WRITE_AFTER_READ;
    lane_apart: DIVERGENT;
    warp_apart: DIVERGENT;
    warp_missing: DIVERGENT;
    warp_commits_twice: DIVERGENT;
    operands_differ: OPERANDS_DIFFER;
    tile_not_aligned: NOT_ALIGNED;
    stride_not_aligned: NOT_ALIGNED;
    start_in_columns: WITHIN_COLUMNS;
    other_swizzle: UNSUPPORTED;
    matrix_outside: OUT_OF_BOUNDS;
    ring_without_fence: NOT_FENCED;
    ring_without_warp_barrier: READ_AFTER_WRITE, UNINITIALISED, NOT_FENCED, WRITE_AFTER_READ, DEADLOCK;
    ring_arrival_missing: DEADLOCK;
    ring_arrival_twice: BEYOND_COUNT, LEFT_WITHIN, READ_AFTER_WRITE, WRITE_AFTER_READ, UNINITIALISED, NOT_FENCED, DEADLOCK;
    ring_early_arrival: READ_AFTER_WRITE, WRITE_AFTER_WRITE;
    ring_without_wait: WRITE_AFTER_READ, READ_AFTER_WRITE, BEYOND_COUNT, UNINITIALISED, DEADLOCK;
    ring_wrong_parity: READ_AFTER_WRITE, WRITE_AFTER_READ, UNINITIALISED, NOT_FENCED, BEYOND_COUNT, LEFT_WITHIN, DEADLOCK;
    ring_wrong_start: DEADLOCK;
    ring_gives_back_early: WRITE_AFTER_READ, READ_AFTER_WRITE;
    ring_one_wait: READ_AFTER_WRITE, UNINITIALISED;
    barrier_without_init: NOT_INITIALISED;
    barrier_after_init: NOT_INITIALISED, READ_AFTER_WRITE;
    barrier_init_twice: INITIALISED_TWICE;
    barrier_read: BARRIER_TOUCHED;
    barrier_written: BARRIER_TOUCHED;
    barrier_misaligned: MISALIGNED;
    barrier_of_nobody: MBARRIER_COUNT;
    barrier_over_data: WRITE_AFTER_READ, BARRIER_TOUCHED;
    barrier_half_full: LEFT_WITHIN, BEYOND_COUNT;
    phases: DEADLOCK;
    barrier_not_waited_for: READ_AFTER_WRITE, WRITE_AFTER_READ, UNINITIALISED;
    pairs_of_warps: READ_AFTER_WRITE, WRITE_AFTER_READ, UNINITIALISED;
    pairs_without_barrier: READ_AFTER_WRITE, WRITE_AFTER_READ, UNINITIALISED;
    counts_differ: NAMED_COUNT;
    count_too_large: NAMED_COUNT;
    barrier_zero: NAMED_COUNT;
    barrier_sixteen: NAMED_COUNT;
    warp_does_not_come: DEADLOCK;
    lane_at_other_barrier: NAMED_COUNT;
    odd_registers: REGISTER_COUNT;
    too_few_registers: REGISTER_COUNT;
    registers_of_some: REGISTERS_DIFFER;
    registers_differ: REGISTERS_DIFFER;
    registers_run_out: DEADLOCK;
}

/// Each barrier, fence, wait, commit and arrival of these kernels can be left out, and that is noticed in some order.
#[test]
fn what_is_left_out_is_missed() {
    for name in [
        "unfenced_copy",
        "lax_product_wait",
        "ring_without_fence",
        "pairs_of_warps",
        "barrier_not_waited_for",
    ] {
        let name = format!("selftest_sound_hopper_{name}");
        let sites = attempt(&name, &Options::default()).0.sites;
        assert!(!sites.is_empty(), "{name}");
        for site in sites {
            let missed = all_orders(find(&name).threads / 32).into_iter().any(|options| {
                let disabled = Some((site.file.clone(), site.line));
                !attempt(&name, &Options { disabled, ..options }).0.is_clean()
            });
            assert!(missed, "{name}: nobody misses {site:?}");
        }
    }
}

#[test]
fn reports_say_where() {
    let text = attempt("selftest_fault_hopper_ring_arrival_missing", &Options::default()).0.to_string();
    assert!(text.contains("at the barrier in shared memory + 0x4008, for parity 1"), "{text}");
    let text = attempt("selftest_fault_hopper_warp_does_not_come", &Options::default()).0.to_string();
    assert!(text.contains("block 0, warp 2, lanes ffffffff: at a barrier of some warps"), "{text}");
    let text = attempt("selftest_fault_hopper_registers_run_out", &Options::default()).0.to_string();
    assert!(text.contains("with 168 registers and in want of 224; the block has 24 to give"), "{text}");
    let text = attempt("selftest_fault_hopper_refill_under_way", &Options::default()).0.to_string();
    assert!(text.contains("against a product of warpgroup 0 of block 0"), "{text}");
}

/// One warp hands numbers to the three others in seven phases, and each waits for what the other side gives back.
#[test]
fn phases_alternate() {
    for options in all_orders(4) {
        let (report, result) = attempt("selftest_sound_hopper_phases", &options);
        assert!(report.is_clean(), "{options:?}: {report}");
        // The sum of phase·100 + lane.
        let expected = |thread: u32| if thread < 32 { 7 } else { 2100 + 7 * (thread % 32) };
        assert_eq!(result, (0..128).map(expected).collect::<Vec<_>>(), "{options:?}");
    }
}

/// What a product reads is read when it is carried out, not when it is issued.
#[test]
fn a_late_product_reads_late() {
    let seen = |kernel: &str, copies| {
        let options = Options { copies, detector: false, ..Options::default() };
        attempt(&format!("selftest_{kernel}_hopper_refill_under_way"), &options).1
    };
    assert_eq!(seen("sound", CopyTiming::Early), seen("sound", CopyTiming::Late));
    assert_eq!(seen("fault", CopyTiming::Early), seen("sound", CopyTiming::Early));
    assert_ne!(seen("fault", CopyTiming::Late), seen("sound", CopyTiming::Late));
}

/// Without the detector every kernel that has no fault of its own runs to its end, and what is left of the checks finds nothing.
#[test]
fn sound_kernels_run_without_the_detector() {
    for kernel in inducer_attention::emulator::kernels() {
        if kernel.name.starts_with("selftest_sound_hopper_") {
            let (checked, with) = attempt(&kernel.name, &Options::default());
            let (unchecked, without) =
                attempt(&kernel.name, &Options { detector: false, ..Options::default() });
            assert!(checked.is_clean() && unchecked.is_clean(), "{}: {checked}; {unchecked}", kernel.name);
            assert_eq!(with, without, "{}", kernel.name);
        }
    }
}
