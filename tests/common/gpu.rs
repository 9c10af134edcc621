//! A CUDA device, where there is one.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use inducer_attention::cuda::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use inducer_attention::cuda::{DeviceLists, Engine, HEAD_DIM_MULTIPLE, Lists, context};
use inducer_attention::{Error, Gradients, Memory, Outputs, Problem, Saved, Upstream};

use super::backend::Backend;
use super::staging::{self, Device};

/// The kernels on the first CUDA device.
#[derive(Clone)]
pub struct Gpu {
    name: &'static str,
    engine: Arc<Engine>,
    stream: Arc<CudaStream>,
}

impl Gpu {
    /// The kernels for all GPUs, and on Hopper those for it alone. None, and one line that says why, where no kernels can run.
    pub fn all() -> Vec<Self> {
        static GPU: OnceLock<Vec<Gpu>> = OnceLock::new();
        GPU.get_or_init(|| {
            let open = || {
                let context = context(0)?;
                let stream = context.default_stream();
                let mut all = vec![Self::new(Arc::new(Engine::new(&context)?), stream.clone())];
                let hopper = Engine::new(&context)?.with_hopper_kernels();
                if hopper.abilities().hopper {
                    all.push(Self { name: "hopper", ..Self::new(Arc::new(hopper), stream) });
                }
                Ok(all)
            };
            open().unwrap_or_else(|e: Error| {
                eprintln!("left out: the kernels on a GPU ({e})");
                Vec::new()
            })
        })
        .clone()
    }

    /// An engine, and the stream that it is to use.
    pub fn new(engine: Arc<Engine>, stream: Arc<CudaStream>) -> Self {
        Self { name: "gpu", engine, stream }
    }

    fn pieces(&self) -> Pieces {
        Pieces { stream: self.stream.clone(), memory: self.engine.memory(), by_address: BTreeMap::new() }
    }
}

/// Pieces of the device's memory by address.
struct Pieces {
    stream: Arc<CudaStream>,
    memory: Memory,
    by_address: BTreeMap<u64, CudaSlice<u64>>,
}

impl Device for Pieces {
    fn memory(&self) -> Memory {
        self.memory
    }

    fn hold(&mut self, piece: &[u64], _first: usize, _bytes: usize, _writable: bool) -> u64 {
        let copy = self.stream.clone_htod(piece).expect("memory of the device");
        let address = copy.device_ptr(&self.stream).0;
        self.by_address.insert(address, copy);
        address
    }

    fn fetch(&mut self, address: u64, piece: &mut [u64]) {
        self.stream.memcpy_dtoh(&self.by_address[&address], piece).expect("a copy from the device");
        self.stream.synchronize().expect("the device has finished");
    }
}

impl Backend for Gpu {
    fn name(&self) -> String {
        self.name.into()
    }

    fn supports(&self, problem: &Problem<'_>) -> bool {
        problem.head_dim().is_multiple_of(HEAD_DIM_MULTIPLE)
    }

    fn forward(&self, problem: &Problem<'_>, outputs: Outputs<'_>) -> Result<(), Error> {
        let stream = &self.stream;
        let mut device = self.pieces();
        let lists = DeviceLists::upload(problem, stream)?;
        staging::forward(&mut device, problem, outputs, |_, copy, call| {
            let lists = Lists::new(copy, &lists.raw(stream)?)?;
            // SAFETY: tensors and lists live until the results have been fetched, on this stream.
            unsafe { self.engine.forward(call, &lists, stream) }
        })
    }

    fn backward<'a>(
        &self,
        problem: &Problem<'a>,
        saved: Saved<'a>,
        upstream: Upstream<'a>,
        gradients: Gradients<'_>,
    ) -> Result<(), Error> {
        let stream = &self.stream;
        let lists = DeviceLists::upload(problem, stream)?;
        let mut device = self.pieces();
        staging::backward(&mut device, problem, (&saved, &upstream), gradients, |_, copy, call| {
            let lists = Lists::new(copy, &lists.raw(stream)?)?;
            let bytes = self.engine.backward_workspace(copy, &lists);
            let workspace = stream.alloc_zeros::<u8>(bytes.max(1)).expect("memory of the device");
            let address = workspace.device_ptr(stream).0;
            // SAFETY: tensors and lists live until the results have been fetched, on this stream; the workspace is freed on it.
            unsafe { self.engine.backward(call, &lists, address, bytes, stream) }
        })
    }
}
