//! Takes away one barrier, wait or fence at a time, and looks whether anything notices.
//!
//! A site is a call in the kernels' source. Each is disabled by itself, at run time, in the emulator; the cases below must
//! then show a fault or another result. What nothing notices is either redundant, and stands in [`REDUNDANT`] with the proof,
//! or not tested.
#![cfg(feature = "emulator")]

mod common;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;

use common::case::{Case, InducerCase, KeyCase, ValueCase};
use common::emulated::Emulated;
use common::run;
use inducer_attention::cuda::kernels::Abilities;
use inducer_attention::cuda::plan::Settings;
use inducer_attention::emulator::{CopyTiming, Options, Policy, Site};
use inducer_attention::{DType, Dropout};
use rayon::prelude::*;

/// Sites that may be taken away, with the line's text and why.
const REDUNDANT: [(&str, &str, &str); 2] = [
    ("forward_sm90.cu", "mbarrier_wait(state().turn[own]", ORDERS_TIME_ALONE),
    ("forward_sm90.cu", "mbarrier_arrive(state().turn[1 - ", ORDERS_TIME_ALONE),
];
const ORDERS_TIME_ALONE: &str = "Which warpgroup's products begin first. What they read has barriers of its own (`full`, `query_full`), and so \
     has what is written next (`empty`, `query_empty`).";

const FEW_KEYS: usize = 40;

/// Small cases that between them come to every site: several tiles of rows and of keys, masked and not, prefix, ranks of more
/// than a stage, with and without adapters, every element type. Causal ones hold a NaN in some rows of every tensor, so that
/// hidden pairs have to be left out one by one; so does one with few keys, in every tile.
fn cases() -> Vec<Case> {
    let token = |key, value| Some(InducerCase::new(key, value));
    let (residual, direct) = (ValueCase::Residual { rank: 17 }, ValueCase::Direct { rank: 3 });
    let base = Case { kv_heads: 1, rows: 150, keys: 150, lse_gradient: true, ..Case::default() };
    let mut cases = Vec::new();
    for (dtype, head_dim) in [(DType::BF16, 64), (DType::BF16, 128), (DType::F32, 64), (DType::F16, 256)] {
        let base = Case { dtype, parameter_dtype: dtype, head_dim, ..base.clone() };
        let mut causal = Case { inducer: token(KeyCase::Residual { rank: 17 }, residual), ..base.clone() };
        causal.config.causal = true;
        // The NaN's keys are then cut off on the left, in a tile that others follow.
        causal.config.window_left = Some(30);
        cases.push(causal.clone());
        causal.config.window_left = None;
        cases.push(causal);
        if dtype == DType::BF16 {
            // Several tiles of queries that see all of a tile of keys, several such tiles of keys; scores that are needed once more.
            cases.push(Case { rows: 300, ..base.clone() });
            cases.push(Case { rows: 70, keys: 450, ..base.clone() });
            let mut softcap = Case { rows: 140, ..base.clone() };
            softcap.config.softcap = Some(5.0);
            cases.push(softcap);
        }
        if dtype != DType::F32 && head_dim != 128 {
            // More tiles than a block has places for, each with few keys: no other barrier holds up who is ahead.
            cases.push(Case { batch: 4, rows: 70, keys: FEW_KEYS, ..base.clone() });
        }
        if head_dim == 64 {
            let dropout = Some(Dropout { p: 0.2, seed: 3 });
            let mut with_prefix = Case { prefix: Some(70), group: 2, rows: 70, batch: 2, ..base.clone() };
            with_prefix.inducer = token(KeyCase::Residual { rank: 5 }, direct);
            with_prefix.config.dropout = dropout;
            cases.push(with_prefix);
            cases.push(Case {
                inducer: token(KeyCase::Query, ValueCase::Extended { rank: 20 }),
                ..base.clone()
            });
            // Without adapters no barrier of theirs is there.
            cases.push(Case { inducer: token(KeyCase::Query, ValueCase::Zero), ..base.clone() });
            cases.push(Case { inducer: token(KeyCase::LogitPerHead, residual), rows: 20, ..base.clone() });
            cases.push(Case {
                inducer: token(KeyCase::Residual { rank: 3 }, residual),
                keys: 0,
                ..base.clone()
            });
            cases.push(Case { keys: 0, ..base.clone() });
        }
    }
    cases
}

/// Which warp is ahead and when copies are done: between them, whoever may be late is.
fn orders() -> [Options; 2] {
    [
        Options { policy: Policy::OneWarpAhead, copies: CopyTiming::Late, seed: 1, ..Options::default() },
        Options {
            policy: Policy::Reversed,
            copies: CopyTiming::Early,
            resident_blocks: 4,
            ..Options::default()
        },
    ]
}

/// Devices whose kernels take the case: all, and Hopper where it has its own. One block takes all tiles there, for barriers between
/// tiles.
fn devices(case: &Case) -> Vec<Abilities> {
    let hopper = Abilities { multiprocessors: 1, ..Abilities::HOPPER };
    if case.dtype == DType::F32 { vec![Abilities::COMMON] } else { vec![Abilities::COMMON, hopper] }
}

/// Results of forward and backward, or what went wrong.
fn outcome(
    case: &Case,
    device: Abilities,
    options: Options,
) -> (Result<Vec<Vec<u64>>, String>, BTreeSet<Site>) {
    let settings = Settings { device, ..Settings::default() };
    let backend = Emulated { options: Some(options), settings, ..Emulated::default() };
    let mut inputs = case.build();
    let spoilt = if case.config.causal {
        Some(100)
    } else if case.keys == FEW_KEYS && case.head_dim == 64 {
        Some(20)
    } else {
        None
    };
    for slot in [inputs.q.clone(), inputs.k.clone(), inputs.v.clone(), inputs.d_o.clone()] {
        inputs.spoil_rows(&slot, f64::NAN, |_, row| Some(row) == spoilt);
    }
    let results = catch_unwind(AssertUnwindSafe(|| {
        let forward = run::forward(&backend, &inputs)?;
        let mut named = forward.named();
        named.extend(run::backward(&backend, &inputs, &forward)?.named());
        Ok(named.iter().map(|(_, t)| t.data.iter().map(|x| x.to_bits()).collect()).collect())
    }));
    let results = results.unwrap_or_else(|_| Err("a fault".into()));
    let sites = std::mem::take(&mut *backend.sites.lock().unwrap_or_else(PoisonError::into_inner));
    (results, sites)
}

#[test]
fn every_barrier_is_missed_when_it_is_taken_away() {
    // Panics are the outcome that is hoped for: nobody needs to read them.
    std::panic::set_hook(Box::new(|info| {
        if info.location().is_some_and(|at| at.file().ends_with("barriers.rs")) {
            eprintln!("{info}");
        }
    }));
    let inputs: Vec<_> = cases()
        .into_iter()
        .flat_map(|case| devices(&case).into_iter().map(move |device| (case.clone(), device)))
        .flat_map(|(case, device)| orders().map(|options| (case.clone(), device, options)))
        .collect();
    let runs: Vec<_> = inputs
        .into_par_iter()
        .map(|(case, device, options)| {
            let (results, sites) = outcome(&case, device, options.clone());
            (case, device, options, results, sites)
        })
        .collect();
    // Nothing is noticed where nothing is taken away.
    runs.par_iter().for_each(|(case, device, options, results, _)| {
        let disabled = Some(("nowhere.cu".into(), 1));
        assert!(outcome(case, *device, Options { disabled, ..options.clone() }).0 == *results, "{case:#?}");
    });
    let broken: Vec<_> = runs.iter().filter(|r| r.3.is_err()).map(|r| (&r.0, &r.1, &r.3)).collect();
    let sites: BTreeSet<_> = runs.iter().flat_map(|r| r.4.clone()).collect();
    let unnoticed = sites.par_iter().filter(|site| {
        let disabled = Some((site.file.clone(), site.line));
        let noticed =
            runs.iter().filter(|r| r.4.contains(*site)).any(|(case, device, options, results, _)| {
                outcome(case, *device, Options { disabled: disabled.clone(), ..options.clone() }).0
                    != *results
            });
        let word = if noticed { "noticed" } else { "UNNOTICED" };
        eprintln!("{word:9} {}:{} {}", site.file, site.line, site.kind);
        !noticed
    });
    let mut unnoticed: Vec<_> = unnoticed.collect();
    let _ = std::panic::take_hook();
    assert!(broken.is_empty(), "with everything in place: {broken:#?}");
    assert!(sites.len() > 35, "only {} sites were reached", sites.len());
    let expected = |site: &&&Site| {
        let source = std::fs::read_to_string(&site.file).unwrap_or_default();
        let line = source.lines().nth(site.line as usize - 1).unwrap_or_default();
        REDUNDANT.iter().any(|(file, text, _)| site.file.ends_with(file) && line.contains(text))
    };
    unnoticed.retain(|site| !expected(&site));
    assert!(unnoticed.is_empty(), "nothing notices when these are taken away: {unnoticed:#?}");
}
