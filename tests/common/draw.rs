//! Strategies that draw cases.

use super::case::{Case, InducerCase, KeyCase, Layout, LengthsCase, Slopes, ValueCase};
use inducer_attention::{Activation, AttentionConfig, DType, Dropout};
use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;
use proptest::sample::select;

/// At most so many multiplications for one product of the size of the scores: it keeps a case in the milliseconds.
const WORK: usize = 600_000;

/// Rows or keys: mostly few, at times around the sizes of tiles.
fn extent() -> impl Strategy<Value = usize> {
    prop_oneof![
        1 => Just(0usize),
        6 => 1usize..12,
        5 => 12usize..70,
        3 => select(vec![31usize, 32, 33, 63, 64, 65, 127, 128, 129]),
        2 => 130usize..300,
    ]
}

fn head_dim() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => 1usize..=17,
        4 => select(vec![16usize, 32, 48, 64]),
        3 => 18usize..=130,
        2 => select(vec![128usize, 192, 255, 256]),
    ]
}

fn rank() -> impl Strategy<Value = usize> {
    prop_oneof![3 => 1usize..=8, 2 => 9usize..=33, 1 => select(vec![63usize, 64])]
}

pub fn dtype() -> impl Strategy<Value = DType> {
    prop_oneof![3 => Just(DType::F32), 2 => Just(DType::BF16), 1 => Just(DType::F16)]
}

fn layout() -> impl Strategy<Value = Layout> {
    select(vec![Layout::Bhnd, Layout::Bnhd, Layout::Packed])
}

fn key() -> impl Strategy<Value = KeyCase> {
    prop_oneof![
        2 => Just(KeyCase::Query),
        4 => rank().prop_map(|rank| KeyCase::Residual { rank }),
        1 => Just(KeyCase::LogitPerHead),
        1 => Just(KeyCase::LogitPerToken),
    ]
}

fn value() -> impl Strategy<Value = ValueCase> {
    prop_oneof![
        1 => Just(ValueCase::Zero),
        3 => rank().prop_map(|rank| ValueCase::Residual { rank }),
        2 => rank().prop_map(|rank| ValueCase::Direct { rank }),
        2 => rank().prop_map(|rank| ValueCase::Extended { rank }),
    ]
}

pub fn inducer() -> impl Strategy<Value = InducerCase> {
    (key(), value(), any::<bool>(), weighted(0.3, any::<bool>()), weighted(0.3, Just(()))).prop_map(
        |(key, value, tanh, adaptive, off)| {
            let given = matches!(key, KeyCase::LogitPerHead | KeyCase::LogitPerToken);
            InducerCase {
                key,
                value,
                activation: if tanh { Activation::Tanh } else { Activation::Identity },
                adaptive_length: adaptive.is_some() && !given,
                positions: adaptive == Some(true) && !given,
                some_logits_off: off.is_some() && given,
            }
        },
    )
}

fn window() -> impl Strategy<Value = i64> {
    prop_oneof![4 => 0i64..20, 1 => 20i64..200, 1 => select(vec![i64::MAX, i64::from(i32::MAX)])]
}

fn config() -> impl Strategy<Value = AttentionConfig> {
    let scale = prop_oneof![3 => 0.01f32..2.0, 1 => Just(-0.3f32), 1 => Just(0.0f32)];
    (
        weighted(0.3, scale),
        weighted(0.4, Just(())),
        weighted(0.25, window()),
        weighted(0.15, window()),
        weighted(0.25, 0.5f32..50.0),
        weighted(0.25, (prop_oneof![3 => 0.0f32..0.9, 1 => 0.9f32..1.0], any::<u64>())),
    )
        .prop_map(|(softmax_scale, causal, window_left, window_right, softcap, dropout)| {
            AttentionConfig {
                softmax_scale,
                causal: causal.is_some(),
                window_left,
                window_right,
                softcap,
                dropout: dropout.map(|(p, seed)| Dropout { p, seed }),
            }
        })
}

/// Lengths of any problem, as numbers that are taken modulo what they may be.
#[derive(Clone, Debug)]
enum RawLengths {
    Full,
    Padded([Option<Vec<usize>>; 3]),
    Packed { sequences: Vec<(usize, usize)>, tail: (usize, usize) },
}

fn lengths() -> impl Strategy<Value = RawLengths> {
    let list = || weighted(0.6, vec(0usize..300, 4));
    prop_oneof![
        4 => Just(RawLengths::Full),
        2 => (list(), list(), list()).prop_map(|(q, k, s)| RawLengths::Padded([q, k, s])),
        2 => (vec((extent(), extent()), 0..5), (0usize..4, 0usize..4))
            .prop_map(|(sequences, tail)| RawLengths::Packed { sequences, tail }),
    ]
}

/// The largest scores, by order of magnitude.
pub fn logits() -> impl Strategy<Value = f32> {
    prop_oneof![5 => Just(3.0f32), 3 => Just(10.0f32), 1 => Just(100.0f32), 1 => Just(1e4f32)]
}

/// A valid case of any kind.
pub fn case() -> impl Strategy<Value = Case> {
    let batch = prop_oneof![1 => Just(0usize), 20 => 1usize..4];
    let shape = (batch, 1usize..4, 1usize..4, extent(), extent(), any::<bool>(), head_dim());
    let memory = (dtype(), any::<bool>(), layout(), layout(), 0usize..4, 0usize..10, weighted(0.1, Just(())));
    let parts = (
        config(),
        lengths(),
        weighted(0.25, prop_oneof![1 => Just(0usize), 4 => 1usize..9, 1 => 9usize..70]),
        weighted(0.25, select(vec![Slopes::PerHead, Slopes::PerEntry])),
        weighted(0.8, inducer()),
    );
    let gradients = (any::<bool>(), any::<bool>(), any::<bool>(), weighted(0.9, Just(())));
    (shape, memory, parts, gradients, logits(), any::<u64>()).prop_map(
        |(shape, memory, (config, lengths, prefix, alibi, inducer), gradients, logits, seed)| {
            let (batch, kv_heads, group, rows, keys, same, head_dim) = shape;
            let (dtype, own, layout, result_layout, offset, row_pad, broadcast) = memory;
            let case = Case {
                dtype,
                parameter_dtype: if own { dtype } else { DType::F32 },
                batch,
                kv_heads,
                group,
                rows,
                keys: if same { rows } else { keys },
                head_dim,
                layout,
                result_layout,
                offset,
                row_pad,
                broadcast: broadcast.is_some(),
                config,
                lengths: LengthsCase::Full,
                prefix,
                alibi,
                inducer,
                logits,
                lse_gradient: gradients.0,
                u_gradient: gradients.1,
                saves_attention: gradients.2,
                parameter_gradients: gradients.3.is_some(),
                seed,
            };
            affordable(with_lengths(case, &lengths))
        },
    )
}

fn with_lengths(mut case: Case, raw: &RawLengths) -> Case {
    match raw {
        RawLengths::Full => {}
        RawLengths::Padded(lists) => {
            let [query_lengths, key_lengths, key_starts] =
                [(&lists[0], case.rows), (&lists[1], case.keys), (&lists[2], case.keys / 2)].map(
                    |(list, max)| {
                        list.as_ref()
                            .map(|l| l[..case.batch].iter().map(|n| (n % (max + 1)) as i32).collect())
                    },
                );
            case.lengths = LengthsCase::Padded { query_lengths, key_lengths, key_starts };
        }
        RawLengths::Packed { sequences, tail } => {
            let boundaries = |lengths: Vec<usize>| {
                let mut all = vec![0i32];
                all.extend(lengths.iter().scan(0i32, |end, &n| {
                    *end += n as i32;
                    Some(*end)
                }));
                all
            };
            let cu_seqlens_q = boundaries(sequences.iter().map(|s| s.0).collect());
            let cu_seqlens_k = boundaries(sequences.iter().map(|s| s.1).collect());
            case.batch = 1;
            case.rows = cu_seqlens_q[sequences.len()] as usize + tail.0;
            case.keys = cu_seqlens_k[sequences.len()] as usize + tail.1;
            case.lengths = LengthsCase::Packed { cu_seqlens_q, cu_seqlens_k };
        }
    }
    case
}

/// Fewer heads and entries, then a smaller head dimension, until the case can be afforded.
fn affordable(mut case: Case) -> Case {
    while case.work() > WORK {
        if case.group * case.kv_heads > 2 && case.group > 1 {
            case.group -= 1;
        } else if case.kv_heads > 1 {
            case.kv_heads -= 1;
        } else if case.batch > 1 {
            case.batch -= 1;
            if let LengthsCase::Padded { query_lengths, key_lengths, key_starts } = &mut case.lengths {
                for list in [query_lengths, key_lengths, key_starts].into_iter().flatten() {
                    list.truncate(case.batch);
                }
            }
        } else if case.head_dim > 1 {
            case.head_dim = (WORK * case.head_dim / case.work()).max(1).min(case.head_dim - 1);
        } else {
            break;
        }
    }
    case
}

/// `default` cases, or what `PROPTEST_CASES` says; failures are kept beside the tests.
pub fn config_of(default: u32) -> ProptestConfig {
    let from_environment = std::env::var_os("PROPTEST_CASES").is_some();
    let mut config = ProptestConfig::default();
    if !from_environment {
        config.cases = default;
    }
    config.max_shrink_iters = 4000;
    config.failure_persistence =
        Some(Box::new(proptest::test_runner::FileFailurePersistence::Direct("tests/properties.regressions")));
    config
}
