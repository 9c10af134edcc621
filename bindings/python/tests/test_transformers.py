"""Hugging Face models, small and random, with their attention computed here."""

import pytest
import torch
import transformers
from transformers import (BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM,
                          MistralConfig, MistralForCausalLM)

from inducer_attention import Error
from inducer_attention.transformers import NAME, attach, detach, inducers, load, save

VOCABULARY, WIDTH = 61, 32


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_head=4, n_layer=2, n_positions=64,
                                      resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                                      initializer_range=0.2))


def decoder(config, model, **more):
    return model(config(vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2,
                        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2, **more))


def llama():
    return decoder(LlamaConfig, LlamaForCausalLM)


def mistral():
    return decoder(MistralConfig, MistralForCausalLM, sliding_window=5)


def bert():
    return BertForMaskedLM(BertConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2,
                                      num_attention_heads=4, max_position_embeddings=64, hidden_dropout_prob=0.0,
                                      attention_probs_dropout_prob=0.0, initializer_range=0.2))


MODELS = [gpt2, llama, mistral, bert]


@pytest.fixture(params=MODELS, ids=lambda make: make.__name__)
def model(request):
    torch.manual_seed(0)
    return request.param().eval()


@pytest.fixture
def tokens():
    return torch.randint(VOCABULARY, (3, 17), generator=torch.Generator().manual_seed(1))


def padding(side):
    mask = torch.ones(3, 17, dtype=torch.long)
    for row, count in enumerate((0, 4, 9)):
        if count:
            mask[row, slice(0, count) if side == "left" else slice(17 - count, 17)] = 0
    return mask


@pytest.mark.parametrize("side", [None, "left", "right"])
def test_without_inducers_it_is_the_models_own_attention(model, tokens, side):
    mask = None if side is None else padding(side)
    with torch.no_grad():
        want = model(tokens, attention_mask=mask).logits
        model.set_attn_implementation(NAME)
        got = model(tokens, attention_mask=mask).logits
    there = slice(None) if mask is None else mask.bool()
    torch.testing.assert_close(got[there], want[there], rtol=1e-4, atol=1e-5)


def test_attach_freezes_starts_at_the_model_and_learns(model, tokens, tmp_path):
    with torch.no_grad():
        before = model(tokens).logits
    trained = attach(model, rank=4)
    wanted = {name for name, p in model.named_parameters() if p.requires_grad}
    assert wanted and all(".inducer." in name for name in wanted)
    assert sum(p.numel() for p in trained.parameters()) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, before, rtol=0, atol=2e-2)
    optimizer, losses = torch.optim.AdamW(trained.parameters(), lr=1e-2), []
    for _ in range(30):
        loss = model(tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.02, losses

    with torch.no_grad():
        tuned = model(tokens).logits
    save(model, tmp_path / "adapter.safetensors")
    detach(model)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, before, rtol=1e-4, atol=1e-5)
    attach(model, rank=4)
    load(model, tmp_path / "adapter.safetensors")
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, tuned)


@pytest.mark.parametrize("make", [gpt2, llama, mistral], ids=lambda make: make.__name__)
def test_generation_with_a_cache_is_that_without(make, tokens):
    torch.manual_seed(0)
    model = make().eval()
    attach(model, rank=4)
    with torch.no_grad():
        for p in inducers(model).parameters():
            p.normal_(std=0.3)
    settings = {"attention_mask": padding("left"), "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    with_cache = model.generate(tokens, use_cache=True, **settings)
    without = model.generate(tokens, use_cache=False, **settings)
    assert torch.equal(with_cache, without)


def test_some_layers(tokens):
    model = gpt2()
    attach(model, rank=4, layers=[1])
    assert list(inducers(model)) == ["transformer/h/1/attn"]


def test_dropout_in_training(tokens):
    model = gpt2()
    for block in model.transformer.h:
        block.attn.attn_dropout.p = 0.5
    model.set_attn_implementation(NAME)
    model.train()
    assert not torch.equal(model(tokens).logits, model(tokens).logits)
    model.eval()
    assert torch.equal(model(tokens).logits, model(tokens).logits)


def test_mistakes(tokens, tmp_path):
    model = gpt2()
    with pytest.raises(Error, match="it has no inducers"):
        save(model, tmp_path / "nothing.safetensors")
    attach(model, rank=4)
    with pytest.raises(Error, match="it has inducers already"):
        attach(model)
    save(model, tmp_path / "four.safetensors")
    other = gpt2()
    attach(other, rank=5)
    with pytest.raises(Error, match=r"inducer.key.down_weight is \[4, 8, 4\], expected \[4, 8, 5\]"):
        load(other, tmp_path / "four.safetensors")
    with pytest.raises(Error, match="differences"):
        load(gpt2(), tmp_path / "four.safetensors")
    with pytest.raises(Error, match="layers"):
        attach(gpt2(), layers=[7])
    with pytest.raises(Error, match="no self-attention"):
        attach(torch.nn.Linear(2, 2))
    holes = torch.ones(3, 17, dtype=torch.long)
    holes[1, 5] = 0
    with pytest.raises(Error, match="padding between its tokens"):
        model(tokens, attention_mask=holes)
    positions = torch.cat([torch.arange(9), torch.arange(8)])[None].expand(3, -1)
    model = llama()
    attach(model)
    with pytest.raises(Error, match="packed sequences"):
        model(tokens, position_ids=positions, use_cache=False)


def test_transformers_is_as_new_as_the_package_asks():
    assert tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 20)
