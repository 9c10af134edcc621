//! Tunes a frozen language model with inducers, on a CPU, in a few minutes, with nothing to download, or on a GPU.
//!
//! ```text
//! cargo run --release -p inducer-attention-candle --example tune
//! ```
//!
//! A byte-level transformer of about a million parameters learns Rust from the sources that cargo has fetched. Frozen, it
//! is then adapted to the prose of their documentation in four ways, each with about the same number of trained
//! parameters. A table and a plot compare them; every adapter is written as safetensors and read back. `--help` lists what
//! else it can do, such as tuning a GPT-2 checkpoint on a text of your own.

mod adapter;
mod composed;
mod corpus;
mod device;
mod gpt2;
mod layers;
mod model;
mod optimizer;
mod options;
mod plot;
mod progress;
mod report;
mod rng;
mod sources;
mod tokens;
mod train;

use adapter::{Adapter, Method};
use anyhow::{Context, Result, ensure};
use candle_core::Device;
use model::{Config, Model, Weights};
use options::Options;
use plot::{Chart, Series};
use report::{Frozen, Outcome, grouped, table};
use std::fs;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokens::{Batch, Domain, Tokenizer};
use train::{History, Plan, STOP, evaluate, stopped, train};

/// Exit code after Ctrl-C: 128 and the signal's number.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let options = match options::parse(std::env::args_os().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{}", options::HELP);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("error: {error:#} (--help lists the options)");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) if stopped() => ExitCode::from(INTERRUPTED),
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let started = Instant::now();
    let _end_of_heap = keep_freed_memory();
    let out = &options.out;
    fs::create_dir_all(out).with_context(|| format!("cannot make the folder {}", out.display()))?;
    let (device, notice) = device::choose(options.cuda);
    if let Some(line) = notice {
        eprintln!("{line}");
    }
    // The first Ctrl-C ends the training; a second one the program.
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED.into());
        }
        eprintln!("\nstopping: what is there is being saved");
    })
    .context("cannot listen for Ctrl-C")?;

    let (config, weights, tokenizer, sizes) = match &options.model {
        Some(directory) => {
            let (config, weights, tokenizer) = gpt2::load(directory)?;
            let sizes = if matches!(tokenizer, Tokenizer::Bytes) { Sizes::BYTES } else { Sizes::CHECKPOINT };
            (config, Some(weights), tokenizer, sizes)
        }
        None => (Config::BYTES, None, Tokenizer::Bytes, Sizes::BYTES),
    };
    let length = sizes.length.min(config.context);
    let sizes = Sizes { length, ..sizes };
    let [code, prose] = domains(options, &tokenizer, length, config.vocabulary)?;

    let held_out_code = code.held_out(sizes.final_windows, sizes.evaluation_batch, length)?;
    let held_out = prose.held_out(sizes.final_windows, sizes.evaluation_batch, length)?;
    let course = prose.held_out(sizes.course_windows, sizes.evaluation_batch, length)?;

    let (weights, pretraining) = if let Some(weights) = weights {
        (model::on_device(weights, &device)?, None)
    } else {
        let course = code.held_out(sizes.course_windows, sizes.evaluation_batch, length)?;
        let (weights, history) = pretrain(options, &device, &config, &sizes, &code, &course)?;
        gpt2::save(&out.join("base"), &config, &weights)?;
        (weights, Some(history))
    };
    let parameters: usize = weights.values().map(candle_core::Tensor::elem_count).sum();
    let model = Model::new(config, weights.clone())?;
    let frozen = Frozen {
        parameters,
        loss: evaluate(&model, None, &held_out)?,
        old_domain: evaluate(&model, None, &held_out_code)?,
        course: evaluate(&model, None, &course)?,
    };
    eprintln!(
        "frozen model: {} parameters, held-out loss {:.4} on code, {:.4} on the new text",
        grouped(parameters),
        frozen.old_domain,
        frozen.loss
    );

    let mut outcomes = Vec::new();
    for &method in &options.methods {
        if stopped() {
            break;
        }
        let parts = Parts { options, model: &model, prose: &prose, sizes: &sizes };
        let (adapter, history) = adapt(&parts, method, &course)?;
        let path = out.join(format!("adapter-{}.safetensors", method.name()));
        adapter.save(&path)?;
        let after = evaluate(&model, Some(&adapter), &held_out)?;
        let old_domain = evaluate(&model, Some(&adapter), &held_out_code)?;
        // A new model and the adapter's file must give the very same loss.
        let fresh = Model::new(config, weights.clone())?;
        let reloaded = Adapter::load(&path, &config, &device)?;
        let again = evaluate(&fresh, Some(&reloaded), &held_out)?;
        ensure!(
            after.to_bits() == again.to_bits(),
            "{}: {after} before saving, {again} after",
            path.display()
        );
        let initial =
            Adapter::new(method.recipe(options.rank, &config), &model, prose.beginning(), options.seed)?;
        let at_start = evaluate(&model, Some(&initial), &held_out)?;
        eprintln!("{:<24} reloaded from {}: held-out loss {again:.6}, identical", "", path.display());
        let learning_rate = options.learning_rate.unwrap_or_else(|| method.learning_rate());
        let parameters = adapter.parameters();
        outcomes.push(Outcome { method, parameters, learning_rate, at_start, after, old_domain, history });
        save_plot(options, unit(&tokenizer), &frozen, pretraining.as_ref(), &outcomes)?;
    }
    save_plot(options, unit(&tokenizer), &frozen, pretraining.as_ref(), &outcomes)?;

    let table = table(&frozen, &outcomes);
    let path = out.join("table.md");
    fs::write(&path, &table).with_context(|| format!("cannot write {}", path.display()))?;
    println!("\nheld-out loss on the new text, nats per {}:\n\n{table}", unit(&tokenizer));
    for outcome in &outcomes {
        let change = 100.0 * (outcome.at_start / frozen.loss - 1.0);
        println!("{} begins {change:+.3} % from the frozen model", outcome.method.title());
    }
    let base = if pretraining.is_some() { "base/ (the model), " } else { "" };
    println!(
        "\n{}: {}/ holds {base}{} adapters, table.md and curves.svg; {:.0} s in all",
        if stopped() { "stopped" } else { "done" },
        out.display(),
        outcomes.len(),
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Every step allocates and frees the same tensors, and glibc's allocator would give the freed memory back to the system
/// each time, to get it anew, page by page and zeroed, in the next step. It gives back only what lies at the end of the
/// heap, so an allocation above some room, never written to, keeps that room for the process. Where the allocator is
/// another one, this does nothing. The allocation lives as long as the returned value.
fn keep_freed_memory() -> impl Sized {
    const BLOCK: usize = 24 << 20;
    let block = || std::hint::black_box(Vec::<u8>::with_capacity(BLOCK));
    // Having freed one block of this size, the allocator takes the next ones from the heap.
    drop(block());
    let room: Vec<_> = (0..16).map(|_| block()).collect();
    let end = block();
    drop(room);
    end
}

/// How much at a time.
#[derive(Clone, Copy)]
struct Sizes {
    pretraining_steps: usize,
    tuning_steps: usize,
    batch: usize,
    /// Tokens of a window.
    length: usize,
    /// Windows of held-out text along the way, and at the end.
    course_windows: usize,
    final_windows: usize,
    evaluation_batch: usize,
}

impl Sizes {
    const BYTES: Self = Self {
        pretraining_steps: 450,
        tuning_steps: 160,
        batch: 8,
        length: 128,
        course_windows: 32,
        final_windows: 128,
        evaluation_batch: 16,
    };
    const CHECKPOINT: Self = Self {
        pretraining_steps: 0,
        tuning_steps: 100,
        batch: 2,
        length: 128,
        course_windows: 4,
        final_windows: 16,
        evaluation_batch: 2,
    };

    fn steps(steps: usize, options: &Options) -> usize {
        if options.quick { (steps / 10).max(1) } else { steps }
    }
}

/// Part of the time limit that training the model from scratch takes; the methods share the rest.
const PRETRAINING_SHARE: f64 = 0.5;

/// Code and the new text.
fn domains(
    options: &Options,
    tokenizer: &Tokenizer,
    length: usize,
    vocabulary: usize,
) -> Result<[Domain; 2]> {
    let mut corpus = corpus::gather();
    let prose_name = match &options.text {
        Some(path) => {
            corpus.prose = corpus::from_file(path)?;
            path.display().to_string()
        }
        None => "documentation prose".to_owned(),
    };
    if let Tokenizer::HuggingFace(_) = tokenizer {
        // Tokenising takes its time, and a checkpoint is tuned for few steps.
        corpus.code.shorten(1 << 20);
        corpus.prose.shorten(1 << 20);
    }
    let code = Domain::new("Rust code", &corpus.code, tokenizer, length, vocabulary)?;
    let prose = Domain::new(&prose_name, &corpus.prose, tokenizer, length, vocabulary)?;
    eprintln!("text from {} packages, held out by package:", corpus.packages);
    for (name, domain) in [("Rust code", &code), (prose_name.as_str(), &prose)] {
        let (train, held_out) = domain.len();
        eprintln!(
            "  {name}: {} {}s to train on, {} held out",
            grouped(train),
            unit(tokenizer),
            grouped(held_out)
        );
    }
    Ok([code, prose])
}

fn unit(tokenizer: &Tokenizer) -> &'static str {
    match tokenizer {
        Tokenizer::Bytes => "byte",
        Tokenizer::HuggingFace(_) => "token",
    }
}

/// Trains a model from scratch.
fn pretrain(
    options: &Options,
    device: &Device,
    config: &Config,
    sizes: &Sizes,
    code: &Domain,
    course: &[Batch],
) -> Result<(Weights, History)> {
    let weights = model::on_device(model::initial_weights(config, options.seed)?, device)?;
    let variables = model::trainable(weights)?;
    let weights =
        variables.iter().map(|(name, variable)| (name.clone(), variable.as_tensor().clone())).collect();
    let model = Model::new(*config, weights)?;
    let plan = Plan {
        steps: Sizes::steps(sizes.pretraining_steps, options),
        limit: options.limit.map(|limit| limit.mul_f64(PRETRAINING_SHARE)),
        learning_rate: 3e-3,
        weight_decay: 0.1,
        batch: sizes.batch,
        length: sizes.length,
        evaluations: 10,
        seed: options.seed,
    };
    // In the order of the names, for a hash map's own order is another one in every run.
    let mut named: Vec<_> = variables.iter().collect();
    named.sort_by_key(|(name, _)| *name);
    let parameters = named.into_iter().map(|(_, variable)| variable.clone()).collect();
    let history = train("training on Rust code", &model, None, parameters, code, course, &plan)?;
    Ok((
        variables.into_iter().map(|(name, variable)| (name, variable.as_detached_tensor())).collect(),
        history,
    ))
}

/// What [`adapt`] works with.
struct Parts<'a> {
    options: &'a Options,
    model: &'a Model,
    prose: &'a Domain,
    sizes: &'a Sizes,
}

/// Tunes the frozen model by one method.
fn adapt(parts: &Parts, method: Method, course: &[Batch]) -> Result<(Adapter, History)> {
    let Parts { options, model, prose, sizes } = parts;
    let adapter =
        Adapter::new(method.recipe(options.rank, &model.config), model, prose.beginning(), options.seed)?;
    let pretraining = if options.model.is_some() { 0.0 } else { PRETRAINING_SHARE };
    let share = (1.0 - pretraining) / options.methods.len() as f64;
    let plan = Plan {
        steps: Sizes::steps(sizes.tuning_steps, options),
        limit: options.limit.map(|limit: Duration| limit.mul_f64(share)),
        learning_rate: options.learning_rate.unwrap_or_else(|| method.learning_rate()),
        weight_decay: 0.0,
        batch: sizes.batch,
        length: sizes.length,
        evaluations: 10,
        seed: options.seed + 1,
    };
    let history = train(method.title(), model, Some(&adapter), adapter.variables()?, prose, course, &plan)?;
    Ok((adapter, history))
}

fn save_plot(
    options: &Options,
    unit: &str,
    frozen: &Frozen,
    pretraining: Option<&History>,
    outcomes: &[Outcome],
) -> Result<()> {
    let chart = |title: &str, series: Vec<Series>, reference| Chart {
        title: title.into(),
        x_label: format!("{unit}s trained on"),
        y_label: format!("held-out loss (nats per {unit})"),
        series,
        reference,
    };
    let mut charts = Vec::new();
    if let Some(history) = pretraining {
        let line = Series { label: "trained from scratch".into(), points: history.curve.clone() };
        charts.push(chart("A small transformer learns Rust code", vec![line], None));
    }
    let lines = outcomes
        .iter()
        .map(|outcome| Series { label: outcome.method.title().into(), points: outcome.history.curve.clone() })
        .collect();
    let reference = Some(("frozen model".into(), frozen.course));
    charts.push(chart("Frozen, it is adapted to another text", lines, reference));
    let path = options.out.join("curves.svg");
    fs::write(&path, plot::svg("Tuning a frozen language model", &charts))
        .with_context(|| format!("cannot write {}", path.display()))
}
