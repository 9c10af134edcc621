//! Which devices this build computes on.

use candle_core::{DType, Device, DeviceLocation, Result, Tensor, bail};
use inducer_attention::Memory;

use crate::storage::{CONTEXT, wrap};

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// A tensor is where this build cannot compute.
    #[error("{argument} is on {location:?}, expected {expected}; move it with `to_device`")]
    Unsupported {
        /// Name of the argument.
        argument: &'static str,
        /// Where it is.
        location: DeviceLocation,
        /// Where this build computes.
        expected: &'static str,
    },
    /// This build has no CUDA.
    #[error("built without feature `cuda`")]
    NoCudaFeature,
    /// The driver, the device or the kernels for it are missing.
    #[error(transparent)]
    Cuda(#[from] inducer_attention::Error),
    /// candle cannot use the device.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl From<DeviceError> for candle_core::Error {
    fn from(error: DeviceError) -> Self {
        match error {
            DeviceError::Candle(error) => error,
            DeviceError::Cuda(error) => wrap(error),
            other => Self::wrap(other).context(CONTEXT),
        }
    }
}

/// Where this build computes, for messages.
const SUPPORTED: &str = if cfg!(feature = "cuda") {
    "CPU or CUDA tensors"
} else {
    "CPU tensors (feature `cuda` adds CUDA tensors)"
};

/// CUDA device `ordinal`, with the kernels of this crate loaded: [`Device::new_cuda`] after a look at what it needs.
///
/// # Errors
/// [`DeviceError::NoCudaFeature`]; [`DeviceError::Cuda`] without a driver, without such a device, and without kernels for it;
/// [`DeviceError::Candle`] if candle cannot make the device.
pub fn cuda_device(ordinal: usize) -> std::result::Result<Device, DeviceError> {
    #[cfg(feature = "cuda")]
    {
        let context = inducer_attention::cuda::context(ordinal)?;
        crate::cuda::engine(&context)?;
        Ok(Device::new_cuda(ordinal)?)
    }
    #[cfg(not(feature = "cuda"))]
    {
        let _ = ordinal;
        Err(DeviceError::NoCudaFeature)
    }
}

/// Fails unless the tensor lies where q does and this build computes, and has an element type that the engines read.
pub(crate) fn check_supported(argument: &'static str, tensor: &Tensor, q: &Tensor) -> Result<()> {
    let memory = |argument, tensor: &Tensor| match tensor.device().location() {
        DeviceLocation::Cpu => Ok(Memory::Host),
        DeviceLocation::Cuda { gpu_id } if cfg!(feature = "cuda") => {
            Ok(Memory::Cuda { device: gpu_id as u16 })
        }
        location => Err(DeviceError::Unsupported { argument, location, expected: SUPPORTED }),
    };
    let (got, expected) = (memory(argument, tensor)?, memory("q", q)?);
    if got != expected {
        return Err(wrap(inducer_attention::Error::Memory { argument, got, expected }));
    }
    if !matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16) {
        bail!("{CONTEXT}: {argument}: dtype {:?}, expected f32, f16 or bf16", tensor.dtype());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_elsewhere_is_named_with_where_it_is() {
        let location = DeviceLocation::Metal { gpu_id: 1 };
        let error = DeviceError::Unsupported { argument: "k", location, expected: SUPPORTED };
        let message = candle_core::Error::from(error).to_string();
        for part in [CONTEXT, "k is on Metal", "CPU", "`to_device`"] {
            assert!(message.contains(part), "{message:?} does not say {part:?}");
        }
    }

    #[test]
    fn a_missing_cuda_device_is_an_error_value() {
        // No machine has so many.
        let Err(error) = cuda_device(999) else { panic!("there is no such device") };
        let no_feature = matches!(error, DeviceError::NoCudaFeature);
        assert_eq!(no_feature, !cfg!(feature = "cuda"), "{error}");
        assert!(no_feature || matches!(error, DeviceError::Cuda(_)), "{error}");
    }
}
