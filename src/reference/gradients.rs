//! What goes into the backward pass and what comes out of it.

use super::Tensor;
use super::problem::{Problem, VirtualKey, VirtualValue};

/// The gradients of a loss with respect to the outputs.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputGradients {
    /// dO `[B, Hq, N, d]`.
    pub o: Tensor,
    /// dLSE `[B, Hq, N]`; ignored in rows that see nothing; 0 if none.
    pub lse: Option<Tensor>,
    /// dU `[B, Hq, N, r_v]`, for the extended value; 0 if none.
    pub u: Option<Tensor>,
}

/// The gradients of a loss with respect to every tensor of a [`Problem`], each in its tensor's shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// dQ `[B, Hq, N, d]`.
    pub q: Tensor,
    /// dK `[B, Hkv, M, d]`.
    pub k: Tensor,
    /// dV `[B, Hkv, M, d]`.
    pub v: Tensor,
    /// Of the shared prefix's keys `[Hkv, L, d]`.
    pub prefix_k: Option<Tensor>,
    /// Of the shared prefix's values `[Hkv, L, d]`.
    pub prefix_v: Option<Tensor>,
    /// `dA_k` `[Hq, d, r_k]`.
    pub key_down_weight: Option<Tensor>,
    /// `da_k` `[Hq, r_k]`.
    pub key_down_bias: Option<Tensor>,
    /// `dB_k` `[Hq, r_k, d]`.
    pub key_up_weight: Option<Tensor>,
    /// `db_k` `[Hq, d]`.
    pub key_up_bias: Option<Tensor>,
    /// Of the given logit, `[Hq]` or `[B, Hq, N]`.
    pub logit: Option<Tensor>,
    /// `dA_v` `[Hq, d, r_v]`.
    pub value_down_weight: Option<Tensor>,
    /// `da_v` `[Hq, r_v]`.
    pub value_down_bias: Option<Tensor>,
    /// `dB_v` `[Hq, r_v, d]`.
    pub value_up_weight: Option<Tensor>,
    /// `db_v` `[Hq, d]`.
    pub value_up_bias: Option<Tensor>,
}

impl Gradients {
    /// Every gradient that exists, by name, in the order of [`Problem::parameters_mut`].
    pub fn named(&self) -> Vec<(&'static str, &Tensor)> {
        let all = [
            ("q", Some(&self.q)),
            ("k", Some(&self.k)),
            ("v", Some(&self.v)),
            ("prefix.k", self.prefix_k.as_ref()),
            ("prefix.v", self.prefix_v.as_ref()),
            ("key.down_weight", self.key_down_weight.as_ref()),
            ("key.down_bias", self.key_down_bias.as_ref()),
            ("key.up_weight", self.key_up_weight.as_ref()),
            ("key.up_bias", self.key_up_bias.as_ref()),
            ("logit", self.logit.as_ref()),
            ("value.down_weight", self.value_down_weight.as_ref()),
            ("value.down_bias", self.value_down_bias.as_ref()),
            ("value.up_weight", self.value_up_weight.as_ref()),
            ("value.up_bias", self.value_up_bias.as_ref()),
        ];
        all.into_iter().filter_map(|(name, tensor)| Some((name, tensor?))).collect()
    }

    /// Zero gradients in the shapes of the problem's tensors.
    pub(super) fn zeros(problem: &Problem) -> Self {
        let zeros = |tensor: &Tensor| Tensor::zeros(&tensor.shape);
        let inducer = problem.inducer.as_ref();
        let (key_adapter, logit) = match inducer.map(|inducer| &inducer.key) {
            Some(VirtualKey::Residual(adapter)) => (Some(adapter), None),
            Some(VirtualKey::LogitPerHead(logit) | VirtualKey::LogitPerToken(logit)) => (None, Some(logit)),
            Some(VirtualKey::Query) | None => (None, None),
        };
        let (value_down, value_up) = match inducer.map(|inducer| &inducer.value) {
            Some(VirtualValue::Residual(adapter) | VirtualValue::Direct(adapter)) => {
                (Some(&adapter.down), Some(&adapter.up))
            }
            Some(VirtualValue::Extended(down)) => (Some(down), None),
            Some(VirtualValue::Zero) | None => (None, None),
        };
        Self {
            q: zeros(&problem.q),
            k: zeros(&problem.k),
            v: zeros(&problem.v),
            prefix_k: problem.prefix.as_ref().map(|prefix| zeros(&prefix.k)),
            prefix_v: problem.prefix.as_ref().map(|prefix| zeros(&prefix.v)),
            key_down_weight: key_adapter.map(|adapter| zeros(&adapter.down.weight)),
            key_down_bias: key_adapter.map(|adapter| zeros(&adapter.down.bias)),
            key_up_weight: key_adapter.map(|adapter| zeros(&adapter.up.weight)),
            key_up_bias: key_adapter.map(|adapter| zeros(&adapter.up.bias)),
            logit: logit.map(zeros),
            value_down_weight: value_down.map(|down| zeros(&down.weight)),
            value_down_bias: value_down.map(|down| zeros(&down.bias)),
            value_up_weight: value_up.map(|up| zeros(&up.weight)),
            value_up_bias: value_up.map(|up| zeros(&up.bias)),
        }
    }
}
