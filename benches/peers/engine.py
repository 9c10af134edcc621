"""The crate's engine through its C interface (bindings/c), with ctypes. Knows nothing of torch."""

import ctypes
import json
import os
import pathlib
import subprocess

_DTYPES = {"f32": (2, 32), "f16": (2, 16), "bf16": (4, 16), "i32": (0, 32)}
_CPU = 1
_CAUSAL = 1
_KEY_RESIDUAL, _VALUE_RESIDUAL = 2, 1


class EngineError(RuntimeError):
    """What the engine said was wrong with a call."""


class Tensor(ctypes.Structure):
    """DLPack's DLTensor. Row-major, or with the middle two of four dimensions exchanged in memory."""

    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]

    @classmethod
    def of(cls, array, dtype):
        """Borrows a torch tensor or numpy array, which must outlive it."""
        if hasattr(array, "data_ptr"):
            address, strides = array.data_ptr(), array.stride()
        else:
            address, strides = array.ctypes.data, [s // array.itemsize for s in array.strides]
        code, bits = _DTYPES[dtype]
        numbers = ctypes.c_int64 * len(array.shape)
        return cls(address, _CPU, 0, len(array.shape), code, bits, 1, numbers(*array.shape), numbers(*strides), 0)


_Pointer = ctypes.POINTER(Tensor)


class Adapter(ctypes.Structure):
    """`ia_adapter`: down weight `[H, d, r]`, down bias `[H, r]`, up weight `[H, r, d]`, up bias `[H, d]`."""

    _fields_ = [(name, _Pointer) for name in ("down_weight", "down_bias", "up_weight", "up_bias")]


class Attention(ctypes.Structure):
    """`ia_attention`."""

    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        *((name, _Pointer) for name in (
            "q", "k", "v", "prefix_k", "prefix_v", "query_lengths", "key_lengths", "key_starts", "cu_seqlens_q",
            "cu_seqlens_k", "alibi_slopes")),
        ("options", ctypes.c_uint32), ("softmax_scale", ctypes.c_float),
        ("window_left", ctypes.c_int64), ("window_right", ctypes.c_int64),
        ("softcap", ctypes.c_float), ("dropout_p", ctypes.c_float), ("dropout_seed", ctypes.c_uint64),
        *((name, ctypes.c_uint32) for name in ("key", "value", "key_activation", "value_activation")),
        ("key_adapter", Adapter), ("value_adapter", Adapter), ("logit", _Pointer), ("positions", _Pointer),
    ]


class Outputs(ctypes.Structure):
    """`ia_outputs`."""

    _fields_ = [("struct_size", ctypes.c_size_t), *((name, _Pointer) for name in ("o", "lse", "u", "attn"))]


class Gradients(ctypes.Structure):
    """`ia_gradients`."""

    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        *((name, _Pointer) for name in (
            "o", "attn", "lse", "d_o", "d_lse", "d_u", "d_q", "d_k", "d_v", "d_prefix_k", "d_prefix_v")),
        ("d_key_adapter", Adapter), ("d_value_adapter", Adapter), ("d_logit", _Pointer),
    ]


def _struct(of, dtypes, tensors):
    """A struct with these tensors, each a (name, tensor or adapter) pair."""
    struct = of(struct_size=ctypes.sizeof(of))
    for name, value in tensors.items():
        dtype = dtypes(name)
        if isinstance(value, (list, tuple)):
            value = Adapter(*(ctypes.pointer(Tensor.of(t, dtype)) for t in value))
        else:
            value = ctypes.pointer(Tensor.of(value, dtype))
        setattr(struct, name, value)
    return struct


class Call:
    """A problem with an inducer, where it has adapters, and the tensors that a pass reads and writes by their names in the
    header. The tensors must outlive it."""

    def __init__(self, dtype, causal, q, k, v, key_adapter=None, value_adapter=None):
        self._dtype = dtype
        tensors = {"q": q, "k": k, "v": v}
        if key_adapter is not None:
            tensors |= {"key_adapter": key_adapter, "value_adapter": value_adapter}
        self.attention = _struct(Attention, lambda _: dtype, tensors)
        self.attention.options = _CAUSAL if causal else 0
        if key_adapter is not None:
            self.attention.key, self.attention.value = _KEY_RESIDUAL, _VALUE_RESIDUAL

    def outputs(self, **tensors):
        return _struct(Outputs, self._dtype_of, tensors)

    def gradients(self, **tensors):
        return _struct(Gradients, self._dtype_of, tensors)

    def _dtype_of(self, name):
        return "f32" if name in ("lse", "d_lse") or name.endswith("adapter") else self._dtype


def build():
    """Builds the library and returns its path."""
    command = [os.environ.get("CARGO", "cargo"), "build", "--release", "-p", "inducer-attention-c",
               "--message-format=json-render-diagnostics"]
    root = pathlib.Path(__file__).resolve().parents[2]
    output = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True).stdout
    for line in output.splitlines():
        message = json.loads(line)
        if message.get("reason") == "compiler-artifact" and message["target"]["name"] == "inducer_attention_c":
            return next(f for f in message["filenames"] if f.endswith((".so", ".dylib", ".dll")))
    raise RuntimeError("cargo built no library")


class Library:
    """The loaded engine, with `threads` threads."""

    def __init__(self, path, threads):
        self.path = path
        self._lib = ctypes.CDLL(path)
        self._lib.ia_forward.argtypes = [ctypes.POINTER(Attention), ctypes.POINTER(Outputs), ctypes.c_void_p]
        self._lib.ia_backward.argtypes = [ctypes.POINTER(Attention), ctypes.POINTER(Gradients), ctypes.c_void_p]
        self._lib.ia_set_threads.argtypes = [ctypes.c_size_t]
        for name in ("ia_last_error", "ia_description"):
            getattr(self._lib, name).restype = ctypes.c_char_p
        self._lib.ia_workspace_new.restype = ctypes.c_void_p
        # Kept between calls, as a framework would keep it.
        self._workspace = self._lib.ia_workspace_new()
        self._check(self._lib.ia_set_threads(threads))

    def forward(self, call, outputs):
        """Writes o and lse."""
        self._check(self._lib.ia_forward(ctypes.byref(call.attention), ctypes.byref(outputs), self._workspace))

    def backward(self, call, gradients):
        """Writes d_q, d_k, d_v and the adapters' gradients, from o, lse and d_o."""
        self._check(self._lib.ia_backward(ctypes.byref(call.attention), ctypes.byref(gradients), self._workspace))

    def description(self):
        """What the engine runs on."""
        return self._lib.ia_description().decode()

    def _check(self, code):
        if code != 0:
            raise EngineError(self._lib.ia_last_error().decode())
