//! From rows to outputs.

use super::problem::{Problem, VirtualValue};
use super::row::{Sequence, evaluate};
use super::tensor::{Tensor, add_scaled};

/// What the forward pass returns. Rows that are padding hold O, attn, U, λ = 0 and lse = −∞.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// O `[B, Hq, N, d]`.
    pub o: Tensor,
    /// `lse [B, Hq, N]`: natural logarithm, over real keys and prefix, undropped, without the virtual token.
    pub lse: Tensor,
    /// U `[B, Hq, N, r_v]`, where the value is extended.
    pub u: Option<Tensor>,
    /// attn `[B, Hq, N, d]`: the part of O that comes from real keys and prefix, before any weight 1 − λ.
    pub attn: Tensor,
    /// λ `[B, Hq, N]`, undropped; 0 without an inducer.
    pub lambda: Tensor,
}

/// The forward pass.
///
/// # Panics
///
/// If the problem's shapes or lengths disagree.
pub fn forward(problem: &Problem) -> Output {
    problem.assert_consistent();
    let &[batch, heads, queries, d] = &problem.q.shape[..] else { unreachable!("Q has four dimensions") };
    let mut output = Output {
        o: Tensor::zeros(&[batch, heads, queries, d]),
        lse: Tensor::full(&[batch, heads, queries], f64::NEG_INFINITY),
        u: problem.extended_rank().map(|rank| Tensor::zeros(&[batch, heads, queries, rank])),
        attn: Tensor::zeros(&[batch, heads, queries, d]),
        lambda: Tensor::zeros(&[batch, heads, queries]),
    };
    for sequence in Sequence::all(problem) {
        for head in 0..heads {
            for i in 0..sequence.queries {
                let row = evaluate(problem, &sequence, head, i);
                let (b, n) = (sequence.batch, sequence.first_query + i);
                output.lse[[b, head, n]] = row.lse;
                output.attn.row_mut([b, head, n]).copy_from_slice(&row.attn);

                let o = output.o.row_mut([b, head, n]);
                let (Some(token), Some(inducer)) = (&row.token, &problem.inducer) else {
                    o.copy_from_slice(&row.attn);
                    continue;
                };
                output.lambda[[b, head, n]] = token.lambda;
                let dropped_lambda = token.keep * token.lambda;
                match inducer.value {
                    VirtualValue::Zero => add_scaled(o, token.rest, &row.attn),
                    VirtualValue::Residual(_) => {
                        add_scaled(o, 1.0, &row.attn);
                        add_scaled(o, dropped_lambda, &token.delta);
                    }
                    VirtualValue::Direct(_) => {
                        add_scaled(o, token.rest, &row.attn);
                        add_scaled(o, dropped_lambda, &token.delta);
                    }
                    VirtualValue::Extended(_) => {
                        add_scaled(o, 1.0, &row.attn);
                        let u = output.u.as_mut().expect("U is there where the value is extended");
                        add_scaled(u.row_mut([b, head, n]), dropped_lambda, &token.value_hidden);
                    }
                }
            }
        }
    }
    output
}
