"""Peak memory of the engine's forward and backward, in a process of its own.

Run by peers.py as `python memory.py JSON`. The process holds Q, K, V, O, lse and the gradients of Q, K, V and O, all
touched, and asks for the highest resident size before and after one forward and backward with an inducer. The
difference is what the engine took for itself.
"""

import json
import pathlib
import subprocess
import sys


def peak_resident():
    """Highest resident size so far, in bytes."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux its figure is inherited from the process that started this one.
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(spec):
    import numpy as np

    import engine

    shape = (1, spec["heads"], spec["rows"], spec["head_dim"])
    heads, _, head_dim = shape[1:]
    generator = np.random.default_rng(0)

    def to_dtype(x):
        # bfloat16 is the upper half of a float32.
        return x if spec["dtype"] == "f32" else (x.view(np.uint32) >> 16).astype(np.uint16)

    def normal(*shape, std=1.0):
        return to_dtype(generator.standard_normal(shape, dtype=np.float32) * np.float32(std))

    def touched(shape, dtype):
        return np.full(shape, 1, dtype)

    # In pieces, so that making the inputs is not the peak.
    def big():
        out = touched(shape, np.float32 if spec["dtype"] == "f32" else np.uint16)
        for h in range(heads):
            out[0, h] = normal(*shape[2:])
        return out

    rank = spec["rank"]
    tensors = {name: big() for name in ("q", "k", "v", "d_o")}
    tensors |= {name: touched(shape, tensors["q"].dtype) for name in ("o", "d_q", "d_k", "d_v")}
    tensors["lse"] = touched(shape[:3], np.float32)
    adapter_shapes = [(heads, head_dim, rank), (heads, rank), (heads, rank, head_dim), (heads, head_dim)]
    adapters = [[normal(*s, std=0.1) for s in adapter_shapes] for _ in range(2)]
    gradients = [[touched(s, np.float32) for s in adapter_shapes] for _ in range(2)]

    library = engine.Library(spec["library"], spec["threads"])
    t = tensors
    call = engine.Call(spec["dtype"], spec["causal"], t["q"], t["k"], t["v"], *adapters)
    outputs = call.outputs(o=t["o"], lse=t["lse"])
    results = {name: t[name] for name in ("o", "lse", "d_o", "d_q", "d_k", "d_v")}
    results |= {"d_key_adapter": gradients[0], "d_value_adapter": gradients[1]}
    before = peak_resident()
    library.forward(call, outputs)
    library.backward(call, call.gradients(**results))
    extra = peak_resident() - before
    held = sum(t.nbytes for t in tensors.values())
    return {**spec, "held_bytes": held, "extra_bytes": extra, "ratio": (held + extra) / held}


def measure_in_child(spec):
    """`measure` in a fresh interpreter."""
    command = [sys.executable, __file__, json.dumps(spec)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
