//! What is done on a card.

use std::error::Error;
use std::io::{BufRead, Write};
use std::process::ExitCode;

use inducer_attention::cuda::Engine;
use serde_json::{Value, json};

use crate::device::Device;
use crate::options::{Options, Task, selects, words};
use crate::problem::Problem;
use crate::report::{COLUMNS, LEGEND, Measurement, card_json, resources_json};
use crate::support::shapes::{Case, Pass};
use crate::support::{machine, table};
use crate::{commit, grid, timing, without_gpu, write_json};

/// Does what was asked for.
///
/// # Errors
/// A sentence.
pub(crate) fn run(options: &Options) -> Result<ExitCode, Box<dyn Error>> {
    let device = match Device::open(options.gpu) {
        Ok(device) => device,
        Err(error) => return without_gpu(options, &error.to_string()),
    };
    if options.task == Task::Info {
        println!("{}", device.describe());
        if let Some(path) = &options.json {
            write_json(path, &json!({ "bench": "gpu", "card": card_json(&device) }))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let engine = match device.engine(options.hopper) {
        Ok(engine) => engine,
        Err(error) => return without_gpu(options, &error.to_string()),
    };
    match &options.task {
        Task::Once(words) => once(&device, &engine, words, options)?,
        Task::Smoke => smoke(&device, &engine, options)?,
        Task::Serve => serve(&device, &engine, options)?,
        _ => measure_all(&device, &engine, options)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Calls of a list that `words` select.
fn selected(cases: Vec<Case>, words: &[String]) -> Result<Vec<(Case, Vec<Pass>)>, String> {
    let example = cases.first().map(|case| case.label(Pass::Forward)).unwrap_or_default();
    let with_passes = cases.into_iter().map(|case| {
        let passes = Pass::ALL.into_iter().filter(|pass| selects(words, &case.label(*pass)));
        (case, passes.collect::<Vec<_>>())
    });
    let wanted: Vec<_> = with_passes.filter(|(_, passes)| !passes.is_empty()).collect();
    if wanted.is_empty() {
        return Err(format!("nothing matches '{}'; lines are labelled as in '{example}'", words.join(" ")));
    }
    Ok(wanted)
}

fn measure_all(device: &Device, engine: &Engine, options: &Options) -> Result<(), Box<dyn Error>> {
    let wanted = selected(options.extent.cases(options.rank), &options.filter)?;
    let mut report = json!({
        "bench": "gpu",
        "version": env!("CARGO_PKG_VERSION"),
        "commit": commit(),
        "date": machine::now(),
        "card": card_json(device),
        "resources": resources_json(engine),
        "results": [],
    });
    let write = |report: &Value| options.json.as_ref().map_or(Ok(()), |path| write_json(path, report));
    // Before anything is measured, so that a wrong path costs no time.
    write(&report)?;
    println!(
        "inducer-attention {}, {}, commit {}",
        env!("CARGO_PKG_VERSION"),
        machine::now(),
        commit().as_deref().unwrap_or("unknown")
    );
    println!("{}\nrank {}. {LEGEND}\n", device.describe(), options.rank);
    println!("{}", table::header(&COLUMNS));
    for (case, passes) in wanted {
        let problem = Problem::new(device, engine, case, true)?;
        // The backward needs what the forward leaves, also where only the backward is timed.
        for set in 0..problem.sets() {
            problem.enqueue(Pass::Forward, set, true)?;
        }
        for pass in passes {
            let outcome = timing::measure(&problem, pass, options.budget)?;
            let measurement = Measurement::new(&problem, pass, outcome);
            println!("{}", table::row(&COLUMNS, &measurement.cells()));
            for warning in measurement.warnings() {
                println!("      note: {warning}");
            }
            report["results"].as_array_mut().expect("made above").push(measurement.json());
            write(&report)?;
        }
    }
    if let Some(path) = &options.json {
        println!("\nwritten to {}", path.display());
    }
    Ok(())
}

/// One launch, nothing else: a profiler replays it.
fn once(device: &Device, engine: &Engine, words: &[String], options: &Options) -> Result<(), Box<dyn Error>> {
    let state = |word: &str| words.iter().any(|w| w == word);
    let label: Vec<String> = words.iter().filter(|w| *w != "on" && *w != "off").cloned().collect();
    let (case, passes) = selected(grid::Extent::Full.cases(options.rank), &label)?.swap_remove(0);
    let problem = Problem::new(device, engine, case, false)?;
    if passes[0] == Pass::Backward {
        problem.enqueue(Pass::Forward, 0, !state("off"))?;
    }
    problem.enqueue(passes[0], 0, !state("off"))?;
    device.context.synchronize()?;
    let inducer = if state("off") { "off" } else { "on" };
    println!("launched once: {}, inducer {inducer}", case.label(passes[0]));
    Ok(())
}

/// Every kernel on small problems.
fn smoke(device: &Device, engine: &Engine, options: &Options) -> Result<(), Box<dyn Error>> {
    let wanted = selected(grid::smoke(options.rank), &options.filter)?;
    let mut launches = 0;
    for (case, passes) in &wanted {
        let problem = Problem::new(device, engine, *case, false)?;
        for inducer in [true, false] {
            for &pass in passes {
                problem.enqueue(pass, 0, inducer)?;
                launches += 1;
            }
        }
        device.context.synchronize()?;
    }
    println!("{launches} calls of {} small problems ran on {}", wanted.len(), device.card.name);
    Ok(())
}

/// Answers labels with measurements until standard input ends. The memory of the last label's problem is kept.
fn serve(device: &Device, engine: &Engine, options: &Options) -> Result<(), Box<dyn Error>> {
    let mut kept: Option<Problem<'_>> = None;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let answer = answer(device, engine, options, &line, &mut kept);
        let answer = answer.unwrap_or_else(|error| json!({ "error": error.to_string() }));
        let mut out = std::io::stdout().lock();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

fn answer<'d>(
    device: &'d Device,
    engine: &'d Engine,
    options: &Options,
    line: &str,
    kept: &mut Option<Problem<'d>>,
) -> Result<Value, Box<dyn Error>> {
    let words: Vec<String> = words(line).collect();
    let (case, passes) = selected(grid::Extent::Full.cases(options.rank), &words)?.swap_remove(0);
    if kept.as_ref().is_none_or(|problem| problem.case() != case) {
        // Room first for what is to come.
        *kept = None;
        let problem = Problem::new(device, engine, case, true)?;
        for set in 0..problem.sets() {
            problem.enqueue(Pass::Forward, set, true)?;
        }
        *kept = Some(problem);
    }
    let problem = kept.as_ref().expect("made above");
    let outcome = timing::measure(problem, passes[0], options.budget)?;
    Ok(Measurement::new(problem, passes[0], outcome).json())
}
