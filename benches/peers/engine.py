"""The crate's engine through its C interface (src/lib.rs), with ctypes. Knows nothing of torch."""

import ctypes
import json
import os
import pathlib
import subprocess

DTYPES = {"f32": 0, "bf16": 2}
_POINTERS = ("q", "k", "v", "o", "lse", "d_o", "d_q", "d_k", "d_v")
_ADAPTERS = ("key", "value", "d_key", "d_value")


class EngineError(RuntimeError):
    """What the engine said was wrong with a call."""


class Call(ctypes.Structure):
    """`Call` of src/lib.rs. Tensors of no use to a call stay null."""

    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        *((name, ctypes.c_size_t) for name in ("batch", "heads", "rows", "head_dim", "key_rank", "value_rank")),
        ("dtype", ctypes.c_uint32),
        ("causal", ctypes.c_uint32),
        ("token_major", ctypes.c_uint32),
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_void_p * 4) for name in _ADAPTERS),
    ]

    @classmethod
    def new(cls, dtype, causal, shape, token_major=False):
        batch, heads, rows, head_dim = shape
        return cls(
            struct_size=ctypes.sizeof(cls), batch=batch, heads=heads, rows=rows, head_dim=head_dim,
            dtype=DTYPES[dtype], causal=int(causal), token_major=int(token_major),
        )

    def set(self, **tensors):
        for name, tensor in tensors.items():
            setattr(self, name, address(tensor))

    def set_adapters(self, key, value):
        """Each is down weight `[H, d, r]`, down bias `[H, r]`, up weight `[H, r, d]`, up bias `[H, d]`."""
        self.key_rank, self.value_rank = key[0].shape[2], value[0].shape[2]
        self.key = (ctypes.c_void_p * 4)(*map(address, key))
        self.value = (ctypes.c_void_p * 4)(*map(address, value))

    def set_adapter_gradients(self, key, value):
        """f32, shapes as of `set_adapters`."""
        self.d_key = (ctypes.c_void_p * 4)(*map(address, key))
        self.d_value = (ctypes.c_void_p * 4)(*map(address, value))


def address(tensor):
    """Of a torch tensor or numpy array, contiguous or, of four dimensions, so with the middle two exchanged."""
    if hasattr(tensor, "data_ptr"):
        assert tensor.is_contiguous() or tensor.transpose(1, 2).is_contiguous()
        return tensor.data_ptr()
    assert tensor.flags.c_contiguous
    return tensor.ctypes.data


def build():
    """Builds the library and returns its path."""
    command = [os.environ.get("CARGO", "cargo"), "build", "--release", "-p", "inducer-attention-peers",
               "--message-format=json-render-diagnostics"]
    root = pathlib.Path(__file__).resolve().parents[2]
    output = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True).stdout
    for line in output.splitlines():
        message = json.loads(line)
        if message.get("reason") == "compiler-artifact" and message["target"]["name"] == "inducer_attention_peers":
            return next(f for f in message["filenames"] if f.endswith((".so", ".dylib", ".dll")))
    raise RuntimeError("cargo built no library")


class Library:
    """The loaded engine, with `threads` threads."""

    def __init__(self, path, threads):
        self.path = path
        self._lib = ctypes.CDLL(path)
        for name in ("peers_forward", "peers_backward"):
            getattr(self._lib, name).argtypes = [ctypes.POINTER(Call)]
        self._lib.peers_set_threads.argtypes = [ctypes.c_size_t]
        for name in ("peers_last_error", "peers_description"):
            getattr(self._lib, name).argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self._check(self._lib.peers_set_threads(threads))

    def forward(self, call):
        """Writes o and lse."""
        self._check(self._lib.peers_forward(ctypes.byref(call)))

    def backward(self, call):
        """Writes d_q, d_k, d_v and the adapters' gradients, from o, lse and d_o."""
        self._check(self._lib.peers_backward(ctypes.byref(call)))

    def description(self):
        """What the engine runs on."""
        return self._text(self._lib.peers_description)

    def _text(self, function):
        buffer = ctypes.create_string_buffer(1024)
        function(buffer, len(buffer))
        return buffer.value.decode()

    def _check(self, code):
        if code != 0:
            raise EngineError(self._text(self._lib.peers_last_error))
