//! Accuracy where a sum has many terms: thousands of keys behind an O, thousands of queries behind a dK.
//!
//! Backends sum in chains that are short: of a tile of keys, then of tiles.

mod common;

use common::backend::{Backend, Cpu};
use common::case::Case;
use common::compare::gradient_name;
#[cfg(feature = "emulator")]
use common::emulated::Emulated;
use common::run;
#[cfg(feature = "emulator")]
use inducer_attention::emulator::Options;
use inducer_attention::reference;

fn backends() -> Vec<Box<dyn Backend>> {
    let mut all: Vec<Box<dyn Backend>> = Vec::new();
    all.extend(Cpu::all().map(|cpu| -> Box<dyn Backend> { Box::new(cpu) }));
    #[cfg(feature = "emulator")]
    {
        // Faults are for smaller cases to find.
        let options = Options { detector: false, ..Options::default() };
        all.push(Box::new(Emulated { options: Some(options), ..Emulated::default() }));
    }
    all
}

fn check(case: &Case) {
    let inputs = case.build();
    let attention = inputs.attention();
    let problem = attention.validate().expect("a valid case");
    let exact = reference::Problem::from(&problem);
    let upstream = reference::OutputGradients::from(&run::upstream(&inputs));
    let outputs = reference::forward(&exact);
    let gradients = reference::backward(&exact, &upstream);
    for backend in backends() {
        let backend = backend.as_ref();
        let forward = run::forward(backend, &inputs).expect("a forward");
        let o = forward.named()[0].1.relative_error(&outputs.o);
        assert!(o <= 1e-6, "{}: O is off by {o:.2e}", backend.name());
        let backward = run::backward(backend, &inputs, &forward).expect("a backward");
        for ((name, x), (_, reference)) in backward.named().iter().zip(gradients.named()) {
            let e = x.relative_error(reference);
            assert!(e <= 5e-6, "{}: {} is off by {e:.2e}", backend.name(), gradient_name(name));
        }
    }
}

#[test]
fn over_many_keys() {
    check(&Case { kv_heads: 1, rows: 16, keys: 16_000, head_dim: 32, logits: 1.0, ..Case::default() });
}

#[test]
fn over_many_queries() {
    check(&Case { kv_heads: 1, rows: 16_000, keys: 16, head_dim: 32, logits: 1.0, ..Case::default() });
}
