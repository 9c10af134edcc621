"""The crate's engine through its C interface, with ctypes: the Python package's own layer, which knows nothing of torch."""

import importlib.util
import pathlib
import sys

PACKAGE = pathlib.Path(__file__).resolve().parents[2] / "bindings/python"


def _module(path):
    """The file alone: the package around it would import torch."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


c = _module(PACKAGE / "inducer_attention/library.py")
build = _module(PACKAGE / "cargo_build.py").cargo_build


def _borrow(array, dtype):
    """Of a torch tensor or numpy array, which must outlive it."""
    if hasattr(array, "data_ptr"):
        return c.borrow(array.data_ptr(), dtype, array.shape, array.stride())
    return c.borrow_array(array, dtype)


class Call:
    """A problem with an inducer, where it has adapters, and the structs of what a pass reads and writes by the header's names. The
    tensors must outlive it."""

    def __init__(self, dtype, causal, q, k, v, key_adapter=None, value_adapter=None):
        self._dtype = dtype
        settings = {"options": c.OPTIONS["causal"] if causal else 0}
        if key_adapter is not None:
            adapters = {"key_adapter": key_adapter, "value_adapter": value_adapter}
            settings |= {name: c.Adapter(*(_borrow(t, dtype) for t in tensors)) for name, tensors in adapters.items()}
            settings |= {"key": c.KEYS["residual"], "value": c.VALUES["residual"]}
        self.attention = c.Attention(**{name: _borrow(t, dtype) for name, t in (("q", q), ("k", k), ("v", v))}, **settings)

    def outputs(self, **tensors):
        """O and lse."""
        return c.Outputs(**self._borrowed(tensors))

    def gradients(self, d_key_adapter=(), d_value_adapter=(), **tensors):
        """The gradients of adapters are f32."""
        adapters = {"d_key_adapter": d_key_adapter, "d_value_adapter": d_value_adapter}
        adapters = {name: c.Adapter(*(_borrow(t, "f32") for t in tensors)) for name, tensors in adapters.items()}
        return c.Gradients(**self._borrowed(tensors), **adapters)

    def _borrowed(self, tensors):
        return {name: _borrow(t, "f32" if name == "lse" else self._dtype) for name, t in tensors.items()}


class Library(c.Library):
    """The loaded engine, with `threads` threads."""

    def __init__(self, path, threads):
        super().__init__(str(path))
        self.set_threads(threads)

    def forward(self, call, outputs):
        """Writes o and lse."""
        super().forward(call.attention, outputs)

    def backward(self, call, gradients):
        """Writes d_q, d_k, d_v and the adapters' gradients, from o, lse and d_o."""
        super().backward(call.attention, gradients)
