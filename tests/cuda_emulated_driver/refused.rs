//! What is wrong with a call's memory is a typed error, and nothing is launched.

use std::ops::Range;

use inducer_attention::cuda::cudarc::driver::{CudaStream, DevicePtr};
use inducer_attention::cuda::{Engine, Lists, RawList, RawLists, Scope, Workspace};
use inducer_attention::{Attention, DType, Error, Memory, Outputs, TensorMut, TensorRef, f16};

use crate::call::{BATCH, Call, N, bits, values};
use crate::world::{calls, context, emulated, engine};

const SHAPE: [usize; 4] = [1, 1, 4, 8];
const STRIDES: [usize; 4] = [32, 32, 8, 1];

/// A forward of four rows and keys at addresses on devices.
struct Raw {
    addresses: [u64; 4],
    devices: [u16; 4],
    dtype: DType,
    lists: RawLists,
}

impl Raw {
    fn launch(&self, engine: &Engine, stream: &CudaStream) -> Result<(), Error> {
        let [q, k, v] = [0, 1, 2].map(|i| {
            // SAFETY: the launches of these tests are refused, or the memory is there.
            unsafe {
                TensorRef::from_device_parts(self.addresses[i], self.devices[i], self.dtype, SHAPE, STRIDES)
            }
        });
        let attention = Attention::new(q?, k?, v?);
        let problem = attention.validate()?;
        // SAFETY: as above.
        let o = unsafe {
            TensorMut::from_device_parts(self.addresses[3], self.devices[3], self.dtype, SHAPE, STRIDES)
        };
        let call = problem.forward(Outputs::new(o?))?;
        let lists = Lists::new(&problem, &self.lists)?;
        // SAFETY: as above.
        unsafe { engine.forward(call, &lists, stream) }
    }
}

#[test]
fn tensors_that_kernels_cannot_reach_are_refused() {
    emulated(&[], || {
        let (context, there) = (context(0), context(1));
        let engine = engine(&context);
        let stream = context.default_stream();
        let memory = stream.alloc_zeros::<f32>(256).expect("memory of the device");
        let base = memory.device_ptr(&stream).0;
        let good = || Raw {
            addresses: [0, 1, 2, 3].map(|i| base + 128 * i),
            devices: [0; 4],
            dtype: DType::F32,
            lists: RawLists::default(),
        };
        assert_eq!(good().launch(&engine, &stream), Ok(()));
        assert_eq!(calls("cuLaunchKernel"), 1);

        let null = Raw { addresses: [base, 0, base, base + 384], ..good() };
        assert_eq!(null.launch(&engine, &stream), Err(Error::NullPointer { argument: "k", elements: 32 }));
        let shifted = Raw { addresses: [base, base, base + 4, base + 384], ..good() };
        let error = shifted.launch(&engine, &stream).expect_err("rows that are not aligned");
        assert!(matches!(error, Error::Misaligned { argument: "v", alignment: 16, .. }), "{error}");
        let (here, other) = (Memory::Cuda { device: 0 }, Memory::Cuda { device: 1 });
        let mixed = Raw { devices: [0, 1, 0, 0], ..good() };
        let error = Error::Memory { argument: "k", got: other, expected: here };
        assert_eq!(mixed.launch(&engine, &stream), Err(error));
        let elsewhere = Raw { devices: [1; 4], ..good() };
        let error = Error::Memory { argument: "q", got: other, expected: here };
        assert_eq!(elsewhere.launch(&engine, &stream), Err(error));
        let null_list = RawLists { key_lengths: Some(RawList { address: 0, len: 1 }), ..RawLists::default() };
        let error = Raw { lists: null_list, ..good() }.launch(&engine, &stream);
        assert_eq!(error, Err(Error::NullPointer { argument: "key_lengths", elements: 1 }));
        let short_list =
            RawLists { key_lengths: Some(RawList { address: base, len: 3 }), ..RawLists::default() };
        let error = Raw { lists: short_list, ..good() }
            .launch(&engine, &stream)
            .expect_err("a list of another batch");
        assert!(matches!(error, Error::Count { argument: "key_lengths", got: 3, .. }), "{error}");

        let other_stream = there.default_stream();
        let unexpected = |e| matches!(e, Error::Unexpected { argument: "stream", .. });
        let error = good().launch(&engine, &other_stream).expect_err("another context's stream");
        assert!(unexpected(error));
        let error = Scope::new(&engine, &other_stream).map(|_| ()).expect_err("another context's stream");
        assert!(unexpected(error));
        assert_eq!(calls("cuLaunchKernel"), 1);
        stream.synchronize().expect("the one launch was good");
    });
}

#[test]
fn slices_that_do_not_fit_are_refused() {
    emulated(&[], || {
        let (context, there) = (context(0), context(1));
        let engine = engine(&context);
        let (stream, other_stream) = (context.default_stream(), there.default_stream());
        let (short, other) = (stream.alloc_zeros::<f32>(31), other_stream.alloc_zeros::<f32>(32));
        let (short, other) = (short.expect("memory"), other.expect("memory"));
        let (floats, halves) = (stream.alloc_zeros::<f32>(32), stream.alloc_zeros::<f16>(32));
        let (floats, halves) = (floats.expect("memory"), halves.expect("memory"));
        let scope = Scope::new(&engine, &stream).expect("a scope");
        let error = scope.read(&short, SHAPE).expect_err("one element is missing");
        assert!(matches!(error, Error::BufferTooSmall { .. }), "{error}");
        let error = scope.read(&other, SHAPE).expect_err("another context's slice");
        assert!(matches!(error, Error::Unexpected { argument: "slice", .. }), "{error}");

        let [q, v] = [(); 2].map(|()| scope.read(&floats, SHAPE).expect("a tensor"));
        let mixed = Attention::new(q, scope.read(&halves, SHAPE).expect("a tensor"), v);
        let error = mixed.validate().expect_err("two types");
        assert!(matches!(error, Error::DType { argument: "k", got: DType::F16, .. }), "{error}");

        // What one scope has lent is not another's.
        let (inputs, mut output) = (stream.alloc_zeros::<f32>(96), stream.alloc_zeros::<f32>(32));
        let (inputs, output) = (inputs.expect("memory"), output.as_mut().expect("memory"));
        let lists = inducer_attention::cuda::DeviceLists::default();
        let parts = [0..32, 32..64, 64..96].map(|range: Range<usize>| inputs.slice(range));
        let (lender, scope) = (Scope::new(&engine, &stream), Scope::new(&engine, &stream));
        let (lender, scope) = (lender.expect("a scope"), scope.expect("a scope"));
        let [q, k, v] = parts.each_ref().map(|part| lender.read(part, SHAPE).expect("a tensor"));
        let attention = Attention::new(q, k, v);
        let problem = attention.validate().expect("a problem");
        let call = problem.forward(Outputs::new(scope.write(output, SHAPE).expect("a tensor")));
        let error = scope.forward(call.expect("a call"), &lists).expect_err("inputs of another scope");
        assert!(matches!(error, Error::Unexpected { argument: "q", .. }), "{error}");
        assert_eq!(calls("cuLaunchKernel"), 0);
    });
}

#[test]
fn a_workspace_that_does_not_fit_is_refused() {
    emulated(&[], || {
        let (context, there) = (context(0), context(1));
        let engine = engine(&context);
        // Slices that are dropped while another context is current need a stream that says whose it is.
        let [stream, other_stream] = [&context, &there].map(|c| c.new_stream().expect("a stream"));
        let mut call = Call::new(&stream, &values(1), [70, 50]);
        call.forward(&engine, &stream).expect("a forward");
        call.workspace = Workspace::new(&stream, 1000).expect("memory");
        let error = call.backward(&engine, &stream).expect_err("too small a workspace");
        assert!(matches!(error, Error::WorkspaceTooSmall { got: 1000, .. }), "{error}");
        call.workspace = Workspace::new(&other_stream, 1 << 21).expect("memory");
        let error = call.backward(&engine, &stream).expect_err("another context's workspace");
        assert!(matches!(error, Error::Unexpected { argument: "workspace", .. }), "{error}");
        call.lists.key_lengths = Some(other_stream.clone_htod(&[70, 50]).expect("memory"));
        call.workspace = Workspace::new(&stream, 1 << 21).expect("memory");
        let error = call.backward(&engine, &stream).expect_err("another context's list");
        assert!(matches!(error, Error::Unexpected { argument: "key_lengths", .. }), "{error}");
        assert_eq!(calls("cuLaunchKernel"), 1, "the forward's");
        stream.synchronize().expect("the forward was good");
    });
}

/// The host cannot check lengths that are made on the device: kernels clamp them.
#[test]
fn lengths_that_no_tensor_has_are_clamped() {
    emulated(&[], || {
        let context = context(0);
        let engine = engine(&context);
        let stream = context.default_stream();
        let n = N as i32;
        for (given, clamped) in [([i32::MAX, 50], [n, 50]), ([-3, i32::MIN], [0, 0]), ([n + 1, -1], [n, 0])] {
            let results = [given, clamped].map(|lengths: [i32; BATCH]| {
                let mut call = Call::new(&stream, &values(1), lengths);
                call.run(&engine, &stream);
                bits(&call.results(&stream))
            });
            assert!(results[0] == results[1], "{given:?}");
        }
        context.synchronize().expect("nothing was read out of bounds");
    });
}
