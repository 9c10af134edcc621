//! The emulated driver itself: it notices what it is there for.

use inducer_attention::cuda::cudarc::driver::result::{self, DriverError};
use inducer_attention::cuda::cudarc::driver::sys::{self, CUresult};
use inducer_attention::cuda::cudarc::driver::{DevicePtr, DevicePtrMut};
use inducer_attention::cuda::driver_present;
use inducer_attention::cuda::kernels::{KERNELS, Tier};

use crate::call::{Call, values};
use crate::world::{Code, Image, context, emulated, engine};

/// An error of the driver by its name.
fn refused<T>(result: Result<T, DriverError>) -> Option<CUresult> {
    result.err().map(|e| e.0)
}

#[test]
fn a_copy_to_pinned_memory_is_there_when_it_was_waited_for() {
    emulated(&[], || {
        let context = context(0);
        let stream = context.default_stream();
        let memory = stream.clone_htod(&[7u32; 4]).expect("memory of the device");
        // SAFETY: written below.
        let mut pinned = unsafe { context.alloc_pinned::<u32>(4) }.expect("pinned memory");
        pinned.as_mut_slice().expect("nothing is under way").fill(1);
        let address = pinned.as_mut_ptr().expect("nothing is under way");
        // SAFETY: both live until the stream has come to the copy.
        unsafe {
            let host = std::slice::from_raw_parts_mut(address, 4);
            result::memcpy_dtoh_async(host, memory.device_ptr(&stream).0, stream.cu_stream())
                .expect("a copy");
        }
        // SAFETY: read anew each time; nothing else runs meanwhile.
        let read = || unsafe { address.read_volatile() };
        assert_eq!(read(), 1);
        stream.synchronize().expect("a copy");
        assert_eq!(read(), 7);
    });
}

#[test]
fn a_stream_that_does_not_wait_for_another_sees_what_was_there_before() {
    emulated(&[], || {
        let context = context(0);
        // SAFETY: what this leaves out is the point of the test.
        unsafe { context.disable_event_tracking() };
        let [a, b] = [(); 2].map(|()| context.new_stream().expect("a stream"));
        let mut memory = a.clone_htod(&[1u32]).expect("memory of the device");
        a.synchronize().expect("a copy");
        a.memcpy_htod(&[2u32], &mut memory).expect("a copy");
        assert_eq!(b.clone_dtoh(&memory).expect("a copy"), [1]);
        b.join(&a).expect("an event");
        assert_eq!(b.clone_dtoh(&memory).expect("a copy"), [2]);
    });
}

#[test]
fn a_kernel_that_writes_to_freed_memory_fails() {
    emulated(&[], || {
        let context = context(0);
        // SAFETY: what this leaves out is the point of the test.
        unsafe { context.disable_event_tracking() };
        let engine = engine(&context);
        let [a, b] = [(); 2].map(|()| context.new_stream().expect("a stream"));
        let mut call = Call::new(&a, &values(1), [70, 50]);
        a.synchronize().expect("copies");
        call.forward(&engine, &b).expect("a launch that is only enqueued");
        drop(call);
        a.synchronize().expect("memory that is freed too early");
        assert_eq!(refused(b.synchronize()), Some(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS));
        // As on a GPU, nothing goes on in that context.
        assert_eq!(refused(a.synchronize()), Some(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS));
        assert_eq!(refused(a.alloc_zeros::<u8>(1)), Some(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS));
    });
}

#[test]
fn shared_memory_beyond_48_kilobytes_is_asked_for_first() {
    emulated(&[], || {
        let context = context(0);
        let kernel = KERNELS
            .iter()
            .find(|k| k.shared_bytes() > 48 * 1024 && k.tier == Tier::Common)
            .expect("a kernel");
        let image = Image::new(&[Code::Machine(80)], &[kernel.name]);
        let stream = context.new_stream().expect("a stream");
        let launch = |function| {
            let mut params = vec![0u64; 1024];
            let mut arguments = [params.as_mut_ptr().cast()];
            // SAFETY: captured, and never run.
            unsafe {
                result::launch_kernel(
                    function,
                    (1, 1, 1),
                    (kernel.threads(), 1, 1),
                    kernel.shared_bytes(),
                    stream.cu_stream(),
                    &mut arguments,
                )
            }
        };
        let name = std::ffi::CString::new(kernel.name).expect("no zero byte");
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the image is complete, and the module stays loaded.
        let function = unsafe {
            let module = result::module::load_data(image.bytes().as_ptr().cast()).expect("a module");
            assert!(result::module::get_function(module, c"no_kernel".into()).is_err());
            result::module::get_function(module, name).expect("a function")
        };
        stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).expect("a capture");
        assert_eq!(refused(launch(function)), Some(CUresult::CUDA_ERROR_INVALID_VALUE));
        // SAFETY: as above.
        let set = |bytes| unsafe { result::function::set_function_attribute(function, attribute, bytes) };
        assert_eq!(refused(set(164 * 1024)), Some(CUresult::CUDA_ERROR_INVALID_VALUE));
        set(kernel.shared_bytes() as i32).expect("as much as the device has");
        launch(function).expect("a launch that is only captured");
        drop(stream.end_capture(sys::CUgraphInstantiate_flags(0)).expect("a graph"));
    });
}

#[test]
fn freed_memory_and_empty_allocations_are_refused() {
    emulated(&[], || {
        let context = context(0);
        let stream = context.default_stream();
        let invalid = Some(CUresult::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(refused(stream.alloc_zeros::<u8>(0)), invalid);
        // SAFETY: the memory is written before it is read.
        let mut memory = unsafe { stream.alloc::<u8>(16) }.expect("memory of the device");
        let address = memory.device_ptr_mut(&stream).0;
        // SAFETY: the range is refused.
        let beyond = unsafe { result::memset_d8_async(address, 0, 17, stream.cu_stream()) };
        assert_eq!(refused(beyond), invalid);
        drop(memory);
        // SAFETY: the address is refused.
        assert_eq!(refused(unsafe { result::free_async(address, stream.cu_stream()) }), invalid);
    });
}

/// Elsewhere a test, or a user of the crate, finds the real driver or none.
#[test]
fn nobody_else_finds_it() {
    if !driver_present() {
        return;
    }
    // SAFETY: the symbol is only looked for.
    let found = unsafe { sys::culib().get::<unsafe extern "C" fn()>(b"emulated_driver_calls\0") };
    assert!(found.is_err());
}

#[test]
fn what_is_not_emulated_has_a_name() {
    emulated(&[], || {
        let context = context(0);
        assert_eq!(refused(context.uuid()), Some(CUresult::CUDA_ERROR_NOT_SUPPORTED));
        assert_eq!(context.name().as_deref(), Ok("emulated CUDA device"));
    });
}
