//! Copies to shared memory, shuffles, votes.

use super::{Kernel, machines, random};

/// PTX ISA, cp.async: with a source size of 0 nothing is read and the destination becomes zero; groups are done in order.
#[test]
fn copies_arrive_group_by_group_and_invalid_ones_become_zero() {
    const COPIES: Kernel =
        Kernel { name: "probe_copies", threads: 128, shared_bytes: 3 * 128 * 16, in_out: false };
    let mut next = random(1);
    let mut input: Vec<u32> = (0..3 * 512).map(|_| next() as u32).collect();
    let valid: Vec<bool> = (0..128).map(|_| !next().is_multiple_of(3)).collect();
    input.extend(valid.iter().map(|&v| u32::from(v)));
    for machine in machines() {
        let mut output = vec![0; 512];
        machine.run(&COPIES, 1, &input, &mut output);
        for thread in 0..128 {
            let word = |group: usize, of: usize, i: usize| {
                if valid[of] { input[group * 512 + of * 4 + i] } else { 0 }
            };
            let expected =
                [word(0, thread, 0), word(1, thread, 0), word(2, thread, 0), word(2, (thread + 33) % 128, 3)];
            assert_eq!(output[thread * 4..][..4], expected, "{}: thread {thread}", machine.name());
        }
    }
}

/// PTX ISA, shfl.sync.bfly and .idx; vote.sync.any.
#[test]
fn shuffles_take_the_lane_that_they_name() {
    const SHUFFLES: Kernel = Kernel::warp("probe_shuffles");
    for negative in [None, Some(0usize), Some(31)] {
        let numbers: Vec<f32> =
            (0..32).map(|l| if negative == Some(l) { -1.0 } else { l as f32 + 0.5 }).collect();
        let lanes: Vec<u32> = (0..32).map(|l| (l * 7 + 3) % 32).collect();
        let input: Vec<u32> = numbers.iter().map(|x| x.to_bits()).chain(lanes.iter().copied()).collect();
        for machine in machines() {
            let mut output = vec![0; 32 * 7];
            machine.run(&SHUFFLES, 1, &input, &mut output);
            for lane in 0..32 {
                let got: Vec<f32> = output[lane * 7..][..7].iter().map(|&w| f32::from_bits(w)).collect();
                let mut expected: Vec<f32> =
                    [1, 2, 4, 8, 16].iter().map(|mask| numbers[lane ^ mask]).collect();
                expected.push(numbers[lanes[lane] as usize]);
                expected.push(f32::from(u8::from(negative.is_some())));
                assert_eq!(got, expected, "{}: lane {lane}", machine.name());
            }
        }
    }
}

/// PTX ISA, barrier.red.or.
#[test]
fn a_vote_of_the_block_hears_every_thread() {
    const VOTES: Kernel = Kernel { name: "probe_votes", threads: 128, shared_bytes: 0, in_out: false };
    // Nobody, the first, the last, one in the middle, everybody.
    let setters: [&dyn Fn(usize) -> bool; 5] =
        [&|_| false, &|t| t == 0, &|t| t == 127, &|t| t == 70, &|_| true];
    let input: Vec<u32> =
        setters.iter().flat_map(|set| (0..128).map(|thread| u32::from(set(thread)))).collect();
    for machine in machines() {
        let mut output = vec![7; input.len()];
        machine.run(&VOTES, setters.len() as u32, &input, &mut output);
        let expected: Vec<u32> = (0..input.len()).map(|i| u32::from(i / 128 > 0)).collect();
        assert_eq!(output, expected, "{}", machine.name());
    }
}
