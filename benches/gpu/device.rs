//! The card, opened.

use std::error::Error;
use std::sync::Arc;

use inducer_attention::cuda::cudarc::driver::sys::{self, CUdevice_attribute as Attribute};
use inducer_attention::cuda::cudarc::driver::{CudaContext, CudaStream};
use inducer_attention::cuda::{self, Engine};

use crate::clock::Monitor;
use crate::roofline::Card;

/// A card with the kernels loaded.
pub(crate) struct Device {
    pub(crate) context: Arc<CudaContext>,
    pub(crate) stream: Arc<CudaStream>,
    pub(crate) card: Card,
    /// CUDA version that the driver supports: 1000 · major + 10 · minor.
    pub(crate) cuda: i32,
    /// Clocks, where the management library can be loaded.
    pub(crate) monitor: Option<Monitor>,
}

impl Device {
    /// Opens card `ordinal`.
    ///
    /// # Errors
    /// A sentence that says what is missing.
    pub(crate) fn open(ordinal: usize) -> Result<Self, Box<dyn Error>> {
        let context = cuda::context(ordinal)?;
        let get = |attribute| context.attribute(attribute).map(|value| value as u32);
        let kilohertz = |attribute| get(attribute).map(|value| 1e3 * f64::from(value));
        let bus = f64::from(get(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?) / 8.0;
        let card = Card {
            name: context.name()?,
            capability: context.compute_capability()?,
            multiprocessors: get(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            clock: kilohertz(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?,
            // Data at both edges of the clock.
            bandwidth: 2.0 * bus * kilohertz(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?,
            l2_bytes: get(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize,
            memory_bytes: context.total_mem()?,
            threads_per_multiprocessor: get(Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR)?,
        };
        let mut version = 0;
        // SAFETY: the driver, which is there, writes one integer.
        unsafe { sys::cuDriverGetVersion(&raw mut version) }.result()?;
        let monitor = bus_id(&context).and_then(|id| Monitor::open(&id));
        Ok(Self { stream: context.default_stream(), card, cuda: version, monitor, context })
    }

    /// Loads the kernels; chooses those for Hopper alone if `hopper`.
    ///
    /// # Errors
    /// What is missing, or that this device or build has none for Hopper: others must not be taken for them.
    pub(crate) fn engine(&self, hopper: bool) -> inducer_attention::Result<Engine> {
        let engine = Engine::new(&self.context)?;
        if !hopper {
            return Ok(engine);
        }
        let engine = engine.with_hopper_kernels();
        if engine.abilities().hopper {
            return Ok(engine);
        }
        let reason = "this device is not Hopper, or this build does not hold all of its kernels";
        Err(inducer_attention::Error::Unexpected { argument: "--hopper", reason })
    }

    /// What the program prints of the card.
    pub(crate) fn describe(&self) -> String {
        let card = &self.card;
        let peak = |dtype| card.peak(dtype).map_or_else(|| "?".into(), |p| format!("{:.0}", p / 1e12));
        format!(
            "{}, compute capability {}.{}, {} multiprocessors at up to {:.0} MHz, L2 {:.0} MB, memory {:.0} GB\n\
             driver {}, CUDA {}.{}; ceilings at the highest clocks: {} TFLOP/s of 16 bits, {} of f32, {:.0} GB/s",
            card.name,
            card.capability.0,
            card.capability.1,
            card.multiprocessors,
            card.clock / 1e6,
            card.l2_bytes as f64 / 1e6,
            card.memory_bytes as f64 / 1e9,
            self.monitor.as_ref().and_then(Monitor::driver).unwrap_or_else(|| "of unknown version".into()),
            self.cuda / 1000,
            self.cuda % 1000 / 10,
            peak(inducer_attention::DType::BF16),
            peak(inducer_attention::DType::F32),
            card.bandwidth / 1e9,
        )
    }
}

/// Where the card sits, as the management library wants it.
fn bus_id(context: &CudaContext) -> Option<String> {
    let mut text = [0u8; 32];
    // SAFETY: the driver writes a terminated string of at most this length.
    let result =
        unsafe { sys::cuDeviceGetPCIBusId(text.as_mut_ptr().cast(), text.len() as i32, context.cu_device()) };
    result.result().ok()?;
    let text = std::ffi::CStr::from_bytes_until_nul(&text).ok()?;
    Some(text.to_string_lossy().into_owned())
}
