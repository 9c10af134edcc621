//! The module.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{VarBuilder, VarMap};
use inducer_attention_candle::{
    Activation, AttentionOptions, InducerAttention, InducerAttentionConfig, InducerConfig, KeyConfig,
    LoraConfig, TensorLayout, ValueConfig, VirtualTokens, inducer_attention,
};

use crate::support::{loss, relative_error, tensor, to_vec};

const HEADS: usize = 4;
const HEAD_DIM: usize = 12;
const WIDTH: usize = HEADS * HEAD_DIM;

pub(crate) fn extended(shared: bool, d_out: usize) -> InducerAttentionConfig {
    InducerAttentionConfig {
        inducer: Some(InducerConfig {
            key: KeyConfig::Residual { rank: 3 },
            value: ValueConfig::Extended { rank: 5, shared },
            activation: Activation::Tanh,
            adaptive_length: false,
        }),
        d_out: Some(d_out),
        ..InducerAttentionConfig::new(HEADS, HEAD_DIM)
    }
}

pub(crate) fn everything() -> InducerAttentionConfig {
    InducerAttentionConfig { num_kv_heads: 2, ..InducerAttentionConfig::new(HEADS, HEAD_DIM) }
        .with_inducer(3)
        .with_prefix(6)
        .with_lora_q(LoraConfig { rank: 2, alpha: 4.0, d_in: 20 })
}

pub(crate) fn fresh(config: InducerAttentionConfig) -> (VarMap, InducerAttention) {
    let variables = VarMap::new();
    let vb = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
    let module = InducerAttention::new(config, vb.pp("layers.0")).unwrap();
    (variables, module)
}

/// Moves every variable off its initial value.
pub(crate) fn shake(module: &InducerAttention) {
    for (i, variable) in module.variables().unwrap().iter().enumerate() {
        variable.set(&tensor(300 + i as u64, variable.dims())).unwrap();
    }
}

#[test]
fn parameters_have_stable_names_and_the_published_initial_values() {
    let (variables, module) = fresh(everything());
    let names: Vec<_> = module.named_tensors().map(|(name, _)| name).collect();
    assert_eq!(
        names,
        [
            "key.down_weight",
            "key.down_bias",
            "key.up_weight",
            "key.up_bias",
            "value.down_weight",
            "value.down_bias",
            "value.up_weight",
            "value.up_bias",
            "prefix.k",
            "prefix.v",
            "lora_q.down_weight",
            "lora_q.up_weight",
        ]
    );
    let total: usize = variables.all_vars().iter().map(|v| v.elem_count()).sum();
    assert_eq!(total, module.config().num_parameters());
    let data = variables.data().lock().unwrap();
    for (name, tensor) in module.named_tensors() {
        assert!(data.contains_key(&format!("layers.0.{name}")));
        let values = to_vec(tensor);
        let largest = values.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        match name {
            n if n.ends_with("bias") || n == "lora_q.up_weight" => {
                assert!(values.iter().all(|&x| x == 0.0), "{n}");
            }
            n if n.starts_with("prefix") => assert!(largest > 0.02 && largest <= 0.04, "{n}"),
            "lora_q.down_weight" => assert!(largest > 0.1, "{largest}"),
            n => assert!(largest > 0.01 && largest <= 0.02, "{n}: {largest}"),
        }
    }
}

#[test]
fn seeds_choose_initial_values_and_existing_ones_are_kept() -> Result<()> {
    let variables = VarMap::new();
    let vb = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
    let first = InducerAttention::with_seed(everything(), 1, &vb)?;
    let before = to_vec(first.named_tensors().next().unwrap().1);
    let again = InducerAttention::with_seed(everything(), 2, &vb)?;
    assert_eq!(to_vec(again.named_tensors().next().unwrap().1), before);
    let (_, other) = fresh(everything());
    assert_ne!(to_vec(other.named_tensors().next().unwrap().1), before);
    Ok(())
}

/// A tuned layer starts within 1 % of the frozen one: residual forms add λΔ with Δ of order 1e-3, sinks take less than that.
#[test]
fn at_first_the_layer_is_nearly_the_frozen_one() -> Result<()> {
    let inducer = |key, value| InducerAttentionConfig {
        inducer: Some(InducerConfig { key, value, activation: Activation::Tanh, adaptive_length: false }),
        ..InducerAttentionConfig::new(HEADS, HEAD_DIM)
    };
    let shape = [2, HEADS, 64, HEAD_DIM];
    let (q, k, v) = (tensor(1, &shape), tensor(2, &shape), tensor(3, &shape));
    let options = AttentionOptions::causal();
    let frozen = inducer_attention(&q, &k, &v, &VirtualTokens::default(), &options)?;
    for config in [
        InducerAttentionConfig::new(HEADS, HEAD_DIM).with_inducer(8),
        inducer(KeyConfig::Query, ValueConfig::Residual { rank: 8 }),
        inducer(KeyConfig::LogitPerHead, ValueConfig::Zero),
    ] {
        let (_, module) = fresh(config);
        let o = module.forward(&q, &k, &v, &options)?;
        let difference = relative_error(&o, &frozen);
        assert!(difference > 0.0 && difference < 0.01, "{config:?}: {difference}");
    }
    let (_, module) = fresh(extended(false, WIDTH));
    let w_o = tensor(4, &[WIDTH, WIDTH]);
    let projected = module.project(&module.forward_outputs(&q, &k, &v, &options)?, &w_o, None)?;
    let expected = frozen.transpose(1, 2)?.reshape((2 * 64, WIDTH))?.matmul(&w_o)?.reshape((2, 64, WIDTH))?;
    let difference = relative_error(&projected, &expected);
    assert!(difference > 0.0 && difference < 0.01, "{difference}");
    let lora = LoraConfig { rank: 2, alpha: 4.0, d_in: 20 };
    let (_, module) = fresh(InducerAttentionConfig::new(HEADS, HEAD_DIM).with_lora_q(lora));
    let change = module.lora_query(&tensor(5, &[7, 20]))?.unwrap();
    assert!(to_vec(&change).iter().all(|&x| x == 0.0));
    Ok(())
}

#[test]
fn switched_off_it_is_exactly_the_frozen_layer() -> Result<()> {
    let (_, mut module) = fresh(everything());
    shake(&module);
    let (q, k, v) = (tensor(1, &[2, 4, 9, 12]), tensor(2, &[2, 2, 9, 12]), tensor(3, &[2, 2, 9, 12]));
    let options = AttentionOptions::causal();
    let frozen = inducer_attention(&q, &k, &v, &VirtualTokens::default(), &options)?;
    assert!(relative_error(&module.forward(&q, &k, &v, &options)?, &frozen) > 0.1);
    module.set_enabled(false);
    assert!(!module.is_enabled());
    assert_eq!(to_vec(&module.forward(&q, &k, &v, &options)?), to_vec(&frozen));
    assert!(module.lora_query(&tensor(4, &[2, 9, 20]))?.is_none());
    module.set_enabled(true);
    assert!(module.lora_query(&tensor(4, &[2, 9, 20]))?.is_some());

    let (_, mut module) = fresh(extended(false, WIDTH));
    shake(&module);
    module.set_enabled(false);
    let k = tensor(2, &[2, 4, 9, 12]);
    let outputs = module.forward_outputs(&q, &k, &k, &options)?;
    let w_o = tensor(4, &[WIDTH, WIDTH]);
    let expected = outputs.o.transpose(1, 2)?.reshape((18, WIDTH))?.matmul(&w_o)?;
    assert_eq!(to_vec(&module.project(&outputs, &w_o, None)?), to_vec(&expected));
    Ok(())
}

#[test]
fn lora_is_the_scaled_product() -> Result<()> {
    let (_, module) = fresh(everything());
    shake(&module);
    let x = tensor(4, &[2, 9, 20]);
    let get = |name: &str| module.named_tensors().find(|(n, _)| *n == name).unwrap().1.clone();
    let product = x
        .reshape((18, 20))?
        .matmul(&get("lora_q.down_weight"))?
        .matmul(&get("lora_q.up_weight"))?
        .reshape((2, 9, WIDTH))?;
    // α/r = 4/2.
    let expected = (product * 2.0)?;
    let got = module.lora_query(&x)?.unwrap();
    assert!(relative_error(&got, &expected) < 1e-6);
    let gradients = loss(&[&got])?.backward()?;
    assert!(gradients.get(&get("lora_q.down_weight")).is_some());
    Ok(())
}

#[test]
fn the_extended_value_goes_through_the_output_projection() -> Result<()> {
    for (shared, layout) in [
        (false, TensorLayout::Bhnd),
        (false, TensorLayout::Bnhd),
        (true, TensorLayout::Bhnd),
        (true, TensorLayout::Bnhd),
    ] {
        let d_out = 30;
        let (_, module) = fresh(extended(shared, d_out));
        shake(&module);
        let shape = match layout {
            TensorLayout::Bhnd => [2, HEADS, 9, HEAD_DIM],
            TensorLayout::Bnhd => [2, 9, HEADS, HEAD_DIM],
        };
        let (q, k, v) = (tensor(1, &shape), tensor(2, &shape), tensor(3, &shape));
        let options = AttentionOptions::causal().with_layout(layout);
        let outputs = module.forward_outputs(&q, &k, &v, &options)?;
        let (w_o, bias) = (tensor(4, &[WIDTH, d_out]), tensor(5, &[d_out]));
        let got = module.project(&outputs, &w_o, Some(&bias))?;

        // attn W_o + Σ_h U_h B_v,h + b_v + b_o, product by product.
        let get = |name: &str| module.named_tensors().find(|(n, _)| *n == name).unwrap().1.clone();
        let (up, up_bias) = (get("value.up_weight"), get("value.up_bias"));
        let bnhd = |t: &Tensor| match layout {
            TensorLayout::Bhnd => t.transpose(1, 2)?.contiguous(),
            TensorLayout::Bnhd => t.contiguous(),
        };
        let mut expected = bnhd(&outputs.o)?.reshape((18, WIDTH))?.matmul(&w_o)?;
        let u = bnhd(outputs.u.as_ref().unwrap())?;
        for h in 0..HEADS {
            let up = if shared { up.clone() } else { up.get(h)? };
            expected = (expected + u.narrow(2, h, 1)?.reshape((18, 5))?.matmul(&up)?)?;
        }
        let expected = expected.broadcast_add(&bias)?.broadcast_add(&up_bias)?.reshape((2, 9, d_out))?;
        assert!(relative_error(&got, &expected) < 1e-6);
        let (got, expected) = (loss(&[&got])?.backward()?, loss(&[&expected])?.backward()?);
        for (name, tensor) in module.named_tensors() {
            let error = relative_error(got.get(tensor).unwrap(), expected.get(tensor).unwrap());
            assert!(error < 1e-5, "{name}: {error:e}");
        }
    }
    Ok(())
}

#[test]
fn a_prefix_can_begin_as_given_keys_and_values() -> Result<()> {
    let (_, module) = fresh(everything());
    let (k, v) = (tensor(7, &[2, 6, 12]), tensor(8, &[2, 6, 12]));
    module.set_prefix(&k, &v)?;
    let get = |name: &str| module.named_tensors().find(|(n, _)| *n == name).unwrap().1.clone();
    assert_eq!(to_vec(&get("prefix.k")), to_vec(&k));
    assert_eq!(to_vec(&get("prefix.v")), to_vec(&v));
    assert!(module.set_prefix(&k, &tensor(8, &[2, 5, 12])).is_err());
    Ok(())
}

#[test]
fn logits_per_token_come_from_the_caller() -> Result<()> {
    let config = InducerAttentionConfig {
        inducer: Some(InducerConfig {
            key: KeyConfig::LogitPerToken,
            value: ValueConfig::Zero,
            activation: Activation::Tanh,
            adaptive_length: false,
        }),
        ..InducerAttentionConfig::new(HEADS, HEAD_DIM)
    };
    let (_, module) = fresh(config);
    let shape = [1, HEADS, 7, HEAD_DIM];
    let (q, k, v) = (tensor(1, &shape), tensor(2, &shape), tensor(3, &shape));
    let options = AttentionOptions::causal();
    assert!(module.forward(&q, &k, &v, &options).is_err());
    // A logit of −∞ is exactly plain attention; a large one takes everything.
    let logits = |value: f32| Tensor::full(value, (1, HEADS, 7), &Device::Cpu);
    let off = module.forward_with_logits(&q, &k, &v, &logits(f32::NEG_INFINITY)?, &options)?.o;
    let frozen = inducer_attention(&q, &k, &v, &VirtualTokens::default(), &options)?;
    assert_eq!(to_vec(&off), to_vec(&frozen));
    let all = module.forward_with_logits(&q, &k, &v, &logits(1e4)?, &options)?.o;
    assert!(to_vec(&all).iter().all(|&x| x.abs() < 1e-6));
    Ok(())
}
