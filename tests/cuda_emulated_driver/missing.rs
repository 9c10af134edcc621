//! What is missing or too old is a typed error.

use inducer_attention::cuda::kernels::KERNELS;
use inducer_attention::cuda::{Engine, Workspace, context, device_count, fatbins};
use inducer_attention::{DType, Error};

use crate::call::{Call, values};
use crate::world::{self, Code, Image, calls, emulated};

const PTX_13: Code = Code::Ptx { architecture: 80, version: (9, 0) };

/// Loads an image that holds some code of all kernels.
fn load(code: &[Code]) -> Result<(), Error> {
    let names: Vec<&str> = KERNELS.iter().map(|kernel| kernel.name).collect();
    let image = Image::new(code, &names);
    // SAFETY: the image is complete, and the emulator runs this build's kernels.
    unsafe { Engine::from_images(&world::context(0), &[image.bytes()]) }.map(|_| ())
}

/// This build's own fatbins: what they lack is an error as well.
fn load_own() -> Result<(), Error> {
    Engine::new(&world::context(0)).map(|_| ())
}

/// The error, or that there are no fatbins.
fn if_built_with_nvcc(error: Error) -> Error {
    if fatbins().next().is_some() { error } else { Error::NoKernels }
}

#[test]
fn a_driver_without_devices() {
    emulated(&[("EMULATED_CUDA_DEVICES", "0")], || {
        assert_eq!(device_count(), Ok(0));
        assert_eq!(context(0).map(|_| ()), Err(Error::NoDevice { ordinal: 0, count: 0 }));
    });
}

#[test]
fn a_device_that_is_not_there() {
    emulated(&[], || {
        assert_eq!(device_count(), Ok(2));
        assert_eq!(context(2).map(|_| ()), Err(Error::NoDevice { ordinal: 2, count: 2 }));
    });
}

#[test]
fn a_device_that_is_too_old() {
    emulated(&[("EMULATED_CUDA_CAPABILITY", "75")], || {
        let error = Error::DeviceTooOld { ordinal: 0, major: 7, minor: 5 };
        assert_eq!(load(&[Code::Machine(80), PTX_13]), Err(error.clone()));
        assert_eq!(load_own(), Err(if_built_with_nvcc(error)));
    });
}

#[test]
fn a_device_that_is_newer_than_the_code() {
    emulated(&[("EMULATED_CUDA_CAPABILITY", "120")], || {
        assert_eq!(load(&[Code::Machine(80), PTX_13]), Ok(()));
        let error = Error::NoKernelImage { ordinal: 0, major: 12, minor: 0 };
        assert_eq!(load(&[Code::Machine(80), Code::Machine(90)]), Err(error));
    });
}

#[test]
fn a_driver_that_is_too_old() {
    emulated(&[("EMULATED_CUDA_DRIVER_VERSION", "11080")], || {
        let error = Error::DriverTooOld { version: 11080 };
        assert_eq!(load(&[Code::Machine(80)]), Err(error.clone()));
        assert_eq!(load(&[PTX_13]), Err(error.clone()));
        assert_eq!(load_own(), Err(if_built_with_nvcc(error)));
    });
}

#[test]
fn a_build_without_kernels() {
    emulated(&[], || {
        // SAFETY: there is no image that could be incomplete.
        let engine = unsafe { Engine::from_images(&world::context(0), &[]) };
        assert_eq!(engine.map(|_| ()), Err(Error::NoKernels));
    });
}

/// The kernel of a backward's second launch: not even its first one is enqueued.
#[test]
fn a_kernel_that_the_image_does_not_hold() {
    emulated(&[], || {
        let context = world::context(0);
        let missing = "backward_f32_d64";
        let names: Vec<&str> =
            KERNELS.iter().map(|kernel| kernel.name).filter(|&name| name != missing).collect();
        let image = Image::new(&[Code::Machine(80)], &names);
        // SAFETY: the image is complete, and the emulator runs this build's kernels.
        let engine = unsafe { Engine::from_images(&context, &[image.bytes()]) }.expect("an engine");
        let kernel = KERNELS.iter().find(|kernel| kernel.name == missing).expect("it is in the table");
        assert!(matches!(engine.resources(kernel), Err(Error::Driver { .. })));
        let stream = context.default_stream();
        let mut call = Call::new(&stream, &values(1), [70, 50]);
        call.forward(&engine, &stream).expect("the forward is there");
        let error = call.backward(&engine, &stream).expect_err("a missing kernel");
        assert!(matches!(&error, Error::Driver { message, .. } if message.contains(missing)), "{error}");
        assert_eq!(calls("cuLaunchKernel"), 1, "the forward's");
        assert!(engine.kernel(kernel.pass, DType::F32, 64).is_some());
    });
}

#[test]
fn a_device_without_memory_left() {
    emulated(&[("EMULATED_CUDA_MEMORY_MB", "1")], || {
        let context = world::context(0);
        let stream = context.default_stream();
        let error = Workspace::new(&stream, 2 << 20).map(|_| ()).expect_err("more than there is");
        let Error::Driver { call, message } = &error else { panic!("{error}") };
        assert!(*call == "cuMemAllocAsync" && message.contains("OUT_OF_MEMORY"), "{error}");
        // What is freed can be had again.
        for _ in 0..3 {
            Workspace::new(&stream, 1 << 20).expect("as much as there is");
        }
    });
}
