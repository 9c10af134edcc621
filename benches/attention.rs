//! Forward and backward of the CPU engine, with the inducer on and off, next to what the cores can do at most.
//!
//! `cargo bench --bench attention -- --help`

mod support;

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use inducer_attention::cpu::Engine;
use inducer_attention::{DType, bf16, f16};
use rayon::{ThreadPool, ThreadPoolBuilder};
use serde_json::{Value, json};
use support::machine;
use support::options::{HELP, Options, set_name};
use support::peak::Peak;
use support::report::{COLUMNS, Measurement};
use support::shapes::{Case, Pass};
use support::table;
use support::tensors::{Contestant, Inputs, Rounded};
use support::timing::{Comparison, compare};

/// How far the peak may drift during a run before the run says so.
const DRIFT: f64 = 0.05;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(mistake) => {
            eprintln!("error: {mistake}; see --help");
            return ExitCode::from(2);
        }
    };
    if options.help {
        print!("{HELP}");
        return ExitCode::SUCCESS;
    }
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let engine = options.set.and_then(Engine::with).unwrap_or_default();
    let wanted = wanted(options)?;
    // Opened before anything is measured, so that a wrong path costs no time.
    let file = options.json.as_deref().map(|path| open(path).map(|file| (file, path))).transpose()?;
    let threads = if options.threads.is_empty() { vec![machine::cpus()] } else { options.threads.clone() };

    let (cpu, set) = (machine::cpu_name(), set_name(engine.instruction_set()));
    let (date, commit) = (machine::now(), machine::commit());
    let version = env!("CARGO_PKG_VERSION");
    println!("inducer-attention {version}, {date}, commit {}", commit.as_deref().unwrap_or("unknown"));
    println!("{cpu}, {} CPUs, instruction set {set}", machine::cpus());
    if let Some(load) = machine::load_average().filter(|load| *load > 0.5) {
        println!("note: the machine is busy (load average {load:.1}); figures will be low");
    }
    println!(
        "rank {}, {:.1} s a line, on and off in turn. GFLOP/s and %peak count the attention products only; ms is the \
         median,\n± half the interquartile range, price the median of on/off − 1 within a round.",
        options.rank,
        options.budget.as_secs_f64()
    );

    let mut peaks = Vec::new();
    let mut results = Vec::new();
    for threads in threads {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build()?;
        let peak = peak(&pool, engine)?;
        println!("\n{threads} {}: {}", if threads == 1 { "thread" } else { "threads" }, describe(&peak));
        println!("{}", table::header(&COLUMNS));
        for (case, passes) in &wanted {
            measure(engine, &pool, *case, passes, options, |pass, times| {
                let measurement = Measurement { case: *case, pass, threads, peak, times };
                println!("{}", table::row(&COLUMNS, &measurement.cells()));
                results.push(measurement.json());
            })?;
        }
        let after = self::peak(&pool, engine)?;
        if (after.f32_fma / peak.f32_fma - 1.0).abs() > DRIFT {
            println!("note: the cores' speed changed meanwhile; now {}", describe(&after));
        }
        peaks.push(json!({
            "threads": threads,
            "f32_fma_gflops": peak.f32_fma / 1e9,
            "bf16_dot_gflops": peak.bf16_dot.map(|p| p / 1e9),
            "f32_fma_gflops_after": after.f32_fma / 1e9,
        }));
    }

    if let Some((file, path)) = file {
        let report = json!({
            "bench": "attention",
            "version": version,
            "commit": commit,
            "date": date,
            "cpu": cpu,
            "cpus": machine::cpus(),
            "instruction_set": set,
            "peaks": peaks,
            "results": results,
        });
        write(file, &report).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        println!("\nwritten to {}", path.display());
    }
    Ok(())
}

/// The problems whose lines the user wants, with the passes.
fn wanted(options: &Options) -> Result<Vec<(Case, Vec<Pass>)>, String> {
    let cases = options.extent.cases(options.rank).into_iter();
    let with_passes = cases.map(|case| {
        let passes = Pass::ALL.into_iter().filter(|pass| options.selects(&case.label(*pass)));
        (case, passes.collect::<Vec<_>>())
    });
    let wanted: Vec<_> = with_passes.filter(|(_, passes)| !passes.is_empty()).collect();
    if wanted.is_empty() {
        let example = options.extent.cases(options.rank)[0].label(Pass::Forward);
        return Err(format!(
            "nothing matches '{}'; lines are labelled as in '{example}'",
            options.filter.join(" ")
        ));
    }
    Ok(wanted)
}

fn peak(pool: &ThreadPool, engine: Engine) -> Result<Peak, String> {
    let set = engine.instruction_set();
    Peak::measure(pool, set).ok_or_else(|| format!("no micro-kernels for {}", set_name(set)))
}

fn describe(peak: &Peak) -> String {
    let bf16 = peak.bf16_dot.map(|p| format!(", bf16 dot product {:.1} GFLOP/s", p / 1e9));
    format!("peak f32 FMA {:.1} GFLOP/s{}", peak.f32_fma / 1e9, bf16.unwrap_or_default())
}

fn measure(
    engine: Engine,
    pool: &ThreadPool,
    case: Case,
    passes: &[Pass],
    options: &Options,
    mut done: impl FnMut(Pass, Comparison) + Send,
) -> inducer_attention::Result<()> {
    let budget = options.budget;
    pool.install(|| match case.dtype {
        DType::F32 => measure_as::<f32>(engine, case, passes, budget, &mut done),
        DType::F16 => measure_as::<f16>(engine, case, passes, budget, &mut done),
        DType::BF16 => measure_as::<bf16>(engine, case, passes, budget, &mut done),
    })
}

fn measure_as<T: Rounded>(
    engine: Engine,
    case: Case,
    passes: &[Pass],
    budget: std::time::Duration,
    done: &mut impl FnMut(Pass, Comparison),
) -> inducer_attention::Result<()> {
    let inputs = Inputs::<T>::new(case);
    let mut on = Contestant::new(engine, &inputs, true)?;
    let mut off = Contestant::new(engine, &inputs, false)?;
    // The backward needs what the forward leaves, also where only the backward is timed.
    on.forward(engine, &inputs)?;
    off.forward(engine, &inputs)?;
    for &pass in passes {
        let times = match pass {
            Pass::Forward => {
                compare(budget, || on.forward(engine, &inputs), || off.forward(engine, &inputs))?
            }
            Pass::Backward => {
                compare(budget, || on.backward(engine, &inputs), || off.backward(engine, &inputs))?
            }
        };
        done(pass, times);
    }
    Ok(())
}

fn open(path: &Path) -> Result<File, String> {
    // What the file holds is kept until there is something to put in its place.
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
    file.map_err(|error| format!("--json {}: {error}", path.display()))
}

fn write(mut file: File, report: &Value) -> std::io::Result<()> {
    file.set_len(0)?;
    writeln!(file, "{report:#}")
}
