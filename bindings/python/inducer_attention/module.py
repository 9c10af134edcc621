"""The trained part: adapters for the virtual key and the virtual value."""

import torch
from torch import nn

from .functional import Adapter, inducer_attention
from .library import Error

# The published initialisation: a normal distribution cut at two deviations.
DEVIATION = 0.01
MAX_RANK = 64


def checked_rank(name, rank):
    """The rank, if it is one that the library takes."""
    if not isinstance(rank, int) or not 1 <= rank <= MAX_RANK:
        raise Error(f"{name}: {rank!r}, expected 1 to {MAX_RANK}")
    return rank


class AdapterModule(nn.Module):
    """`x -> tanh(x A + a) B + b` for every head."""

    def __init__(self, heads, head_dim, rank, device=None):
        super().__init__()
        def parameter(*shape):
            return nn.Parameter(torch.empty(shape, dtype=torch.float32, device=device))

        self.down_weight, self.down_bias = parameter(heads, head_dim, rank), parameter(heads, rank)
        self.up_weight, self.up_bias = parameter(heads, rank, head_dim), parameter(heads, head_dim)
        self.reset_parameters()

    def extra_repr(self):
        return "heads={}, head_dim={}, rank={}".format(*self.down_weight.shape)

    def reset_parameters(self):
        """The published initialisation: weights from a cut normal distribution, biases 0."""
        for weight in (self.down_weight, self.up_weight):
            nn.init.trunc_normal_(weight, std=DEVIATION, a=-2 * DEVIATION, b=2 * DEVIATION)
        for bias in (self.down_bias, self.up_bias):
            nn.init.zeros_(bias)

    def tensors(self):
        """What the function takes."""
        return Adapter(self.down_weight, self.down_bias, self.up_weight, self.up_bias)


class Inducer(nn.Module):
    """Inducer-tuning of one attention layer: a residual virtual key and a residual virtual value, in f32. Ranks are 1 to 64.

    Its parameters are named as the candle module's: `key.down_weight`, ..., `value.up_bias`.
    """

    def __init__(self, heads, head_dim, rank=8, *, key_rank=None, value_rank=None, adaptive_length=False, device=None):
        super().__init__()
        key_rank = checked_rank("key_rank", rank if key_rank is None else key_rank)
        value_rank = checked_rank("value_rank", rank if value_rank is None else value_rank)
        self.key = AdapterModule(heads, head_dim, key_rank, device)
        self.value = AdapterModule(heads, head_dim, value_rank, device)
        self.adaptive_length = adaptive_length

    def forward(self, q, k, v, **settings):
        """`inducer_attention` with these adapters; Q is `[B, H, N, d]`."""
        return inducer_attention(
            q, k, v, key="residual", value="residual", key_adapter=self.key.tensors(),
            value_adapter=self.value.tensors(), adaptive_length=self.adaptive_length, **settings,
        )
