"""Attention in which every query has its own virtual key and value (inducer-tuning, Chen et al., EMNLP 2022), for PyTorch.

`inducer_attention` is the function, `Inducer` the module that is trained, `inducer_attention.transformers` tunes a Hugging Face
model with it. Everything is computed by the Rust crate of the same name, whose documentation has the equations.
"""

from .backends import load, loaded
from .functional import Adapter, Output, inducer_attention
from .library import DeviceError, Error
from .module import Inducer

__all__ = ["Adapter", "DeviceError", "Error", "Inducer", "Output", "description", "inducer_attention", "load", "set_threads"]


def set_threads(threads):
    """Threads that calls work on, the number of processors if never set. Once, before the first call."""
    loaded().set_threads(threads)


def description():
    """Version of the library, its instruction set, and whether it has kernels for GPUs; for a log."""
    return loaded().description()
