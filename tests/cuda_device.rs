//! The CUDA backend where it can be tested without a GPU: what is missing is an error value.

#![cfg(feature = "cuda")]

use inducer_attention::cuda::{Engine, context, device_count, driver_present, fatbins};
use inducer_attention::{Attention, DType, Error, Memory, Outputs, TensorMut, TensorRef};

#[test]
fn a_missing_driver_or_device_is_an_error_value() {
    if !driver_present() {
        assert_eq!(device_count(), Err(Error::NoDriver));
        assert_eq!(context(0).map(|_| ()), Err(Error::NoDriver));
        return;
    }
    let count = device_count().unwrap();
    assert_eq!(context(count).map(|_| ()), Err(Error::NoDevice { ordinal: count, count }));
}

#[test]
fn an_engine_loads_or_says_what_is_missing() {
    let Ok(context) = context(0) else {
        eprintln!("skipped: no CUDA device");
        return;
    };
    match Engine::new(&context) {
        Ok(engine) => assert_eq!(engine.memory(), Memory::Cuda { device: 0 }),
        Err(e) => assert!(fatbins().next().is_none() && e == Error::NoKernels, "{e}"),
    }
}

/// A tensor at an address that is never looked at.
fn on_device<'a>(device: u16) -> TensorRef<'a, 4> {
    // SAFETY: nothing is enqueued.
    unsafe { TensorRef::from_device_parts(1 << 20, device, DType::F32, [1, 1, 4, 8], [32, 32, 8, 1]) }
        .unwrap()
}

#[test]
fn tensors_of_a_device_stay_there() {
    let on_host = [0f32; 32];
    let host = TensorRef::new(&on_host, [1, 1, 4, 8]).unwrap();
    let (here, there) = (Memory::Cuda { device: 0 }, Memory::Cuda { device: 1 });
    let mixed = Attention::new(on_device(0), host, on_device(0)).validate();
    assert_eq!(mixed.unwrap_err(), Error::Memory { argument: "k", got: Memory::Host, expected: here });
    let elsewhere = Attention::new(on_device(0), on_device(0), on_device(1)).validate();
    assert_eq!(elsewhere.unwrap_err(), Error::Memory { argument: "v", got: there, expected: here });

    let attention = Attention::new(on_device(0), on_device(0), on_device(0));
    let problem = attention.validate().unwrap();
    let mut o = [0f32; 32];
    let outputs = Outputs::new(TensorMut::new(&mut o, [1, 1, 4, 8]).unwrap());
    assert_eq!(
        problem.forward(outputs).unwrap_err(),
        Error::Memory { argument: "o", got: Memory::Host, expected: here }
    );
    // SAFETY: nothing is enqueued.
    let o = unsafe { TensorMut::from_device_parts(1 << 21, 0, DType::F32, [1, 1, 4, 8], [32, 32, 8, 1]) };
    let call = problem.forward(Outputs::new(o.unwrap())).unwrap();
    let engine = inducer_attention::cpu::Engine::detect();
    let mut workspace = inducer_attention::cpu::Workspace::with_bytes(engine.forward_workspace(&problem));
    assert_eq!(
        engine.forward(call, &mut workspace),
        Err(Error::Memory { argument: "q", got: here, expected: Memory::Host })
    );
}

#[test]
#[should_panic(expected = "memory of CUDA device 0")]
fn elements_on_a_device_cannot_be_read_here() {
    on_device(0).get([0; 4]);
}
