//! What must not spread: padding, NaN, overflow, empty dimensions.

use crate::{adapter, down, inducer, random, tensor};
use inducer_attention::reference::{
    OutputGradients, Prefix, Tensor, VirtualKey, VirtualValue, backward, forward,
};

/// Rows that are padding give zeros, not λ = 1, and no gradients.
#[test]
fn padding_rows_give_nothing() {
    let mut problem = random(1, 1, 1, 3, 4, 2);
    problem.inducer = Some(inducer(VirtualKey::Query, VirtualValue::Extended(down(5, 1, 2, 3))));
    problem.query_lengths = Some(vec![2]);
    let output = forward(&problem);
    let u = output.u.as_ref().expect("U");
    assert_eq!(output.o.row([0, 0, 2]), [0.0; 2]);
    assert_eq!(output.lse[[0, 0, 2]], f64::NEG_INFINITY);
    assert_eq!(output.lambda[[0, 0, 2]], 0.0);
    assert_eq!(u.row([0, 0, 2]), [0.0; 3]);
    assert_ne!(u.row([0, 0, 1]), [0.0; 3]);

    let ones = |tensor: &Tensor| Tensor::full(&tensor.shape, 1.0);
    let mut upstream = OutputGradients { o: ones(&output.o), lse: Some(ones(&output.lse)), u: Some(ones(u)) };
    let gradients = backward(&problem, &upstream);
    assert_eq!(gradients.q.row([0, 0, 2]), [0.0; 2]);
    upstream.o.row_mut([0, 0, 2]).fill(f64::NAN);
    upstream.lse.as_mut().expect("dLSE")[[0, 0, 2]] = f64::NAN;
    upstream.u.as_mut().expect("dU").row_mut([0, 0, 2]).fill(f64::NAN);
    problem.q.row_mut([0, 0, 2]).fill(f64::NAN);
    assert_eq!(gradients, backward(&problem, &upstream));
}

/// What a mask hides may be anything, and a bad query spoils its own row only.
#[test]
fn nan_reaches_no_other_row() {
    let mut problem = random(2, 1, 1, 3, 5, 2);
    problem.causal = true;
    problem.key_starts = Some(vec![1, 0]);
    problem.key_lengths = Some(vec![5, 3]);
    problem.inducer = Some(inducer(VirtualKey::Query, VirtualValue::Residual(adapter(30, 1, 2, 2))));
    let upstream = OutputGradients { o: tensor(40, &problem.q.shape), lse: None, u: None };
    let (clean, clean_gradients) = (forward(&problem), backward(&problem, &upstream));
    for (b, j) in [(0, 0), (1, 3), (1, 4)] {
        problem.k.row_mut([b, 0, j]).fill(f64::NAN);
        problem.v.row_mut([b, 0, j]).fill(f64::INFINITY);
    }
    assert_eq!(forward(&problem), clean);
    assert_eq!(backward(&problem, &upstream), clean_gradients);

    problem.q.row_mut([0, 0, 1]).fill(f64::NAN);
    let output = forward(&problem);
    for (b, i) in [(0, 0), (0, 2), (1, 0), (1, 1), (1, 2)] {
        assert_eq!(output.o.row([b, 0, i]), clean.o.row([b, 0, i]));
        assert_eq!(output.lse[[b, 0, i]], clean.lse[[b, 0, i]]);
    }
    assert!(output.o.row([0, 0, 1]).iter().all(|x| x.is_nan()));
    assert!(output.lse[[0, 0, 1]].is_nan());
}

#[test]
fn huge_logits_do_not_overflow() {
    let mut problem = random(1, 1, 1, 3, 4, 2);
    problem.softmax_scale = 1e5;
    problem.inducer = Some(inducer(VirtualKey::Query, VirtualValue::Direct(adapter(30, 1, 2, 2))));
    let output = forward(&problem);
    assert!(output.o.data.iter().chain(&output.lse.data).all(|x| x.is_finite()));
    let upstream = OutputGradients { o: tensor(40, &problem.q.shape), lse: None, u: None };
    let gradients = backward(&problem, &upstream);
    assert!(gradients.named().iter().all(|(_, gradient)| gradient.data.iter().all(|x| x.is_finite())));
}

#[test]
fn dimensions_of_zero_are_valid() {
    for (batch, queries, keys) in [(0, 2, 3), (2, 0, 3), (2, 3, 0), (0, 0, 0)] {
        let mut problem = random(batch, 2, 1, queries, keys, 2);
        problem.causal = true;
        problem.prefix = Some(Prefix { k: Tensor::zeros(&[1, 0, 2]), v: Tensor::zeros(&[1, 0, 2]) });
        problem.inducer = Some(inducer(VirtualKey::Query, VirtualValue::Residual(adapter(30, 2, 2, 2))));
        let output = forward(&problem);
        assert_eq!(output.o.shape, [batch, 2, queries, 2]);
        assert!(output.lambda.data.iter().all(|&lambda| lambda == 1.0 || keys > 0));
        let upstream = OutputGradients { o: output.o, lse: None, u: None };
        assert_eq!(backward(&problem, &upstream).k.shape, [batch, 1, keys, 2]);
    }
}
