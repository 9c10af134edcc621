//! Mistakes: an error that names the argument, never a panic.

use candle_core::{DType, Device, Result, Tensor};
use inducer_attention_candle::{
    AttentionConfig, AttentionOptions, Dropout, InducerAttention, InducerAttentionConfig, KeyTensors,
    LoraConfig, PrefixTensors, SequenceLengths, VirtualTokens, inducer_attention, inducer_attention_outputs,
};

use crate::support::{Key, SMALL, Value, Variables, inducer, tensor};

fn message<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("the mistake was accepted"),
        Err(error) => error.to_string(),
    }
}

/// The message of a call with q, k, v as given.
fn call(q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions) -> String {
    message(inducer_attention(q, k, v, &VirtualTokens::default(), options))
}

fn qkv() -> (Tensor, Tensor, Tensor) {
    (tensor(1, &SMALL.q()), tensor(2, &SMALL.k()), tensor(3, &SMALL.k()))
}

fn assert_names(message: &str, parts: &[&str]) {
    assert!(message.contains("inducer_attention"), "{message}");
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

#[test]
fn shapes_that_do_not_fit() {
    let (q, k, v) = qkv();
    let options = AttentionOptions::default();
    let three = q.flatten(0, 1).unwrap();
    assert_names(&call(&three, &k, &v, &options), &["q", "4 dimensions", "[8, 19, 12]"]);
    assert_names(&call(&q, &k, &tensor(3, &[2, 2, 22, 12]), &options), &["v", "[2, 2, 22, 12]"]);
    assert_names(&call(&q, &tensor(2, &[2, 3, 23, 12]), &tensor(3, &[2, 3, 23, 12]), &options), &["4", "3"]);
    assert_names(&call(&tensor(1, &[1, 1, 2, 300]), &k, &v, &options), &["head_dim", "300", "256"]);
    assert_names(&call(&tensor(1, &[1, 1, 2, 0]), &k, &v, &options), &["head_dim", "0"]);
    let mut variables = Variables::default();
    let mut wrong = inducer(&mut variables, &SMALL, Key::Residual, Value::Residual);
    if let KeyTensors::Residual(adapter) = &mut wrong.key {
        adapter.up_bias = tensor(4, &[4, 11]);
    }
    let tokens = VirtualTokens { prefix: None, inducer: Some(wrong) };
    assert_names(&message(inducer_attention(&q, &k, &v, &tokens, &options)), &["key.up_bias", "[4, 11]"]);
    let prefix = PrefixTensors { k: tensor(4, &[2, 3, 12]), v: tensor(4, &[2, 4, 12]) };
    let tokens = VirtualTokens { prefix: Some(prefix), inducer: None };
    assert_names(&message(inducer_attention(&q, &k, &v, &tokens, &options)), &["prefix.v", "[2, 4, 12]"]);
}

#[test]
fn dtypes_that_do_not_fit() {
    let (q, k, v) = qkv();
    let options = AttentionOptions::default();
    let wide = q.to_dtype(DType::F64).unwrap();
    assert_names(&call(&wide, &k, &v, &options), &["q", "F64", "f32, f16 or bf16"]);
    let half = k.to_dtype(DType::F16).unwrap();
    assert_names(&call(&q, &half, &v, &options), &["k", "f16", "f32"]);
    let whole = v.to_dtype(DType::U32).unwrap();
    assert_names(&call(&q, &k, &whole, &options), &["v", "U32"]);
}

#[test]
fn settings_that_do_not_fit() {
    let (q, k, v) = qkv();
    let with = |config: AttentionConfig| AttentionOptions { config, ..AttentionOptions::default() };
    let none = AttentionConfig::default();
    let cases = [
        (with(AttentionConfig { softmax_scale: Some(f32::NAN), ..none }), ["softmax_scale", "NaN"]),
        (with(AttentionConfig { softcap: Some(-1.0), ..none }), ["softcap", "-1"]),
        (with(AttentionConfig { window_left: Some(-2), ..none }), ["window_left", "-2"]),
        (with(AttentionConfig { dropout: Some(Dropout { p: 1.0, seed: 0 }), ..none }), ["dropout", "1"]),
        (
            AttentionOptions { alibi_slopes: Some(vec![1.0; 3]), ..AttentionOptions::default() },
            ["alibi", "3"],
        ),
        (
            AttentionOptions { positions: Some(vec![1; 3]), ..AttentionOptions::default() },
            ["positions", "inducer"],
        ),
        (
            AttentionOptions {
                lengths: SequenceLengths::Padded {
                    query_lengths: None,
                    key_lengths: Some(vec![3, 24]),
                    key_starts: None,
                },
                ..AttentionOptions::default()
            },
            ["key_lengths", "24"],
        ),
    ];
    for (options, parts) in cases {
        assert_names(&call(&q, &k, &v, &options), &parts);
    }
    let packed = |q: Vec<i32>, k: Vec<i32>| AttentionOptions {
        lengths: SequenceLengths::Packed { cu_seqlens_q: q, cu_seqlens_k: k },
        ..AttentionOptions::default()
    };
    let one = |t: &Tensor| t.narrow(0, 0, 1).unwrap();
    let (q, k, v) = (one(&q), one(&k), one(&v));
    assert_names(&call(&q, &k, &v, &packed(vec![0, 5, 4], vec![0, 5, 23])), &["cu_seqlens_q", "4"]);
    assert_names(&call(&q, &k, &v, &packed(vec![0, 5, 19], vec![0, 5, 24])), &["cu_seqlens_k", "24"]);
    assert_names(&call(&q, &k, &v, &packed(vec![], vec![])), &["cu_seqlens_q"]);
}

#[test]
fn the_extended_value_needs_the_long_form() {
    let (q, k, v) = qkv();
    let mut variables = Variables::default();
    let tokens = VirtualTokens {
        prefix: None,
        inducer: Some(inducer(&mut variables, &SMALL, Key::Query, Value::Extended)),
    };
    let options = AttentionOptions::default();
    assert_names(&message(inducer_attention(&q, &k, &v, &tokens, &options)), &["inducer_attention_outputs"]);
    assert!(inducer_attention_outputs(&q, &k, &v, &tokens, &options).is_ok());
}

#[test]
fn empty_tensors_are_no_mistake() -> Result<()> {
    let options = AttentionOptions::causal();
    for (q, kv) in [([0, 2, 3, 4], [0, 2, 3, 4]), ([1, 2, 0, 4], [1, 2, 3, 4]), ([1, 2, 3, 4], [1, 2, 0, 4])]
    {
        let variable = |shape: &[usize]| candle_core::Var::zeros(shape, DType::F32, &Device::Cpu);
        let (q, kv) = (variable(&q)?, variable(&kv)?);
        let o = inducer_attention(&q, &kv, &kv, &VirtualTokens::default(), &options)?;
        assert_eq!(o.dims(), q.dims());
        o.sum_all()?.backward()?;
    }
    Ok(())
}

#[test]
fn rows_that_see_nothing_are_finite() -> Result<()> {
    let mut variables = Variables::default();
    let q = variables.add("q", &SMALL.q());
    let (k, v) = (variables.add("k", &SMALL.k()), variables.add("v", &SMALL.k()));
    let tokens = crate::support::published(&mut variables, &SMALL);
    let lengths = SequenceLengths::Padded {
        query_lengths: Some(vec![19, 5]),
        key_lengths: Some(vec![0, 3]),
        key_starts: None,
    };
    let options = AttentionOptions { lengths, ..AttentionOptions::causal() };
    let outputs = inducer_attention_outputs(&q, &k, &v, &tokens, &options)?;
    let finite = |t: &Tensor| crate::support::to_vec(t).iter().all(|x| x.is_finite());
    assert!(finite(&outputs.o));
    let gradients = outputs.o.sqr()?.sum_all()?.backward()?;
    assert!(variables.0.iter().all(|(_, v)| finite(gradients.get(v).unwrap())));
    Ok(())
}

fn module(config: InducerAttentionConfig) -> Result<InducerAttention> {
    let variables = candle_nn::VarMap::new();
    InducerAttention::new(config, candle_nn::VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu))
}

#[test]
fn configurations_that_do_not_fit() {
    let good = InducerAttentionConfig::new(4, 16);
    let lora = |rank, alpha, d_in| good.with_lora_q(LoraConfig { rank, alpha, d_in });
    for (config, part) in [
        (InducerAttentionConfig { num_heads: 0, ..good }, "num_heads"),
        (InducerAttentionConfig { num_kv_heads: 0, ..good }, "num_kv_heads"),
        (InducerAttentionConfig { num_kv_heads: 3, ..good }, "3"),
        (InducerAttentionConfig { head_dim: 257, ..good }, "257"),
        (InducerAttentionConfig { d_out: Some(8), ..good }, "d_out"),
        (good.with_inducer(0), "key.rank"),
        (good.with_inducer(65), "65"),
        (lora(0, 1.0, 8), "lora_q.rank"),
        (lora(1, f64::NAN, 8), "lora_q.alpha"),
        (lora(1, 1.0, usize::MAX), "overflow"),
        (good.with_prefix(usize::MAX / 2), "overflow"),
    ] {
        assert_names(&message(module(config)), &[part]);
    }
}

#[test]
fn the_module_is_called_with_its_own_shapes() {
    let (q, k, v) = qkv();
    let options = AttentionOptions::default();
    let other = module(InducerAttentionConfig::new(8, 12)).unwrap();
    assert_names(&message(other.forward(&q, &k, &v, &options)), &["q", "8 heads"]);
    let config = InducerAttentionConfig { num_kv_heads: 2, ..InducerAttentionConfig::new(4, 12) };
    let plain = module(config).unwrap();
    assert_names(
        &message(plain.forward_with_logits(&q, &k, &v, &tensor(4, &[2, 4, 19]), &options)),
        &["key.logit"],
    );
    assert_names(&message(plain.set_prefix(&k, &v)), &["no prefix"]);
    let outputs = plain.forward_outputs(&q, &k, &v, &options).unwrap();
    assert_names(&message(plain.project(&outputs, &tensor(5, &[47, 48]), None)), &["w_o", "48"]);
    let lora = module(config.with_lora_q(LoraConfig { rank: 2, alpha: 2.0, d_in: 10 })).unwrap();
    assert_names(&message(lora.lora_query(&tensor(6, &[2, 11]))), &["lora_query", "10"]);
}
