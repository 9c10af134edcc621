//! The share of the FMA peak that a call reaches where nothing disturbs it.
//!
//! `cargo bench --bench share [-- [THREADS] WORD...]`: on that many threads (1), lines that hold every word, as in
//! `2 fwd d128 n2048`. Each thread has a head; where a line says bnhd there are eight, side by side in every row.
//!
//! Calls and short bursts of multiply-adds on registers take turns, and the fastest of each counts: on a machine that does
//! other things as well, medians tell about those. `benches/attention.rs` has the medians.

#[allow(dead_code, reason = "shared with the other bench")]
mod support;

use std::time::{Duration, Instant};

use inducer_attention::cpu::Engine;
use inducer_attention::cpu::microkernels::MicroKernels;
use inducer_attention::{DType, Result};
use rayon::ThreadPoolBuilder;
use support::options::has_words;
use support::shapes::{Case, Layout, Mask, Pass};
use support::tensors::{Contestant, Inputs};

/// How long a line takes.
const BUDGET: Duration = Duration::from_secs(2);

fn main() -> Result<()> {
    let mut words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let mut threads = 1;
    if let Some(number) = words.first().and_then(|w| w.parse().ok()) {
        threads = number;
        words.remove(0);
    }
    let pool = ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool of threads");
    println!("threads: {threads}; with an inducer (r_k = r_v = 8); the fastest calls");
    for head_dim in [64, 128] {
        for mask in [Mask::Full, Mask::Causal] {
            for n in [512, 2048, 8192] {
                let some = Case { heads: threads, batch: 1, ..Case::new(DType::F32, mask, head_dim, n, 8) };
                for case in [some, Case { heads: 8, layout: Layout::Bnhd, ..some }] {
                    let passes = Pass::ALL.map(|pass| (pass, case.label(pass)));
                    if passes.iter().any(|(_, label)| has_words(label, &words)) {
                        pool.install(|| measure(case, |pass| has_words(&case.label(pass), &words)))?;
                    }
                }
            }
        }
    }
    Ok(())
}

fn measure(case: Case, wanted: impl Fn(Pass) -> bool) -> Result<()> {
    let engine = Engine::detect();
    let set = engine.instruction_set();
    let kernels = MicroKernels::all().into_iter().find(|k| k.set() == set).expect("the engine's own");
    let inputs = Inputs::<f32>::new(case);
    let mut on = Contestant::new(engine, &inputs, true)?;
    on.forward(engine, &inputs)?;
    for pass in Pass::ALL.into_iter().filter(|pass| wanted(*pass)) {
        let (mut call, mut peak) = (f64::INFINITY, 0f64);
        let start = Instant::now();
        while start.elapsed() < BUDGET {
            let rates = rayon::broadcast(|_| {
                let began = Instant::now();
                kernels.peak(false, 20_000) / began.elapsed().as_secs_f64()
            });
            peak = peak.max(rates.iter().sum());
            let began = Instant::now();
            match pass {
                Pass::Forward => on.forward(engine, &inputs)?,
                Pass::Backward => on.backward(engine, &inputs)?,
            }
            call = call.min(began.elapsed().as_secs_f64());
        }
        let rate = case.attention_flop(pass) / call;
        println!(
            "{:36} {:8.2} ms  {:6.1} of {:5.1} GFLOP/s  {:5.1} %",
            case.label(pass),
            call * 1e3,
            rate / 1e9,
            peak / 1e9,
            100.0 * rate / peak
        );
    }
    Ok(())
}
