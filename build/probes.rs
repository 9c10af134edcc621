//! The instruction probes' fatbins, which tests embed and the crate does not.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::fatbins::{ARCHS, EMULATOR, FATBINS, hex};
use crate::includes;
use crate::nvcc::{self, Family, Nvcc, variable};

/// The sources in `kernels/`.
const SOURCES: [&str; 2] = ["probes", "probes_sm90"];

/// Writes `OUT_DIR/probes.fatbin` and the like, empty where there is no compiler or none is to be used, or no target for it.
pub fn build() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let left_out = variable("DOCS_RS").is_some() || variable(FATBINS).is_some();
    let compiler = if left_out { None } else { nvcc::find() };
    for source in SOURCES {
        let fatbin = out.join(format!("{source}.fatbin"));
        let built = if let Some(path) = &compiler {
            compile(path.clone(), source, &out, &fatbin)
        } else {
            write_empty(source, &out, &fatbin)
        };
        if let Err(e) = built {
            for line in e.lines() {
                println!("cargo::error={line}");
            }
            std::process::exit(1);
        }
    }
}

fn write_empty(source: &str, out: &Path, fatbin: &Path) -> Result<(), String> {
    // Else the next build with a compiler would take the empty file for its own.
    let _ = std::fs::remove_file(stamp(out, source));
    std::fs::write(fatbin, "").map_err(|e| format!("{}: {e}", fatbin.display()))
}

/// Says what a fatbin was compiled from.
fn stamp(out: &Path, source: &str) -> PathBuf {
    out.join(format!("{source}.stamp"))
}

fn compile(path: PathBuf, name: &str, out: &Path, fatbin: &Path) -> Result<(), String> {
    let source = &Path::new("kernels").join(format!("{name}.cu"));
    let nvcc = Nvcc::new(path)?;
    let family = nvcc::family(name);
    let targets = family.of(&nvcc.targets(ARCHS)?);
    if targets.is_empty() && family == Family::Hopper {
        return write_empty(name, out, fatbin);
    }
    let mut hash = Sha256::new();
    hash.update(format!("{} {targets:?} {}", nvcc.version, include_str!("nvcc.rs")));
    for file in includes::closure(source, Path::new(EMULATOR)) {
        println!("cargo::rerun-if-changed={}", file.display());
        hash.update(std::fs::read(&file).map_err(|e| format!("{}: {e}", file.display()))?);
    }
    let (stamp, stamp_path) = (hex(&hash.finalize()), stamp(out, name));
    if std::fs::read_to_string(&stamp_path).is_ok_and(|last| last == stamp) {
        return Ok(());
    }
    let _ = std::fs::remove_file(&stamp_path);
    let ptx = out.join(format!("{name}.ptx"));
    nvcc.ptx(source, family, &ptx)?;
    let mut cubins = Vec::new();
    for target in targets {
        let cubin = out.join(format!("{name}.sm_{target}.cubin"));
        nvcc.cubin(&ptx, family, target, &[], &cubin)?;
        cubins.push((target, cubin));
    }
    nvcc.fatbin(&ptx, family, &cubins, fatbin)?;
    std::fs::write(stamp_path, stamp).map_err(|e| e.to_string())
}
