//! Upper bounds of packed sequences' lengths that are too low: what is behind them has no gradient, and nobody waits for it.
#![cfg(feature = "emulator")]

mod common;

use common::case::{Case, InducerCase, KeyCase, LengthsCase, ValueCase};
use common::emulated::Emulated;
use common::run;
use inducer_attention::DType;

#[test]
fn what_is_behind_a_bound_has_no_gradient() {
    // A tile of queries has so many rows, one of keys 128.
    for (causal, emulated, rows) in [
        (false, Emulated::default(), 64),
        (true, Emulated::default(), 64),
        (false, Emulated::hopper(), 128),
        (true, Emulated::hopper(), 128),
    ] {
        let mut case = Case {
            batch: 1,
            rows: 300,
            keys: 400,
            head_dim: 64,
            dtype: DType::BF16,
            lengths: LengthsCase::Packed { cu_seqlens_q: vec![0, 200, 300], cu_seqlens_k: vec![0, 250, 400] },
            inducer: Some(InducerCase::new(KeyCase::Residual { rank: 3 }, ValueCase::Residual { rank: 3 })),
            ..Case::default()
        };
        case.config.causal = causal;
        let inputs = case.build();
        let problem = inputs.attention();
        let problem = problem.validate().unwrap();
        let forward = run::forward(&emulated, &inputs).unwrap();
        let bounded = Emulated { bounds: Some((rows, 128)), ..emulated.clone() };
        let backward = run::backward(&bounded, &inputs, &forward).unwrap();
        let complete = run::backward(&emulated, &inputs, &forward).unwrap();
        let mut behind = 0;
        for i in 0..problem.sequences() {
            let s = problem.sequence(i);
            for (name, base, length, bound) in [
                ("q", s.row_base, s.rows, rows),
                ("k", s.key_base, s.key_end, 128),
                ("v", s.key_base, s.key_end, 128),
            ] {
                let (t, all) = (backward.get(name), complete.get(name));
                let (heads, rows, d) = (t.shape[1], t.shape[2], t.shape[3]);
                for (head, at) in (0..heads).flat_map(|h| (bound..length).map(move |at| (h, at))) {
                    let first = (head * rows + base + at) * d;
                    assert!(t.data[first..first + d].iter().all(|&x| x == 0.0), "d {name}, row {at} of {i}");
                    behind += usize::from(all.data[first..first + d].iter().any(|&x| x != 0.0));
                }
            }
        }
        assert!(behind > 100, "only {behind} rows and keys are behind the bounds");
    }
}
