//! The CUDA compiler: where it is, what it can do, how it is called.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where CUDA usually is.
const USUAL: &str = "/usr/local/cuda";

/// Architectures that are built where nothing else is asked for: one per generation since Ampere. Code for one serves the
/// later ones of its generation too (80: 86, 87, 89; 100: 103; 120: 121).
const DEFAULT_TARGETS: [u32; 4] = [80, 90, 100, 120];

/// The oldest that kernels are written for, and the one that PTX is made for: a driver compiles it for everything that has no
/// code of its own.
pub const FLOOR: u32 = 80;

/// The target whose GPUs have the instructions of [`Family::Hopper`].
const HOPPER: u32 = 90;

/// What a source is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Any architecture from [`FLOOR`] on.
    All,
    /// [`HOPPER`] alone: `sm_90a`, whose instructions no other architecture has, so that PTX would be of no use either.
    Hopper,
}

impl Family {
    /// Those of the targets that the family's sources are compiled for.
    pub fn of(self, targets: &[u32]) -> Vec<u32> {
        targets.iter().copied().filter(|&target| self == Self::All || target == HOPPER).collect()
    }
}

/// The family of a source, which its name tells.
pub fn family(source: &str) -> Family {
    if source.ends_with("_sm90") { Family::Hopper } else { Family::All }
}

/// Set to anything but 0, kernels carry line numbers, for profilers.
const LINE_INFO: &str = "INDUCER_ATTENTION_CUDA_LINEINFO";

/// `NVCC`, then the CUDA folder that a variable names, then `PATH`, then the usual place.
pub fn find() -> Option<PathBuf> {
    if let Some(nvcc) = variable("NVCC") {
        return Some(PathBuf::from(nvcc));
    }
    let folders = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"].into_iter().filter_map(variable);
    let path = std::env::var_os("PATH").unwrap_or_default();
    folders
        .map(|folder| Path::new(&folder).join("bin"))
        .chain(std::env::split_paths(&path))
        .chain([Path::new(USUAL).join("bin")])
        .map(|folder| folder.join(format!("nvcc{}", std::env::consts::EXE_SUFFIX)))
        .find(|nvcc| nvcc.is_file())
}

/// An environment variable that is set to something; the build runs again when it changes.
pub fn variable(name: &str) -> Option<String> {
    println!("cargo::rerun-if-env-changed={name}");
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Runs a command and returns what it printed, both streams.
pub fn output(command: &mut Command) -> Result<String, String> {
    let result = command.output().map_err(|e| format!("cannot run {command:?}: {e}"))?;
    let text =
        format!("{}{}", String::from_utf8_lossy(&result.stdout), String::from_utf8_lossy(&result.stderr));
    if result.status.success() { Ok(text) } else { Err(format!("{command:?} failed:\n{text}")) }
}

/// A found compiler.
pub struct Nvcc {
    path: PathBuf,
    /// What `--version` says.
    pub version: String,
    /// Architectures that it makes code for.
    known: Vec<u32>,
    /// Whether code says which line of the source it comes from. It is the same code.
    pub line_info: bool,
}

impl Nvcc {
    /// Asks the compiler what it is.
    pub fn new(path: PathBuf) -> Result<Self, String> {
        let version = output(Command::new(&path).arg("--version"))?;
        let known = output(Command::new(&path).arg("--list-gpu-code"))?
            .split_whitespace()
            .filter_map(|name| name.strip_prefix("sm_")?.parse().ok())
            .collect();
        let line_info = variable(LINE_INFO).is_some_and(|value| value != "0");
        Ok(Self { path, version, known, line_info })
    }

    /// The architectures to build: those that the variable lists; else those of this machine's GPUs; else one per generation.
    pub fn targets(&self, variable_name: &str) -> Result<Vec<u32>, String> {
        let asked = variable(variable_name);
        let mut targets = match &asked {
            Some(list) => list
                .split([',', ';', ' '])
                .filter(|s| !s.is_empty())
                .map(|s| s.trim_start_matches("sm_").parse().map_err(|_| format!("{variable_name}: {s:?}")))
                .collect::<Result<Vec<u32>, _>>()?,
            None => gpus().unwrap_or_else(|| DEFAULT_TARGETS.to_vec()),
        };
        targets.sort_unstable();
        targets.dedup();
        if let Some(old) = targets.iter().find(|&&t| t < FLOOR) {
            return Err(format!(
                "sm_{old}: kernels are for sm_{FLOOR} and newer; list others in {variable_name}"
            ));
        }
        if let Some(t) = asked.and(targets.iter().find(|t| !self.known.contains(t))) {
            return Err(format!("{variable_name}: this nvcc makes no code for sm_{t}"));
        }
        // An older compiler leaves the newest GPUs to the driver, which compiles the PTX.
        targets.retain(|t| self.known.contains(t));
        Ok(targets)
    }

    /// Compiles a source to PTX.
    pub fn ptx(&self, source: &Path, family: Family, to: &Path) -> Result<(), String> {
        let mut command = Command::new(&self.path);
        let arch = match family {
            Family::All => format!("compute_{FLOOR}"),
            Family::Hopper => format!("compute_{HOPPER}a"),
        };
        // Fused where the source says so and nowhere else: a row's reference and its maximum must round alike.
        command.args(["--ptx", "-std=c++17", "-O3", "-fmad=false", "-arch", &arch]);
        output(self.with_line_info(&mut command).arg("-o").arg(to).arg(source)).map(|_| ())
    }

    /// Compiles PTX to the code of one architecture, some of its kernels left out, and returns the assembler's report on
    /// registers, spills and memory.
    pub fn cubin(
        &self,
        ptx: &Path,
        family: Family,
        target: u32,
        unused: &[String],
        to: &Path,
    ) -> Result<String, String> {
        let mut command = self.beside("ptxas");
        command.args(["-O3", "-v", &format!("-arch=sm_{}", name(family, target))]);
        let text = std::fs::read_to_string(ptx).map_err(|e| format!("{}: {e}", ptx.display()))?;
        let kernels =
            text.split(".entry ").skip(1).filter_map(|rest| rest.split_once('(')).map(|(name, _)| name);
        let (out, kept): (Vec<&str>, Vec<&str>) = kernels.partition(|name| unused.iter().any(|u| u == name));
        if !out.is_empty() {
            command.arg(format!("--entry={}", kept.join(",")));
        }
        output(self.with_line_info(&mut command).arg("-o").arg(to).arg(ptx))
    }

    fn with_line_info<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        if self.line_info { command.arg("-lineinfo") } else { command }
    }

    /// Puts code together, with PTX where other architectures can use it.
    pub fn fatbin(
        &self,
        ptx: &Path,
        family: Family,
        cubins: &[(u32, PathBuf)],
        to: &Path,
    ) -> Result<(), String> {
        let mut command = self.beside("fatbinary");
        // Compressed for size it would be a quarter smaller, and take forty times as long.
        command.arg("-64").arg(format!("--create={}", to.display())).arg("--compress-all");
        if family == Family::All {
            command.arg(format!("--image3=kind=ptx,sm={FLOOR},file={}", ptx.display()));
        }
        for (target, cubin) in cubins {
            let name = name(family, *target);
            command.arg(format!("--image3=kind=elf,sm={name},file={}", cubin.display()));
        }
        output(&mut command).map(|_| ())
    }

    /// A tool that comes with the compiler and lies beside it.
    fn beside(&self, tool: &str) -> Command {
        Command::new(self.path.parent().map_or_else(|| PathBuf::from(tool), |folder| folder.join(tool)))
    }
}

/// What the compiler calls an architecture, without `sm_`.
fn name(family: Family, target: u32) -> String {
    match family {
        Family::All => target.to_string(),
        Family::Hopper => format!("{target}a"),
    }
}

/// Architectures of this machine's GPUs, if it has any.
fn gpus() -> Option<Vec<u32>> {
    let mut query = Command::new("nvidia-smi");
    let text = output(query.args(["--query-gpu=compute_cap", "--format=csv,noheader"])).ok()?;
    let capabilities: Vec<u32> =
        text.lines().filter_map(|line| line.trim().replace('.', "").parse().ok()).collect();
    (!capabilities.is_empty()).then_some(capabilities)
}
