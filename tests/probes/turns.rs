//! Blocks that hand on what they have written.

use super::{Kernel, machines};

/// PTX ISA, memory consistency: what was written before a release is seen after the acquire that reads its value, by other
/// threads of both blocks through their barriers as well.
#[test]
fn blocks_see_what_earlier_turns_have_written() {
    const TURNS: Kernel = Kernel { name: "probe_turns", threads: 64, shared_bytes: 16, in_out: true };
    for machine in machines() {
        // On a GPU more than it runs at a time.
        let blocks = if machine.name() == "GPU" { 8192 } else { 24 };
        let mut output = vec![0; 4 + blocks * 64];
        machine.run(&TURNS, blocks as u32, &[], &mut output);
        let (name, sum) = (machine.name(), f32::from_bits(output[2]));
        assert_eq!(
            (output[0], output[1], sum),
            (blocks as u32, blocks as u32, 64.0 * blocks as f32),
            "{name}"
        );
        for (ticket, written) in output[4..].chunks_exact(64).enumerate() {
            assert!(
                written.iter().all(|&w| w as usize == ticket + 1),
                "{name}: ticket {ticket}: {written:?}"
            );
        }
    }
}
