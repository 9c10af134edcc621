//! The card's clocks, from the driver's management library (NVML), loaded where it is there.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_ulonglong, c_void};

use libloading::Library;

/// `NVML_CLOCK_SM`.
const SM: c_int = 1;

/// Bits of the reasons why clocks are low that mean throttling: power cap, hardware slowdown, and heat (both kinds), power brake.
const THROTTLED: [(u64, &str); 5] = [
    (0x04, "power cap"),
    (0x08, "hardware slowdown"),
    (0x20, "software thermal slowdown"),
    (0x40, "hardware thermal slowdown"),
    (0x80, "power brake"),
];

type Handle = *mut c_void;

/// One card, watched.
pub(crate) struct Monitor {
    library: Library,
    handle: Handle,
}

/// What a look at the card shows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Look {
    /// Clock of the multiprocessors, in MHz.
    pub(crate) clock: u32,
    /// Why it is not higher; bits of [`THROTTLED`] and others.
    pub(crate) reasons: u64,
    /// Power, in watts.
    pub(crate) watts: f64,
}

impl Look {
    /// What throttles the card.
    pub(crate) fn throttled(&self) -> impl Iterator<Item = &'static str> + '_ {
        THROTTLED.iter().filter(|(bit, _)| self.reasons & bit != 0).map(|(_, name)| *name)
    }
}

impl Monitor {
    /// The card at a place on the bus.
    pub(crate) fn open(bus_id: &str) -> Option<Self> {
        // SAFETY: loading runs the library's initialisers alone.
        let library =
            ["libnvidia-ml.so.1", "nvml.dll"].iter().find_map(|name| unsafe { Library::new(*name) }.ok())?;
        let id = CString::new(bus_id).ok()?;
        let mut handle: Handle = std::ptr::null_mut();
        // SAFETY: the functions have these types in every version of the library that has these names.
        unsafe {
            let init = library.get::<unsafe extern "C" fn() -> c_int>(b"nvmlInit_v2\0").ok()?;
            (init() == 0).then_some(())?;
            let get = library
                .get::<unsafe extern "C" fn(*const c_char, *mut Handle) -> c_int>(
                    b"nvmlDeviceGetHandleByPciBusId_v2\0",
                )
                .ok()?;
            (get(id.as_ptr(), &raw mut handle) == 0).then_some(())?;
        }
        Some(Self { library, handle })
    }

    /// The driver's version.
    pub(crate) fn driver(&self) -> Option<String> {
        let mut text = [0u8; 96];
        // SAFETY: the function has this type, and writes a terminated string of at most this length.
        unsafe {
            let get = self
                .library
                .get::<unsafe extern "C" fn(*mut c_char, c_uint) -> c_int>(b"nvmlSystemGetDriverVersion\0")
                .ok()?;
            (get(text.as_mut_ptr().cast(), text.len() as c_uint) == 0).then_some(())?;
        }
        Some(CStr::from_bytes_until_nul(&text).ok()?.to_string_lossy().into_owned())
    }

    /// The highest clock of the multiprocessors, in MHz.
    pub(crate) fn highest_clock(&self) -> Option<u32> {
        self.clock(b"nvmlDeviceGetMaxClockInfo\0")
    }

    /// The card as it is now.
    pub(crate) fn look(&self) -> Option<Look> {
        let clock = self.clock(b"nvmlDeviceGetClockInfo\0")?;
        let (mut reasons, mut milliwatts): (c_ulonglong, c_uint) = (0, 0);
        // SAFETY: the functions have these types, and write one integer each.
        unsafe {
            type Reasons = unsafe extern "C" fn(Handle, *mut c_ulonglong) -> c_int;
            type Power = unsafe extern "C" fn(Handle, *mut c_uint) -> c_int;
            if let Ok(get) = self.library.get::<Reasons>(b"nvmlDeviceGetCurrentClocksThrottleReasons\0") {
                get(self.handle, &raw mut reasons);
            }
            if let Ok(get) = self.library.get::<Power>(b"nvmlDeviceGetPowerUsage\0") {
                get(self.handle, &raw mut milliwatts);
            }
        }
        Some(Look { clock, reasons, watts: f64::from(milliwatts) / 1e3 })
    }

    fn clock(&self, function: &[u8]) -> Option<u32> {
        let mut megahertz: c_uint = 0;
        // SAFETY: both functions that are asked for have this type, and write one integer.
        unsafe {
            type Clock = unsafe extern "C" fn(Handle, c_int, *mut c_uint) -> c_int;
            let get = self.library.get::<Clock>(function).ok()?;
            (get(self.handle, SM, &raw mut megahertz) == 0).then_some(megahertz)
        }
    }
}
