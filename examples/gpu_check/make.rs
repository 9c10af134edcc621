//! Builds the folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::steps;

/// Most bytes of the folder.
const MAX_BYTES: u64 = 60_000_000;

/// Targets of the kernels where nothing else is asked for: one per generation, whatever GPU this machine has.
const ARCHS: (&str, &str) = ("INDUCER_ATTENTION_CUDA_ARCHS", "80,90,100,120");

/// Release executables without what debuggers need (Cargo.toml). The one that this example itself is best built with: cargo then
/// compiles the crate, its kernels and the emulator once for both.
const PROFILE: [&str; 2] = ["--profile", "gpu-check"];

/// Builds executables and puts them into `folder`, with the scripts.
///
/// # Errors
/// A sentence.
pub(crate) fn make(folder: &Path) -> Result<(), String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let bin = folder.join("bin");
    fs::create_dir_all(&bin).map_err(at(&bin))?;
    for executable in build(root)? {
        let to = bin.join(&executable.name);
        // A name that a running program holds can be replaced, not written to.
        let _ = fs::remove_file(&to);
        fs::copy(&executable.path, &to).map_err(at(&executable.path))?;
    }
    let peers = root.join("benches/gpu/peers.py");
    fs::copy(&peers, folder.join("peers.py")).map_err(at(&peers))?;
    check_kernels(&bin.join("gpu"))?;

    let glibc = needed_glibc(&bin)?;
    let script = folder.join("run.sh");
    fs::write(&script, include_str!("run.sh").replace("@GLIBC@", &glibc)).map_err(at(&script))?;
    make_executable(&script)?;

    let bytes = size(folder)?;
    if bytes > MAX_BYTES {
        return Err(format!("{} has {bytes} bytes, more than {MAX_BYTES}", folder.display()));
    }
    println!(
        "{}: {:.1} MB; it runs on x86-64 Linux with glibc {glibc} or newer: {}",
        folder.display(),
        bytes as f64 / 1e6,
        script.display()
    );
    Ok(())
}

struct Executable {
    name: String,
    path: PathBuf,
}

/// Has cargo build them, and learns from it where they are.
fn build(root: &Path) -> Result<Vec<Executable>, String> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root).args([
        "build",
        "--features",
        "cuda",
        "--message-format",
        "json-render-diagnostics",
    ]);
    command.args(PROFILE).args(["--bench", "gpu", "--example", "gpu_check"]);
    let tests: Vec<&str> = steps::TESTS.iter().copied().filter(|test| has_test(root, test)).collect();
    for test in &tests {
        command.args(["--test", test]);
    }
    if std::env::var_os(ARCHS.0).is_none_or(|value| value.is_empty()) {
        command.env(ARCHS.0, ARCHS.1);
    }
    if let Some(commit) = commit(root) {
        command.env("INDUCER_ATTENTION_COMMIT", commit);
    }
    let output = command.stderr(Stdio::inherit()).output().map_err(|e| format!("cargo: {e}"))?;
    if !output.status.success() {
        return Err("the executables were not built".into());
    }
    let executables = executables(&String::from_utf8_lossy(&output.stdout));
    for wanted in tests.iter().copied().chain(["gpu", "gpu_check"]) {
        if !executables.iter().any(|executable| executable.name == wanted) {
            return Err(format!("cargo did not say where {wanted} is"));
        }
    }
    Ok(executables)
}

fn has_test(root: &Path, test: &str) -> bool {
    let tests = root.join("tests");
    tests.join(format!("{test}.rs")).is_file() || tests.join(test).join("main.rs").is_file()
}

/// From cargo's messages, one JSON object a line.
fn executables(messages: &str) -> Vec<Executable> {
    let values = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    values
        .filter_map(|message| {
            let path = message["executable"].as_str()?.into();
            Some(Executable { name: message["target"]["name"].as_str()?.to_owned(), path })
        })
        .collect()
}

/// The commit of the sources, with "+" where they were changed since.
fn commit(root: &Path) -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let id = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Some(if changed { id + "+" } else { id })
}

/// That the bench starts, and holds kernels.
fn check_kernels(bench: &Path) -> Result<(), String> {
    let output = Command::new(bench).arg("--static").output().map_err(at(bench))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let embedded = text.lines().find(|line| line.starts_with("embedded: "));
    match embedded {
        Some(line) => println!("{line}"),
        None => return Err("no kernels are embedded: install nvcc, or point NVCC to it".into()),
    }
    Ok(())
}

/// The newest version of the C library that an executable names.
fn needed_glibc(bin: &Path) -> Result<String, String> {
    let mut newest = (2, 17);
    for entry in fs::read_dir(bin).map_err(at(bin))?.flatten() {
        let content = fs::read(entry.path()).map_err(at(&entry.path()))?;
        newest = newest.max(newest_glibc(&content));
    }
    Ok(format!("{}.{}", newest.0, newest.1))
}

/// From the names of symbol versions, `GLIBC_2.34`.
fn newest_glibc(content: &[u8]) -> (u32, u32) {
    const PREFIX: &[u8] = b"GLIBC_2.";
    let minor = |at: usize| {
        let digits = content[at + PREFIX.len()..].iter().take_while(|byte| byte.is_ascii_digit()).take(3);
        digits.fold(0, |number, digit| number * 10 + u32::from(digit - b'0'))
    };
    let places = content.windows(PREFIX.len()).enumerate().filter(|(_, window)| *window == PREFIX);
    (2, places.map(|(at, _)| minor(at)).max().unwrap_or(0))
}

fn size(folder: &Path) -> Result<u64, String> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).map_err(at(folder))?.flatten() {
        let data = entry.metadata().map_err(at(&entry.path()))?;
        bytes += if data.is_dir() { size(&entry.path())? } else { data.len() };
    }
    Ok(bytes)
}

#[cfg(unix)]
fn make_executable(path: &Path) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(at(path))
}

#[cfg(not(unix))]
fn make_executable(_: &Path) -> Result<(), String> {
    Err("the folder is for Linux, and is made there".into())
}

fn at<E: std::fmt::Display>(path: &Path) -> impl Fn(E) -> String {
    move |error| format!("{}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_found_in_cargos_messages() {
        let messages = "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"lib\"},\"executable\":null}\n\
                        not a message\n\
                        {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"probes\"},\"executable\":\"/x/probes-1\"}\n";
        let found = executables(messages);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].name.as_str(), found[0].path.as_path()), ("probes", Path::new("/x/probes-1")));
    }

    #[test]
    fn the_newest_library_version_counts() {
        assert_eq!(newest_glibc(b"..GLIBC_2.2.5\0GLIBC_2.34\0GLIBC_2.9\0GLIBC_PRIVATE"), (2, 34));
        assert_eq!(newest_glibc(b"nothing"), (2, 0));
    }
}
