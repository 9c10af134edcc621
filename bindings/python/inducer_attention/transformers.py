"""Inducer-tuning of Hugging Face models.

    model = AutoModelForCausalLM.from_pretrained("gpt2")
    inducers = attach(model, rank=8)                       # freezes the model
    optimizer = torch.optim.AdamW(inducers.parameters(), lr=1e-3)
    ...                                                    # train as always
    save(model, "adapter.safetensors")                     # load(model, ...) brings it back

Models that choose their attention by name (transformers' AttentionInterface) can be tuned: GPT-2, Llama, Mistral, Qwen, BERT,
RoBERTa and most others.
"""

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

from .functional import inducer_attention
from .library import Error
from .module import Inducer, checked_rank

NAME = "inducer"
"""What the attention is registered as: `model.set_attn_implementation(NAME)`."""
ATTRIBUTE = "inducer"
"""What the module is called in an attention layer."""
_BEFORE = "_before_inducers"
_CROSS = ("encoder_attn", "crossattention", "cross_attn", "EncDecAttention")
_WRAPPERS = ("_orig_mod.", "module.")


def attach(model, rank=8, *, adaptive_length=False, layers=None):
    """Freezes the model, gives every self-attention layer (or those whose number is in `layers`) an `Inducer`, and has the
    model use them. Returns the inducers, by the names of their layers, as one module.

    What else shall be trained, such as the head of a classifier, is thawed afterwards with `requires_grad_(True)`. If anything is
    wrong, an `Error` says so and the model is as it was.
    """
    checked_rank("rank", rank)
    found = list(_self_attention(model))
    if not found:
        raise Error(f"model: no layer of {type(model).__name__} is recognised as self-attention (with is_causal and head_dim)")
    if any(hasattr(layer, ATTRIBUTE) for _, layer in found):
        raise Error("model: it has inducers already")
    numbers = range(len(found)) if layers is None else layers
    if not numbers or any(number not in range(len(found)) for number in numbers):
        raise Error(f"layers: {layers!r}, expected numbers from 0 to {len(found) - 1}")
    chosen = [(*found[number], *_heads(*found[number])) for number in sorted(set(numbers))]
    if any(hasattr(layer, "sinks") for _, layer in found):
        raise Error(f"model: {type(model).__name__} has attention sinks of its own, which attention '{NAME}' does not know")
    before = model.config._attn_implementation, [name for name, p in model.named_parameters() if p.requires_grad]
    model.set_attn_implementation(NAME)
    deaf = [name for name, layer, *_ in chosen if getattr(layer, "config", model.config)._attn_implementation != NAME]
    if deaf:
        model.set_attn_implementation(before[0])
        raise Error(f"model: {deaf[0]} does not take its attention from transformers' AttentionInterface")
    setattr(model, _BEFORE, before)
    model.requires_grad_(False)
    for _, layer, heads, head_dim in chosen:
        device = next(layer.parameters()).device
        setattr(layer, ATTRIBUTE, Inducer(heads, head_dim, rank, adaptive_length=adaptive_length, device=device))
    return inducers(model)


def detach(model):
    """Takes the inducers away again: the model computes and trains what it did before `attach`."""
    if not hasattr(model, _BEFORE):
        raise Error("model: it has no inducers; attach makes them")
    implementation, trained = getattr(model, _BEFORE)
    for _, layer in _self_attention(model):
        if hasattr(layer, ATTRIBUTE):
            delattr(layer, ATTRIBUTE)
    delattr(model, _BEFORE)
    model.set_attn_implementation(implementation)
    parameters = dict(model.named_parameters())
    for name in trained:
        parameters[name].requires_grad_(True)


def inducers(model):
    """The model's inducers as one module, under the names of their layers with dots made `/`."""
    return nn.ModuleDict({
        name.replace(".", "/"): getattr(layer, ATTRIBUTE) for name, layer in _self_attention(model) if hasattr(layer, ATTRIBUTE)
    })


def save(model, path):
    """Writes the inducers' parameters, `<layer>.inducer.key.down_weight` and so on, as safetensors; nothing else of the model."""
    tensors = _parameters(model)
    if not tensors:
        raise Error("model: it has no inducers; attach makes them")
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path, _metadata(model))


def load(model, path):
    """Reads what `save` wrote into a model with the same inducers."""
    tensors, file = _parameters(model), load_file(path)
    if tensors.keys() != file.keys():
        odd = sorted(tensors.keys() ^ file.keys())
        raise Error(f"{path}: its tensors are not those of the model; first of {len(odd)} differences: {odd[0]}")
    for name, tensor in tensors.items():
        if tensor.shape != file[name].shape:
            raise Error(f"{path}: {name} is {list(file[name].shape)}, expected {list(tensor.shape)}")
    with safe_open(path, "pt") as opened:
        wrote, here = (opened.metadata() or {}).get("adaptive_length"), _metadata(model)["adaptive_length"]
    if wrote not in (None, here):
        raise Error(f"{path}: adaptive_length is {wrote}, expected {here}, as the model was attached")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(file[name])


def _metadata(model):
    adaptive = any(inducer.adaptive_length for inducer in inducers(model).values())
    return {"format": "inducer-attention 1", "adaptive_length": str(adaptive).lower()}


def _parameters(model):
    """The inducers' parameters by name, without what wrappers put before it."""
    def plain(name):
        for wrapper in _WRAPPERS:
            name = name.removeprefix(wrapper)
        return name

    return {plain(name): p for name, p in model.named_parameters() if f".{ATTRIBUTE}." in name}


def _self_attention(model):
    """Layers that hand over themselves to the registered attention function."""
    for name, module in model.named_modules():
        crosses = getattr(module, "is_cross_attention", False) or "cross" in type(module).__name__.lower()
        if hasattr(module, "is_causal") and _head_dim(module) and not crosses and name.rpartition(".")[2] not in _CROSS:
            yield name, module


def _head_dim(layer):
    return next((n for n in (getattr(layer, a, None) for a in ("head_dim", "attention_head_size", "head_size")) if n), None)


def _heads(name, layer):
    """Query heads and head_dim of a layer."""
    config = getattr(layer, "config", None)
    for source, attribute in ((layer, "num_heads"), (layer, "num_attention_heads"), (config, "num_attention_heads")):
        heads = getattr(source, attribute, None)
        if isinstance(heads, int):
            return heads, _head_dim(layer)
    raise Error(f"{name}: the number of its heads is not where other models have it")


# What the mask function says to the attention function: an i64 tensor `[B, 6]`, for masks go through models as tensors. A row is a
# mark, an entry's first key and the one behind its last, how far a query sees to the left and to the right (−1: all), and M.
_MARK, _OTHER = 0x1D0CE5, 0x1D0CE6


def attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, is_causal=None, sliding_window=None,
              softcap=None, **other):
    """The attention function of transformers' interface: Q `[B, H, N, d]`, K and V `[B, Hkv, M, d]`; returns `[B, N, H, d]`."""
    unsupported = [name for name in ("s_aux", "position_bias", "cu_seq_lens_q") if other.get(name) is not None]
    if unsupported:
        raise Error(f"{unsupported[0]}: given, but attention '{NAME}' does not know it")
    settings = {"softmax_scale": scaling, "dropout_p": dropout, "softcap": softcap}
    starts = None
    if attention_mask is None:
        # Nobody asked the mask function: what the layer says of itself holds. Of a window the query's own key is one.
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        reach = None if sliding_window is None else sliding_window - 1
        settings |= {"causal": causal, "window": (reach, None if causal else reach)}
    else:
        starts, ends, left, right = _bounds(attention_mask, key.shape[2])
        causal = right == 0
        settings["window"] = left, right
    inducer = getattr(module, ATTRIBUTE, None)
    if starts is not None:
        adaptive = inducer is not None and inducer.adaptive_length
        settings |= _lists(attention_mask, starts, ends, query, key, causal, adaptive)
    if inducer is None:
        o = inducer_attention(query, key, value, **settings)
    else:
        o = inducer(query, key, value, **settings)
    return o.transpose(1, 2), None


@torch.compiler.disable
def _lists(mask, starts, ends, query, key, causal, adaptive):
    """What the mask says, where the layer computes: layers of one model share what the first of them had copied there."""
    rows, keys = query.shape[2], key.shape[2]
    held, name = mask.__dict__.setdefault("_inducer_lists", {}), (query.device, rows, causal, adaptive)
    if name not in held:
        lists = {}
        if bool((starts != 0).any()):
            lists["key_starts"] = starts
        if bool((ends != keys).any()):
            lists["key_lengths"] = ends
        if adaptive:
            # Positions count from an entry's first token.
            own = torch.arange(rows, device="cpu") + (keys - rows if causal else 0) + 1
            lists["positions"] = (own[None] - starts[:, None]).clamp(min=1)
        held[name] = {name: t.to(torch.int32).to(query.device, non_blocking=True) for name, t in lists.items()}
    return held[name]


def _bounds(mask, keys):
    """First keys, ends, and how far queries see to the left and right."""
    # Where it was made; accelerate moves it to the layer's GPU, and this then waits once instead of at each look.
    mask = mask.cpu()
    marked = mask.dim() == 2 and mask.shape[1] == 6 and mask.dtype == torch.int64 and bool((mask[:, :1] >= _MARK).all())
    if not marked:
        raise Error(f"attention_mask: {list(mask.shape)} of {mask.dtype}; attention '{NAME}' takes padding masks [B, M], and models "
                    "that hand over what transformers' mask functions return")
    if mask.shape[0] == 0:
        return mask[:, 1], mask[:, 2], None, None
    mark, _, _, left, right, length = mask[0].tolist()
    if mark == _OTHER or length != keys:
        raise Error(
            f"attention_mask: attention '{NAME}' knows causal, bidirectional and sliding-window masks with padding; this one is "
            "another (packed sequences, chunks, a mask of the model's own, a cache of fixed size)"
        )
    return mask[:, 1], mask[:, 2], *(None if reach < 0 else reach for reach in (left, right))


@torch.compiler.disable
def mask(batch_size, q_length, kv_length, q_offset=0, kv_offset=0, mask_function=None, attention_mask=None, local_size=None,
         allow_is_causal_skip=True, allow_is_bidirectional_skip=False, **_):
    """The mask function of transformers' interface: intervals of keys instead of a matrix. A mask that is more than that is marked,
    and refused where a layer uses it."""
    # What the function says of queries and keys a few places from the first.
    def sees(query, key):
        return mask_function is None or bool(mask_function(*(torch.tensor(n, device="cpu") for n in (0, 0, query, key))))

    left, right = -1, -1 if sees(0, 1) else 0
    # Masks with anything added, and packed sequences, are the ones that may not be skipped; a causal one is aligned to the right.
    plain = (allow_is_causal_skip or allow_is_bidirectional_skip) and sees(0, 0)
    plain &= right < 0 or int(q_offset) + q_length == int(kv_offset) + kv_length
    if plain and local_size is not None and kv_length > local_size:
        # Whether a distance of local_size is within, which bidirectional windows say, or not; chunks end elsewhere.
        left = next((n for n in (local_size, local_size - 1) if n >= 0 and sees(n, 0)), -1)
        right = right if right == 0 else next((n for n in (local_size, local_size - 1) if n >= 0 and sees(0, n)), -1)
        plain = left >= 0 and sees(left + 1, 1) and not sees(left + 1, 0)
    starts, ends = torch.zeros(batch_size, dtype=torch.int64, device="cpu"), torch.full((batch_size,), kv_length, device="cpu")
    if attention_mask is not None:
        there = attention_mask[:, -kv_length:] if kv_length else attention_mask[:, :0]
        if there.shape[1] == kv_length > 0:
            starts, ends = _intervals(there.cpu())
        else:
            plain &= kv_length == 0
    mark, *both, length = (
        torch.full((batch_size,), n, device="cpu") for n in (_MARK if plain else _OTHER, left, right, kv_length))
    return torch.stack([mark, starts, ends, *both, length], dim=1)


def _intervals(there):
    """First keys and ends of what a padding mask `[B, M]` leaves."""
    there = there.to(torch.int64)
    starts, ends = there.argmax(dim=1), there.shape[1] - there.flip(1).argmax(dim=1)
    empty = there.sum(dim=1) == 0
    starts, ends = starts.masked_fill(empty, 0), ends.masked_fill(empty, 0)
    if not torch.equal(ends - starts, (there != 0).sum(dim=1)):
        raise Error("attention_mask: an entry has padding between its tokens, expected it on the left or on the right")
    return starts, ends


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, mask)
