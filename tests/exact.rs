//! What holds bit for bit: independence of threads, batch and layout, containment of NaN, and the members of the family
//! that are one another's limits.

mod common;

use common::backend::{Backend, backends};
use common::case::{Case, InducerCase, Inputs, KeyCase, Layout, LengthsCase, ValueCase};
use common::compare::Judge;
use common::draw;
use common::run::{self, Backwarded, Forwarded};
use inducer_attention::dropout::KeepMask;
use inducer_attention::reference::Tensor;
use inducer_attention::{Activation, DType, Dropout};
use proptest::bool::weighted;
use proptest::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::sync::LazyLock;

/// The flat index of the first element whose bits differ; all NaN are alike.
fn first_difference(a: &Tensor, b: &Tensor) -> Option<usize> {
    assert_eq!(a.shape, b.shape);
    (0..a.data.len()).find(|&i| {
        let (a, b) = (a.data[i], b.data[i]);
        a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan())
    })
}

fn same_bits(what: &str, a: &Tensor, b: &Tensor) -> Result<(), TestCaseError> {
    first_difference(a, b).map_or(Ok(()), |i| {
        let message = format!(
            "{what} {:?}: element {i} is {:e} in one, {:e} in the other",
            a.shape, a.data[i], b.data[i]
        );
        Err(TestCaseError::fail(message))
    })
}

struct Results {
    forward: Forwarded,
    backward: Backwarded,
}

impl Results {
    fn named(&self) -> Vec<(String, Tensor)> {
        let outputs = self.forward.named().into_iter().map(|(name, t)| (name.to_owned(), t));
        let gradients = self.backward.named().into_iter().map(|(name, t)| (format!("d {name}"), t));
        outputs.chain(gradients).collect()
    }

    fn same_bits(&self, other: &Self, what: &str) -> Result<(), TestCaseError> {
        for ((name, a), (_, b)) in self.named().iter().zip(&other.named()) {
            same_bits(&format!("{what}: {name}"), a, b)?;
        }
        Ok(())
    }
}

fn run_both(backend: &dyn Backend, inputs: &Inputs) -> Result<Results, TestCaseError> {
    let forward = run::forward(backend, inputs).map_err(TestCaseError::fail)?;
    let backward = run::backward(backend, inputs, &forward).map_err(TestCaseError::fail)?;
    Ok(Results { forward, backward })
}

/// Backends that implement the problem.
fn for_each_backend(
    inputs: &Inputs,
    mut f: impl FnMut(&dyn Backend) -> Result<(), TestCaseError>,
) -> Result<(), TestCaseError> {
    let problem = inputs.attention().validate().map_err(|e| TestCaseError::fail(e.to_string()))?;
    backends().iter().filter(|b| b.supports(&problem)).try_for_each(|b| f(b.as_ref()))
}

/// What a value spoils.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spoilt {
    /// A row of Q.
    Row,
    /// A row of K and of V.
    Key,
    /// The logits that are given for a row.
    Logit,
}

/// Runs a case and the same with row `at` of Q, key and value `at`, or the logits of row `at` of a batch entry spoilt by a
/// value, and compares what does not see it.
fn stays_among_those_who_see_it(
    case: &Case,
    batch: usize,
    at: usize,
    what: Spoilt,
    value: f64,
) -> Result<(), TestCaseError> {
    let inputs = case.build();
    let problem = inputs.attention().validate().expect("a valid case");
    let mut spoilt = inputs.clone();
    // Rows that the value reaches, and keys that those rows see.
    let mut reached = vec![vec![false; case.rows]; case.batch];
    let mut touched = vec![vec![false; case.keys]; case.batch];
    let slots = match what {
        Spoilt::Row => vec![&inputs.q],
        Spoilt::Key => vec![&inputs.k, &inputs.v],
        Spoilt::Logit => inputs.logit.iter().collect(),
    };
    for slot in slots {
        spoilt.spoil_rows(slot, value, |b, n| (b, n) == (batch, at));
    }
    for sequence in (0..problem.sequences()).map(|s| problem.sequence(s)).filter(|s| s.batch == batch) {
        for row in 0..sequence.rows {
            let (first, end) = sequence.visible(row);
            let keys = sequence.key_base + first..sequence.key_base + end;
            let n = sequence.row_base + row;
            if if what == Spoilt::Key { keys.contains(&at) } else { n == at } {
                reached[batch][n] = true;
                touched[batch][keys].fill(true);
            }
        }
    }
    let judge = Judge::of(&inputs).map_err(TestCaseError::fail)?;
    for_each_backend(&inputs, |backend| {
        let (clean, spoilt) = (run_both(backend, &inputs)?, run_both(backend, &spoilt)?);
        for ((name, a), (_, b)) in clean.named().iter().zip(&spoilt.named()) {
            let hit = match name.as_str() {
                "o" | "lse" | "u" | "attn" | "d q" => &reached,
                "d logit" if a.shape.len() == 3 => &reached,
                "d k" | "d v" => &touched,
                // Sums over all rows.
                _ => continue,
            };
            let (heads, rows) = (a.shape[1], a.shape[2]);
            let width: usize = a.shape[3..].iter().product();
            // What is reached may be anything.
            let rest = Tensor::from_fn(&b.shape, |flat| {
                let row = flat / width;
                if hit[row / rows / heads][row % rows] { a.data[flat] } else { b.data[flat] }
            });
            // A tile with a number that is not finite may be computed in another order.
            if first_difference(a, &rest).is_some() {
                let judgement = match name.strip_prefix("d ") {
                    Some(gradient) => judge.gradient(gradient, &rest),
                    None => judge.output(name, &rest),
                };
                judgement.map_err(|e| TestCaseError::fail(format!("{}: {e}", backend.name())))?;
            }
        }
        Ok(())
    })
}

static POOLS: LazyLock<Vec<ThreadPool>> = LazyLock::new(|| {
    [1, 2, 3, 5].map(|n| ThreadPoolBuilder::new().num_threads(n).build().expect("a thread pool")).into()
});

proptest! {
    #![proptest_config(draw::config_of(60))]

    #[test]
    fn results_do_not_depend_on_the_number_of_threads(case in draw::case()) {
        let inputs = case.build();
        for_each_backend(&inputs, |backend| {
            // It has no threads of its own, and would do the same thing each time.
            if backend.name().starts_with("emulated") {
                return Ok(());
            }
            let mut results = POOLS.iter().map(|pool| pool.install(|| run_both(backend, &inputs)));
            let first = results.next().expect("a pool")?;
            for other in results {
                first.same_bits(&other?, &backend.name())?;
            }
            Ok(())
        })?;
    }

    #[test]
    fn an_entry_does_not_depend_on_its_batch(mut case in draw::case()) {
        // Which entries are dropped depends on the place in the batch.
        case.config.dropout = None;
        case.broadcast = false;
        let inputs = case.build();
        for_each_backend(&inputs, |backend| {
            let all = run_both(backend, &inputs)?;
            for index in 0..case.sequences() {
                let (extent, alone) = (inputs.extent(index), run_both(backend, &inputs.alone(index))?);
                let forward = all.forward.slots().into_iter().zip(alone.forward.slots());
                for ((name, _), (slot, alone_slot)) in all.forward.named().iter().zip(forward) {
                    let part = all.forward.arena.read(&extent.of_rows(&slot));
                    let what = format!("{}: {name} of entry {index}", backend.name());
                    same_bits(&what, &part, &alone.forward.arena.read(&alone_slot))?;
                }
                for ((name, slot), (_, alone_slot)) in all.backward.slots.iter().zip(&alone.backward.slots) {
                    let part = match *name {
                        "q" => extent.of_rows(slot),
                        "logit" if slot.shape.len() == 3 => extent.of_rows(slot),
                        "k" | "v" => extent.of_keys(slot),
                        // A sum over the batch.
                        _ => continue,
                    };
                    let what = format!("{}: d {name} of entry {index}", backend.name());
                    same_bits(&what, &all.backward.arena.read(&part), &alone.backward.arena.read(alone_slot))?;
                }
            }
            Ok(())
        })?;
    }

    #[test]
    fn results_do_not_depend_on_the_layout(
        case in draw::case(), layout in 0..3usize, result_layout in 0..3usize, offset in 0usize..4, row_pad in 0usize..10,
        far_apart in weighted(0.2),
    ) {
        // A power of two apart, rows meet in the caches: engines may take another way.
        let row_pad = if far_apart { 1024 - case.head_dim } else { row_pad };
        let layouts = [Layout::Bhnd, Layout::Bnhd, Layout::Packed];
        let case = Case { broadcast: false, ..case };
        let other = Case {
            layout: layouts[layout], result_layout: layouts[result_layout], offset, row_pad, ..case.clone()
        };
        let (inputs, other) = (case.build(), other.build());
        for_each_backend(&inputs, |backend| {
            run_both(backend, &inputs)?.same_bits(&run_both(backend, &other)?, &backend.name())
        })?;
    }

    /// Rows and keys that belong to no sequence, and whatever is read of them: NaN there changes nothing at all.
    #[test]
    fn what_is_outside_the_sequences_reaches_nothing(case in draw::case(), infinite in any::<bool>()) {
        let inputs = case.build();
        let problem = inputs.attention().validate().expect("a valid case");
        let mut row_exists = vec![vec![false; case.rows]; case.batch];
        let mut key_exists = vec![vec![false; case.keys]; case.batch];
        // There dLSE is ignored.
        let mut row_sees = row_exists.clone();
        for sequence in (0..problem.sequences()).map(|s| problem.sequence(s)) {
            let row_end = sequence.row_base + sequence.rows;
            row_exists[sequence.batch][sequence.row_base..row_end].fill(true);
            for row in 0..sequence.rows {
                let (first, end) = sequence.visible(row);
                key_exists[sequence.batch][sequence.key_base + first..sequence.key_base + end].fill(true);
                row_sees[sequence.batch][sequence.row_base + row] = first < end || problem.prefix_len() > 0;
            }
        }
        if case.broadcast {
            // A key is one for all batch entries.
            let all: Vec<bool> = (0..case.keys).map(|j| key_exists.iter().any(|b| b[j])).collect();
            key_exists.fill(all);
        }
        let mut spoilt = inputs.clone();
        let value = if infinite { f64::INFINITY } else { f64::NAN };
        let rows = [Some(inputs.q.clone()), Some(inputs.d_o.clone()), inputs.d_u.clone()];
        for slot in rows.into_iter().flatten() {
            spoilt.spoil_rows(&slot, value, |b, n| !row_exists[b][n]);
        }
        spoilt.spoil_rows(&inputs.d_lse, value, |b, n| !row_sees[b][n]);
        if let Some(slot) = inputs.logit.clone().filter(|slot| slot.shape.len() == 3) {
            spoilt.spoil_rows(&slot, value, |b, n| !row_exists[b][n]);
        }
        for slot in [&inputs.k, &inputs.v] {
            spoilt.spoil_rows(slot, value, |b, j| !key_exists[b][j]);
        }
        for_each_backend(&inputs, |backend| {
            run_both(backend, &inputs)?.same_bits(&run_both(backend, &spoilt)?, &backend.name())
        })?;
    }

    /// A NaN in a row of Q stays in that row; one in a key and its value stays among the rows that see them.
    #[test]
    fn a_spoilt_row_or_key_reaches_only_who_sees_it(
        case in draw::case(), at in any::<prop::sample::Index>(), entry in any::<prop::sample::Index>(),
        key in any::<bool>(), value in prop::sample::select(vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY]),
    ) {
        prop_assume!(case.batch > 0 && case.rows > 0 && (!key || case.keys > 0));
        let (batch, at) = (entry.index(case.batch), at.index(if key { case.keys } else { case.rows }));
        let what = if key { Spoilt::Key } else { Spoilt::Row };
        stays_among_those_who_see_it(&Case { broadcast: false, ..case }, batch, at, what, value)?;
    }

    /// A given logit of −∞ means no virtual token.
    #[test]
    fn a_given_logit_of_minus_infinity_is_plain_attention(
        case in draw::case(), per_token in any::<bool>(), value in 0..3usize, rank in 1usize..20,
    ) {
        let key = if per_token { KeyCase::LogitPerToken } else { KeyCase::LogitPerHead };
        let value = [ValueCase::Zero, ValueCase::Residual { rank }, ValueCase::Direct { rank }][value];
        let with = Case { inducer: Some(InducerCase::new(key, value)), ..case.clone() };
        let plain = Case { inducer: None, ..case }.build();
        let mut with = with.build();
        let logit = with.logit.clone().expect("a given logit");
        with.arena.fill(&logit, |_| f64::NEG_INFINITY);
        for_each_backend(&with, |backend| {
            let (with, plain) = (run_both(backend, &with)?, run_both(backend, &plain)?);
            let plain_results = plain.named();
            for (name, t) in with.named() {
                match plain_results.iter().find(|(n, _)| *n == name) {
                    // Not by bits: attn + 0·Δ turns −0 into 0.
                    Some((_, expected)) => prop_assert_eq!(&t.data, &expected.data, "{}: {}", backend.name(), name),
                    None => prop_assert!(t.data.iter().all(|&x| x == 0.0), "{}: {name} is not 0", backend.name()),
                }
            }
            Ok(())
        })?;
    }

    /// With V = I the probabilities themselves come out, with λ̃ where the hidden layer is 1: what is dropped is what the
    /// keep mask of `dropout` says, and what is kept has its inverse scale.
    #[test]
    fn what_is_dropped_is_what_the_keep_mask_says(
        batch in 1usize..3, heads in 1usize..4, rows in 1usize..70, prefix in 0usize..20, keys in 1usize..100,
        p in 0.05f32..0.95, seed in any::<u64>(),
    ) {
        let d = prefix + keys;
        let case = Case {
            batch, kv_heads: heads, rows, keys, head_dim: d, prefix: Some(prefix),
            inducer: Some(InducerCase {
                activation: Activation::Identity,
                ..InducerCase::new(KeyCase::LogitPerHead, ValueCase::Extended { rank: 1 })
            }),
            ..Case::default()
        };
        let mut case = case;
        case.config.dropout = Some(Dropout { p, seed });
        let mut inputs = case.build();
        let identity = |first: usize, len: usize| move |i: usize| f64::from(u8::from(i % d == first + i / d % len.max(1)));
        let (v, (_, prefix_v)) = (inputs.v.clone(), inputs.prefix.clone().expect("a prefix"));
        inputs.arena.fill(&v, identity(prefix, keys));
        inputs.arena.fill(&prefix_v, identity(0, prefix));
        let down = inputs.value.clone().expect("a down projection");
        inputs.arena.fill(&down.down_weight, |_| 0.0);
        inputs.arena.fill(&down.down_bias, |_| 1.0);
        let mask = KeepMask::new(p, seed);
        for_each_backend(&inputs, |backend| {
            let results = run_both(backend, &inputs)?.forward;
            let (o, u) = (results.arena.read(&results.o), results.arena.read(results.u.as_ref().expect("U")));
            for b in 0..batch {
                for h in 0..heads {
                    let head = (b * heads + h) as u32;
                    for n in 0..rows {
                        for (c, &x) in o.row([b, h, n]).iter().enumerate() {
                            let kept = if c < prefix {
                                mask.keep_prefix(head, n as u32, c as u32)
                            } else {
                                mask.keep_real(head, n as u32, (c - prefix) as u32)
                            };
                            prop_assert!((x != 0.0) == kept, "{}: [{b}, {h}, {n}, {c}]", backend.name());
                        }
                        let kept = mask.keep_lambda(head, n as u32);
                        prop_assert!((u[[b, h, n, 0]] != 0.0) == kept, "{}: λ[{b}, {h}, {n}]", backend.name());
                    }
                }
            }
            Ok(())
        })?;
    }
}

/// Row 1 sees key 126 alone. That the row is spoilt shows in later tiles of keys only by its lse: all of their K, V, Q and dO
/// are finite.
#[test]
fn a_spoilt_row_reaches_no_key_in_another_tile() {
    let mut case = Case { kv_heads: 1, rows: 132, keys: 257, head_dim: 1, ..Case::default() };
    case.config.causal = true;
    case.config.window_left = Some(0);
    for (dtype, value) in [(DType::F32, f64::NAN), (DType::F32, f64::INFINITY), (DType::BF16, f64::NAN)] {
        for head_dim in [1, 8] {
            let case = Case { dtype, parameter_dtype: dtype, head_dim, ..case.clone() };
            stays_among_those_who_see_it(&case, 0, 126, Spoilt::Key, value).unwrap();
        }
    }
}

/// A logit that is NaN makes a row's λ NaN, and with it the weight of the row's attention. Q, K, V and dO are finite: nothing
/// else tells that keys which the row does not see are to be kept from it.
#[test]
fn a_spoilt_logit_stays_in_its_row() {
    for value in [ValueCase::Zero, ValueCase::Direct { rank: 3 }, ValueCase::Residual { rank: 3 }] {
        let inducer = Some(InducerCase::new(KeyCase::LogitPerToken, value));
        let mut case = Case { kv_heads: 1, rows: 100, keys: 100, head_dim: 8, inducer, ..Case::default() };
        case.config.causal = true;
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let case = Case { dtype, parameter_dtype: dtype, ..case.clone() };
            stays_among_those_who_see_it(&case, 0, 20, Spoilt::Logit, f64::NAN).unwrap();
        }
    }
}

/// A row that sees nothing has λ = 1, whatever else there is: its logit has no gradient, though rounding O leaves a difference
/// between dO·O and λ dO·Δ.
#[test]
fn the_logit_of_a_row_that_sees_nothing_has_no_gradient() {
    for (key, value) in [
        (KeyCase::LogitPerToken, ValueCase::Direct { rank: 3 }),
        (KeyCase::LogitPerToken, ValueCase::Residual { rank: 3 }),
        (KeyCase::LogitPerHead, ValueCase::Direct { rank: 3 }),
    ] {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let inducer = Some(InducerCase::new(key, value));
            let case = Case {
                keys: 0,
                rows: 50,
                head_dim: 40,
                dtype,
                parameter_dtype: dtype,
                inducer,
                ..Case::default()
            };
            let inputs = case.build();
            for_each_backend(&inputs, |backend| {
                let logit = run_both(backend, &inputs)?.backward.get("logit");
                prop_assert!(logit.data.iter().all(|&x| x == 0.0), "{}: {logit:?}", backend.name());
                Ok(())
            })
            .unwrap();
        }
    }
}

/// Gradients are linear in those of the results. At 2^-12, numbers such as λ dO are where f16 has few digits left.
#[test]
fn small_gradients_keep_their_digits() {
    let scale = 2f64.powi(-12);
    let (key, value) = (KeyCase::Residual { rank: 5 }, ValueCase::Residual { rank: 5 });
    let inducer = Some(InducerCase::new(key, value));
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let case = Case {
            rows: 200,
            keys: 200,
            head_dim: 64,
            dtype,
            parameter_dtype: dtype,
            inducer,
            ..Case::default()
        };
        let inputs = case.build();
        let mut small = inputs.clone();
        let d_o = inputs.arena.read(&inputs.d_o).data;
        small.arena.fill(&inputs.d_o, |i| d_o[i] * scale);
        for_each_backend(&inputs, |backend| {
            let (large, small) = (run_both(backend, &inputs)?.backward, run_both(backend, &small)?.backward);
            for (name, a) in large.named() {
                // dQ, dK and dV are themselves of these types.
                if matches!(name, "q" | "k" | "v") {
                    continue;
                }
                let b = small.get(name);
                let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
                let difference = norm(&mut a.data.iter().zip(&b.data).map(|(a, b)| a - b / scale));
                let error = difference / norm(&mut a.data.iter().copied());
                prop_assert!(error < 1e-3, "{} {dtype:?}: {name} is off by {error:.1e}", backend.name());
            }
            Ok(())
        })
        .unwrap();
    }
}

/// Of a row whose later keys score 2^7.8 times higher than the first ones, dropout keeps one in 333, and gives it 333 times the
/// weight: f16 holds O, but not the product of the two.
#[test]
fn f16_holds_what_heavy_dropout_keeps() {
    let mut case =
        Case { kv_heads: 1, rows: 64, keys: 200, head_dim: 128, dtype: DType::F16, ..Case::default() };
    case.config.dropout = Some(Dropout { p: 0.997, seed: 1 });
    let mut inputs = case.build();
    let (q, k) = (inputs.q.clone(), inputs.k.clone());
    inputs.spoil_rows(&q, 1.0, |_, _| true);
    inputs.spoil_rows(&k, 0.0, |_, key| key < 64);
    inputs.spoil_rows(&k, 7.8 * 2f64.ln() / 128f64.sqrt(), |_, key| key >= 64);
    let judge = Judge::of(&inputs).unwrap();
    for_each_backend(&inputs, |backend| {
        let forward = run_both(backend, &inputs)?.forward;
        for (name, x) in forward.named() {
            judge.output(name, &x).map_err(|e| TestCaseError::fail(format!("{}: {e}", backend.name())))?;
        }
        Ok(())
    })
    .unwrap();
}

/// Every dimension that may be 0 is 0, together with every member of the family.
#[test]
fn dimensions_of_zero() {
    let empty = [
        Case { batch: 0, ..Case::default() },
        Case { rows: 0, ..Case::default() },
        Case { keys: 0, ..Case::default() },
        Case { keys: 0, prefix: Some(0), ..Case::default() },
        Case { batch: 0, rows: 0, keys: 0, prefix: Some(3), ..Case::default() },
        Case {
            rows: 0,
            keys: 0,
            lengths: LengthsCase::Packed { cu_seqlens_q: vec![0], cu_seqlens_k: vec![0] },
            ..Case::default()
        },
        Case {
            lengths: LengthsCase::Packed { cu_seqlens_q: vec![0, 0, 0], cu_seqlens_k: vec![0, 0, 7] },
            ..Case::default()
        },
    ];
    let adapter = KeyCase::Residual { rank: 2 };
    let inducers = [
        None,
        Some(InducerCase::new(KeyCase::Query, ValueCase::Zero)),
        Some(InducerCase::new(adapter, ValueCase::Residual { rank: 3 })),
        Some(InducerCase::new(adapter, ValueCase::Direct { rank: 3 })),
        Some(InducerCase::new(adapter, ValueCase::Extended { rank: 3 })),
        Some(InducerCase::new(KeyCase::LogitPerToken, ValueCase::Zero)),
    ];
    for case in &empty {
        for inducer in inducers {
            for dtype in [DType::F32, DType::BF16] {
                let inputs = Case { inducer, dtype, parameter_dtype: dtype, ..case.clone() }.build();
                for_each_backend(&inputs, |backend| {
                    for (name, t) in run_both(backend, &inputs)?.named() {
                        let fine = |x: &f64| x.is_finite() || (name == "lse" && *x == f64::NEG_INFINITY);
                        prop_assert!(
                            t.data.iter().all(fine),
                            "{}: {name} of {:?}",
                            backend.name(),
                            inputs.case
                        );
                    }
                    Ok(())
                })
                .unwrap();
            }
        }
    }
}
