//! Every backend against the f64 oracle, and what holds exactly.

mod common;

use common::backend::{Backend, backends};
use common::case::Case;
use common::compare::Judge;
use common::draw;
use common::run;
use proptest::prelude::*;

fn agrees(backend: &dyn Backend, inputs: &common::case::Inputs, judge: &Judge) -> Result<(), String> {
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
    if !backend.has_backward() {
        return Ok(());
    }
    let backward = run::backward(backend, inputs, &forward)?;
    for (name, t) in backward.named() {
        judge.gradient(name, &t).map_err(named)?;
    }
    Ok(())
}

fn check(case: &Case) -> Result<(), TestCaseError> {
    let inputs = case.build();
    let judge = Judge::of(&inputs).map_err(TestCaseError::fail)?;
    judge.derivations_agree().map_err(TestCaseError::fail)?;
    for backend in backends() {
        agrees(backend.as_ref(), &inputs, &judge).map_err(TestCaseError::fail)?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(draw::config_of(150))]

    #[test]
    fn backends_agree_with_the_oracle(case in draw::case()) {
        check(&case)?;
    }
}
