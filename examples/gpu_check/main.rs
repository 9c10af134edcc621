//! The GPU check to go: a folder that runs on a machine with an NVIDIA GPU and neither Rust nor a network.
//!
//! ```sh
//! cargo run --profile gpu-check --features cuda --example gpu_check -- DIR   # here; needs nvcc
//! DIR/run.sh            # there; ends within eight minutes, writes gpu-check.json
//! DIR/run.sh --hopper   # the same for the kernels that are for Hopper alone
//! ```
//!
//! The folder holds tests and bench with the kernels embedded, this program, and a script for comparison with torch.

mod make;
mod process;
mod run;
mod steps;
mod summary;

use std::path::Path;
use std::process::ExitCode;

use steps::Kernels;

const HELP: &str = "\
gpu_check DIR                  build the folder DIR
gpu_check --run DIR FILE       run what is in DIR, write the results to FILE; run.sh in DIR does that
gpu_check --hopper DIR FILE    the same with the kernels that are for Hopper alone
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        ["--run", folder, file] => run::run(Path::new(folder), Path::new(file), Kernels::All),
        ["--hopper", folder, file] => run::run(Path::new(folder), Path::new(file), Kernels::Hopper),
        [folder] if !folder.starts_with('-') => make::make(Path::new(folder)).map(|()| true),
        _ => {
            eprint!("{HELP}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
