"""Attention with a virtual token per query, as a function with autograd."""

import operator
from typing import NamedTuple

import torch

from . import library as c
from .backends import Cpu, backend

_DTYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.int32: "i32"}
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class Adapter(NamedTuple):
    """`x -> act(x A + a) B + b` for every query head; f32, or of Q's dtype."""

    down_weight: torch.Tensor
    """A, `[Hq, d, r]`."""
    down_bias: torch.Tensor
    """a, `[Hq, r]`."""
    up_weight: torch.Tensor | None = None
    """B, `[Hq, r, d]`; none for the extended value."""
    up_bias: torch.Tensor | None = None
    """b, `[Hq, d]`; none for the extended value."""
    activation: str = "tanh"
    """`tanh` or `identity`."""


class Output(NamedTuple):
    """What `inducer_attention` returns if asked for more than O."""

    o: torch.Tensor
    """`[B, Hq, N, d]`; attn for the extended value."""
    lse: torch.Tensor
    """f32 `[B, Hq, N]`: the logarithm of the sum of exponentials of real scores. Differentiable."""
    u: torch.Tensor | None
    """`[B, Hq, N, r_v]` for the extended value."""


# The tensors of a call that gradients can reach, in the order in which the autograd function takes them.
_TENSORS = (
    "q", "k", "v", "prefix_k", "prefix_v", "logit",
    *(f"key_adapter.{name}" for name in Adapter._fields[:4]), *(f"value_adapter.{name}" for name in Adapter._fields[:4]),
)


@torch.compiler.disable
def inducer_attention(
    q, k, v, *, key=None, value="zero", key_adapter=None, value_adapter=None, logit=None, adaptive_length=False,
    positions=None, prefix=None, causal=False, softmax_scale=None, window=(None, None), softcap=None, dropout_p=0.0,
    query_lengths=None, key_lengths=None, key_starts=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None,
    max_seqlen_k=None, alibi_slopes=None, return_all=False,
):
    """Attention of Q `[B, Hq, N, d]` over K and V `[B, Hkv, M, d]`, in which every query may have a virtual token of its own.

    Any strides will do as long as the last dimension is contiguous; tensors are f32, f16 or bf16, all on the CPU or all on one NVIDIA
    GPU (Ampere or newer), where head_dim is a multiple of 8. On a GPU calls are enqueued on the current stream; nothing waits for it.

    key              where the virtual token's score comes from: None (no virtual token: plain attention), "query",
                     "residual" (with `key_adapter`), "logit_per_head" or "logit_per_token" (with `logit`, `[Hq]` or `[B, Hq, N]`)
    value            what it adds: "zero", "residual", "direct" or "extended" (all but "zero" with `value_adapter`)
    adaptive_length  multiplies the score by the root of the position; `positions` (i32 `[B, N]`) overrides positions
    prefix           a pair of `[Hkv, L, d]`: keys and values before K and V that every query sees
    causal           bottom-right aligned: query i sees keys up to i + M - N
    window           keys seen to the left and to the right of that position; None is all
    softcap          c in c tanh(s / c)
    dropout_p        dropped from probabilities and from the virtual token's weight; the seed comes from torch's generator
    *_lengths, ...   i32 `[B]`: rows and keys that exist, the first key that does; cu_seqlens (i32) for packed sequences, B = 1. Lists
                     may be on the CPU in any case
    max_seqlen_*     on a GPU, no packed sequence is longer: saves work where cu_seqlens are on the GPU, too, and nothing says so.
                     Results of rows beyond are undefined
    alibi_slopes     f32 `[Hq]` or `[B, Hq]`
    return_all       an `Output` with lse and U instead of O alone; "extended" always returns one

    Raises `inducer_attention.Error` for arguments that do not fit together, `inducer_attention.DeviceError` for a GPU that cannot be used.
    """
    for name, tensor in (("q", q), ("k", k)):
        if not isinstance(tensor, torch.Tensor):
            raise c.Error(f"{name}: {type(tensor).__name__}, expected a tensor")
        if tensor.dim() != 4:
            raise c.Error(f"{name}: {tensor.dim()} dimensions, expected 4")
    device, runs = q.device, backend(q.device)
    given = {"q": q, "k": k, "v": v}
    if prefix is not None:
        given["prefix_k"], given["prefix_v"] = prefix
    if torch.is_autocast_enabled(device.type):
        given = {name: t.to(torch.get_autocast_dtype(device.type)) for name, t in given.items() if t is not None}
    given["logit"] = logit
    key_adapter, value_adapter = _adapter("key_adapter", key_adapter), _adapter("value_adapter", value_adapter)
    for name, adapter in (("key_adapter", key_adapter), ("value_adapter", value_adapter)):
        if adapter is not None:
            given |= {f"{name}.{part}": tensor for part, tensor in zip(Adapter._fields, adapter[:4])}
    _expect_one_of("key", key, c.KEYS)
    _expect_one_of("value", value, c.VALUES)
    settings = {
        "key": c.KEYS[key], "value": c.VALUES[value],
        "key_activation": _activation("key_adapter", key_adapter),
        "value_activation": _activation("value_adapter", value_adapter),
        "options": 0,
    }
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise c.Error(f"window: {window!r}, expected a pair: keys to the left, keys to the right, None for all")
    for name, constant in (("alibi_slopes", alibi_slopes), ("softmax_scale", softmax_scale)):
        if isinstance(constant, torch.Tensor) and constant.requires_grad:
            raise c.Error(f"{name}: requires a gradient, and there is none with respect to it")
    numbers = {
        "causal": causal or None, "softmax_scale": softmax_scale, "window_left": window[0], "window_right": window[1],
        "softcap": softcap, "dropout_p": dropout_p or None, "adaptive_length": adaptive_length or None,
    }
    for name, number in numbers.items():
        if number is not None:
            settings["options"] |= c.OPTIONS[name]
            if name not in ("causal", "adaptive_length"):
                settings[name] = float(number) if name in ("softmax_scale", "softcap", "dropout_p") else number
    if dropout_p:
        if not isinstance(runs, Cpu) and runs.is_capturing():
            raise c.Error("dropout_p: a CUDA graph would drop the same in every replay")
        settings["dropout_seed"] = int(torch.randint(2**63 - 1, (), device="cpu"))
    lists = {
        "query_lengths": query_lengths, "key_lengths": key_lengths, "key_starts": key_starts,
        "cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k, "positions": positions, "alibi_slopes": alibi_slopes,
    }
    lists = {name: _list(name, t) for name, t in lists.items() if t is not None}
    if not isinstance(runs, Cpu):
        for name, t in lists.items():
            if t.device.type == "cpu":
                _expect_fits(name, t, q.shape[-2], k.shape[-2])
        settings |= {
            "max_seqlen_q": _longest("max_seqlen_q", max_seqlen_q, lists.get("cu_seqlens_q")),
            "max_seqlen_k": _longest("max_seqlen_k", max_seqlen_k, lists.get("cu_seqlens_k")),
        }
        # A copy from pinned memory may still be under way when its owner writes to it again; one of any other is not.
        lists = {name: (t.clone() if t.is_pinned() else t).to(device, non_blocking=True) for name, t in lists.items()}
    lists = {name: _on(device, name, t) for name, t in lists.items()}
    tensors = [
        None if given.get(name) is None else _readable(name, given[name], device, runs.row_bytes) for name in _TENSORS
    ]
    o, lse, u = _Function.apply(runs, settings, lists, *tensors)
    return Output(o, lse, u) if return_all or value == "extended" and key is not None else o


def _expect_one_of(name, value, table):
    if value not in table:
        raise c.Error(f"{name}: {value!r}, expected one of {', '.join(map(repr, table))}")


def _activation(name, adapter):
    if adapter is None:
        return 0
    _expect_one_of(f"{name}.activation", adapter.activation, c.ACTIVATIONS)
    return c.ACTIVATIONS[adapter.activation]


def _adapter(name, adapter):
    """What was given as an adapter: an `Adapter`, a tuple of its tensors, or a module that has one."""
    if adapter is None or isinstance(adapter, Adapter):
        return adapter
    if hasattr(adapter, "tensors"):
        return adapter.tensors()
    if isinstance(adapter, (tuple, list)):
        return Adapter(*adapter)
    raise c.Error(f"{name}: {type(adapter).__name__}, expected an Adapter")


def _list(name, numbers):
    """Of i32, or f32 for slopes; integers of other widths are converted."""
    if not isinstance(numbers, torch.Tensor):
        numbers = torch.as_tensor(numbers, device="cpu")
    if name == "alibi_slopes":
        return numbers.to(torch.float32).contiguous()
    if numbers.dtype == torch.int64 and numbers.device.type == "cpu" and numbers.numel() > 0:
        low, high = (int(n) for n in numbers.aminmax())
        if low < -(2**31) or high >= 2**31:
            raise c.Error(f"{name}: {low if low < -(2**31) else high}, expected what int32 can hold")
    if numbers.dtype in (torch.int64, torch.int16, torch.int8, torch.uint8):
        numbers = numbers.to(torch.int32)
    if numbers.dtype != torch.int32:
        raise c.Error(f"{name}: {numbers.dtype}, expected torch.int32")
    return numbers.contiguous()


def _expect_fits(name, numbers, rows, keys):
    """What the library says of lists that it can read: kernels clamp entries, and rows of no sequence stay as they were."""
    if numbers.numel() == 0:
        return
    if name == "alibi_slopes":
        if not numbers.isfinite().all():
            raise c.Error(f"{name}: expected finite numbers")
        return
    most = {"positions": 2**31 - 1, "query_lengths": rows, "cu_seqlens_q": rows}.get(name, keys)
    low, high = (int(n) for n in numbers.aminmax())
    if low < 0 or high > most:
        raise c.Error(f"{name}: {low if low < 0 else high}, expected 0 to {most}")
    if name.startswith("cu_") and (int(numbers[0]) != 0 or bool((numbers.diff() < 0).any())):
        raise c.Error(f"{name}: expected 0 first, and no entry below the one before it")


def _longest(name, given, boundaries):
    """Of packed sequences: as given, or as a list on the CPU says; 0 if that is not known, which asking the GPU would take waiting for."""
    if given is not None:
        try:
            number = operator.index(given)
        except TypeError:
            number = -1
        if number < 0:
            raise c.Error(f"{name}: {given!r}, expected a number of rows or keys, or None")
        given = number
    if boundaries is None:
        return 0
    longest = 0
    if boundaries.device.type == "cpu" and boundaries.numel() > 1:
        longest = max(int(boundaries.diff().max()), 1)
    if given and given < longest:
        raise c.Error(f"{name}: {given}, but a sequence has {longest}")
    return given or longest


def _on(device, name, tensor):
    if tensor.device != device:
        raise c.Error(f"{name}: on {tensor.device}, expected {device}, where q is")
    return tensor


# Rows of these are copied sixteen bytes at a time on a GPU.
_COPIED = ("q", "k", "v", "prefix_k", "prefix_v", "d_o")


def _readable(name, tensor, device, row_bytes):
    """With a contiguous last dimension and rows that begin where the library asks."""
    _on(device, name, tensor)
    if tensor.dtype not in _FLOATS:
        raise c.Error(f"{name}: {tensor.dtype}, expected one of {', '.join(map(str, _FLOATS))}")
    if _is_readable(tensor) and (name not in _COPIED or _is_aligned(tensor, row_bytes)):
        return tensor
    # Not `contiguous`: that leaves an expanded tensor without elements as it is.
    return tensor.clone(memory_format=torch.contiguous_format)


def _is_readable(tensor):
    return tensor.dim() == 0 or tensor.stride(-1) == 1 or tensor.shape[-1] <= 1


def _is_aligned(tensor, row_bytes):
    if row_bytes == 1 or tensor.numel() == 0:
        return True
    strides = (s for s, n in zip(tensor.stride()[:-1], tensor.shape) if n > 1)
    return tensor.data_ptr() % row_bytes == 0 and all(s * tensor.element_size() % row_bytes == 0 for s in strides)


def _room_like(tensor):
    """For results; as the tensor lies, if that is readable."""
    room = torch.empty_like(tensor)
    return room if _is_readable(room) else torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def _struct(of, runs, tensors, settings):
    """A struct of the header; names with a dot are an adapter's parts."""
    struct = of(**settings)
    for name, tensor in tensors.items():
        if tensor is not None:
            target, _, part = name.rpartition(".")
            borrowed = c.borrow(tensor.data_ptr(), _DTYPES[tensor.dtype], tensor.shape, tensor.stride(), runs.dlpack)
            setattr(getattr(struct, target) if target else struct, part, borrowed)
    return struct


class _Function(torch.autograd.Function):
    """O, lse and U of `settings` (fields of `ia_attention`), `lists` and the tensors of `_TENSORS`, as `runs` computes them."""

    @staticmethod
    def forward(ctx, runs, settings, lists, *tensors):
        named = dict(zip(_TENSORS, tensors))
        q = named["q"]
        batch, heads, rows, _ = q.shape
        # As Q lies, [B, N, H, d] as a rule: the output projection then needs no copy.
        o = _room_like(q)
        lse = torch.empty((batch, heads, rows), dtype=torch.float32, device=q.device)
        extended = settings["value"] == c.VALUES["extended"] and settings["key"] != 0
        u = attn = None
        down_weight = named["value_adapter.down_weight"]
        if extended and down_weight is not None:
            u = torch.empty((batch, heads, rows, down_weight.shape[-1]), dtype=q.dtype, device=q.device)
        elif q.dtype != torch.float32 and settings["key"] != 0 and any(ctx.needs_input_grad):
            # In 16 bits the backward is more accurate from attn.
            attn = _room_like(o)
        outputs = _struct(c.Outputs, runs, {"o": o, "lse": lse, "u": u, "attn": attn}, {})
        runs.forward(_struct(c.Attention, runs, named | lists, settings), outputs)
        ctx.set_materialize_grads(False)
        ctx.runs, ctx.settings, ctx.lists = runs, settings, list(lists)
        ctx.from_attention = attn is not None
        ctx.save_for_backward(lse, attn if attn is not None else o, *tensors, *lists.values())
        return o, lse, u

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_o, d_lse, d_u):
        lse, saved, *tensors = ctx.saved_tensors
        named = dict(zip(_TENSORS, tensors))
        lists = dict(zip(ctx.lists, tensors[len(_TENSORS):]))
        wanted = dict(zip(_TENSORS, ctx.needs_input_grad[3:]))
        runs, device = ctx.runs, lse.device

        def readable(name, tensor):
            return None if tensor is None else _readable(name, tensor, device, runs.row_bytes)

        if d_o is None:
            d_o = torch.zeros_like(saved)
        read = {
            "attn" if ctx.from_attention else "o": saved, "lse": lse, "d_o": readable("d_o", d_o),
            "d_lse": readable("d_lse", d_lse), "d_u": readable("d_u", d_u),
        }
        results = {name: _room_like(named[name]) for name in ("q", "k", "v")}
        for group in ("prefix_", "logit", "key_adapter.", "value_adapter."):
            members = [name for name in _TENSORS if name.startswith(group) and named[name] is not None]
            if any(wanted[name] for name in members):
                results |= {
                    name: torch.empty(named[name].shape, dtype=torch.float32, device=device) for name in members}
        written = {f"d_{name}": tensor for name, tensor in results.items()}
        gradients = _struct(c.Gradients, runs, read | written, {})
        runs.backward(_struct(c.Attention, runs, named | lists, ctx.settings), gradients)
        return None, None, None, *(
            results[name].to(named[name].dtype) if wanted[name] and name in results else None for name in _TENSORS
        )
