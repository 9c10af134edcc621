//! Calls captured into graphs.

use std::sync::Arc;

use inducer_attention::Error;
use inducer_attention::cuda::Engine;
use inducer_attention::cuda::cudarc::driver::CudaStream;
use inducer_attention::cuda::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};

use crate::call::{Call, bits, values};
use crate::world::{calls, context, emulated, engine};

const MODE: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;

/// A call on a stream that can be captured: cudarc's own events would be recorded in the capture.
fn one_stream() -> (Engine, Arc<CudaStream>, Call) {
    let context = context(0);
    // SAFETY: everything is on one stream.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().expect("a stream");
    let call = Call::new(&stream, &values(1), [70, 50]);
    (engine(&context), stream, call)
}

#[test]
fn a_graph_computes_what_a_call_does_on_new_inputs() {
    emulated(&[], || {
        let (engine, stream, mut call) = one_stream();
        let launched = calls("cuLaunchKernel");
        stream.begin_capture(MODE).expect("a capture");
        call.run(&engine, &stream);
        let graph = stream.end_capture(CUgraphInstantiate_flags(0)).expect("nothing was refused");
        let graph = graph.expect("a graph");
        assert_eq!(calls("cuLaunchKernel") - launched, 4);
        let untouched = call.results(&stream);
        assert!(untouched.iter().flatten().all(|x| x.is_nan()), "a capture computes nothing");
        for seed in [1, 100, 200] {
            call.set_inputs(&stream, &values(seed));
            graph.launch().expect("a launch");
            let replayed = bits(&call.results(&stream));
            call.run(&engine, &stream);
            assert_eq!(replayed, bits(&call.results(&stream)), "seed {seed}");
        }
        assert_eq!(calls("cuGraphLaunch"), 3);
    });
}

#[test]
fn a_capture_that_is_spoilt_is_an_error_value() {
    emulated(&[], || {
        let (engine, stream, mut call) = one_stream();
        stream.begin_capture(MODE).expect("a capture");
        assert!(stream.alloc_zeros::<f32>(8).is_err(), "memory cannot be allocated in a capture");
        let error = call.forward(&engine, &stream).expect_err("the capture is spoilt");
        assert!(matches!(error, Error::Driver { .. }), "{error}");
        assert!(stream.end_capture(CUgraphInstantiate_flags(0)).is_err());
        // The stream is as good as before.
        call.run(&engine, &stream);
        stream.synchronize().expect("a stream that works");
    });
}
