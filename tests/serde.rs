//! Configurations survive being written down, and what is not understood is rejected.

use inducer_attention::{Activation, AttentionConfig, Dropout, InducerConfig, KeyConfig, ValueConfig};
use proptest::option;
use proptest::prelude::*;

fn round_trip<T>(value: &T)
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let text = serde_json::to_string(value).unwrap();
    assert_eq!(serde_json::from_str::<T>(&text).unwrap(), *value, "{text}");
}

fn rejects<T: serde::de::DeserializeOwned + std::fmt::Debug>(text: &str, named: &str) {
    let error = serde_json::from_str::<T>(text).expect_err(text).to_string();
    assert!(error.contains(named), "{text}: {error}");
}

proptest! {
    #[test]
    fn attention_round_trips(
        softmax_scale in option::of(-1e6f32..1e6), causal in any::<bool>(),
        window_left in option::of(any::<i64>()), window_right in option::of(any::<i64>()),
        softcap in option::of(0.0f32..1e6), dropout in option::of((0.0f32..1.0, any::<u64>())),
    ) {
        let dropout = dropout.map(|(p, seed)| Dropout { p, seed });
        round_trip(&AttentionConfig { softmax_scale, causal, window_left, window_right, softcap, dropout });
    }

    #[test]
    fn inducer_round_trips(
        key in 0..4usize, value in 0..5usize, key_rank in 1usize..=64, rank in 1usize..=64,
        identity in any::<bool>(), adaptive_length in any::<bool>(),
    ) {
        let keys = [
            KeyConfig::Query, KeyConfig::Residual { rank: key_rank }, KeyConfig::LogitPerHead, KeyConfig::LogitPerToken,
        ];
        let values = [
            ValueConfig::Zero,
            ValueConfig::Residual { rank },
            ValueConfig::Direct { rank },
            ValueConfig::Extended { rank, shared: false },
            ValueConfig::Extended { rank, shared: true },
        ];
        let activation = if identity { Activation::Identity } else { Activation::Tanh };
        round_trip(&InducerConfig { key: keys[key], value: values[value], activation, adaptive_length });
    }
}

/// The form that checkpoints are written in must not change by accident.
#[test]
fn the_written_form_is_stable() {
    let config = InducerConfig {
        key: KeyConfig::Residual { rank: 4 },
        value: ValueConfig::Extended { rank: 8, shared: true },
        activation: Activation::Tanh,
        adaptive_length: true,
    };
    assert_eq!(
        serde_json::to_string(&config).unwrap(),
        r#"{"key":{"kind":"residual","rank":4},"value":{"kind":"extended","rank":8,"shared":true},"activation":"tanh","adaptive_length":true}"#
    );
    let short = r#"{"key": {"kind": "query"}, "value": {"kind": "extended", "rank": 8}}"#;
    let expected = InducerConfig {
        key: KeyConfig::Query,
        value: ValueConfig::Extended { rank: 8, shared: false },
        activation: Activation::Tanh,
        adaptive_length: false,
    };
    assert_eq!(serde_json::from_str::<InducerConfig>(short).unwrap(), expected);
    assert_eq!(serde_json::from_str::<AttentionConfig>("{}").unwrap(), AttentionConfig::default());
}

#[test]
fn what_is_not_understood_is_rejected() {
    rejects::<AttentionConfig>(r#"{"casual": true}"#, "casual");
    rejects::<AttentionConfig>(r#"{"causal": 1}"#, "boolean");
    rejects::<AttentionConfig>(r#"{"dropout": {"p": 0.1}}"#, "seed");
    rejects::<AttentionConfig>(r#"{"dropout": {"p": 0.1, "seed": 1, "sede": 2}}"#, "sede");
    rejects::<AttentionConfig>(r#"{"dropout": {"p": 0.1, "seed": -1}}"#, "-1");
    rejects::<InducerConfig>(r#"{"key": {"kind": "query"}}"#, "value");
    rejects::<InducerConfig>(r#"{"key": {"kind": "queries"}, "value": {"kind": "zero"}}"#, "queries");
    rejects::<InducerConfig>(r#"{"key": {"kind": "residual"}, "value": {"kind": "zero"}}"#, "rank");
    rejects::<InducerConfig>(r#"{"key": {"kind": "query"}, "value": {"kind": "zero"}, "rank": 3}"#, "rank");
    rejects::<InducerConfig>(
        r#"{"key": {"kind": "residual", "rank": 4, "shared": true}, "value": {"kind": "zero"}}"#,
        "shared",
    );
    rejects::<InducerConfig>(
        r#"{"key": {"kind": "query"}, "value": {"kind": "extended", "rank": 4, "shard": true}}"#,
        "shard",
    );
    rejects::<InducerConfig>(
        r#"{"key": {"kind": "query"}, "value": {"kind": "residual", "rank": -4}}"#,
        "-4",
    );
}
