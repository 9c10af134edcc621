//! Problems that must have the same answer.

use crate::{adapter, down, inducer, random, tensor};
use inducer_attention::dropout::KeepMask;
use inducer_attention::reference::{
    CuSeqlens, Inducer, OutputGradients, Prefix, Tensor, VirtualKey, VirtualValue, backward,
    extended_backward, extended_forward, forward,
};

fn assert_same(a: &Tensor, b: &Tensor, name: &str) {
    let error = a.relative_error(b);
    assert!(error <= 1e-13, "{name}: relative error {error:e}");
}

/// A prefix is what the same tokens before K and V are, where no mask makes a difference.
#[test]
fn a_prefix_is_a_concatenation() {
    let (k, v) = (tensor(9, &[2, 2, 3]), tensor(10, &[2, 2, 3]));
    let mut problem = random(2, 4, 2, 3, 4, 3);
    problem.softcap = Some(1.0);
    problem.inducer = Some(inducer(VirtualKey::Query, VirtualValue::Direct(adapter(30, 4, 3, 2))));
    let concatenated = |prefix: &Tensor, keys: &Tensor| {
        let mut all = Tensor::zeros(&[2, 2, 6, 3]);
        for (b, h) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            for j in 0..6 {
                let row = if j < 2 { prefix.row([h, j]) } else { keys.row([b, h, j - 2]) };
                all.row_mut([b, h, j]).copy_from_slice(row);
            }
        }
        all
    };
    let mut reference = problem.clone();
    (reference.k, reference.v) = (concatenated(&k, &problem.k), concatenated(&v, &problem.v));
    problem.prefix = Some(Prefix { k, v });
    assert_eq!(forward(&problem), forward(&reference));

    // Every query sees the prefix, whatever the masks hide.
    problem.causal = true;
    problem.window_left = Some(0);
    problem.key_lengths = Some(vec![0, 0]);
    let output = forward(&problem);
    assert!(output.lse.data.iter().all(|lse| lse.is_finite()));
}

/// Query head h uses key head h / (Hq / Hkv).
#[test]
fn grouped_heads_are_repeated_heads() {
    let mut grouped = random(2, 4, 2, 3, 5, 3);
    grouped.dropout = Some(KeepMask::new(0.3, 4));
    let mut repeated = grouped.clone();
    for (repeated, grouped) in [(&mut repeated.k, &grouped.k), (&mut repeated.v, &grouped.v)] {
        *repeated = Tensor::zeros(&[2, 4, 5, 3]);
        for (b, h) in (0..2).flat_map(|b| (0..4).map(move |h| (b, h))) {
            for j in 0..5 {
                repeated.row_mut([b, h, j]).copy_from_slice(grouped.row([b, h / 2, j]));
            }
        }
    }
    assert_eq!(forward(&grouped), forward(&repeated));
}

/// A packed batch is the padded batch of the same sequences, dropout, slopes and gradients included.
#[test]
fn packed_is_padded() {
    let (lengths_q, lengths_k) = ([3, 0, 2], [4, 2, 3]);
    let mut padded = random(3, 2, 1, 3, 4, 3);
    padded.causal = true;
    padded.query_lengths = Some(lengths_q.to_vec());
    padded.key_lengths = Some(lengths_k.to_vec());
    padded.alibi_slopes = Some(tensor(11, &[3, 2]));
    padded.dropout = Some(KeepMask::new(0.3, 12));
    let positions = Tensor::from_fn(&[3, 3], |i| (i + 1) as f64);
    padded.inducer = Some(Inducer {
        adaptive_length: true,
        positions: Some(positions),
        ..inducer(VirtualKey::Residual(adapter(20, 2, 3, 2)), VirtualValue::Extended(down(30, 2, 3, 2)))
    });
    let mut packed = padded.clone();
    (packed.query_lengths, packed.key_lengths) = (None, None);
    packed.cu_seqlens = Some(CuSeqlens { q: vec![0, 3, 3, 5], k: vec![0, 4, 6, 9] });
    // (packed row, sequence, local row)
    let rows_q = [(0, 0, 0), (1, 0, 1), (2, 0, 2), (3, 2, 0), (4, 2, 1)];
    let rows_k =
        [(0, 0, 0), (1, 0, 1), (2, 0, 2), (3, 0, 3), (4, 1, 0), (5, 1, 1), (6, 2, 0), (7, 2, 1), (8, 2, 2)];
    let pack = |padded: &Tensor, rows: &[(usize, usize, usize)], heads: usize| {
        let mut packed = Tensor::full(&[1, heads, rows.len() + 1, 3], f64::NAN);
        for &(row, b, i) in rows {
            for h in 0..heads {
                packed.row_mut([0, h, row]).copy_from_slice(padded.row([b, h, i]));
            }
        }
        packed
    };
    // The last row belongs to no sequence.
    packed.q = pack(&padded.q, &rows_q, 2);
    packed.k = pack(&padded.k, &rows_k, 1);
    packed.v = pack(&padded.v, &rows_k, 1);
    let inducer = packed.inducer.as_mut().expect("inducer");
    inducer.positions = Some(Tensor::new(&[1, 6], vec![1.0, 2.0, 3.0, 7.0, 8.0, f64::NAN]));

    let (a, e) = (forward(&packed), forward(&padded));
    for (row, b, i) in rows_q {
        for h in 0..2 {
            assert_eq!(a.o.row([0, h, row]), e.o.row([b, h, i]));
            assert_eq!(a.lse[[0, h, row]], e.lse[[b, h, i]]);
            let (a, e) = (a.u.as_ref().expect("U"), e.u.as_ref().expect("U"));
            assert_eq!(a.row([0, h, row]), e.row([b, h, i]));
        }
    }
    assert_eq!(a.o.row([0, 1, 5]), [0.0; 3]);
    assert_eq!(a.lse[[0, 1, 5]], f64::NEG_INFINITY);

    let d_padded = OutputGradients {
        o: tensor(50, &[3, 2, 3, 3]),
        lse: Some(tensor(51, &[3, 2, 3])),
        u: Some(tensor(52, &[3, 2, 3, 2])),
    };
    let mut d_packed = OutputGradients {
        o: pack(&d_padded.o, &rows_q, 2),
        lse: Some(Tensor::zeros(&[1, 2, 6])),
        u: Some(Tensor::zeros(&[1, 2, 6, 2])),
    };
    for (row, b, i) in rows_q {
        for h in 0..2 {
            let (lse, u) = (d_padded.lse.as_ref().expect("dLSE"), d_padded.u.as_ref().expect("dU"));
            d_packed.lse.as_mut().expect("dLSE")[[0, h, row]] = lse[[b, h, i]];
            d_packed.u.as_mut().expect("dU").row_mut([0, h, row]).copy_from_slice(u.row([b, h, i]));
        }
    }
    let (a, e) = (backward(&packed, &d_packed), backward(&padded, &d_padded));
    for (row, b, i) in rows_q {
        assert_eq!(a.q.row([0, 1, row]), e.q.row([b, 1, i]));
    }
    for (row, b, j) in rows_k {
        assert_eq!(a.k.row([0, 0, row]), e.k.row([b, 0, j]));
        assert_eq!(a.v.row([0, 0, row]), e.v.row([b, 0, j]));
    }
    assert_eq!(a.q.row([0, 0, 5]), [0.0; 3]);
    assert_eq!(a.k.row([0, 0, 9]), [0.0; 3]);
    for ((name, a), (_, e)) in a.named().into_iter().zip(e.named()).skip(3) {
        assert_same(a, e, name);
    }
}

/// An up projection shared by the heads is the same one for each head.
#[test]
fn a_shared_up_projection_is_repeated() {
    let u = tensor(1, &[2, 3, 4, 2]);
    let (shared, bias) = (tensor(2, &[2, 5]), tensor(3, &[5]));
    let repeated = Tensor::new(&[3, 2, 5], shared.data.repeat(3));
    assert_eq!(extended_forward(&u, &shared, &bias), extended_forward(&u, &repeated, &bias));
    let d_y = tensor(4, &[2, 4, 5]);
    let (a, e) = (extended_backward(&u, &shared, &d_y), extended_backward(&u, &repeated, &d_y));
    assert_eq!(a.u, e.u);
    let sum = Tensor::from_fn(&[2, 5], |i| (0..3).map(|h| e.up_weight.data[h * 10 + i]).sum());
    assert_same(&a.up_weight, &sum, "up_weight");
}
