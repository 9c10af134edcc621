"""The crate's C interface (bindings/c/include/inducer_attention.h) through ctypes. Knows nothing of torch: tensors are whatever
has an address, a shape and strides."""

import ctypes
import os
import pathlib
import threading

ABI_VERSION = 2
DTYPES = {"f32": (2, 32), "f16": (2, 16), "bf16": (4, 16), "i32": (0, 32)}
OPTIONS = {
    "causal": 1, "softmax_scale": 2, "window_left": 4, "window_right": 8, "softcap": 16, "dropout_p": 32,
    "adaptive_length": 64,
}
KEYS = {None: 0, "query": 1, "residual": 2, "logit_per_head": 3, "logit_per_token": 4}
VALUES = {"zero": 0, "residual": 1, "direct": 2, "extended": 3}
ACTIVATIONS = {"tanh": 0, "identity": 1}
CPU, CUDA = 1, 2
"""DLPack's types of devices."""


class Error(ValueError):
    """What the library says is wrong with a call: the argument, what it was and what it must be."""


class DeviceError(RuntimeError):
    """What the library says is wrong with a GPU: no driver, no kernels, or an error of the driver's."""


class Tensor(ctypes.Structure):
    """DLPack's DLTensor."""

    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_Pointer = ctypes.POINTER(Tensor)


def borrow(address, dtype, shape, strides, device=(CPU, 0)):
    """A pointer to a DLTensor in a device's memory, which the caller keeps alive. Strides are in elements."""
    numbers = ctypes.c_int64 * len(shape)
    return ctypes.pointer(Tensor(address, *device, len(shape), *DTYPES[dtype], 1, numbers(*shape), numbers(*strides), 0))


def borrow_array(array, dtype):
    """The same of a numpy array."""
    return borrow(array.ctypes.data, dtype, array.shape, [s // array.itemsize for s in array.strides])


class Adapter(ctypes.Structure):
    """`ia_adapter`: down weight `[H, d, r]`, down bias `[H, r]`, up weight `[H, r, d]`, up bias `[H, d]`."""

    _fields_ = [(name, _Pointer) for name in ("down_weight", "down_bias", "up_weight", "up_bias")]


class _Sized(ctypes.Structure):
    """A struct that begins with its size; fields that are not named are zero."""

    def __init__(self, **fields):
        super().__init__(struct_size=ctypes.sizeof(type(self)), **fields)


class Attention(_Sized):
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
        ("max_seqlen_q", ctypes.c_int64), ("max_seqlen_k", ctypes.c_int64),
    ]


class Outputs(_Sized):
    """`ia_outputs`."""

    _fields_ = [("struct_size", ctypes.c_size_t), *((name, _Pointer) for name in ("o", "lse", "u", "attn"))]


class Gradients(_Sized):
    """`ia_gradients`."""

    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        *((name, _Pointer) for name in (
            "o", "attn", "lse", "d_o", "d_lse", "d_u", "d_q", "d_k", "d_v", "d_prefix_k", "d_prefix_v")),
        ("d_key_adapter", Adapter), ("d_value_adapter", Adapter), ("d_logit", _Pointer),
    ]


def find():
    """The library's path: INDUCER_ATTENTION_LIBRARY, or the one that lies beside this file."""
    named = os.environ.get("INDUCER_ATTENTION_LIBRARY")
    if named:
        return named
    folder = pathlib.Path(__file__).parent
    for name in ("libinducer_attention_c.so", "libinducer_attention_c.dylib", "inducer_attention_c.dll"):
        if (folder / name).exists():
            return str(folder / name)
    raise ImportError(f"no libinducer_attention_c in {folder}; install the package, or name one in INDUCER_ATTENTION_LIBRARY")


class Library:
    """The loaded library. Calls may come from any thread; each has its own scratch memory, kept between calls."""

    def __init__(self, path=None):
        self.path = path or find()
        lib = self._lib = ctypes.CDLL(self.path)
        for name in ("ia_last_error", "ia_description"):
            getattr(lib, name).restype = ctypes.c_char_p
        lib.ia_abi_version.restype = ctypes.c_uint32
        if lib.ia_abi_version() != ABI_VERSION:
            raise ImportError(f"{self.path}: interface {lib.ia_abi_version()}, expected {ABI_VERSION}")
        lib.ia_set_threads.argtypes = [ctypes.c_size_t]
        lib.ia_workspace_new.restype = ctypes.c_void_p
        lib.ia_workspace_free.argtypes, lib.ia_workspace_free.restype = [ctypes.c_void_p], None
        lib.ia_forward.argtypes = [ctypes.POINTER(Attention), ctypes.POINTER(Outputs), ctypes.c_void_p]
        lib.ia_backward.argtypes = [ctypes.POINTER(Attention), ctypes.POINTER(Gradients), ctypes.c_void_p]
        lib.ia_cuda_load.argtypes = [ctypes.c_int32]
        lib.ia_cuda_forward.argtypes = [ctypes.POINTER(Attention), ctypes.POINTER(Outputs), ctypes.c_void_p]
        lib.ia_cuda_backward_workspace.argtypes = [ctypes.POINTER(Attention), ctypes.POINTER(ctypes.c_size_t)]
        lib.ia_cuda_backward.argtypes = [
            ctypes.POINTER(Attention), ctypes.POINTER(Gradients), ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
        self._local = threading.local()

    def set_threads(self, threads):
        """Threads that calls work on; once, before the first call."""
        self._check(self._lib.ia_set_threads(threads))

    def description(self):
        """Name, version, instruction set, and whether there are kernels for GPUs."""
        return self._lib.ia_description().decode()

    def forward(self, attention, outputs):
        """`ia_forward`."""
        self._check(self._lib.ia_forward(ctypes.byref(attention), ctypes.byref(outputs), self._workspace()))

    def backward(self, attention, gradients):
        """`ia_backward`."""
        self._check(self._lib.ia_backward(ctypes.byref(attention), ctypes.byref(gradients), self._workspace()))

    def cuda_load(self, device):
        """`ia_cuda_load`."""
        self._check(self._lib.ia_cuda_load(device))

    def cuda_forward(self, attention, outputs, stream):
        """`ia_cuda_forward`; the stream is an address."""
        self._check(self._lib.ia_cuda_forward(ctypes.byref(attention), ctypes.byref(outputs), stream))

    def cuda_backward_workspace(self, attention):
        """`ia_cuda_backward_workspace`: bytes."""
        size = ctypes.c_size_t()
        self._check(self._lib.ia_cuda_backward_workspace(ctypes.byref(attention), ctypes.byref(size)))
        return size.value

    def cuda_backward(self, attention, gradients, workspace, size, stream):
        """`ia_cuda_backward`; workspace and stream are addresses."""
        self._check(self._lib.ia_cuda_backward(ctypes.byref(attention), ctypes.byref(gradients), workspace, size, stream))

    def _workspace(self):
        if not hasattr(self._local, "workspace"):
            self._local.workspace = _Workspace(self._lib)
        return self._local.workspace.pointer

    def _check(self, status):
        if status == 1:
            raise Error(self._lib.ia_last_error().decode())
        if status == 3:
            raise DeviceError(self._lib.ia_last_error().decode())
        if status != 0:
            raise RuntimeError(self._lib.ia_last_error().decode())


class _Workspace:
    """Freed with the thread that it belongs to."""

    def __init__(self, lib):
        self._free, self.pointer = lib.ia_workspace_free, lib.ia_workspace_new()

    def __del__(self):
        self._free(self.pointer)
