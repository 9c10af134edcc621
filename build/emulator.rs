//! The emulator's library: the kernels' own source and the emulator, compiled for the host. With feature `cuda`, on Linux, also a
//! CUDA driver made of it.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::elsewhere;
use crate::includes;
use crate::pool;

const KERNELS: &str = "kernels";
const EMULATOR: &str = "kernels/emulator";
const SELFTEST: &str = "kernels/emulator/selftest";
const DRIVER: &str = "kernels/emulator/driver";

/// Without the address sanitizer, which `cc` adds where Rust's code is built with it: it knows no fibers, and does not go with
/// the hooks of [`KERNEL_FLAGS`].
const COMMON: [&str; 9] = [
    "-std=c++17",
    "-O2",
    "-g1",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-sanitize=address",
];

/// Kernels: with a hook before every access, and arithmetic that rounds after each operation, on every machine.
const KERNEL_FLAGS: [&str; 6] =
    ["-fsanitize=thread", "-fno-strict-aliasing", "-ffp-contract=off", "-fno-math-errno", "-x", "c++"];

/// The emulator itself; vectorised products.
const EMULATOR_FLAGS: [&str; 2] = ["-O3", "-ffp-contract=off"];

/// Compiles what has changed, and links it whole: kernels put themselves into the table when the program starts.
pub fn build() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    if let Err(e) = compile(&out) {
        for line in e.lines() {
            println!("cargo::error={line}");
        }
        std::process::exit(1);
    }
    println!("cargo::rustc-link-search=native={}", out.display());
    println!("cargo::rustc-link-lib=static:+whole-archive=inducer_emulator");
    let apple = std::env::var("CARGO_CFG_TARGET_VENDOR").is_ok_and(|vendor| vendor == "apple");
    println!("cargo::rustc-link-lib={}", if apple { "c++" } else { "stdc++" });
}

fn compile(out: &Path) -> Result<(), String> {
    let mut tool = cc::Build::new();
    tool.cpp(true).opt_level(2).debug(false).pic(true).warnings(false).cargo_warnings(false);
    let missing = "the emulator of the CUDA kernels (feature `emulator`, on in tests) needs a C++17 compiler: install g++ or \
                   clang++, or name one in CXX";
    let compiler = tool.try_get_compiler().map_err(|e| format!("{missing} ({e})"))?;
    if compiler.is_like_msvc() {
        return Err(missing.to_string());
    }
    let version = compiler.to_command().arg("--version").output().map_err(|e| format!("{missing} ({e})"))?;

    let mut sources = Vec::new();
    // The pool begins with the last ones: kernels take longest.
    let driver = makes_driver().then_some((DRIVER, "cpp"));
    for (folder, extension) in
        driver.into_iter().chain([(EMULATOR, "cpp"), (SELFTEST, "cu"), (KERNELS, "cu")])
    {
        println!("cargo::rerun-if-changed={folder}");
        let entries = std::fs::read_dir(folder).map_err(|e| format!("{folder}: {e}"))?;
        let mut found: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        found.retain(|path| path.extension().is_some_and(|e| e == extension));
        found.sort();
        sources.append(&mut found);
    }

    let others = elsewhere::folders(out);
    let (mut objects, mut driver_objects) = (Vec::new(), Vec::new());
    let mut jobs = Vec::new();
    for source in sources {
        let mut command = compiler.to_command();
        command.args(COMMON);
        let is_kernel = source.extension().is_some_and(|e| e == "cu");
        command.args(if is_kernel { KERNEL_FLAGS.as_slice() } else { EMULATOR_FLAGS.as_slice() });
        let mut hash = DefaultHasher::new();
        // Not the command as a whole: its environment names this build's own folder.
        (command.get_program(), command.get_args().collect::<Vec<_>>()).hash(&mut hash);
        version.stdout.hash(&mut hash);
        for file in includes::closure(&source, Path::new("no folder is left out")) {
            println!("cargo::rerun-if-changed={}", file.display());
            std::fs::read(&file).map_err(|e| format!("{}: {e}", file.display()))?.hash(&mut hash);
        }
        // What an object is made of is part of its name.
        let stem = source.file_stem().unwrap_or_default().to_string_lossy();
        let object = out.join(format!("{stem}-{:016x}.o", hash.finish()));
        let mut made = others.iter().map(|folder| folder.join(object.file_name().unwrap_or_default()));
        if object.is_file() {
            // Of an earlier build.
        } else if let Some(made) = made.find(|path| path.is_file()) {
            elsewhere::copy(&made, &object)?;
        } else {
            let unfinished = object.with_extension("tmp");
            command.arg("-c").arg(&source).arg("-o").arg(&unfinished);
            jobs.push((command, unfinished, object.clone()));
        }
        let whose = if source.starts_with(DRIVER) { &mut driver_objects } else { &mut objects };
        whose.push(object);
    }
    remove_others(out, &[objects.as_slice(), &driver_objects].concat());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = std::env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(cores);
    pool::run(threads, jobs, |(mut command, unfinished, object)| {
        run(&mut command)?;
        std::fs::rename(&unfinished, &object).map_err(|e| format!("{}: {e}", object.display()))?;
        Ok(Vec::new())
    })?;

    let archive = out.join("libinducer_emulator.a");
    let _ = std::fs::remove_file(&archive);
    let mut archiver = tool.try_get_archiver().map_err(|e| e.to_string())?;
    run(archiver.arg("crs").arg(&archive).args(&objects))?;
    if makes_driver() { link_driver(&compiler, &[driver_objects, objects].concat(), out) } else { Ok(()) }
}

/// Tests of the CUDA backend load the emulated driver instead of the real one.
fn makes_driver() -> bool {
    cfg!(feature = "cuda") && std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux")
}

/// Links the emulated driver by the real one's name, in a folder that nobody searches unless told to. (cargo has programs that it
/// runs search `OUT_DIR` itself.)
fn link_driver(compiler: &cc::Tool, objects: &[PathBuf], out: &Path) -> Result<(), String> {
    let folder = out.join("emulated_driver");
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let (library, unfinished) = (folder.join("libcuda.so.1"), folder.join("unfinished"));
    let mut command = compiler.to_command();
    command.args(["-shared", "-pthread", "-Wl,-z,defs", "-Wl,-soname,libcuda.so.1"]);
    command.arg(format!("-Wl,--version-script={DRIVER}/exports.map"));
    run(command.args(objects).arg("-o").arg(&unfinished))?;
    std::fs::rename(&unfinished, &library).map_err(|e| format!("{}: {e}", library.display()))?;
    // The name that some look for first.
    let link = folder.join("libcuda.so");
    #[cfg(unix)]
    if !link.exists() {
        std::os::unix::fs::symlink("libcuda.so.1", &link).map_err(|e| format!("{}: {e}", link.display()))?;
    }
    Ok(())
}

/// Removes objects of earlier sources.
fn remove_others(out: &Path, objects: &[PathBuf]) {
    let Ok(entries) = std::fs::read_dir(out) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.extension().is_some_and(|e| e == "o") && !objects.contains(&path) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Runs a command; what it has to say about the sources is shown either way.
fn run(command: &mut Command) -> Result<(), String> {
    let result = command.output().map_err(|e| format!("cannot run {command:?}: {e}"))?;
    let text = String::from_utf8_lossy(&result.stderr);
    if !result.status.success() {
        return Err(format!("{command:?} failed:\n{text}"));
    }
    for line in text.lines() {
        println!("cargo::warning={line}");
    }
    Ok(())
}
