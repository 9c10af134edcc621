"""Who is timed: torch's fused attention, the eager composition in torch, and this crate's engine."""

import torch
import torch.nn.functional as F

import engine
from cases import ADAPTER


def eager(q, k, v, key, value, mask):
    """Inducer attention as eager code composes it from a framework's operations.

    The virtual key of every query is materialised, its score becomes one more column before the logits Q·Kᵀ, one
    softmax runs over both, and the virtual value in its residual form, attn + Δ, is combined by the column's weight.
    `mask` is true where a query sees a key, or None. `key` and `value` are adapters, both None for plain attention.
    """
    scale = q.shape[-1] ** -0.5
    scores = torch.matmul(q, k.transpose(-1, -2)) * scale
    if mask is not None:
        scores = torch.where(mask, scores, torch.finfo(scores.dtype).min)
    if key is None:
        return torch.matmul(torch.softmax(scores, dim=-1), v)
    virtual_key = q + adapter(q, key)
    virtual_score = (q * virtual_key).sum(dim=-1, keepdim=True) * scale
    weights = torch.softmax(torch.cat([virtual_score, scores], dim=-1), dim=-1)
    weight, weights = weights[..., :1], weights[..., 1:]
    context = torch.matmul(weights, v)
    virtual_value = context / (1 - weight) + adapter(q, value)
    return context + weight * virtual_value


def adapter(x, parameters):
    """tanh(x A + a) B + b, per head."""
    down_weight, down_bias, up_weight, up_bias = parameters
    hidden = torch.tanh(torch.matmul(x, down_weight) + down_bias[:, None])
    return torch.matmul(hidden, up_weight) + up_bias[:, None]


def causal_mask(rows):
    return torch.ones(rows, rows, dtype=torch.bool).tril()


def naive(q, k, v, key, value, mask):
    """The same values from stable pieces, each rounded to the tensors' dtype: what 16-bit errors are judged by."""
    scale = q.shape[-1] ** -0.5
    scores = torch.matmul(q, k.transpose(-1, -2)) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    attention = torch.matmul(torch.softmax(scores, dim=-1), v)
    if key is None:
        return attention
    virtual_score = (q * (q + adapter(q, key))).sum(dim=-1) * scale
    weight = torch.sigmoid(virtual_score - torch.logsumexp(scores, dim=-1))
    return attention + weight[..., None] * adapter(q, value)


ADAPTER_GRADIENTS = tuple(f"d_{side}.{part}" for side in ("key", "value") for part in ADAPTER)


def naive_results(inputs, inducer):
    """Forward and backward of `naive`, head by head: it holds several N×N matrices."""
    mask = causal_mask(inputs.case.rows) if inputs.case.causal else None
    parts = []
    for h in range(inputs.case.heads):
        one = slice(h, h + 1)
        tensors = [t[:, one] for t in (inputs.q, inputs.k, inputs.v)]
        tensors += [t[one] for t in (*inputs.key, *inputs.value)] if inducer else []
        tensors = [t.detach().clone().requires_grad_() for t in tensors]
        q, k, v, *rest = tensors
        o = naive(q, k, v, rest[:4] or None, rest[4:] or None, mask)
        parts.append((o.detach(), *torch.autograd.grad(o, tensors, inputs.d_o[:, one])))
    names = ("o", "d_q", "d_k", "d_v") + (ADAPTER_GRADIENTS if inducer else ())
    return {n: torch.cat([p[i] for p in parts], dim=1 if i < 4 else 0) for i, n in enumerate(names)}


class TorchContestant:
    """Runs forward and autograd's backward, and says when each was done."""

    def __init__(self, inputs, with_adapters):
        tensors = [inputs.q, inputs.k, inputs.v]
        if with_adapters:
            tensors += [*inputs.key, *inputs.value]
        self.tensors = [t.detach().clone().requires_grad_() for t in tensors]
        self.names = ("o", "d_q", "d_k", "d_v") + (ADAPTER_GRADIENTS if with_adapters else ())
        self.d_o = inputs.d_o
        self.causal = inputs.case.causal

    def forward(self):
        raise NotImplementedError

    def step(self, stamp):
        """One forward and backward; returns `stamp()` before, between and after, and the results."""
        begin = stamp()
        o = self.forward()
        middle = stamp()
        gradients = torch.autograd.grad(o, self.tensors, self.d_o)
        end = stamp()
        return (begin, middle, end), dict(zip(self.names, (o.detach(), *gradients)))


class Sdpa(TorchContestant):
    """torch's fused CPU attention, without an inducer."""

    name = "sdpa"

    def __init__(self, inputs):
        super().__init__(inputs, with_adapters=False)

    def forward(self):
        return F.scaled_dot_product_attention(*self.tensors, is_causal=self.causal)


class Eager(TorchContestant):
    """The eager composition, with an inducer."""

    name = "eager"

    def __init__(self, inputs):
        super().__init__(inputs, with_adapters=True)
        # A model keeps the mask as a buffer, so making it is not timed.
        self.mask = causal_mask(inputs.case.rows) if self.causal else None

    def forward(self):
        q, k, v, *rest = self.tensors
        return eager(q, k, v, rest[:4], rest[4:], self.mask)


class Ours:
    """This crate's engine, with or without an inducer.

    Results are allocated inside the timed part, from torch's allocator, as torch's own are.
    """

    def __init__(self, library, inputs, inducer):
        self.name = "inducer" if inducer else "plain"
        self.library, self.inputs, self.inducer = library, inputs, inducer

    def step(self, stamp):
        case, x = self.inputs.case, self.inputs
        adapters = (x.key, x.value) if self.inducer else ()
        call = engine.Call(case.dtype, case.causal, x.q, x.k, x.v, *adapters)
        begin = stamp()
        o, lse = torch.empty_like(x.q), torch.empty(x.q.shape[:3])
        self.library.forward(call, call.outputs(o=o, lse=lse))
        middle = stamp()
        d_qkv = {"d_q": torch.empty_like(x.q), "d_k": torch.empty_like(x.k), "d_v": torch.empty_like(x.v)}
        d_adapters = [torch.empty(t.shape) for tensors in adapters for t in tensors]
        to_adapters = {"d_key_adapter": d_adapters[:4], "d_value_adapter": d_adapters[4:]} if self.inducer else {}
        self.library.backward(call, call.gradients(o=o, lse=lse, d_o=x.d_o, **d_qkv, **to_adapters))
        end = stamp()
        return (begin, middle, end), {"o": o, "lse": lse, **d_qkv, **dict(zip(ADAPTER_GRADIENTS, d_adapters))}
