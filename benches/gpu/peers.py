#!/usr/bin/env python3
"""Times this crate's CUDA kernels against torch's attention (cuDNN, flash) on the same GPU, in turn.

    python3 benches/gpu/peers.py --bench target/release/deps/gpu-... --json peers.json

The kernels run in the bench's own process (`gpu --serve`), torch in this one. In every round each runs while the others
are idle, and who goes first changes; a ratio is the median of the rounds' own ratios. Both sides rotate through sets of
tensors that together do not fit the second-level cache, and are timed by CUDA events around a batch of calls.

Ours with and without the inducer against torch without: torch has no such operation.
Exit status: 0 if it ran, 3 without a GPU, 4 where torch is not installed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

PARSER = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
PARSER.add_argument("--bench", required=True, metavar="FILE", help="the executable of `cargo bench --bench gpu`")
PARSER.add_argument("--json", metavar="FILE", help="write the results there, after every case")
PARSER.add_argument("--hopper", action="store_true", help="our kernels that are for Hopper alone")
PARSER.add_argument("--rounds", type=int, default=3, help="per case (default 3)")
PARSER.add_argument("--seconds", type=float, default=60, help="begin no case after that long (default 60)")
PARSER.add_argument("--only", metavar="WORDS", default="", help="only cases whose label has all these words")

TOKENS, WIDTH = 16384, 2048
# In the order of interest: the time may not suffice for all.
CASES = [
    (direction, mask, head_dim, rows)
    for mask, head_dim, rows in (
        ("full", 128, 4096), ("causal", 128, 4096), ("full", 128, 16384), ("full", 64, 4096), ("full", 128, 1024),
        ("causal", 128, 16384), ("causal", 64, 4096), ("full", 128, 512), ("full", 256, 4096),
    )
    for direction in ("fwd", "bwd")
]
BATCH_SECONDS, CACHES = 1e-3, 3


def label(case):
    direction, mask, head_dim, rows = case
    return f"{direction} bf16 {mask} d{head_dim} n{rows}"


class Ours:
    """The bench, answering labels with measurements."""

    def __init__(self, path, options):
        command = [path, "--serve", "--seconds", "0.3", *options]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def measure(self, text):
        try:
            self.process.stdin.write(text + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError as error:
            return {"error": str(error)}
        if not line.startswith("{"):
            return {"error": f"the bench ended: {line.strip()}"}
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Peer:
    """One of torch's backends on one case."""

    def __init__(self, torch, name, backend, case):
        direction, mask, head_dim, rows = case
        self.torch, self.name, self.backend = torch, name, backend
        self.causal, self.backward = mask == "causal", direction == "bwd"
        shape = (TOKENS // rows, WIDTH // head_dim, rows, head_dim)
        size = 8 * TOKENS * WIDTH * 2
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        count = min(8, CACHES * cache // size + 2)
        self.sets = []
        for _ in range(count):
            q, k, v, d_o = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(4))
            if self.backward:
                q, k, v = (t.requires_grad_() for t in (q, k, v))
            self.sets.append((q, k, v, d_o, self.forward(q, k, v) if self.backward else None))
        self.turn = 0

    def forward(self, q, k, v):
        with self.torch.nn.attention.sdpa_kernel(self.backend):
            return self.torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)

    def call(self):
        self.turn = (self.turn + 1) % len(self.sets)
        q, k, v, d_o, o = self.sets[self.turn]
        if self.backward:
            self.torch.autograd.grad(o, (q, k, v), d_o, retain_graph=True)
        else:
            self.forward(q, k, v)

    def timed(self, calls):
        begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            self.call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / calls

    def measure(self):
        """Seconds of a call: the median of batches, after a warm-up that lifts the clocks."""
        start = time.perf_counter()
        while time.perf_counter() - start < 0.1:
            once = self.timed(1)
        calls = max(1, min(64, round(BATCH_SECONDS / once)))
        return statistics.median(self.timed(calls) for _ in range(9))


def run_case(torch, case, ours, rounds):
    text = label(case)
    answer = ours.measure(text)  # allocates, and says whether it can
    if "error" in answer:
        return {"label": text, "error": answer["error"]}
    backends = torch.nn.attention.SDPBackend
    peers, missing = [], {}
    for name, backend in (("cudnn", backends.CUDNN_ATTENTION), ("flash", backends.FLASH_ATTENTION)):
        try:
            peer = Peer(torch, name, backend, case)
            peer.measure()
            peers.append(peer)
        except RuntimeError as error:
            missing[name] = str(error).split("\n")[0]
    seconds = {name: [] for name in ("inducer", "plain", *(p.name for p in peers))}

    def measure_ours():
        result = ours.measure(text)
        seconds["inducer"].append(result["inducer_on"]["seconds"])
        seconds["plain"].append(result["inducer_off"]["seconds"])

    for index in range(rounds):
        turns = [measure_ours, *((lambda p=p: seconds[p.name].append(p.measure())) for p in peers)]
        shift = index % len(turns)
        for turn in turns[shift:] + turns[:shift]:
            turn()
            torch.cuda.synchronize()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    flop = answer["attention_gflop"] * 1e9
    ratios = {
        f"{mine}/{peer.name}": statistics.median(
            theirs / own for own, theirs in zip(seconds[mine], seconds[peer.name]))
        for mine in ("inducer", "plain") for peer in peers
    }
    return {
        "label": text,
        "seconds": medians,
        "rounds": seconds,
        "tflops": {name: flop / value / 1e12 for name, value in medians.items()},
        "speed_ratios": ratios,
        "missing": missing,
    }


def main():
    arguments = PARSER.parse_args()
    try:
        import torch
        import torch.nn.attention  # noqa: F401
    except ImportError as error:
        print(f"left out: torch is not installed ({error})")
        return 4
    if not torch.cuda.is_available():
        print("no GPU: torch sees none")
        return 3
    report = {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version(), "results": []}
    print(f"torch {torch.__version__}, cuDNN {report['cudnn']}; TFLOP/s of the attention products; ratios are our speed over theirs")
    ours, start, failures = Ours(arguments.bench, ["--hopper"] if arguments.hopper else []), time.perf_counter(), 0
    for case in CASES:
        words = label(case).split()
        if not all(word in words for word in arguments.only.split()):
            continue
        if time.perf_counter() - start > arguments.seconds:
            print(f"left out for want of time: {label(case)} and what follows")
            break
        try:
            entry = run_case(torch, case, ours, arguments.rounds)
        except (RuntimeError, KeyError) as error:
            entry = {"label": label(case), "error": str(error).split("\n")[0]}
        torch.cuda.empty_cache()
        report["results"].append(entry)
        if "error" in entry:
            failures += "nothing matches" not in entry["error"]
            print(f"{entry['label']:28} {entry['error']}")
        else:
            cells = "  ".join(f"{name} {value:6.1f}" for name, value in entry["tflops"].items())
            ratios = "  ".join(f"{name} {value:.2f}x" for name, value in entry["speed_ratios"].items())
            print(f"{entry['label']:28} {cells}  |  {ratios}")
            for name, reason in entry["missing"].items():
                print(f"{'':28} {name}: {reason}")
        if arguments.json:
            with open(arguments.json, "w", encoding="utf-8") as file:
                json.dump(report, file, indent=2)
    ours.close()
    compared = [r for r in report["results"] if "error" not in r]
    best = max((r["tflops"]["inducer"] for r in compared), default=0.0)
    print(f"summary: {len(compared)} cases compared, with inducer up to {best:.0f} TFLOP/s")
    return 1 if failures or not compared else 0


if __name__ == "__main__":
    sys.exit(main())
