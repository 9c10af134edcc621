//! 16-bit tensors.

use candle_core::{DType, Result, Var};
use inducer_attention_candle::{AttentionOptions, VirtualTokens, inducer_attention_outputs};

use crate::composition;
use crate::support::{Key, SMALL, Value, inducer, loss, prefix, relative_error, tensor};

/// Errors of a few roundings to the type: relative spacing 2⁻¹⁰ and 2⁻⁷.
fn tolerance(dtype: DType) -> f64 {
    if dtype == DType::F16 { 2e-3 } else { 1.6e-2 }
}

#[test]
fn sixteen_bit_tensors_and_parameters() -> Result<()> {
    for dtype in [DType::F16, DType::BF16] {
        for value in [Value::Residual, Value::Extended] {
            for save_attention in [false, true] {
                let mut variables = crate::support::Variables::default();
                let q = variables.add("q", &SMALL.q());
                let (k, v) = (variables.add("k", &SMALL.k()), variables.add("v", &SMALL.k()));
                let tokens = VirtualTokens {
                    prefix: Some(prefix(&mut variables, &SMALL, 3)),
                    inducer: Some(inducer(&mut variables, &SMALL, Key::Residual, value)),
                };
                // The same variables rounded to the type: the conversions are part of the graph.
                let (q, k, v) = (q.to_dtype(dtype)?, k.to_dtype(dtype)?, v.to_dtype(dtype)?);
                let tokens = crate::support::converted(&tokens, dtype)?;
                let options = AttentionOptions { save_attention, ..AttentionOptions::causal() };
                let got = inducer_attention_outputs(&q, &k, &v, &tokens, &options)?;
                let expected = composition::attention(&q, &k, &v, &tokens, &options)?;
                assert_eq!((got.o.dtype(), got.lse.dtype()), (dtype, DType::F32));
                assert!(relative_error(&got.o, &expected.o) < tolerance(dtype));
                let mut results = [vec![&got.o], vec![&expected.o]];
                if let (Some(got), Some(expected)) = (&got.u, &expected.u) {
                    assert_eq!(got.dtype(), dtype);
                    assert!(relative_error(got, expected) < tolerance(dtype));
                    results[0].push(got);
                    results[1].push(expected);
                }
                let (got, expected) = (loss(&results[0])?.backward()?, loss(&results[1])?.backward()?);
                for (name, variable) in &variables.0 {
                    let error = relative_error(got.get(variable).unwrap(), expected.get(variable).unwrap());
                    assert!(error < 2.0 * tolerance(dtype), "{name} {dtype:?}: {error:e}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn gradients_of_16_bit_variables_are_of_their_type() -> Result<()> {
    for dtype in [DType::F16, DType::BF16] {
        let half = |seed, shape: &[usize]| Var::from_tensor(&tensor(seed, shape).to_dtype(dtype)?);
        let (q, k, v) = (half(1, &SMALL.q())?, half(2, &SMALL.k())?, half(3, &SMALL.k())?);
        let options = AttentionOptions::causal();
        let o = inducer_attention_outputs(&q, &k, &v, &VirtualTokens::default(), &options)?.o;
        let gradients = o.sum_all()?.backward()?;
        assert!([&q, &k, &v].iter().all(|t| gradients.get(t).is_some_and(|g| g.dtype() == dtype)));
    }
    Ok(())
}
