"""README's examples run as they stand; the model comes from a folder instead of the hub."""

import pathlib

import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

README = pathlib.Path(__file__).resolve().parents[1] / "README.md"


def blocks():
    return [part.split("```")[0] for part in README.read_text().split("```python\n")[1:]]


def test_tuning(tmp_path, monkeypatch):
    GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_head=4, n_layer=2, n_positions=32)).save_pretrained(tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    scope = {"batches": [torch.randint(50, (2, 16)) for _ in range(2)]}
    exec(blocks()[0], scope)
    assert (tmp_path / "adapter.safetensors").stat().st_size > 0
    assert isinstance(scope["model"], AutoModelForCausalLM.from_pretrained("gpt2").__class__)


def test_the_function():
    scope = {}
    exec(blocks()[1], scope)
    q, k, v = (scope[name] for name in "qkv")
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    # With an up projection of 0 the virtual value adds nothing.
    torch.testing.assert_close(scope["o"], plain, rtol=1e-4, atol=1e-5)
