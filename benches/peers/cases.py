"""What is timed: the cases, and their inputs."""

import dataclasses
import math

import torch

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
RANK = 8
# The order in which both sides pass an adapter's tensors.
ADAPTER = ("down_weight", "down_bias", "up_weight", "up_bias")


@dataclasses.dataclass(frozen=True)
class Case:
    """Self-attention of `heads` heads, N queries and N keys, batch of one. In memory tensors are `[H, N, d]`, or
    `[N, H, d]`, as a projection writes them, where that is `token_major`."""

    dtype: str
    head_dim: int
    rows: int
    causal: bool
    heads: int
    token_major: bool = False

    @property
    def name(self):
        layout = " bnhd" if self.token_major else ""
        return f"{self.dtype} d{self.head_dim} N{self.rows} H{self.heads} {'causal' if self.causal else 'full'}{layout}"

    @property
    def forward_flops(self):
        """Of the two attention products alone: 4·N·M·d·H, half when causal. The backward counts 2.5 times that."""
        return 4 * self.rows**2 * self.head_dim * self.heads // (2 if self.causal else 1)

    @property
    def inducer_flops(self):
        """What the inducer adds to the forward: 8·d·r per query and head (two adapters of rank r)."""
        return 8 * self.head_dim * RANK * self.rows * self.heads


def heads_for(rows):
    """Eight heads, fewer for long sequences: a case stays within seconds, and two threads always have work."""
    return max(2, min(8, 16384 // rows))


def all_cases(quick):
    rows = (512, 1024, 2048) if quick else (512, 1024, 2048, 4096, 8192)
    cases = [
        Case(dtype, d, n, causal, heads_for(n))
        for dtype in ("f32", "bf16")
        for d in (64, 128)
        for n in rows
        for causal in (False, True)
    ]
    # Eight heads, whose rows are a power of two apart: what caches like least.
    return cases + [Case("f32", d, n, causal, 8, True) for d in (64, 128) for n in (512, 2048) for causal in (False, True)]


@dataclasses.dataclass
class Inputs:
    """Q, K, V, dO, of shape `[1, H, N, d]`, and the two adapters, all of the case's dtype."""

    case: Case
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    d_o: torch.Tensor
    key: list
    value: list


def make_inputs(case, seed=0):
    """Random inputs at which the virtual token matters.

    The virtual key is near the query, so its score is near σ|Q|². Q is scaled so that this is about log N, where
    λ = sigmoid(s0 − lse) is spread around one half.
    """
    g = torch.Generator().manual_seed(seed)
    n, h, d = case.rows, case.heads, case.head_dim
    dtype = DTYPES[case.dtype]
    scale = math.sqrt(math.log(n) / math.sqrt(d))

    def normal(*shape, std=1.0):
        return (torch.randn(*shape, generator=g) * std).to(dtype)

    def adapter():
        return [
            normal(h, d, RANK, std=0.5 / math.sqrt(d)),
            normal(h, RANK, std=0.1),
            normal(h, RANK, d, std=0.3),
            normal(h, d, std=0.1),
        ]

    def rows(std=1.0):
        x = normal(1, h, n, d, std=std)
        return x.transpose(1, 2).contiguous().transpose(1, 2) if case.token_major else x

    q = rows(scale)
    k, v, d_o = (rows() for _ in range(3))
    return Inputs(case, q, k, v, d_o, adapter(), adapter())
