//! Asynchronous copies: what is done when, and what a thread may rely on.

use inducer_attention::emulator::{CopyTiming, Memory, Options, Policy};

use crate::run::{Params, run};

/// What each thread sees with copies done at a given time; the same for all threads, but for what they copy.
fn look(copies: CopyTiming, seed: u64) -> Vec<[u32; 12]> {
    let words: Vec<u32> = (0..32 * 12).map(|i| 1000 + i).collect();
    let (input, output) = (Memory::of(&words), Memory::new(32 * 12 * 4));
    let options = Options { copies, seed, detector: false, ..Options::default() };
    let params = Params::new(&input, &output, 0);
    let report = run("selftest_copy_groups", 1, &params, &[input.input(), output.output()], &options);
    assert!(report.is_clean(), "{report}");
    output.read::<u32>().chunks(12).map(|thread| thread.try_into().unwrap()).collect()
}

#[test]
fn late_copies_are_done_by_the_wait_for_their_group() {
    const OLD: u32 = 7;
    for (thread, seen) in look(CopyTiming::Late, 0).into_iter().enumerate() {
        let a = 1000 + 12 * thread as u32;
        let (b, c) = (a + 4, a + 8);
        // wait<2>; wait<1>; wait<0>, when the third copy is in no group; wait<1> with an empty group behind it.
        let expected = [OLD, a, OLD, OLD, b, OLD, a, b, c, 0, b + 3, c + 3];
        assert_eq!(seen, expected, "thread {thread}");
    }
}

#[test]
fn early_copies_are_done_at_once() {
    for (thread, seen) in look(CopyTiming::Early, 0).into_iter().enumerate() {
        let a = 1000 + 12 * thread as u32;
        let (b, c) = (a + 4, a + 8);
        assert_eq!(seen, [a, a, b, c, b, c, a, b, c, 0, b + 3, c + 3], "thread {thread}");
    }
}

#[test]
fn copies_at_random_times_are_done_when_they_must_be() {
    let (mut early, mut late) = (0, 0);
    for seed in 0..8 {
        for (thread, seen) in look(CopyTiming::Random, seed).into_iter().enumerate() {
            let a = 1000 + 12 * thread as u32;
            let (b, c) = (a + 4, a + 8);
            for (at, must) in [(1, a), (4, b), (6, a), (7, b), (8, c), (9, 0), (10, b + 3), (11, c + 3)] {
                assert_eq!(seen[at], must, "seed {seed}, thread {thread}, look {at}");
            }
            for (at, new) in [(0, a), (2, b), (3, c), (5, c)] {
                assert!(seen[at] == 7 || seen[at] == new, "seed {seed}, thread {thread}, look {at}");
                if seen[at] == 7 { late += 1 } else { early += 1 }
            }
        }
    }
    assert!(early > 100 && late > 100, "{early} early, {late} late");
}

#[test]
fn a_late_copy_reads_late() {
    let output = Memory::new(32 * 16);
    let seen = |copies| {
        let options = Options { copies, detector: false, ..Options::default() };
        let params = Params::new(&output, &output, 0);
        run("selftest_copy_source", 1, &params, &[output.output()], &options);
        output.read::<u32>()[0]
    };
    assert_eq!(seen(CopyTiming::Early), 1);
    assert_eq!(seen(CopyTiming::Late), 2);
}

/// Writing to what a copy still reads is a race.
#[test]
fn the_source_of_a_copy_must_not_change() {
    for policy in [Policy::RoundRobin, Policy::Random] {
        let output = Memory::new(32 * 16);
        let options = Options { policy, ..Options::default() };
        let report =
            run("selftest_copy_source", 1, &Params::new(&output, &output, 0), &[output.output()], &options);
        assert!(report.has("race (write after unsynchronised read)"), "{report}");
    }
}
