//! What a call asks of the driver.

use crate::call::{Call, assert_close, on_cpu, values};
use crate::world::{calls, context, emulated, engine};

/// What the launch path may call: nothing here allocates, copies or waits.
const ALLOWED: [&str; 5] =
    ["cuCtxGetCurrent", "cuCtxSetCurrent", "cuLaunchKernel", "cuStreamWaitEvent", "cuEventRecord"];

fn launches_and_nothing_else(streams: usize) {
    let here = context(0);
    let engine = engine(&here);
    let streams: Vec<_> = (0..streams).map(|_| here.new_stream().expect("a stream")).collect();
    let stream = streams.first().cloned().unwrap_or_else(|| here.default_stream());
    let inputs = values(1);
    let mut call = Call::new(&stream, &inputs, [70, 50]);
    // Another context is the current one.
    let _there = context(1);
    let count = || ALLOWED.map(calls);
    let (before, all_before) = (count(), calls(""));
    call.run(&engine, &stream);
    let (after, all_after) = (count(), calls(""));
    let allowed: u64 = after.iter().zip(before).map(|(a, b)| a - b).sum();
    assert_eq!(allowed, all_after - all_before, "something besides {ALLOWED:?} was called");
    assert_eq!(after[2] - before[2], 4, "launches of a forward and a backward");
    assert_close(&call.results(&stream), &on_cpu(&inputs, [70, 50]));
}

#[test]
fn a_call_on_the_default_stream_neither_allocates_nor_waits() {
    emulated(&[], || launches_and_nothing_else(0));
}

#[test]
fn a_call_on_one_of_many_streams_neither_allocates_nor_waits() {
    emulated(&[], || launches_and_nothing_else(2));
}

/// Kernels may come to run long after the call has returned.
#[test]
fn nothing_has_run_when_a_call_returns() {
    emulated(&[], || {
        let context = context(0);
        let engine = engine(&context);
        let stream = context.new_stream().expect("a stream");
        let mut call = Call::new(&stream, &values(1), [70, 50]);
        let before = stream.record_event(None).expect("an event");
        call.run(&engine, &stream);
        assert!(!before.is_complete(), "the stream should still have work to do");
    });
}
