//! Streams, threads, and memory that goes from one to the other.

use std::any::Any;
use std::sync::Arc;

use inducer_attention::cuda::cudarc::driver::CudaStream;
use inducer_attention::cuda::{Engine, fatbins};

use crate::call::{Call, assert_close, bits, on_cpu, values};
use crate::world::{calls, context, emulated, engine};

const LENGTHS: [i32; 2] = [70, 50];

fn alone(engine: &Engine, stream: &Arc<CudaStream>, seed: u64) -> Vec<Vec<u32>> {
    let mut call = Call::new(stream, &values(seed), LENGTHS);
    call.run(engine, stream);
    bits(&call.results(stream))
}

#[test]
fn threads_and_streams_at_the_same_time_compute_the_same_bits() {
    emulated(&[], || {
        let context = context(0);
        let engine = engine(&context);
        let expected = [1, 50].map(|seed| alone(&engine, &context.default_stream(), seed));
        let work = || {
            let streams = [(); 2].map(|()| context.new_stream().expect("a stream"));
            let mut calls = [0, 1].map(|i| Call::new(&streams[i], &values([1, 50][i]), LENGTHS));
            for _ in 0..2 {
                for (call, stream) in calls.iter_mut().zip(&streams) {
                    call.run(&engine, stream);
                }
            }
            for i in [1, 0] {
                assert!(bits(&calls[i].results(&streams[i])) == expected[i], "stream {i}");
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(work);
            scope.spawn(work);
        });
        // Without those for Hopper, which this device is not.
        let own = fatbins().filter(|(name, _)| !name.ends_with("_sm90")).count();
        assert_eq!(calls("cuModuleLoadData"), own.max(1) as u64, "kernels are loaded once");
        context.synchronize().expect("nothing went wrong");
    });
}

/// Inputs, lists and workspace come from one stream, the calls run on another, and a third reads the results.
#[test]
fn memory_of_one_stream_is_waited_for_by_another() {
    emulated(&[], || {
        let context = context(0);
        let engine = engine(&context);
        let streams = [(); 4].map(|()| context.new_stream().expect("a stream"));
        let inputs = values(1);
        let mut call = Call::new(&streams[0], &inputs, LENGTHS);
        call.forward(&engine, &streams[1]).expect("a forward");
        call.backward(&engine, &streams[2]).expect("a backward");
        assert_close(&call.results(&streams[3]), &on_cpu(&inputs, LENGTHS));
        context.synchronize().expect("nothing went wrong");
    });
}

/// Memory is given back on the stream that it came from, while another still has to use it. Each part goes first once: what it
/// does not wait for itself, no other part's waiting makes up for.
#[test]
fn what_a_call_uses_may_be_dropped_at_once() {
    emulated(&[], || {
        let context = context(0);
        let engine = engine(&context);
        let streams = [(); 2].map(|()| context.new_stream().expect("a stream"));
        for backward in [false, true] {
            for first in 0..4 {
                let mut call = Call::new(&streams[0], &values(1), LENGTHS);
                call.forward(&engine, &streams[1]).expect("a forward");
                if backward {
                    call.backward(&engine, &streams[1]).expect("a backward");
                }
                let Call { inputs, outputs, lists, workspace } = call;
                let mut parts: Vec<Box<dyn Any>> =
                    vec![Box::new(inputs), Box::new(outputs), Box::new(lists), Box::new(workspace)];
                drop(parts.swap_remove(first));
                streams[0].synchronize().expect("memory is freed after its use");
                let part = ["inputs", "outputs", "lists", "workspace"][first];
                assert_eq!(streams[1].synchronize(), Ok(()), "{part} dropped, with a backward: {backward}");
            }
        }
        let mut call = Call::new(&streams[0], &values(1), LENGTHS);
        call.run(&engine, &streams[1]);
        drop(engine);
        assert_eq!(calls("cuModuleUnload"), calls("cuModuleLoadData"));
        drop(call);
        context.synchronize().expect("nothing went wrong");
        assert_eq!(context.check_err(), Ok(()));
    });
}
