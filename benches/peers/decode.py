#!/usr/bin/env python3
"""Times one query per head over many keys, as where a model generates text, against torch's scaled_dot_product_attention: forward only,
taking turns in one process. This crate computes with an inducer (residual adapters of rank 8), torch without. See README.md beside this
file for how to install torch."""

import argparse
import os
import statistics
import time

PARSER = argparse.ArgumentParser(description=__doc__)
PARSER.add_argument("--threads", type=int, default=2, help="of torch and of the engine (default 2)")
PARSER.add_argument("--library", metavar="FILE",
                    help="the engine, libinducer_attention_c.so, built elsewhere (default: cargo builds it)")
PARSER.add_argument("--rounds", type=int, default=40, help="per case (default 40)")
if __name__ == "__main__":
    ARGUMENTS = PARSER.parse_args()
    # Before torch is imported, which reads it when it starts.
    os.environ["OMP_NUM_THREADS"] = str(ARGUMENTS.threads)

import torch  # noqa: E402

import engine  # noqa: E402

RANK = 8
# (batch, query heads, key heads, keys, head_dim)
CASES = [(1, 8, 8, 1024, 128), (1, 8, 8, 8192, 128), (1, 32, 8, 4096, 128), (8, 12, 12, 512, 64), (1, 32, 1, 4096, 128)]
# ‖x − reference‖ / ‖reference‖: the rounding of the output's type, and little more.
ALLOWED = {"f32": 1e-6, "bf16": 4e-3}


def adapter(heads, d):
    shapes = (heads, d, RANK), (heads, RANK), (heads, RANK, d), (heads, d)
    return [torch.randn(shape) * 0.2 for shape in shapes]


def apply(x, weights):
    a, b, c, e = (w.double() for w in weights)
    return torch.tanh(x @ a + b[:, None]) @ c + e[:, None]


def reference(q, k, v, key, value):
    """In float64, as the equations are written."""
    q, k, v = (t.double() for t in (q, k, v))
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
    scale = q.shape[-1] ** -0.5
    scores = q @ k.transpose(-1, -2) * scale
    weight = torch.sigmoid((q * (q + apply(q, key))).sum(-1) * scale - torch.logsumexp(scores, dim=-1))
    return torch.softmax(scores, dim=-1) @ v + weight[..., None] * apply(q, value)


def main():
    library = engine.Library(ARGUMENTS.library or engine.build(), ARGUMENTS.threads)
    torch.set_num_threads(ARGUMENTS.threads)
    torch.manual_seed(0)
    print(f"{library.description()}; torch {torch.__version__}; {ARGUMENTS.threads} threads; medians of {ARGUMENTS.rounds} rounds")
    print("| dtype | batch | heads | keys | d | SDPA ms | ours ms | ratio | K and V, GB/s |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for dtype, name in ((torch.float32, "f32"), (torch.bfloat16, "bf16")):
        for batch, heads, key_heads, keys, d in CASES:
            q = torch.randn(batch, heads, 1, d).to(dtype)
            k, v = (torch.randn(batch, key_heads, keys, d).to(dtype) for _ in range(2))
            key, value = (adapter(heads, d) for _ in range(2))
            o, lse = torch.empty_like(q), torch.empty(q.shape[:3])
            weights = [[w.to(dtype) for w in side] for side in (key, value)]
            call = engine.Call(name, False, q, k, v, *weights)
            outputs = call.outputs(o=o, lse=lse)
            contestants = (
                lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=heads != key_heads),
                lambda: library.forward(call, outputs),
            )
            times = [[] for _ in contestants]
            with torch.no_grad():
                for _ in range(ARGUMENTS.rounds + 2):
                    for contestant, own in zip(contestants, times):
                        # Thread pools spin for a while after their work, and would take the other's cores.
                        time.sleep(0.01)
                        begin = time.perf_counter()
                        contestant()
                        own.append(time.perf_counter() - begin)
            # The first two of each warm up.
            torch_ms, ours_ms = (1e3 * statistics.median(own[2:]) for own in times)
            ratio = statistics.median(a / b for a, b in zip(times[0][2:], times[1][2:]))
            expected = reference(q, k, v, *weights)
            error = float((o.double() - expected).norm() / expected.norm())
            assert error <= ALLOWED[name], f"{name}: error {error}"
            group = f"{heads}" if heads == key_heads else f"{heads} on {key_heads}"
            rate = 2 * k.numel() * k.element_size() / ours_ms / 1e6
            print(f"| {name} | {batch} | {group} | {keys} | {d} | {torch_ms:.2f} | {ours_ms:.2f} | {ratio:.2f} | {rate:.1f} |", flush=True)


if __name__ == "__main__":
    main()
