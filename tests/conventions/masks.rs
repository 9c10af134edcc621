//! Which keys a row sees, and what its scores are.

use crate::{close, probabilities, tensor};
use inducer_attention::reference::{CuSeqlens, Prefix, Problem, Tensor, forward};

/// Which keys the rows of batch entry `b` see, one string per row.
fn visible(problem: &Problem, b: usize) -> Vec<String> {
    let output = forward(problem);
    let queries = problem.q.shape[2];
    (0..queries)
        .map(|i| {
            let row = output.attn.row([b, 0, i]);
            let seen: String = row.iter().map(|&p| if p > 0.0 { 'x' } else { '.' }).collect();
            assert_eq!(
                seen.contains('x'),
                output.lse[[b, 0, i]] > f64::NEG_INFINITY,
                "lse and probabilities"
            );
            seen
        })
        .collect()
}

#[test]
fn causal_is_bottom_right_aligned() {
    let mut problem = probabilities(1, 1, 3, 5);
    problem.causal = true;
    assert_eq!(visible(&problem, 0), ["xxx..", "xxxx.", "xxxxx"]);
    let mut problem = probabilities(1, 1, 5, 3);
    problem.causal = true;
    assert_eq!(visible(&problem, 0), ["...", "...", "x..", "xx.", "xxx"]);
}

#[test]
fn windows_are_inclusive_around_the_offset() {
    let window = |queries, keys, left, right, causal| {
        let mut problem = probabilities(1, 1, queries, keys);
        (problem.window_left, problem.window_right, problem.causal) = (left, right, causal);
        visible(&problem, 0)
    };
    assert_eq!(window(4, 4, Some(1), Some(0), false), ["x...", "xx..", ".xx.", "..xx"]);
    assert_eq!(window(2, 4, Some(1), Some(1), false), [".xxx", "..xx"]);
    assert_eq!(window(4, 2, Some(0), Some(0), false), ["..", "..", "x.", ".x"]);
    assert_eq!(window(3, 3, Some(1), None, false), ["xxx", "xxx", ".xx"]);
    assert_eq!(window(3, 3, None, Some(1), false), ["xx.", "xxx", "xxx"]);
    assert_eq!(window(3, 3, Some(1), Some(2), true), ["x..", "xx.", ".xx"]);
}

#[test]
fn key_lengths_and_starts_mask_without_moving_the_offset() {
    let mut problem = probabilities(2, 1, 2, 4);
    problem.causal = true;
    problem.key_lengths = Some(vec![3, 4]);
    problem.key_starts = Some(vec![0, 3]);
    assert_eq!(visible(&problem, 0), ["xxx.", "xxx."]);
    assert_eq!(visible(&problem, 1), ["....", "...x"]);
}

#[test]
fn query_lengths_move_the_offset_and_leave_padding() {
    let mut problem = probabilities(2, 1, 3, 5);
    problem.causal = true;
    problem.query_lengths = Some(vec![2, 3]);
    assert_eq!(visible(&problem, 0), ["xxxx.", "xxxxx", "....."]);
    assert_eq!(visible(&problem, 1), ["xxx..", "xxxx.", "xxxxx"]);
    problem.key_lengths = Some(vec![4, 2]);
    assert_eq!(visible(&problem, 0), ["xxx..", "xxxx.", "....."]);
    assert_eq!(visible(&problem, 1), [".....", "x....", "xx..."]);
}

#[test]
fn packed_sequences_are_local() {
    let mut problem = probabilities(1, 1, 7, 7);
    problem.causal = true;
    problem.cu_seqlens = Some(CuSeqlens { q: vec![0, 2, 2, 5], k: vec![0, 3, 4, 6] });
    let expected = ["xx.....", "xxx....", ".......", "....x..", "....xx.", ".......", "......."];
    assert_eq!(visible(&problem, 0), expected);
}

/// Softcap, then `ALiBi` by the absolute distance from the offset; the prefix has the former only.
#[test]
fn scores_are_scaled_capped_then_biased() {
    let mut problem = probabilities(2, 2, 2, 3);
    problem.softmax_scale = 1.5;
    problem.softcap = Some(0.8);
    problem.alibi_slopes = Some(Tensor::new(&[2, 2], vec![0.1, 0.2, 0.3, 0.4]));
    problem.prefix = Some(Prefix { k: tensor(9, &[2, 1, 3]), v: Tensor::zeros(&[2, 1, 3]) });
    let output = forward(&problem);
    for (b, h, i) in [(0, 0, 0), (0, 1, 1), (1, 0, 0), (1, 1, 1)] {
        let q = problem.q.row([b, h, i]);
        let capped = |key: &[f64]| 0.8 * (1.5 * (q[0] * key[0] + q[1] * key[1] + q[2] * key[2]) / 0.8).tanh();
        let slope = [[0.1, 0.2], [0.3, 0.4]][b][h];
        let distances = [[1.0, 0.0, 1.0], [2.0, 1.0, 0.0]][i];
        let scores: Vec<f64> =
            (0..3).map(|j| capped(problem.k.row([b, h, j])) - slope * distances[j]).collect();
        let prefix = capped(problem.prefix.as_ref().expect("prefix").k.row([h, 0]));
        let sum = scores.iter().map(|s| s.exp()).sum::<f64>() + prefix.exp();
        assert!(close(output.lse[[b, h, i]], sum.ln()));
        for j in 0..3 {
            assert!(close(output.attn[[b, h, i, j]], scores[j].exp() / sum));
        }
    }
    problem.alibi_slopes = Some(Tensor::new(&[2], vec![0.1, 0.2]));
    let per_head = forward(&problem);
    assert_eq!(per_head.o.row([0, 1, 0]), output.o.row([0, 1, 0]));
    problem.alibi_slopes = Some(Tensor::new(&[2, 2], vec![0.1, 0.2, 0.1, 0.2]));
    assert_eq!(per_head, forward(&problem));
}
