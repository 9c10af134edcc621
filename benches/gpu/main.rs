//! Forward and backward of the CUDA kernels, with the inducer on and off, next to what the card can do at most; without a GPU,
//! what the kernels take of one.
//!
//! `cargo bench --features cuda --bench gpu -- --help`

mod grid;
mod options;
mod ptxas;

#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "shared with the benches of the CPU engine")]
mod support;

#[cfg(feature = "cuda")]
mod clock;
#[cfg(feature = "cuda")]
mod device;
#[cfg(feature = "cuda")]
mod problem;
#[cfg(feature = "cuda")]
mod report;
#[cfg(feature = "cuda")]
mod roofline;
#[cfg(feature = "cuda")]
mod run;
#[cfg(feature = "cuda")]
mod steadiness;
#[cfg(feature = "cuda")]
mod timing;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use options::{HELP, Options, Task};
use serde_json::{Value, json};

/// Exit code where a GPU was asked for and there is none.
const NO_GPU: u8 = 3;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(mistake) => {
            eprintln!("error: {mistake}; see --help");
            return ExitCode::from(2);
        }
    };
    let result = match options.task {
        Task::Help => {
            print!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        Task::Static => print_static(&options, None),
        #[cfg(feature = "cuda")]
        _ => run::run(&options),
        #[cfg(not(feature = "cuda"))]
        _ => without_gpu(&options, "this build has no CUDA backend (feature cuda)"),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}

/// What can be told where nothing can be measured.
fn without_gpu(options: &Options, reason: &str) -> Result<ExitCode, Box<dyn Error>> {
    let code = if options.task == Task::Measure && !options.require_gpu {
        print_static(options, Some(reason))?
    } else {
        println!("no GPU: {reason}");
        if let Some(path) = &options.json {
            write_json(path, &json!({ "bench": "gpu", "card": null, "left_out": reason }))?;
        }
        ExitCode::from(NO_GPU)
    };
    Ok(code)
}

/// The table of what kernels take; `left_out` says why there is nothing else.
fn print_static(options: &Options, left_out: Option<&str>) -> Result<ExitCode, Box<dyn Error>> {
    let usages = ptxas::parse(report());
    if usages.is_empty() {
        println!(
            "What kernels may take (kernels/budget.txt; this build has no compiler's report):\n\n{}",
            budget()
        );
    } else {
        println!("What kernels take, as the compiler reports it:\n\n{}", ptxas::print(&usages, shared));
    }
    let fatbins = fatbins();
    if !fatbins.is_empty() {
        let bytes: usize = fatbins.iter().map(|(_, bytes)| bytes).sum();
        println!("\nembedded: {} fatbins, {:.1} MB", fatbins.len(), bytes as f64 / 1e6);
    }
    if let Some(reason) = left_out {
        println!("\nleft out: times, TFLOP/s, GB/s, occupancy, the inducer's price, because {reason}");
    }
    if let Some(path) = &options.json {
        let kernels: Vec<Value> = usages
            .iter()
            .map(|u| {
                json!({
                    "kernel": u.kernel,
                    "target": u.target,
                    "registers": u.registers,
                    "spill_stores": u.spilled[0],
                    "spill_loads": u.spilled[1],
                    "stack": u.stack,
                    "shared_bytes": shared(&u.kernel),
                })
            })
            .collect();
        let value = json!({
            "bench": "gpu",
            "version": env!("CARGO_PKG_VERSION"),
            "commit": commit(),
            "date": support::machine::now(),
            "card": null,
            "left_out": left_out,
            "static": kernels,
            "fatbin_bytes": fatbins.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        });
        write_json(path, &value)?;
        println!("\nwritten to {}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// The budget's table, without its comments.
fn budget() -> String {
    let lines = include_str!("../../kernels/budget.txt").lines().filter(|line| !line.starts_with('#'));
    lines.collect::<Vec<_>>().join("\n")
}

/// Names and sizes of the embedded kernels.
fn fatbins() -> Vec<(&'static str, usize)> {
    #[cfg(feature = "cuda")]
    return inducer_attention::cuda::fatbins().map(|(name, image)| (name, image.len())).collect();
    #[cfg(not(feature = "cuda"))]
    Vec::new()
}

#[cfg(feature = "cuda")]
fn report() -> &'static str {
    inducer_attention::cuda::compiler_report()
}

#[cfg(not(feature = "cuda"))]
fn report() -> &'static str {
    ""
}

/// Bytes of shared memory that a kernel is launched with.
#[cfg(any(feature = "cuda", feature = "emulator"))]
fn shared(kernel: &str) -> Option<u32> {
    let all = inducer_attention::cuda::kernels::KERNELS.iter();
    all.filter(|k| k.name == kernel).map(inducer_attention::cuda::kernels::Kernel::shared_bytes).next()
}

#[cfg(not(any(feature = "cuda", feature = "emulator")))]
fn shared(_: &str) -> Option<u32> {
    None
}

/// The commit of the sources: as the build was told, for an executable that leaves its repository, or as git says.
fn commit() -> Option<String> {
    option_env!("INDUCER_ATTENTION_COMMIT").map(str::to_owned).or_else(support::machine::commit)
}

/// Replaces a file in one step, so that whoever reads it, or ends this program, finds it whole.
fn write_json(path: &Path, value: &Value) -> Result<(), String> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let written =
        std::fs::write(&partial, format!("{value:#}\n")).and_then(|()| std::fs::rename(&partial, path));
    written.map_err(|error| format!("--json {}: {error}", path.display()))
}
