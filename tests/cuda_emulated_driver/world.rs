//! Processes in which the emulated driver is the driver, and what they ask of it.

use std::ffi::{CString, c_char};
use std::process::Command;
use std::sync::Arc;

use inducer_attention::cuda::cudarc::driver::{CudaContext, sys};
use inducer_attention::cuda::kernels::KERNELS;
use inducer_attention::cuda::{self, Engine, fatbins};

/// Set in those processes.
const INSIDE: &str = "INDUCER_ATTENTION_EMULATED_DRIVER";

/// Runs the test that calls this, whose body is `body`, in a process of its own in which the emulated driver is found first. What
/// the driver says of its devices follows from `settings`, which `kernels/emulator/driver/state.cpp` reads.
///
/// # Panics
/// If it fails there.
pub(crate) fn emulated<F: FnOnce()>(settings: &[(&str, &str)], body: F) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    // `binary::module::test::{{closure}}`
    let name = std::any::type_name::<F>();
    let name = name.split_once("::").map_or(name, |(_, rest)| rest);
    let name = name.trim_end_matches("::{{closure}}");
    let mut path = vec![cuda::EMULATED_DRIVER.into()];
    path.extend(std::env::split_paths(&std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default()));
    let output = Command::new(std::env::current_exe().expect("a test binary"))
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .env("LD_LIBRARY_PATH", std::env::join_paths(path).expect("no colons in the build folder's path"))
        .envs(settings.iter().copied())
        .output()
        .expect("a test binary that runs");
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(
        output.status.success() && out.contains("1 passed"),
        "{name}, on the emulated driver: {}\n{out}\n{err}",
        output.status
    );
}

/// The context of a device.
pub(crate) fn context(ordinal: usize) -> Arc<CudaContext> {
    cuda::context(ordinal).expect("the emulated driver has devices")
}

/// An engine with this build's fatbins or, where there was no nvcc, with images that name all kernels.
pub(crate) fn engine(context: &Arc<CudaContext>) -> Engine {
    if fatbins().next().is_some() {
        return Engine::new(context).expect("the emulated driver takes the fatbins");
    }
    let names: Vec<&str> = KERNELS.iter().map(|kernel| kernel.name).collect();
    let image = Image::new(&[Code::Machine(80), Code::Machine(90)], &names);
    // SAFETY: the image is complete, and the emulator runs this build's kernels.
    unsafe { Engine::from_images(context, &[image.bytes()]) }.expect("the emulated driver takes the image")
}

/// What an image of kernels holds.
#[derive(Clone, Copy)]
pub(crate) enum Code {
    /// For an architecture.
    Machine(u32),
    /// PTX of a version.
    Ptx { architecture: u32, version: (u16, u16) },
}

/// A fatbin without code, that names the kernels it stands for: `kernels/emulator/driver/image.cpp` reads it.
pub(crate) struct Image(Vec<u64>);

impl Image {
    pub(crate) fn new(code: &[Code], names: &[&str]) -> Self {
        let mut text: String = names.iter().flat_map(|name| [name, "\n"]).collect();
        while !text.len().is_multiple_of(8) {
            text.push('\n');
        }
        let mut entries = Vec::new();
        let mut entry = |kind: u16, architecture: u32, version: (u16, u16), content: &[u8]| {
            entries.extend_from_slice(&kind.to_le_bytes());
            entries.extend_from_slice(&0x101u16.to_le_bytes());
            entries.extend_from_slice(&32u32.to_le_bytes());
            entries.extend_from_slice(&(content.len() as u64).to_le_bytes());
            entries.extend_from_slice(&[0; 8]);
            entries.extend_from_slice(&version.1.to_le_bytes());
            entries.extend_from_slice(&version.0.to_le_bytes());
            entries.extend_from_slice(&architecture.to_le_bytes());
            entries.extend_from_slice(content);
        };
        for each in code {
            match *each {
                Code::Machine(architecture) => entry(2, architecture, (0, 0), &[]),
                Code::Ptx { architecture, version } => entry(1, architecture, version, &[]),
            }
        }
        entry(0x7e57, 0, (0, 0), text.as_bytes());
        let mut all = vec![0xba55_ed50 | 1 << 32 | 16 << 48, entries.len() as u64];
        all.extend(
            entries.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes"))),
        );
        Self(all)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// How often a function of the driver was called, by its name; with an empty name, all of them together.
pub(crate) fn calls(name: &str) -> u64 {
    let name = CString::new(name).expect("names hold no zero byte");
    // SAFETY: the emulated driver's library has such a function, which reads a string.
    unsafe {
        let count =
            sys::culib().get::<unsafe extern "C" fn(*const c_char) -> u64>(b"emulated_driver_calls\0");
        count.expect("the emulated driver")(name.as_ptr())
    }
}
