//! What a caller makes of U: its part of the output projection.
//!
//! The virtual value of the extended form lives in the output space: with the attention's own projection `W_o`, the
//! layer computes `[attn | U]·[W_o ; B_v] + b_v`. Here is the part that belongs to U.

use super::tensor::{Tensor, add_scaled, dot};

/// The gradients of [`extended_forward`].
#[derive(Clone, Debug, PartialEq)]
pub struct ExtendedGradients {
    /// dU `[B, Hq, N, r_v]`, to be given to [`backward`](super::backward).
    pub u: Tensor,
    /// `dB_v`, in the shape of `B_v`.
    pub up_weight: Tensor,
    /// `db_v` `[D_out]`.
    pub up_bias: Tensor,
}

/// `Y[b, n] = Σ_h U[b, h, n] B_v[h] + b_v`, of shape `[B, N, D_out]`.
///
/// `up_weight` `B_v` is `[Hq, r_v, D_out]`, or `[r_v, D_out]` shared by the heads; `up_bias` `b_v` is `[D_out]`.
///
/// # Panics
///
/// If the shapes disagree.
pub fn extended_forward(u: &Tensor, up_weight: &Tensor, up_bias: &Tensor) -> Tensor {
    let [batch, queries, heads, rank, width] = sizes(u, up_weight);
    assert_eq!(up_bias.shape, [width], "b_v");
    let mut y = Tensor::zeros(&[batch, queries, width]);
    for b in 0..batch {
        for n in 0..queries {
            let y = y.row_mut([b, n]);
            add_scaled(y, 1.0, &up_bias.data);
            for h in 0..heads {
                for r in 0..rank {
                    let start = weight_row(up_weight, h, r) * width;
                    add_scaled(y, u[[b, h, n, r]], &up_weight.data[start..start + width]);
                }
            }
        }
    }
    y
}

/// The gradients of `Σ dY∘Y`, where `Y` is what [`extended_forward`] returns.
///
/// # Panics
///
/// If the shapes disagree.
pub fn extended_backward(u: &Tensor, up_weight: &Tensor, d_y: &Tensor) -> ExtendedGradients {
    let [batch, queries, heads, rank, width] = sizes(u, up_weight);
    assert_eq!(d_y.shape, [batch, queries, width], "dY");
    let mut gradients = ExtendedGradients {
        u: Tensor::zeros(&u.shape),
        up_weight: Tensor::zeros(&up_weight.shape),
        up_bias: Tensor::zeros(&[width]),
    };
    for b in 0..batch {
        for n in 0..queries {
            let d_y = d_y.row([b, n]);
            add_scaled(&mut gradients.up_bias.data, 1.0, d_y);
            for h in 0..heads {
                for r in 0..rank {
                    let start = weight_row(up_weight, h, r) * width;
                    let weight = start..start + width;
                    gradients.u[[b, h, n, r]] = dot(&up_weight.data[weight.clone()], d_y);
                    add_scaled(&mut gradients.up_weight.data[weight], u[[b, h, n, r]], d_y);
                }
            }
        }
    }
    gradients
}

/// B, N, Hq, `r_v` and `D_out`.
fn sizes(u: &Tensor, up_weight: &Tensor) -> [usize; 5] {
    let &[batch, heads, queries, rank] = &u.shape[..] else { panic!("U is [B, Hq, N, r_v]") };
    let width = *up_weight.shape.last().expect("B_v has a last dimension");
    let fits = up_weight.shape == [heads, rank, width] || up_weight.shape == [rank, width];
    assert!(fits, "B_v is [Hq, r_v, D_out] or [r_v, D_out], not {:?}", up_weight.shape);
    [batch, queries, heads, rank, width]
}

/// Which row of width `D_out` of `B_v` belongs to head `h` and hidden unit `r`.
fn weight_row(up_weight: &Tensor, h: usize, r: usize) -> usize {
    if up_weight.shape.len() == 2 { r } else { h * up_weight.shape[1] + r }
}
