//! The instruction probes' fatbin, which tests embed and the crate does not.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::fatbins::{ARCHS, EMULATOR, FATBINS, hex};
use crate::includes;
use crate::nvcc::{self, Nvcc, variable};

const SOURCE: &str = "kernels/probes.cu";

/// Writes `OUT_DIR/probes.fatbin`, empty where there is no compiler or none is to be used.
pub fn build() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let fatbin = out.join("probes.fatbin");
    let compiler =
        if variable("DOCS_RS").is_some() || variable(FATBINS).is_some() { None } else { nvcc::find() };
    let built = if let Some(path) = compiler {
        compile(path, &out, &fatbin)
    } else {
        // Else the next build with a compiler would take the empty file for its own.
        let _ = std::fs::remove_file(stamp(&out));
        std::fs::write(&fatbin, "").map_err(|e| format!("{}: {e}", fatbin.display()))
    };
    if let Err(e) = built {
        for line in e.lines() {
            println!("cargo::error={line}");
        }
        std::process::exit(1);
    }
}

/// Says what the fatbin was compiled from.
fn stamp(out: &Path) -> PathBuf {
    out.join("probes.stamp")
}

fn compile(path: PathBuf, out: &Path, fatbin: &Path) -> Result<(), String> {
    let source = Path::new(SOURCE);
    let nvcc = Nvcc::new(path)?;
    let targets = nvcc.targets(ARCHS)?;
    let mut hash = Sha256::new();
    hash.update(format!("{} {targets:?} {}", nvcc.version, include_str!("nvcc.rs")));
    for file in includes::closure(source, Path::new(EMULATOR)) {
        println!("cargo::rerun-if-changed={}", file.display());
        hash.update(std::fs::read(&file).map_err(|e| format!("{}: {e}", file.display()))?);
    }
    let (stamp, stamp_path) = (hex(&hash.finalize()), stamp(out));
    if std::fs::read_to_string(&stamp_path).is_ok_and(|last| last == stamp) {
        return Ok(());
    }
    let _ = std::fs::remove_file(&stamp_path);
    let ptx = out.join("probes.ptx");
    nvcc.ptx(source, &ptx)?;
    let mut cubins = Vec::new();
    for target in targets {
        let cubin = out.join(format!("probes.sm_{target}.cubin"));
        nvcc.cubin(&ptx, target, &[], &cubin)?;
        cubins.push((target, cubin));
    }
    nvcc.fatbin(&ptx, &cubins, fatbin)?;
    std::fs::write(stamp_path, stamp).map_err(|e| e.to_string())
}
