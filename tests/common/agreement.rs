//! One case on every backend, held against the oracle.

use super::backend::{Backend, backends};
use super::case::{Case, Inputs};
use super::compare::Judge;
use super::run;

fn agrees(backend: &dyn Backend, inputs: &Inputs, judge: &Judge) -> Result<(), String> {
    let attention = inputs.attention();
    let problem = attention.validate().map_err(|e| format!("validation: {e}"))?;
    if !backend.supports(&problem) {
        return Ok(());
    }
    let named = |e| format!("{}: {e}", backend.name());
    let forward = run::forward(backend, inputs)?;
    for (name, t) in forward.named() {
        judge.output(name, &t).map_err(named)?;
    }
    let backward = run::backward(backend, inputs, &forward)?;
    for (name, t) in backward.named() {
        judge.gradient(name, &t).map_err(named)?;
    }
    Ok(())
}

/// # Errors
/// What disagrees, in words.
pub fn check(case: &Case) -> Result<(), String> {
    let inputs = case.build();
    let judge = Judge::of(&inputs)?;
    judge.derivations_agree()?;
    for backend in backends() {
        agrees(backend.as_ref(), &inputs, &judge)?;
    }
    Ok(())
}

/// As [`check`], on one backend.
///
/// # Errors
/// What disagrees, in words.
pub fn check_on(backend: &dyn Backend, case: &Case) -> Result<(), String> {
    let inputs = case.build();
    agrees(backend, &inputs, &Judge::of(&inputs)?)
}
