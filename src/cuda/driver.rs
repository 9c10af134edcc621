//! The CUDA driver: whether it is there, and its errors as values.

use std::sync::{Arc, OnceLock};

use cudarc::driver::result::DriverError;
use cudarc::driver::{CudaContext, result, sys};

use crate::error::{Error, Result};

/// Whether the driver's library can be loaded. cudarc panics at its first call where it cannot.
pub fn driver_present() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    *PRESENT.get_or_init(|| {
        ["libcuda.so.1", "libcuda.so", "nvcuda.dll"].iter().any(|name| {
            // SAFETY: loading the driver's library runs its initialisers alone, as cudarc's own loading does.
            unsafe { libloading::Library::new(*name) }.is_ok()
        })
    })
}

/// How many CUDA devices there are.
///
/// # Errors
/// [`Error::NoDriver`], [`Error::Driver`].
pub fn device_count() -> Result<usize> {
    if !driver_present() {
        return Err(Error::NoDriver);
    }
    match CudaContext::device_count() {
        // A driver without devices says so when it is initialised.
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Ok(0),
        count => checked("cuDeviceGetCount", count).map(|n| n as usize),
    }
}

/// The primary context of device `ordinal`, as [`CudaContext::new`], which panics where there is no driver.
///
/// # Errors
/// [`Error::NoDriver`], [`Error::NoDevice`], [`Error::Driver`].
pub fn context(ordinal: usize) -> Result<Arc<CudaContext>> {
    let count = device_count()?;
    if ordinal >= count {
        return Err(Error::NoDevice { ordinal, count });
    }
    checked("cuDevicePrimaryCtxRetain", CudaContext::new(ordinal))
}

/// What the driver supports: 1000 · major + 10 · minor.
pub(super) fn version() -> Result<i32> {
    let mut version = 0;
    // SAFETY: the driver writes one integer.
    let result = unsafe { sys::cuDriverGetVersion(&raw mut version) }.result();
    checked("cuDriverGetVersion", result).map(|()| version)
}

/// Names the call that the driver refused. Asking the driver for the text is fine: it has just answered.
pub(super) fn checked<T>(call: &'static str, result: Result<T, DriverError>) -> Result<T> {
    result.map_err(|e| {
        let name = format!("{:?}", e.0);
        // The toolkit's stub of the driver has no texts.
        let message = match e.error_string() {
            Ok(text) => format!("{} ({name})", text.to_string_lossy()),
            Err(_) => name,
        };
        Error::Driver { call, message }
    })
}

/// A kernel's attribute.
///
/// # Safety
/// The function's module is loaded.
pub(super) unsafe fn attribute(
    function: sys::CUfunction,
    attribute: sys::CUfunction_attribute,
) -> Result<i32> {
    // SAFETY: the caller's promise.
    checked("cuFuncGetAttribute", unsafe { result::function::get_function_attribute(function, attribute) })
}
