//! Kernels, loaded once per context.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::CudaDevice;
use inducer_attention::cuda::Engine;
use inducer_attention::cuda::cudarc::driver::{CudaContext, CudaStream};

use super::scope::Scope;
use crate::storage::wrap;

/// Engines of all contexts that calls have come from. Each keeps its context alive.
static ENGINES: Mutex<Vec<Arc<Engine>>> = Mutex::new(Vec::new());

/// The kernels in a context, loaded at the first call.
///
/// # Errors
/// As [`Engine::new`]; the next call tries again.
pub(crate) fn engine(context: &Arc<CudaContext>) -> inducer_attention::Result<Arc<Engine>> {
    let mut engines = ENGINES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(engine) = engines.iter().find(|engine| engine.context() == context) {
        return Ok(engine.clone());
    }
    let engine = Arc::new(Engine::new(context)?);
    engines.push(engine.clone());
    Ok(engine)
}

/// The kernels of a candle device, and the stream that it works on.
pub(crate) struct Gpu {
    engine: Arc<Engine>,
    stream: Arc<CudaStream>,
}

impl Gpu {
    /// # Errors
    /// As [`engine`].
    pub(crate) fn new(device: &CudaDevice) -> candle_core::Result<Self> {
        let stream = device.cuda_stream();
        Ok(Self { engine: engine(stream.context()).map_err(wrap)?, stream })
    }

    /// Begins a call on the device's stream.
    pub(crate) fn scope(&self) -> candle_core::Result<Scope<'_>> {
        Scope::new(&self.engine, &self.stream).map_err(wrap)
    }
}
