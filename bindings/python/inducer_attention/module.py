"""The trained part: adapters for the virtual key and the virtual value."""

import torch
from torch import nn

from .functional import Adapter, inducer_attention

# The published initialisation: a normal distribution cut at two deviations.
DEVIATION = 0.01


class AdapterModule(nn.Module):
    """`x -> tanh(x A + a) B + b` for every head."""

    def __init__(self, heads, head_dim, rank, device=None):
        super().__init__()
        self.down_weight = nn.Parameter(torch.empty(heads, head_dim, rank, device=device))
        self.down_bias = nn.Parameter(torch.empty(heads, rank, device=device))
        self.up_weight = nn.Parameter(torch.empty(heads, rank, head_dim, device=device))
        self.up_bias = nn.Parameter(torch.empty(heads, head_dim, device=device))
        self.reset_parameters()

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
    """Inducer-tuning of one attention layer: a residual virtual key and a residual virtual value, in f32.

    Its parameters are named as the candle module's: `key.down_weight`, ..., `value.up_bias`.
    """

    def __init__(self, heads, head_dim, rank=8, *, key_rank=None, value_rank=None, adaptive_length=False, device=None):
        super().__init__()
        self.key = AdapterModule(heads, head_dim, key_rank or rank, device)
        self.value = AdapterModule(heads, head_dim, value_rank or rank, device)
        self.adaptive_length = adaptive_length

    def forward(self, q, k, v, **settings):
        """`inducer_attention` with these adapters; Q is `[B, H, N, d]`."""
        return inducer_attention(
            q, k, v, key="residual", value="residual", key_adapter=self.key.tensors(),
            value_adapter=self.value.tensors(), adaptive_length=self.adaptive_length, **settings,
        )
