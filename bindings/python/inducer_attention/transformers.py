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
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

from .functional import inducer_attention
from .library import Error
from .module import Inducer

NAME = "inducer"
"""What the attention is registered as: `model.set_attn_implementation(NAME)`."""
ATTRIBUTE = "inducer"
"""What the module is called in an attention layer."""


def attach(model, rank=8, *, adaptive_length=False, layers=None):
    """Freezes the model, gives every self-attention layer (or those whose number is in `layers`) an `Inducer`, and has the
    model use them. Returns the inducers, by the names of their layers, as one module."""
    found = dict(_self_attention(model))
    if not found:
        raise Error(f"model: {type(model).__name__} has no self-attention that takes part in AttentionInterface")
    if any(hasattr(layer, ATTRIBUTE) for layer in found.values()):
        raise Error("model: it has inducers already")
    chosen = [
        (name, layer) for number, (name, layer) in enumerate(found.items()) if layers is None or number in layers
    ]
    if not chosen:
        raise Error(f"layers: {layers!r}, expected numbers from 0 to {len(found) - 1}")
    model.requires_grad_(False)
    for name, layer in chosen:
        heads, head_dim = _heads(name, layer)
        device = next(layer.parameters()).device
        setattr(layer, ATTRIBUTE, Inducer(heads, head_dim, rank, adaptive_length=adaptive_length, device=device))
    model.set_attn_implementation(NAME)
    return inducers(model)


def detach(model, implementation="sdpa"):
    """Takes the inducers away again; the model then computes what it did before."""
    for _, layer in _self_attention(model):
        if hasattr(layer, ATTRIBUTE):
            delattr(layer, ATTRIBUTE)
    model.set_attn_implementation(implementation)


def inducers(model):
    """The model's inducers as one module, under the names of their layers with dots made `/`."""
    return nn.ModuleDict({
        name.replace(".", "/"): getattr(layer, ATTRIBUTE) for name, layer in _self_attention(model) if hasattr(layer, ATTRIBUTE)
    })


def save(model, path):
    """Writes the inducers' parameters, `<layer>.inducer.key.down_weight` and so on, as safetensors."""
    tensors = _parameters(model)
    if not tensors:
        raise Error("model: it has no inducers; attach makes them")
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)


def load(model, path):
    """Reads what `save` wrote into a model with the same inducers."""
    tensors, file = _parameters(model), load_file(path)
    if tensors.keys() != file.keys():
        odd = sorted(tensors.keys() ^ file.keys())
        raise Error(f"{path}: its tensors are not those of the model; first of {len(odd)} differences: {odd[0]}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            if tensor.shape != file[name].shape:
                raise Error(f"{path}: {name} is {list(file[name].shape)}, expected {list(tensor.shape)}")
        for name, tensor in tensors.items():
            tensor.copy_(file[name])


def _parameters(model):
    return {name: p for name, p in model.named_parameters() if f".{ATTRIBUTE}." in name}


def _self_attention(model):
    """Layers that hand over themselves to the registered attention function."""
    for name, module in model.named_modules():
        is_attention = hasattr(module, "is_causal") and (hasattr(module, "head_dim") or hasattr(module, "attention_head_size"))
        crosses = getattr(module, "is_cross_attention", False) or "cross" in type(module).__name__.lower()
        if is_attention and not crosses:
            yield name, module


def _heads(name, layer):
    """Query heads and head_dim of a layer."""
    head_dim = getattr(layer, "head_dim", None) or layer.attention_head_size
    config = getattr(layer, "config", None)
    for source, attribute in ((layer, "num_heads"), (layer, "num_attention_heads"), (config, "num_attention_heads")):
        heads = getattr(source, attribute, None)
        if isinstance(heads, int):
            return heads, head_dim
    raise Error(f"{name}: the number of its heads is not where other models have it")


def attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, is_causal=None, sliding_window=None,
              softcap=None, **other):
    """The attention function of transformers' interface: Q `[B, H, N, d]`, K and V `[B, Hkv, M, d]`; returns `[B, N, H, d]`."""
    unsupported = [name for name in ("s_aux", "position_bias", "cu_seq_lens_q") if other.get(name) is not None]
    if unsupported:
        raise Error(f"{unsupported[0]}: given, but attention '{NAME}' does not know it")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    settings = {"causal": causal, "softmax_scale": scaling, "dropout_p": dropout, "softcap": softcap}
    if sliding_window is not None:
        # Of so many keys the query's own is one; without a causal mask the window reaches to both sides.
        settings["window"] = (sliding_window - 1, None) if causal else (sliding_window, sliding_window)
    settings |= _lengths(attention_mask, key.shape[2])
    inducer = getattr(module, ATTRIBUTE, None)
    o = inducer_attention(query, key, value, **settings) if inducer is None else inducer(query, key, value, **settings)
    return o.transpose(1, 2), None


def _lengths(mask, keys):
    """The keys that a padding mask leaves, `[B, M]`, true or 1 where there is one: a first and a number of each entry."""
    if mask is None:
        return {}
    if mask.dim() != 2 or mask.shape[1] != keys:
        raise Error(f"attention_mask: {list(mask.shape)}, expected [B, {keys}]: which keys are padding, and nothing else")
    there = mask.to(torch.int32)
    starts = there.argmax(dim=1)
    ends = keys - there.flip(1).argmax(dim=1)
    empty = there.sum(dim=1) == 0
    starts, ends = starts.masked_fill(empty, 0), ends.masked_fill(empty, 0)
    if not torch.equal(ends - starts, there.sum(dim=1)):
        raise Error("attention_mask: an entry has padding between its tokens, expected it on the left or on the right")
    return {"key_starts": starts.to(torch.int32), "key_lengths": ends.to(torch.int32)}


def mask(batch_size, q_length, kv_length, q_offset=0, kv_offset=0, mask_function=None, attention_mask=None, local_size=None,
         allow_is_causal_skip=True, allow_is_bidirectional_skip=False, **_):
    """The mask function of transformers' interface: the padding mask alone, `[B, M]`; what is causal or a window the attention
    function hears from the layer. Raises where there is more to a mask than that."""
    plain = allow_is_causal_skip or allow_is_bidirectional_skip
    if plain and local_size is not None and kv_length > local_size and mask_function is not None:
        # In a window query c sees key 1 of c keys; in chunks of c it is the first that does not.
        zero, first = torch.tensor(0), torch.tensor(1)
        plain = bool(mask_function(zero, zero, torch.tensor(local_size), first))
    if not plain:
        raise Error(
            f"attention_mask: attention '{NAME}' knows causal, bidirectional and sliding-window masks with padding; this one is "
            "another (packed sequences, chunks, a mask of the model's own, a cache of fixed size)"
        )
    if attention_mask is None:
        return None
    attention_mask = attention_mask[:, -kv_length:]
    return None if attention_mask.shape[1] == kv_length and attention_mask.all() else attention_mask


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, mask)
