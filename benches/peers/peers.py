#!/usr/bin/env python3
"""Times this crate's CPU engine against torch on the CPU, in one process, taking turns, and checks that they agree.

    sdpa      torch.nn.functional.scaled_dot_product_attention, without an inducer
    eager     inducer attention composed from torch operations, with autograd
    plain     this crate without an inducer
    inducer   this crate with an inducer (virtual key and virtual value from residual adapters of rank 8)

Every round runs each of them once, in rotating order; a figure is the median over the rounds, a ratio the median of
the rounds' own ratios. See README.md beside this file for how to install torch.
"""

import argparse
import datetime
import gc
import json
import os
import pathlib
import platform
import statistics
import sys
import time

# Before torch is imported: numpy's and torch's pools read it when they start.
PARSER = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
PARSER.add_argument("--threads", type=int, default=2, help="of torch and of the engine (default 2)")
PARSER.add_argument("--quick", action="store_true", help="N up to 2048 and fewer rounds")
PARSER.add_argument("--only", action="append", metavar="WORDS", default=[],
                    help="only cases whose line has all these words, such as 'f32 d128 causal'; 'eager' and 'memory' "
                         "name those parts; may be given several times")
PARSER.add_argument("--library", metavar="FILE",
                    help="the engine, libinducer_attention_c.so, built elsewhere (default: cargo builds it)")
PARSER.add_argument("--json", metavar="FILE", help="write all figures there")
PARSER.add_argument("--peak", type=float, metavar="GFLOPS", help="measured f32 FMA peak of all threads together")
PARSER.add_argument("--peak-bf16", type=float, metavar="GFLOPS", help="the same of bf16 dot products")
PARSER.add_argument("--rounds", type=int, help="rounds per case (default: 5 to 25 within the seconds below)")
PARSER.add_argument("--seconds", type=float, help="of timing per case (default 6, quick 2)")
PARSER.add_argument("--undisturbed", type=float, metavar="SECONDS",
                    help="on Linux: count only rounds during which no other process computed, and wait for those at most so "
                         "long per case")
PARSER.add_argument("--no-check", action="store_true", help="do not compare results (for repeated timing)")
if __name__ == "__main__":
    ARGUMENTS = PARSER.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(ARGUMENTS.threads)

import numpy  # noqa: E402  (see above)
import torch  # noqa: E402

import engine  # noqa: E402
import memory  # noqa: E402
import oracle  # noqa: E402
import quiet  # noqa: E402
from cases import Case, RANK, all_cases, heads_for, make_inputs  # noqa: E402
from contestants import Eager, Ours, Sdpa, naive_results  # noqa: E402

# Largest relative errors in f32: of O and lse, and of gradients.
F32_FORWARD, F32_BACKWARD = 1e-6, 5e-6
# In 16 bits: this many times the error of the naive computation in the same type (FlashAttention's own criterion).
NAIVE_FACTOR = 2.0
# Idle time between contestants: thread pools spin for a while after their work, and would take the next one's cores.
SETTLE_SECONDS = 0.01
MEMORY_LIMIT = 1.2


def stamp():
    """Wall-clock and processor time."""
    return time.perf_counter(), time.process_time()


def run_rounds(contestants, seconds, rounds, patience=None):
    """`{name: [(forward wall, backward wall, forward cpu, backward cpu) per round]}`. With `patience`, rounds that other
    processes disturb do not count, until so many seconds are over."""
    samples = {c.name: [] for c in contestants}
    for c in contestants:
        c.step(stamp)  # warm up: threads, allocator, page tables
    begin, spent, done, dropped = time.perf_counter(), 0.0, 0, 0
    minimum, maximum = (rounds, rounds) if rounds else (5, 25)
    gc.disable()
    try:
        while done < minimum or (done < maximum and spent < seconds):
            patient = patience is not None and time.perf_counter() - begin < patience
            if patience is not None and not patient and done > 0:
                break
            if patient:
                quiet.wait(begin + patience)
            watch = quiet.Watch() if patient else None
            round_begin, times = time.perf_counter(), {}
            turn = (done + dropped) % len(contestants)
            for c in contestants[turn:] + contestants[:turn]:
                time.sleep(SETTLE_SECONDS)
                (a, b, e), results = c.step(stamp)
                del results
                times[c.name] = (b[0] - a[0], e[0] - b[0], b[1] - a[1], e[1] - b[1])
            if watch is not None and watch.disturbed():
                dropped += 1
                continue
            for name, each in times.items():
                samples[name].append(each)
            done += 1
            spent += time.perf_counter() - round_begin
    finally:
        gc.enable()
    if patience is not None:
        print(f"    {done} rounds, {dropped} more disturbed by others and dropped" + ("" if watch else "; the one is disturbed as well"))
    return samples


PARTS = {"forward": (0,), "backward": (1,), "forward+backward": (0, 1)}


def seconds_of(samples, part, cpu=False):
    """Per round."""
    return [sum(s[i + (2 if cpu else 0)] for i in PARTS[part]) for s in samples]


def summarise(samples, case):
    """Median, spread and GFLOP/s of each contestant and part; ratios of the engine to the others."""
    flops = {"forward": 1.0, "backward": 2.5, "forward+backward": 3.5}
    figures, ratios = {}, {}
    for name, rows in samples.items():
        for part in PARTS:
            wall = seconds_of(rows, part)
            median = statistics.median(wall)
            low, _, high = statistics.quantiles(wall, n=4) if len(wall) > 1 else (median,) * 3
            figures[f"{name} {part}"] = {
                "seconds": median,
                "spread": (high - low) / median,
                "cpu_seconds": statistics.median(seconds_of(rows, part, cpu=True)),
                "gflops": flops[part] * case.forward_flops / median / 1e9,
            }
    for ours in ("plain", "inducer"):
        for theirs in ("sdpa", "eager"):
            if ours not in samples or theirs not in samples:
                continue
            for part in PARTS:
                for key, cpu in (("wall", False), ("cpu", True)):
                    pairs = zip(seconds_of(samples[theirs], part, cpu), seconds_of(samples[ours], part, cpu))
                    ratio = statistics.median(t / max(o, 1e-9) for t, o in pairs)
                    ratios.setdefault(f"{ours}/{theirs} {part}", {})[key] = ratio
    if "plain" in samples and "inducer" in samples:
        for part in PARTS:
            pairs = zip(seconds_of(samples["inducer"], part), seconds_of(samples["plain"], part))
            ratios[f"price of the inducer {part}"] = {"wall": statistics.median(i / p for i, p in pairs) - 1}
    return {"rounds": len(next(iter(samples.values()))), "figures": figures, "ratios": ratios}


def check(case, inputs, contestants):
    """Every result of every contestant against float64. Returns a list of
    (contestant, result, error, allowed or None); torch's own errors are shown, not judged."""
    reference = oracle.solve(inputs)
    lines = []
    for c in contestants:
        side = "plain" if c.name in ("plain", "sdpa") else "inducer"
        _, results = c.step(stamp)
        ours = isinstance(c, Ours)
        naive = naive_results(inputs, c.inducer) if ours and case.dtype != "f32" else None
        for name, tensor in results.items():
            allowed = None
            if ours and (case.dtype == "f32" or name == "lse"):
                # lse is f32 in every dtype, from exact products of the 16-bit inputs.
                allowed = F32_FORWARD if name in ("o", "lse") else F32_BACKWARD
            elif ours:
                allowed = NAIVE_FACTOR * oracle.error(naive[name], reference[side][name])
            lines.append((c.name, name, oracle.error(tensor, reference[side][name]), allowed))
    return lines


def print_check(lines):
    """The worst of each contestant and every failure; returns whether the engine agrees."""
    ok = True
    for contestant in dict.fromkeys(line[0] for line in lines):
        own = [line for line in lines if line[0] == contestant]
        worst = {}
        for _, name, error, _ in own:
            group = "O" if name == "o" else "lse" if name == "lse" else "dQKV" if len(name) == 3 else "adapters"
            worst[group] = max(worst.get(group, 0.0), error)
        print(f"    errors {contestant:8}" + "".join(f"  {g} {e:.1e}" for g, e in worst.items()))
        for _, name, error, allowed in own:
            if allowed is not None and not error <= allowed:
                ok = False
                print(f"    DISAGREES: {contestant} {name}: error {error:.2e}, allowed {allowed:.2e}")
    return ok


def print_case(case, summary, peaks):
    names = list(dict.fromkeys(k.split(" ")[0] for k in summary["figures"]))
    for part in PARTS:
        cells = []
        for name in names:
            f = summary["figures"][f"{name} {part}"]
            share = f" {100 * f['gflops'] / peaks[case.dtype]:3.0f}%" if peaks.get(case.dtype) else ""
            cells.append(f"{name} {1e3 * f['seconds']:8.2f} ms ±{50 * f['spread']:2.0f}% {f['gflops']:5.0f}{share}")
        ratios = [
            f"{k.split(' ')[0]} {r['wall']:.2f}x (cpu {r['cpu']:.2f}x)"
            for k, r in summary["ratios"].items() if k.endswith(f" {part}") and "/" in k and k.startswith("inducer")
        ]
        price = summary["ratios"].get(f"price of the inducer {part}")
        price = f"  inducer costs {100 * price['wall']:+.1f}%" if price else ""
        print(f"    {part:17}" + " | ".join(cells) + " GFLOP/s")
        print(f"    {'':17}" + "; ".join(ratios) + price)
    sys.stdout.flush()


def run_case(case, library, make_contestants, arguments, peaks, record):
    print(case.name, flush=True)
    inputs = make_inputs(case)
    contestants = make_contestants(inputs)
    entry = {"case": case.name, **vars(case), "load_before": os.getloadavg()[0]}
    if not arguments.no_check:
        lines = check(case, inputs, contestants)
        entry["agrees"] = print_check(lines)
        entry["errors"] = {f"{c} {n}": {"error": e, "allowed": a} for c, n, e, a in lines}
    seconds = arguments.seconds or (2.0 if arguments.quick else 6.0)
    summary = summarise(run_rounds(contestants, seconds, arguments.rounds, arguments.undisturbed), case)
    print_case(case, summary, peaks)
    record.append({**entry, **summary, "inducer_flops": case.inducer_flops, "forward_flops": case.forward_flops})


def print_targets(fused, eager, memories, peaks):
    """The figures to reach beside the ones measured: worst and geometric mean over the cases."""
    print("\nFigures to reach (worst case, geometric mean, cases that reach it; 'cpu' is by processor time)")

    def line(text, target, values, cpu=None):
        if not values:
            print(f"  {text:62} target {target:5.2f}x   not measured")
            return
        reached = sum(v >= target for v in values)
        more = f"   cpu {min(cpu):.2f}x {statistics.geometric_mean(cpu):.2f}x" if cpu else ""
        print(f"  {text:62} target {target:5.2f}x   {min(values):5.2f}x {statistics.geometric_mean(values):5.2f}x"
              f"   {reached}/{len(values)}{more}")

    def ratios(cases, key, **where):
        chosen = [c["ratios"][key] for c in cases if all(c[k] == v for k, v in where.items())]
        return [r["wall"] for r in chosen], [r["cpu"] for r in chosen]

    for text, target, dtype, part in (
        ("f32 forward with inducer / SDPA without", 1.1, "f32", "forward"),
        ("f32 forward + backward with inducer / SDPA without", 1.2, "f32", "forward+backward"),
        ("bf16 forward with inducer / SDPA without", 1.8, "bf16", "forward"),
        ("bf16 backward with inducer / SDPA without", 1.4, "bf16", "backward"),
    ):
        line(text, target, *ratios(fused, f"inducer/sdpa {part}", dtype=dtype))
    key = "inducer/eager forward+backward"
    line("f32 forward + backward / eager composition, N = 2048", 6.0, *ratios(eager, key, rows=2048))
    if peaks.get("f32"):
        shares = [c["figures"]["inducer forward"]["gflops"] / peaks["f32"] for c in fused
                  if c["dtype"] == "f32" and c["head_dim"] == 128 and c["rows"] >= 2048]
        line("f32 forward with inducer / FMA peak, d = 128, N >= 2048", 0.8, shares)
    for m in memories:
        verdict = "reached" if m["ratio"] <= MEMORY_LIMIT else "NOT reached"
        print(f"  memory, {m['dtype']} d{m['head_dim']} N{m['rows']} H{m['heads']}: tensors {m['held_bytes'] / 2**20:.0f} MiB, "
              f"engine {m['extra_bytes'] / 2**20:.1f} MiB more: {m['ratio']:.3f}x, limit {MEMORY_LIMIT}x, {verdict}")


def selector(only):
    """Which lines are wanted: any of the patterns, all of whose words occur."""
    patterns = [set(p.lower().split()) for p in only]
    return lambda text: not patterns or any(p <= set(text.lower().split()) for p in patterns)


def main(arguments):
    wanted = selector(arguments.only)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    path = str(pathlib.Path(arguments.library).resolve()) if arguments.library else str(engine.build())
    library = engine.Library(path, arguments.threads)
    peaks = {"f32": arguments.peak, "bf16": arguments.peak_bf16}
    host = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(), "cores": os.cpu_count(), "threads": arguments.threads, "torch": torch.__version__,
        "numpy": numpy.__version__, "engine": library.description(), "load": os.getloadavg()[0], "peaks": peaks,
    }
    print(" | ".join(f"{k} {v}" for k, v in host.items() if k != "peaks"))
    if host["load"] > 0.3 and arguments.undisturbed is None:
        print("Other work is running on this machine: wall-clock figures below are disturbed, look at the cpu ratios.")
    fused, eager, memories = [], [], []
    for case in all_cases(arguments.quick):
        if wanted(f"sdpa {case.name}"):
            run_case(case, library, lambda x: [Sdpa(x), Ours(library, x, False), Ours(library, x, True)],
                     arguments, peaks, fused)
    for n in (1024, 2048) if arguments.quick else (512, 1024, 2048, 4096):
        for d in (64, 128):
            for causal in (False, True):
                case = Case("f32", d, n, causal, heads_for(n))
                if wanted(f"eager {case.name}"):
                    print("eager, ", end="")
                    run_case(case, library, lambda x: [Eager(x), Ours(library, x, True)], arguments, peaks, eager)
    for dtype in ("f32", "bf16"):
        for d in (64, 128):
            if wanted(f"memory {dtype} d{d} n16384"):
                # Of 16-bit tensors one head is accumulated in f32 beside them, which weighs less the more heads there are.
                for heads in (2,) if dtype == "f32" else (2, 8):
                    spec = {"library": path, "threads": arguments.threads, "dtype": dtype, "causal": True, "heads": heads,
                            "rows": 16384, "head_dim": d, "rank": RANK}
                    memories.append(memory.measure_in_child(spec))
    print_targets(fused, eager, memories, peaks)
    if arguments.json:
        for m in memories:
            del m["library"]
        with open(arguments.json, "w") as file:
            json.dump({"host": host, "sdpa": fused, "eager": eager, "memory": memories}, file, indent=1)
    disagreeing = [c["case"] for c in fused + eager if not c.get("agrees", True)]
    if disagreeing:
        print("Results disagree in: " + ", ".join(disagreeing))
    return 1 if disagreeing else 0


def cpu_name():
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main(ARGUMENTS))
