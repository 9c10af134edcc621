//! Every member of the family under every kind of attention: results and all gradients against the composition.

use candle_core::{Result, Tensor};
use inducer_attention_candle::{
    Activation, AttentionConfig, AttentionOptions, Dropout, SequenceLengths, TensorLayout, VirtualTokens,
    inducer_attention, inducer_attention_outputs,
};

use crate::composition;
use crate::support::{Key, SMALL, Sizes, Value, Variables, inducer, loss, prefix, relative_error, to_vec};

const FORWARD: f64 = 1e-6;
const BACKWARD: f64 = 1e-5;

fn check(sizes: Sizes, options: &AttentionOptions, tokens: impl Fn(&mut Variables) -> VirtualTokens) {
    check_result(sizes, options, tokens).unwrap();
}

fn check_result(
    sizes: Sizes,
    options: &AttentionOptions,
    tokens: impl Fn(&mut Variables) -> VirtualTokens,
) -> Result<()> {
    let mut variables = Variables::default();
    let dims = |[b, h, n, d]: [usize; 4]| match options.layout {
        TensorLayout::Bhnd => [b, h, n, d],
        TensorLayout::Bnhd => [b, n, h, d],
    };
    let q = variables.add("q", &dims(sizes.q()));
    let k = variables.add("k", &dims(sizes.k()));
    let v = variables.add("v", &dims(sizes.k()));
    let tokens = tokens(&mut variables);
    let got = inducer_attention_outputs(&q, &k, &v, &tokens, options)?;
    let expected = composition::attention(&q, &k, &v, &tokens, options)?;
    let mut results = vec![("o", &got.o, &expected.o), ("lse", &got.lse, &expected.lse)];
    assert_eq!(got.u.is_some(), expected.u.is_some());
    if let (Some(got), Some(expected)) = (&got.u, &expected.u) {
        results.push(("u", got, expected));
    } else {
        // The short form is the same operation.
        let o = inducer_attention(&q, &k, &v, &tokens, options)?;
        assert_eq!(to_vec(&o), to_vec(&got.o));
    }
    for (name, got, expected) in &results {
        let error = relative_error(got, expected);
        assert!(error < FORWARD, "{name}: {error:e}");
    }
    let total = |pick: &dyn Fn(usize) -> Tensor| {
        loss(&(0..results.len()).map(pick).collect::<Vec<_>>().iter().collect::<Vec<_>>())
    };
    let got = total(&|i| results[i].1.clone())?.backward()?;
    let expected = total(&|i| results[i].2.clone())?.backward()?;
    for (name, variable) in &variables.0 {
        let (Some(got), Some(expected)) = (got.get(variable), expected.get(variable)) else {
            panic!("{name} has no gradient");
        };
        assert_eq!(got.dtype(), variable.dtype(), "{name}");
        let error = relative_error(got, expected);
        assert!(error < BACKWARD, "gradient of {name}: {error:e}");
    }
    Ok(())
}

fn with_inducer(key: Key, value: Value) -> impl Fn(&mut Variables) -> VirtualTokens {
    move |variables| VirtualTokens { prefix: None, inducer: Some(inducer(variables, &SMALL, key, value)) }
}

fn options(config: AttentionConfig) -> AttentionOptions {
    AttentionOptions { config, ..AttentionOptions::default() }
}

#[test]
fn plain_attention() {
    check(SMALL, &AttentionOptions::default(), |_| VirtualTokens::default());
    check(SMALL, &AttentionOptions::causal(), |_| VirtualTokens::default());
}

#[test]
fn every_key_with_every_value() {
    for key in [Key::Query, Key::Residual, Key::PerHead, Key::PerToken] {
        for value in [Value::Zero, Value::Residual, Value::Direct, Value::Extended] {
            check(SMALL, &AttentionOptions::causal(), with_inducer(key, value));
        }
    }
}

#[test]
fn prefix_alone_and_with_an_inducer() {
    check(SMALL, &AttentionOptions::causal(), |variables| VirtualTokens {
        prefix: Some(prefix(variables, &SMALL, 6)),
        inducer: None,
    });
    check(SMALL, &AttentionOptions::default(), |variables| VirtualTokens {
        prefix: Some(prefix(variables, &SMALL, 6)),
        inducer: Some(inducer(variables, &SMALL, Key::Residual, Value::Direct)),
    });
}

#[test]
fn heads_in_second_place_and_in_third() {
    let options = AttentionOptions::causal().with_layout(TensorLayout::Bnhd);
    check(SMALL, &options, with_inducer(Key::Residual, Value::Residual));
    check(SMALL, &options, with_inducer(Key::Residual, Value::Extended));
}

#[test]
fn one_head_per_key_head_and_all_heads_on_one() {
    for kv_heads in [1, 4] {
        let sizes = Sizes { kv_heads, ..SMALL };
        check(sizes, &AttentionOptions::causal(), with_inducer(Key::Residual, Value::Residual));
    }
}

#[test]
fn identity_activation() {
    check(SMALL, &AttentionOptions::causal(), |variables| {
        let mut inducer = inducer(variables, &SMALL, Key::Residual, Value::Residual);
        inducer.activation = Activation::Identity;
        VirtualTokens { prefix: None, inducer: Some(inducer) }
    });
}

#[test]
fn adaptive_length_with_usual_and_given_positions() {
    let adaptive = |variables: &mut Variables| {
        let mut inducer = inducer(variables, &SMALL, Key::Residual, Value::Residual);
        inducer.adaptive_length = true;
        VirtualTokens { prefix: None, inducer: Some(inducer) }
    };
    check(SMALL, &AttentionOptions::causal(), adaptive);
    check(SMALL, &AttentionOptions::default(), adaptive);
    let positions = Some((0..(SMALL.batch * SMALL.rows) as i32).map(|i| i % 7).collect());
    check(SMALL, &AttentionOptions { positions, ..AttentionOptions::causal() }, adaptive);
}

#[test]
fn scale_softcap_window_and_alibi() {
    let published = with_inducer(Key::Residual, Value::Residual);
    let config =
        AttentionConfig { softmax_scale: Some(0.2), softcap: Some(1.5), ..AttentionConfig::default() };
    check(SMALL, &options(config), &published);
    let config =
        AttentionConfig { window_left: Some(5), window_right: Some(2), ..AttentionConfig::default() };
    check(SMALL, &options(config), &published);
    let config = AttentionConfig { causal: true, window_left: Some(3), ..AttentionConfig::default() };
    check(SMALL, &options(config), &published);
    for entries in [SMALL.heads, SMALL.batch * SMALL.heads] {
        let alibi_slopes = Some((0..entries).map(|i| 0.1 + 0.05 * i as f32).collect());
        check(SMALL, &AttentionOptions { alibi_slopes, ..AttentionOptions::causal() }, &published);
    }
}

#[test]
fn dropout_with_every_value() {
    let dropout = Some(Dropout { p: 0.3, seed: 77 });
    let options = options(AttentionConfig { causal: true, dropout, ..AttentionConfig::default() });
    for value in [Value::Zero, Value::Residual, Value::Direct, Value::Extended] {
        check(SMALL, &options, |variables| VirtualTokens {
            prefix: Some(prefix(variables, &SMALL, 3)),
            inducer: Some(inducer(variables, &SMALL, Key::Residual, value)),
        });
    }
}

#[test]
fn padded_keys() {
    let lengths = SequenceLengths::Padded {
        query_lengths: None,
        key_lengths: Some(vec![23, 17]),
        key_starts: Some(vec![4, 0]),
    };
    check(
        SMALL,
        &AttentionOptions { lengths, ..AttentionOptions::default() },
        with_inducer(Key::Residual, Value::Residual),
    );
}

#[test]
fn packed_sequences() {
    let sizes = Sizes { batch: 1, ..SMALL };
    let lengths =
        SequenceLengths::Packed { cu_seqlens_q: vec![0, 4, 12, 19], cu_seqlens_k: vec![0, 9, 17, 24] };
    let sizes = Sizes { keys: 24, ..sizes };
    for options in [AttentionOptions::causal(), AttentionOptions::default()] {
        check(sizes, &AttentionOptions { lengths: lengths.clone(), ..options }, |variables| VirtualTokens {
            prefix: None,
            inducer: Some(inducer(variables, &sizes, Key::Residual, Value::Residual)),
        });
    }
}
