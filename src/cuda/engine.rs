//! The kernels, loaded into a context, and raw launches.

use std::ffi::{CString, c_void};
use std::fmt;
use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::result::DriverError;
use cudarc::driver::{CudaContext, CudaStream, result, sys};

use super::driver::{attribute, checked, version};
use super::images::fatbins;
use super::kernels::{Abilities, KERNELS, Kernel, Pass, Tier};
use super::lists::Lists;
use super::plan::{self, Plan, Settings, SumOrder};
use crate::attention::{Problem, expect_memory};
use crate::call::{Backward, Forward};
use crate::error::{Error, Result};
use crate::tensor::{DType, Memory};

/// Compute capability of the devices that kernels of [`Tier::Hopper`] are for.
const HOPPER: (i32, i32) = (9, 0);

/// What a kernel takes of a multiprocessor, as the driver loaded it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of local memory of a thread: spilled registers.
    pub local_bytes: u32,
    /// Bytes of shared memory of a block.
    pub shared_bytes: u32,
    /// Blocks that a multiprocessor runs at a time.
    pub blocks_per_multiprocessor: u32,
}

/// The CUDA kernels in one context.
///
/// Loading takes a while; make one engine per context and share it. Its launches neither allocate nor wait for the device, can
/// be captured into CUDA graphs, and may come from any thread, for any stream of the context. Keep the engine for as long as such
/// a graph may be launched.
pub struct Engine {
    context: Arc<CudaContext>,
    /// Compute capability of the device.
    capability: (i32, i32),
    modules: Vec<sys::CUmodule>,
    /// In the order of [`KERNELS`].
    functions: Vec<Option<sys::CUfunction>>,
    settings: Settings,
}

// SAFETY: handles of modules and functions may be used from any thread in which the context is current.
unsafe impl Send for Engine {}
// SAFETY: as above; nothing changes after construction.
unsafe impl Sync for Engine {}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Engine(CUDA device {})", self.context.ordinal())
    }
}

impl Engine {
    /// Loads the kernels; [`context`](super::context()) makes a context.
    ///
    /// # Errors
    /// [`Error::NoKernels`], [`Error::DeviceTooOld`], [`Error::DriverTooOld`], [`Error::NoKernelImage`], [`Error::Driver`].
    pub fn new(context: &Arc<CudaContext>) -> Result<Self> {
        let is_hopper = checked("cuDeviceGetAttribute", context.compute_capability())? == HOPPER;
        // What is for Hopper alone is no other device's.
        let own = fatbins().filter(|(name, _)| is_hopper || !name.ends_with("_sm90"));
        let images: Vec<&[u8]> = own.map(|(_, image)| image).collect();
        // SAFETY: this build's fatbins are complete.
        unsafe { Self::from_images(context, &images) }
    }

    /// As [`new`](Self::new), with other fatbins than this build's: for tests.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    ///
    /// # Safety
    /// The images are complete fatbins. Kernels in them that have the names of this build's kernels take the same parameters.
    #[doc(hidden)]
    pub unsafe fn from_images(context: &Arc<CudaContext>, images: &[&[u8]]) -> Result<Self> {
        if images.is_empty() {
            return Err(Error::NoKernels);
        }
        checked("cuCtxSetCurrent", context.bind_to_thread())?;
        let ordinal = context.ordinal();
        let (major, minor) = checked("cuDeviceGetAttribute", context.compute_capability())?;
        if major < 8 {
            return Err(Error::DeviceTooOld { ordinal, major, minor });
        }
        let shared = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let shared_bytes = checked("cuDeviceGetAttribute", context.attribute(shared))? as u32;
        let count = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let multiprocessors = checked("cuDeviceGetAttribute", context.attribute(count))? as u32;
        let device = Abilities { shared_bytes, hopper: false, multiprocessors };
        let settings = Settings { device, ..Settings::default() };
        let mut engine = Self {
            context: context.clone(),
            capability: (major, minor),
            modules: Vec::new(),
            functions: Vec::new(),
            settings,
        };
        for image in images {
            // SAFETY: a complete fatbin, whose header has its length.
            match unsafe { result::module::load_data(image.as_ptr().cast()) } {
                Ok(module) => engine.modules.push(module),
                Err(DriverError(sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU)) => {
                    return Err(Error::NoKernelImage { ordinal, major, minor });
                }
                Err(DriverError(
                    sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
                    | sys::CUresult::CUDA_ERROR_INVALID_IMAGE,
                )) => return Err(Error::DriverTooOld { version: version()? }),
                Err(e) => return checked("cuModuleLoadData", Err(e)),
            }
        }
        engine.functions = KERNELS.iter().map(|kernel| engine.load(kernel)).collect::<Result<_>>()?;
        Ok(engine)
    }

    /// Chooses kernels for Hopper (warpgroups' products) where the device is one and this build holds them; without this call,
    /// those for all GPUs. They pass the same tests on the emulator, but have not yet run on a GPU.
    #[must_use]
    pub fn with_hopper_kernels(mut self) -> Self {
        let mut needed =
            KERNELS.iter().zip(&self.functions).filter(|(kernel, _)| kernel.tier == Tier::Hopper);
        self.settings.device.hopper = needed.all(|(_, function)| function.is_some());
        self
    }

    /// Lets dQ be summed in another order; [`SumOrder::Fixed`] if this is not called.
    #[must_use]
    pub fn with_sum_order(mut self, order: SumOrder) -> Self {
        self.settings.order = order;
        self
    }

    /// Finds a kernel in the modules and allows it its shared memory; `None` if the device does not have so much.
    fn load(&self, kernel: &Kernel) -> Result<Option<sys::CUfunction>> {
        if kernel.shared_bytes() > self.settings.device.shared_bytes {
            return Ok(None);
        }
        let name = CString::new(kernel.name).expect("names of kernels hold no NUL");
        // Else an emulated driver would find them in any device's code.
        if kernel.tier == Tier::Hopper && self.capability != HOPPER {
            return Ok(None);
        }
        let found = self.modules.iter().find_map(|&module| {
            // SAFETY: the module is loaded, and stays so until the engine is dropped.
            unsafe { result::module::get_function(module, name.clone()) }.ok()
        });
        let Some(function) = found else { return Ok(None) };
        let settings = [
            (
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                kernel.shared_bytes() as i32,
            ),
            // All of the memory that is shared or cache, in percent.
            (sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100),
        ];
        for (name, value) in settings {
            // SAFETY: as above.
            let result = unsafe { result::function::set_function_attribute(function, name, value) };
            checked("cuFuncSetAttribute", result)?;
        }
        Ok(Some(function))
    }

    /// The kernel that serves problems of a type and a head dimension on this device; `None` if head_dim is larger than any kernel's.
    pub fn kernel(&self, pass: Pass, dtype: DType, head_dim: usize) -> Option<&'static Kernel> {
        Kernel::find(pass, dtype, head_dim, self.settings.device)
    }

    /// What decides which kernels run.
    pub fn abilities(&self) -> Abilities {
        self.settings.device
    }

    /// The context that the kernels are loaded in.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Where tensors must be.
    pub fn memory(&self) -> Memory {
        Memory::Cuda { device: self.context.ordinal() as u16 }
    }

    /// What a kernel takes of a multiprocessor.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn resources(&self, kernel: &'static Kernel) -> Result<Resources> {
        use sys::CUfunction_attribute as Attribute;
        checked("cuCtxSetCurrent", self.context.bind_to_thread())?;
        let function = self.function(kernel)?;
        // SAFETY: the engine's modules are loaded.
        let get = |name| unsafe { attribute(function, name) }.map(|value| value as u32);
        // SAFETY: as above.
        let blocks = unsafe {
            result::occupancy::max_active_block_per_multiprocessor(
                function,
                kernel.threads() as i32,
                kernel.shared_bytes() as usize,
            )
        };
        Ok(Resources {
            registers: get(Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            local_bytes: get(Attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
            shared_bytes: get(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)? + kernel.shared_bytes(),
            blocks_per_multiprocessor: checked("cuOccupancyMaxActiveBlocksPerMultiprocessor", blocks)? as u32,
        })
    }

    fn function(&self, kernel: &'static Kernel) -> Result<sys::CUfunction> {
        let index = KERNELS.iter().position(|k| std::ptr::eq(k, kernel));
        index.and_then(|i| self.functions[i]).ok_or_else(|| Error::Driver {
            call: "cuModuleGetFunction",
            message: format!("this build's fatbins do not hold {}", kernel.name),
        })
    }

    /// Bytes of workspace that a backward of this problem needs; a forward needs none.
    pub fn backward_workspace(&self, problem: &Problem<'_>, lists: &Lists) -> usize {
        plan::backward_workspace(problem, lists, &self.settings)
    }

    /// Enqueues a forward whose tensors were made from device addresses
    /// ([`TensorRef::from_device_parts`](crate::TensorRef::from_device_parts)); [`Scope`](super::Scope) is the safe way.
    ///
    /// # Errors
    /// As [`plan::forward`]; [`Error::Memory`] for tensors elsewhere, [`Error::Unexpected`] for a stream of another context,
    /// [`Error::Driver`].
    ///
    /// # Safety
    /// Until the stream has run the call, the memory of tensors and lists stays allocated, nothing else writes to inputs, and
    /// nothing else reads or writes outputs. Lists have as many entries as the problem's shapes ask for.
    #[allow(clippy::needless_pass_by_value, reason = "a call is made once: its outputs are lent for it")]
    pub unsafe fn forward(
        &self,
        call: Forward<'_, '_, '_>,
        lists: &Lists,
        stream: &CudaStream,
    ) -> Result<()> {
        expect_memory("q", call.problem.memory(), self.memory())?;
        let plan = plan::forward(&call, lists, &self.settings)?;
        // SAFETY: the plan's addresses are those of the call; the rest is the caller's promise.
        unsafe { self.launch(&plan, stream) }
    }

    /// Enqueues a backward, as [`forward`](Self::forward), with `bytes` bytes of scratch memory at the address `workspace`, a
    /// multiple of 256.
    ///
    /// # Errors
    /// As [`plan::backward`]; otherwise as [`forward`](Self::forward).
    ///
    /// # Safety
    /// As for [`forward`](Self::forward); until the stream has run the call, nothing else uses the workspace.
    #[allow(clippy::needless_pass_by_value, reason = "a call is made once: its outputs are lent for it")]
    pub unsafe fn backward(
        &self,
        call: Backward<'_, '_, '_>,
        lists: &Lists,
        workspace: u64,
        bytes: usize,
        stream: &CudaStream,
    ) -> Result<()> {
        expect_memory("q", call.problem.memory(), self.memory())?;
        let plan = plan::backward(&call, lists, workspace, bytes, &self.settings)?;
        // SAFETY: the plan's addresses are those of the call and of the workspace; the rest is the caller's promise.
        unsafe { self.launch(&plan, stream) }
    }

    /// # Safety
    /// What the parameters point to is as the kernels expect it, until the stream has run them.
    unsafe fn launch<P: Pod>(&self, plan: &Plan<P>, stream: &CudaStream) -> Result<()> {
        if **stream.context() != *self.context {
            return Err(OTHER_CONTEXT);
        }
        checked("cuCtxSetCurrent", self.context.bind_to_thread())?;
        // If one kernel is missing, none is launched.
        plan.launches().try_for_each(|launch| self.function(launch.kernel).map(|_| ()))?;
        for launch in plan.launches() {
            let function = self.function(launch.kernel)?;
            // The driver copies the parameters before it returns, and never writes to them.
            let mut arguments = [std::ptr::from_ref(plan.params()).cast_mut().cast::<c_void>()];
            // SAFETY: the function takes one such struct by value; grid and shared memory are the plan's.
            let result = unsafe {
                result::launch_kernel(
                    function,
                    (launch.blocks, 1, 1),
                    (launch.kernel.threads(), 1, 1),
                    launch.kernel.shared_bytes(),
                    stream.cu_stream(),
                    &mut arguments,
                )
            };
            checked("cuLaunchKernel", result)?;
        }
        Ok(())
    }
}

pub(super) const OTHER_CONTEXT: Error =
    Error::Unexpected { argument: "stream", reason: "it belongs to another context than the engine" };

impl Drop for Engine {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            for &module in &self.modules {
                // SAFETY: loaded by `new`, unloaded once. An error has nowhere to go.
                let _ = unsafe { result::module::unload(module) };
            }
        }
    }
}
