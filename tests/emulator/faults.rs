//! Seeded faults: kernels with one fault each, which must be called by its name whatever the order of execution, and the same
//! kernels without it, which must be clean.

use inducer_attention::emulator::{Memory, Options, Report};

use crate::run::{Params, all_orders, expect_only, faults, run};

const READ_AFTER_WRITE: &str = "race (read after unsynchronised write)";
const WRITE_AFTER_READ: &str = "race (write after unsynchronised read)";
const WRITE_AFTER_WRITE: &str = "race (write after write)";
const OUT_OF_BOUNDS: &str = "out of bounds";
const READ_ONLY: &str = "read-only memory written";
const UNINITIALISED_SHARED: &str = "uninitialised shared read";
const UNINITIALISED_GLOBAL: &str = "uninitialised global read";
const MISALIGNED: &str = "misaligned";
const DIVERGENT: &str = "divergent lanes at collective";
const DEADLOCK: &str = "deadlock";

/// Elements of the tail tests: no multiple of a warp, and one of a copy.
const TAIL: i32 = 100;

fn attempt(name: &str, options: &Options) -> Report {
    let tail = name.contains("tail");
    let between_blocks = ["release", "relaxed", "acquire", "deadlock", "chain", "collide", "atomic", "turn"];
    let between_blocks = between_blocks.iter().any(|word| name.contains(word));
    let grid = if name.contains("chain") {
        3
    } else if between_blocks {
        2
    } else {
        1
    };
    let words: Vec<u32> = (1..=if tail { TAIL as u32 } else { 2048 }).collect();
    let input = Memory::of(&if name.contains("shared_tail") { vec![1; 128] } else { words });
    let output = if between_blocks {
        Memory::of(&[0_u32; 32 + 128])
    } else {
        Memory::new(if name.contains("tail_read") || name.contains("tail_write") {
            TAIL as usize * 4
        } else {
            512
        })
    };
    let regions = [input.input(), if between_blocks { output.in_out() } else { output.output() }];
    run(name, grid, &Params::new(&input, &output, TAIL), &regions, options)
}

/// The faulty kernel has, in every order, a fault of one of these names, and no fault of another.
fn catches(name: &str, names: &[&str]) {
    for options in all_orders(4) {
        let report = attempt(&format!("selftest_fault_{name}"), &options);
        expect_only(&report, names, name, &options);
        let sound = attempt(&format!("selftest_sound_{name}"), &options);
        assert!(sound.is_clean(), "without the fault of {name}, {options:?}: {sound}");
    }
}

// Where two names stand, the order of execution decides which of two accesses comes second.
faults! {
    missing_barrier: READ_AFTER_WRITE, WRITE_AFTER_READ, UNINITIALISED_SHARED;
    early_refill: WRITE_AFTER_READ, READ_AFTER_WRITE;
    early_copy: WRITE_AFTER_READ, READ_AFTER_WRITE;
    missing_wait: READ_AFTER_WRITE;
    lax_wait: READ_AFTER_WRITE, WRITE_AFTER_WRITE;
    missing_commit: READ_AFTER_WRITE;
    wait_after_barrier: READ_AFTER_WRITE;
    copy_twice: WRITE_AFTER_WRITE;
    tail_read: OUT_OF_BOUNDS;
    tail_write: OUT_OF_BOUNDS;
    tail_copy: OUT_OF_BOUNDS;
    shared_tail: OUT_OF_BOUNDS;
    uninitialised_shared: UNINITIALISED_SHARED;
    uninitialised_rows: UNINITIALISED_SHARED;
    uninitialised_global: UNINITIALISED_GLOBAL;
    divergent_lanes: DIVERGENT;
    early_exit: DIVERGENT;
    skipped_barrier: DIVERGENT;
    missing_sync_warp: READ_AFTER_WRITE, WRITE_AFTER_READ, UNINITIALISED_SHARED;
    shuffle_as_barrier: READ_AFTER_WRITE, WRITE_AFTER_READ;
    sync_warp_between_warps: READ_AFTER_WRITE, WRITE_AFTER_READ, UNINITIALISED_SHARED;
    rows_without_barrier: READ_AFTER_WRITE;
    refill_of_rows: WRITE_AFTER_READ;
    same_word: WRITE_AFTER_WRITE;
    misaligned_row: MISALIGNED;
    misaligned_copy: MISALIGNED;
    misaligned_word: MISALIGNED;
    write_to_input: READ_ONLY;
    release_without_barrier: READ_AFTER_WRITE, WRITE_AFTER_WRITE, WRITE_AFTER_READ;
    relaxed_release: READ_AFTER_WRITE, WRITE_AFTER_WRITE;
    relaxed_acquire: READ_AFTER_WRITE, WRITE_AFTER_WRITE;
    acquire_without_barrier: READ_AFTER_WRITE, WRITE_AFTER_READ, WRITE_AFTER_WRITE;
    deadlock: DEADLOCK;
    chain: READ_AFTER_WRITE, WRITE_AFTER_READ, WRITE_AFTER_WRITE;
    blocks_collide: WRITE_AFTER_WRITE;
    plain_and_atomic: WRITE_AFTER_WRITE;
    add_out_of_turn: READ_AFTER_WRITE, WRITE_AFTER_WRITE, WRITE_AFTER_READ;
}

/// Whether blocks run at the same time makes no difference to what is a race, but one that waits for a later one never ends.
#[test]
fn blocks_one_after_the_other_race_all_the_same() {
    let options = Options { resident_blocks: 1, ..Options::default() };
    for (name, fault) in [
        ("release_without_barrier", READ_AFTER_WRITE),
        ("relaxed_release", READ_AFTER_WRITE),
        ("relaxed_acquire", READ_AFTER_WRITE),
        ("blocks_collide", WRITE_AFTER_WRITE),
        ("plain_and_atomic", WRITE_AFTER_WRITE),
        ("deadlock", DEADLOCK),
    ] {
        let report = attempt(&format!("selftest_fault_{name}"), &options);
        assert!(report.has(fault), "{name}: {report}");
        let sound = attempt(&format!("selftest_sound_{name}"), &options);
        assert!(sound.is_clean(), "{name}: {sound}");
    }
}

#[test]
fn reports_say_where() {
    let report = attempt("selftest_fault_tail_copy", &Options::default());
    let text = report.to_string();
    assert!(text.contains("region 0 + 0x190 (of 0x190 bytes)"), "{text}");
    assert!(text.contains("thread 25 of block 0"), "{text}");
    assert!(text.contains("faults.cu:"), "{text}");
    let report = attempt("selftest_fault_deadlock", &Options::default());
    let text = report.to_string();
    assert!(text.contains("block 1, warp 0, lanes 00000001: in a loop that waits"), "{text}");
    assert!(text.contains("block 1, warp 3, lanes ffffffff: at a barrier of the block"), "{text}");
}

/// Each barrier, wait, commit, acquire and release of these kernels can be left out, and that is noticed.
#[test]
fn what_is_left_out_is_missed() {
    for name in [
        "missing_barrier",
        "early_refill",
        "missing_wait",
        "lax_wait",
        "missing_commit",
        "missing_sync_warp",
        "refill_of_rows",
        "release_without_barrier",
    ] {
        let name = format!("selftest_sound_{name}");
        let sites = attempt(&name, &Options::default()).sites;
        assert!(!sites.is_empty(), "{name}");
        for site in sites {
            let disabled = Some((site.file.clone(), site.line));
            let report = attempt(&name, &Options { disabled, ..Options::default() });
            assert!(!report.is_clean(), "{name}: nobody misses {site:?}");
        }
    }
}

/// Without the detector every kernel that has no fault of its own runs to its end.
#[test]
fn sound_kernels_run_without_the_detector() {
    for kernel in inducer_attention::emulator::kernels() {
        if kernel.name.starts_with("selftest_sound_") && !kernel.name.contains("hopper") {
            let report = attempt(&kernel.name, &Options { detector: false, ..Options::default() });
            assert!(report.is_clean(), "{}: {report}", kernel.name);
        }
    }
}
