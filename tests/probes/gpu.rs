//! The probes on a GPU.

use std::ffi::{CString, c_void};
use std::sync::Arc;

use inducer_attention::cuda::context;
use inducer_attention::cuda::cudarc::driver::{CudaContext, DevicePtr, result, sys};

use super::{Kernel, Machine};

/// Compiled with the kernels, but no part of the crate. Empty where no CUDA compiler was found.
static FATBIN: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/probes.fatbin")));
/// The same for Hopper alone; empty as well where it is not among the targets.
static HOPPER: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/probes_sm90.fatbin")));

/// As the driver's loader may expect.
#[repr(align(64))]
struct Aligned<T: ?Sized>(T);

/// The first GPU, with the probes loaded.
pub(crate) struct Gpu {
    context: Arc<CudaContext>,
    modules: Vec<sys::CUmodule>,
    is_hopper: bool,
}

impl Gpu {
    /// Opens it, or says what is missing.
    pub(crate) fn open() -> Result<Self, String> {
        let context = context(0).map_err(|e| e.to_string())?;
        if FATBIN.0.is_empty() {
            return Err("the probes were not compiled: no nvcc was found".into());
        }
        context.bind_to_thread().map_err(|e| e.to_string())?;
        let capability = context.compute_capability().map_err(|e| e.to_string())?;
        let is_hopper = capability == (9, 0) && !HOPPER.0.is_empty();
        let mut gpu = Self { context, modules: Vec::new(), is_hopper };
        for image in [Some(FATBIN), is_hopper.then_some(HOPPER)].into_iter().flatten() {
            // SAFETY: a complete fatbin, whose header has its length.
            let module = unsafe { result::module::load_data(image.0.as_ptr().cast()) };
            gpu.modules.push(module.map_err(|e| format!("cannot load the probes: {e}"))?);
        }
        Ok(gpu)
    }
}

impl Machine for Gpu {
    fn name(&self) -> &'static str {
        "GPU"
    }

    fn has_warpgroups(&self) -> bool {
        self.is_hopper
    }

    fn run(&self, kernel: &Kernel, blocks: u32, input: &[u32], output: &mut [u32]) {
        let stream = self.context.default_stream();
        self.context.bind_to_thread().expect("a context");
        let from = stream.clone_htod(if input.is_empty() { &[0][..] } else { input }).expect("memory");
        let to = stream.clone_htod(output).expect("memory");
        let mut params = [from.device_ptr(&stream).0, to.device_ptr(&stream).0];
        let name = CString::new(kernel.name).expect("names hold no zero byte");
        // SAFETY: the module is loaded; the kernel takes a struct of two pointers to memory that lives until the results have
        // been copied, and is as long as the kernel's description says.
        unsafe {
            let found = |&module| result::module::get_function(module, name.clone()).ok();
            let function = self.modules.iter().find_map(found).expect("a probe's name");
            let mut arguments = [params.as_mut_ptr().cast::<c_void>()];
            let (grid, block) = ((blocks, 1, 1), (kernel.threads, 1, 1));
            let stream = stream.cu_stream();
            result::launch_kernel(function, grid, block, kernel.shared_bytes, stream, &mut arguments)
        }
        .expect("a launch");
        stream.memcpy_dtoh(&to, output).expect("a copy");
        stream.synchronize().expect("the probe runs");
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            for &module in &self.modules {
                // SAFETY: loaded by `open`, unloaded once. An error has nowhere to go.
                let _ = unsafe { result::module::unload(module) };
            }
        }
    }
}
