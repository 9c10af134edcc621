//! Every member of the family on every backend, forward and backward, once and small: quick enough for Miri, which the
//! property tests are not.

mod common;

use common::agreement;
use common::case::{Case, InducerCase, KeyCase, Layout, LengthsCase, ValueCase};
use inducer_attention::{DType, Dropout};

fn check(case: &Case) {
    agreement::check(case).unwrap_or_else(|e| panic!("{e}\n{case:#?}"));
}

/// Odd sizes, so that there are rests everywhere.
fn small() -> Case {
    Case { rows: 5, keys: 7, head_dim: 3, group: 2, kv_heads: 1, row_pad: 1, offset: 1, ..Case::default() }
}

#[test]
fn every_virtual_token() {
    let keys = [KeyCase::Query, KeyCase::Residual { rank: 2 }, KeyCase::LogitPerHead, KeyCase::LogitPerToken];
    let values = [
        ValueCase::Zero,
        ValueCase::Residual { rank: 3 },
        ValueCase::Direct { rank: 3 },
        ValueCase::Extended { rank: 3 },
    ];
    for (i, key) in keys.into_iter().enumerate() {
        for (j, value) in values.into_iter().enumerate() {
            // Each key with each value natively; types, layouts and a causal mask in turn.
            let dtype = [DType::F32, DType::BF16, DType::F16][(i + j) % 3];
            let layout = [Layout::Bhnd, Layout::Bnhd][i % 2];
            let inducer = Some(InducerCase::new(key, value));
            let mut case = Case {
                dtype,
                parameter_dtype: dtype,
                layout,
                result_layout: layout,
                inducer,
                saves_attention: j % 2 == 1,
                ..small()
            };
            case.config.causal = (i + j) % 2 == 0;
            check(&case);
        }
    }
}

#[test]
fn packed_views_of_one_buffer() {
    let lengths = LengthsCase::Packed { cu_seqlens_q: vec![0, 2, 2, 5], cu_seqlens_k: vec![0, 2, 2, 5] };
    let inducer = Some(InducerCase::new(KeyCase::Query, ValueCase::Extended { rank: 2 }));
    let (layout, result_layout) = (Layout::Packed, Layout::Packed);
    check(&Case { keys: 5, lengths, inducer, layout, result_layout, ..small() });
}

#[test]
fn prefix_and_dropout() {
    let mut case = Case { batch: 2, prefix: Some(2), ..small() };
    case.config.dropout = Some(Dropout { p: 0.3, seed: 5 });
    check(&case);
}

#[test]
fn padding_window_and_softcap() {
    let lengths = LengthsCase::Padded {
        query_lengths: None,
        key_lengths: Some(vec![6, 0]),
        key_starts: Some(vec![1, 0]),
    };
    let mut case = Case { batch: 2, lengths, ..small() };
    case.config.window_left = Some(2);
    case.config.softcap = Some(5.0);
    check(&case);
}

/// As where a model generates text: heads that share keys are computed together.
#[test]
fn one_row_of_heads_that_share_keys() {
    let keys = [KeyCase::Residual { rank: 2 }, KeyCase::LogitPerHead, KeyCase::LogitPerToken];
    let values = [ValueCase::Zero, ValueCase::Direct { rank: 3 }, ValueCase::Extended { rank: 3 }];
    for (i, (key, value)) in keys.into_iter().zip(values).enumerate() {
        for group in [3, 11] {
            let inducer = Some(InducerCase::new(key, value));
            let lengths = LengthsCase::Padded {
                query_lengths: Some(vec![1, 0]),
                key_lengths: Some(vec![9, 4]),
                key_starts: Some(vec![2, 0]),
            };
            let lengths = if i == 1 { lengths } else { LengthsCase::Full };
            let prefix = (i == 2).then_some(3);
            let sizes = Case { batch: 2, rows: 1, keys: 9, head_dim: 16, group, kv_heads: 2, ..small() };
            check(&Case { inducer, lengths, prefix, saves_attention: i == 0, ..sizes });
        }
    }
}
