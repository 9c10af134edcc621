"""Hugging Face models, small and random, with their attention computed here."""

import pytest
import torch
from transformers import (BartConfig, BartForCausalLM, BartForConditionalGeneration, BertConfig, BertForMaskedLM, FalconConfig,
                          FalconForCausalLM, GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, GptOssConfig,
                          GptOssForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, ModernBertConfig,
                          ModernBertForMaskedLM, PhimoeConfig, PhimoeForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM, StaticCache)

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


def phimoe():
    # Its window is in the mask alone.
    return decoder(PhimoeConfig, PhimoeForCausalLM, sliding_window=5, num_local_experts=2, router_jitter_noise=0.0,
                   input_jitter_noise=0.0)


def modernbert():
    # Windows to both sides.
    return ModernBertForMaskedLM(ModernBertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        local_attention=6, global_attn_every_n_layers=2, max_position_embeddings=64, pad_token_id=0, initializer_range=0.2))


def neox():
    return GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2,
                                            num_attention_heads=4, max_position_embeddings=64, initializer_range=0.2))


def qwen2_moe():
    # Its configuration has a window of 0 for layers that there are none of.
    return decoder(Qwen2MoeConfig, Qwen2MoeForCausalLM, moe_intermediate_size=16, shared_expert_intermediate_size=16,
                   num_experts=4, num_experts_per_tok=2)


def bart(model=BartForCausalLM):
    return model(BartConfig(vocab_size=VOCABULARY, d_model=WIDTH, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
                            decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64,
                            dropout=0.0, init_std=0.2))


MODELS = [gpt2, llama, mistral, bert, phimoe, modernbert, neox, qwen2_moe, bart]


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
    with pytest.raises(Error, match=r"layers: \[0, 99\], expected numbers from 0 to 1"):
        attach(gpt2(), layers=[0, 99])


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
    with pytest.raises(Error, match="no layer of Linear is recognised"):
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


def test_models_that_cannot_be_tuned_are_left_as_they_are():
    sinks = decoder(GptOssConfig, GptOssForCausalLM, num_local_experts=2, head_dim=8)
    falcon = FalconForCausalLM(FalconConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4))
    for model, message in ((falcon, "does not take its attention from"), (sinks, "attention sinks of its own")):
        implementation = model.config._attn_implementation
        with pytest.raises(Error, match=message):
            attach(model)
        assert all(p.requires_grad for p in model.parameters())
        assert not any(".inducer." in name for name, _ in model.named_parameters())
        assert model.config._attn_implementation == implementation
    for rank in (0, 65):
        with pytest.raises(Error, match=f"rank: {rank}, expected 1 to 64"):
            attach(falcon, rank)


def test_cross_attention_is_not_self_attention(tokens):
    model = bart(BartForConditionalGeneration)
    names = list(inducers_of(model))
    assert len(names) == 4 and all(name.endswith("self_attn") for name in names)
    model(tokens, labels=tokens).loss.backward()
    assert all(p.grad is not None for p in inducers(model).parameters())


def inducers_of(model):
    return attach(model, rank=2)


def test_detach_gives_back_what_there_was(tokens):
    model = gpt2()
    model.set_attn_implementation("eager")
    model.transformer.wte.weight.requires_grad_(False)
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    attach(model)
    detach(model)
    assert model.config._attn_implementation == "eager"
    assert {name: p.requires_grad for name, p in model.named_parameters()} == trained
    with pytest.raises(Error, match="it has no inducers"):
        detach(model)


def test_a_cache_of_fixed_size_is_refused(tokens):
    model = llama().eval()
    attach(model)
    with pytest.raises(Error, match="a cache of fixed size"):
        model(tokens, past_key_values=StaticCache(config=model.config, max_cache_len=32))


@pytest.mark.parametrize("make", [gpt2, llama], ids=lambda make: make.__name__)
def test_adaptive_length_counts_from_the_first_token(make, tokens, tmp_path):
    torch.manual_seed(0)
    model = make().eval()
    trained = attach(model, rank=4, adaptive_length=True)
    with torch.no_grad():
        for p in trained.parameters():
            p.normal_(std=0.3)
        mask = padding("left")
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        padded = model(tokens, attention_mask=mask, position_ids=positions).logits
        alone = model(tokens[2:, 9:]).logits
    torch.testing.assert_close(padded[2:, 9:], alone, rtol=1e-4, atol=1e-5)
    save(model, tmp_path / "adapter.safetensors")
    other = make()
    attach(other, rank=4)
    with pytest.raises(Error, match="adaptive_length is true, expected false"):
        load(other, tmp_path / "adapter.safetensors")


def test_autocast_and_a_head_that_is_trained_too(tokens):
    model = llama()
    trained = attach(model, rank=2)
    model.lm_head.requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        model(tokens, labels=tokens).loss.backward()
    assert all(p.grad is not None for p in (*trained.parameters(), model.lm_head.weight))


def test_a_compiled_model_saves_under_its_own_names(tokens, tmp_path):
    model = gpt2()
    attach(model, rank=2)
    save(torch.compile(model), tmp_path / "adapter.safetensors")
    load(model, tmp_path / "adapter.safetensors")
