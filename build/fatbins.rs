//! The kernels' machine code: compiled with nvcc, or taken from a folder of prebuilt files, or left out.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::elsewhere;
use crate::includes;
use crate::kernel_list;
use crate::nvcc::{self, Family, Nvcc, variable};
use crate::pool;

const KERNELS: &str = "kernels";

/// What is compiled only for the host.
pub const EMULATOR: &str = "kernels/emulator";

/// The sources, those that take longest last: the pool begins with the last.
const SOURCES: [&str; 4] = ["backward_finish", "backward_prepare", "forward_sm80", "backward_sm80"];
/// Those with instructions that Hopper alone has; left out where it is not among the targets.
const HOPPER_SOURCES: [&str; 2] = ["backward_sm90", "forward_sm90"];

/// Comma-separated architectures, such as `80,90`.
pub const ARCHS: &str = "INDUCER_ATTENTION_CUDA_ARCHS";
/// A folder of fatbins and the [`MANIFEST`] that goes with them.
pub const FATBINS: &str = "INDUCER_ATTENTION_CUDA_FATBINS";
const MANIFEST: &str = "SHA256SUMS";

/// Writes to `OUT_DIR`: fatbins and their manifest, cubins, the assembler's report `ptxas.txt`, and `fatbins.rs`, an array of
/// names and contents.
pub fn build() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    std::fs::write(out.join("ptxas.txt"), "").expect("OUT_DIR is writable");
    let prebuilt = variable(FATBINS);
    let on_docs_rs = variable("DOCS_RS").is_some();
    let built = if on_docs_rs {
        Ok(Vec::new())
    } else if let Some(folder) = prebuilt {
        take(Path::new(&folder), &out).map_err(|e| format!("{FATBINS}: {e}"))
    } else if let Some(path) = nvcc::find() {
        compile(path, &out)
    } else {
        println!(
            "cargo::warning=no nvcc found (NVCC, CUDA_HOME, PATH): built without CUDA kernels; its calls will say what to install"
        );
        Ok(Vec::new())
    };
    match built {
        Ok(fatbins) => embed(&fatbins, &out),
        Err(e) => {
            for line in e.lines() {
                println!("cargo::error={line}");
            }
            std::process::exit(1);
        }
    }
}

/// Checks prebuilt fatbins against their manifest.
fn take(folder: &Path, out: &Path) -> Result<Vec<PathBuf>, String> {
    let manifest_path = folder.join(MANIFEST);
    let read = |path: &Path| std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()));
    let manifest = String::from_utf8_lossy(&read(&manifest_path)?).into_owned();
    println!("cargo::rerun-if-changed={}", manifest_path.display());
    let mut fatbins = Vec::new();
    for line in manifest.lines().filter(|line| !line.trim().is_empty()) {
        let (sum, name) = line.split_once("  ").ok_or_else(|| format!("{MANIFEST}: cannot read {line:?}"))?;
        let from = folder.join(name);
        println!("cargo::rerun-if-changed={}", from.display());
        let content = read(&from)?;
        if hex(&Sha256::digest(&content)) != sum {
            return Err(format!("{name} does not have the checksum that {MANIFEST} gives"));
        }
        let to = out.join(name);
        // Else a later build with a compiler would take it for its own.
        let _ = std::fs::remove_file(to.with_extension("stamp"));
        std::fs::write(&to, content).map_err(|e| format!("{}: {e}", to.display()))?;
        fatbins.push(to);
    }
    for source in SOURCES {
        if !fatbins.iter().any(|f| f.file_stem().is_some_and(|stem| stem == source)) {
            return Err(format!("{MANIFEST} does not list {source}.fatbin"));
        }
    }
    Ok(fatbins)
}

/// One step of the compilation of a source.
enum Job {
    Ptx(&'static str),
    Cubin(&'static str, u32),
}

/// Compiles every source whose text, headers, compiler or targets are not those of last time.
fn compile(path: PathBuf, out: &Path) -> Result<Vec<PathBuf>, String> {
    let nvcc = Nvcc::new(path)?;
    let targets = nvcc.targets(ARCHS)?;
    let targets_of = |source: &str| nvcc::family(source).of(&targets);
    let others = elsewhere::folders(out);
    let mut stale = Vec::new();
    let mut present = Vec::new();
    for source in SOURCES.into_iter().chain(HOPPER_SOURCES) {
        if targets_of(source).is_empty() && nvcc::family(source) == Family::Hopper {
            continue;
        }
        let path = Path::new(KERNELS).join(format!("{source}.cu"));
        let files = includes::closure(&path, Path::new(EMULATOR));
        if files.is_empty() {
            return Err(format!("{}: there is no such file", path.display()));
        }
        let mut hash = Sha256::new();
        let how = (&targets, nvcc.line_info);
        let script = concat!(include_str!("nvcc.rs"), include_str!("kernel_list.rs"));
        hash.update(format!("{} {how:?} {script}", nvcc.version));
        for file in &files {
            println!("cargo::rerun-if-changed={}", file.display());
            hash.update(std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?);
        }
        let (stamp, stamp_path) = (hex(&hash.finalize()), out.join(format!("{source}.stamp")));
        if std::fs::read_to_string(&stamp_path).is_ok_and(|last| last == stamp) {
            present.push(source);
            continue;
        }
        // Until the new stamp is written, no old one stands beside files that are half new.
        let _ = std::fs::remove_file(&stamp_path);
        let same = |folder: &&PathBuf| {
            std::fs::read_to_string(folder.join(format!("{source}.stamp"))).is_ok_and(|other| other == stamp)
        };
        if let Some(folder) = others.iter().find(same) {
            let codes = targets_of(source)
                .into_iter()
                .flat_map(|target| ["cubin", "ptxas"].map(|kind| format!("sm_{target}.{kind}")));
            // The stamp last.
            for kind in ["ptx", "fatbin"].map(String::from).into_iter().chain(codes).chain(["stamp".into()]) {
                let name = format!("{source}.{kind}");
                elsewhere::copy(&folder.join(&name), &out.join(&name))?;
            }
            present.push(source);
            continue;
        }
        stale.push((source, stamp_path, stamp));
    }

    let cubin = |source: &str, target: u32| out.join(format!("{source}.sm_{target}.cubin"));
    let report = |source: &str, target: u32| out.join(format!("{source}.sm_{target}.ptxas"));
    let ptx = |source: &str| out.join(format!("{source}.ptx"));
    let fatbin = |source: &str| out.join(format!("{source}.fatbin"));
    pool::run(threads(), stale.iter().map(|s| Job::Ptx(s.0)).collect(), |job| match job {
        Job::Ptx(source) => {
            nvcc.ptx(&Path::new(KERNELS).join(format!("{source}.cu")), nvcc::family(source), &ptx(source))?;
            Ok(targets_of(source).into_iter().map(|target| Job::Cubin(source, target)).collect())
        }
        Job::Cubin(source, target) => {
            let unused = kernel_list::unused(target);
            let family = nvcc::family(source);
            let text = nvcc.cubin(&ptx(source), family, target, &unused, &cubin(source, target))?;
            std::fs::write(report(source, target), text).map_err(|e| e.to_string())?;
            Ok(Vec::new())
        }
    })?;
    for (source, stamp_path, stamp) in stale {
        let cubins: Vec<_> =
            targets_of(source).into_iter().map(|target| (target, cubin(source, target))).collect();
        nvcc.fatbin(&ptx(source), nvcc::family(source), &cubins, &fatbin(source))?;
        std::fs::write(stamp_path, stamp).map_err(|e| e.to_string())?;
        present.push(source);
    }

    let mut text = String::new();
    for source in &present {
        for target in targets_of(source) {
            let part = std::fs::read_to_string(report(source, target)).map_err(|e| e.to_string())?;
            writeln!(text, "== {source} sm_{target}\n{part}").expect("a string grows");
        }
    }
    std::fs::write(out.join("ptxas.txt"), text).map_err(|e| e.to_string())?;
    Ok(present.into_iter().map(fatbin).collect())
}

/// Writes the manifest, and the Rust array that holds the fatbins.
fn embed(fatbins: &[PathBuf], out: &Path) {
    let (mut manifest, mut array) = (String::new(), String::from("[\n"));
    for path in fatbins {
        let content = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        writeln!(manifest, "{}  {name}", hex(&Sha256::digest(&content))).expect("a string grows");
        writeln!(
            array,
            "    Fatbin {{ name: \"{}\", image: &Aligned(*include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}\"))) }},",
            name.trim_end_matches(".fatbin")
        )
        .expect("a string grows");
    }
    array.push_str("]\n");
    std::fs::write(out.join(MANIFEST), manifest).expect("OUT_DIR is writable");
    std::fs::write(out.join("fatbins.rs"), array).expect("OUT_DIR is writable");
}

/// As many as there are cores, or as cargo was told to use.
fn threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).map_or(cores, |jobs: usize| jobs.min(cores))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string grows");
        text
    })
}
