"""The function and the module against the equations written down in torch, in float64, with autograd."""

import os
import threading

import pytest
import torch

from inducer_attention import Adapter, Error, Inducer, inducer_attention

B, H, HKV, N, M, D, R, L = 2, 4, 2, 9, 11, 8, 3, 2


def draw(*shape, seed, scale=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * scale).to(dtype).requires_grad_()


def adapter(seed, activation="tanh", up=True):
    parts = [draw(H, D, R, seed=seed, scale=0.5), draw(H, R, seed=seed + 1, scale=0.5)]
    if up:
        parts += [draw(H, R, D, seed=seed + 2, scale=0.5), draw(H, D, seed=seed + 3, scale=0.5)]
    return Adapter(*parts, activation=activation)


def hidden(a, x):
    z = torch.einsum("bhnd,hdr->bhnr", x, a.down_weight.double()) + a.down_bias.double()[:, None]
    return torch.tanh(z) if a.activation == "tanh" else z


def apply(a, x):
    return torch.einsum("bhnr,hrd->bhnd", hidden(a, x), a.up_weight.double()) + a.up_bias.double()[:, None]


def equations(q, k, v, *, key=None, value="zero", key_adapter=None, value_adapter=None, logit=None, prefix=None, seen=None,
              scale=D**-0.5, softcap=None, bias=0.0, tau=1.0):
    """O, lse and U in float64. `seen` is true where a query sees a key; `bias` is added after the softcap."""
    q, k, v = q.double(), *(t.double().repeat_interleave(H // HKV, dim=1) for t in (k, v))
    cap = (lambda s: softcap * torch.tanh(s / softcap)) if softcap else lambda s: s
    scores = cap(q @ k.transpose(-1, -2) * scale) + bias
    if seen is not None:
        scores = scores.masked_fill(~seen, float("-inf"))
    if prefix is not None:
        pk, pv = (t.double().repeat_interleave(H // HKV, dim=0).expand(q.shape[0], -1, -1, -1) for t in prefix)
        scores = torch.cat([cap(q @ pk.transpose(-1, -2) * scale), scores], dim=-1)
        v = torch.cat([pv, v], dim=2)
    lse = torch.logsumexp(scores, dim=-1)
    attn = torch.softmax(scores, dim=-1) @ v
    if key is None:
        return attn, lse, None
    if logit is not None:
        s0 = logit.double().expand(q.shape[:3]) if logit.dim() == 3 else logit.double()[:, None].expand(q.shape[:3])
    else:
        virtual = q + apply(key_adapter, q) if key == "residual" else q
        s0 = tau * scale * (q * virtual).sum(-1)
    weight = torch.sigmoid(s0 - lse)[..., None]
    if value == "extended":
        return attn, lse, weight * hidden(value_adapter, q)
    delta = 0 if value == "zero" else apply(value_adapter, q)
    return (attn if value == "residual" else (1 - weight) * attn) + weight * delta, lse, None


def leaves(arguments):
    found = []
    for value in arguments.values():
        for tensor in value if isinstance(value, tuple) else (value,):
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                found.append(tensor)
    return found


def check(arguments, settings, expected_settings, tolerance=5e-6):
    """Outputs and all gradients, through O, lse and U."""
    got = inducer_attention(**arguments, **settings, return_all=True)
    want = equations(**arguments, **expected_settings)
    tensors, losses = leaves(arguments), []
    for result in (got, want):
        loss = 0
        for i, output in enumerate(t for t in result if t is not None):
            loss = loss + (output * draw(*output.shape, seed=90 + i).detach()).sum()
        losses.append(loss)
    for a, b in zip(got, want):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=tolerance)
    gradients = [torch.autograd.grad(loss, tensors) for loss in losses]
    for a, b in zip(*gradients):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=4 * tolerance)


def qkv(dtype=torch.float32):
    # As a projection writes them: [B, N, H, d] in memory.
    def lies(x):
        return x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()

    return {
        "q": lies(draw(B, H, N, D, seed=1, dtype=dtype)), "k": lies(draw(B, HKV, M, D, seed=2, dtype=dtype)),
        "v": lies(draw(B, HKV, M, D, seed=3, dtype=dtype)),
    }


def causal_mask(n=N, m=M):
    return torch.arange(m)[None] <= torch.arange(n)[:, None] + m - n


@pytest.mark.parametrize("value", ["zero", "residual", "direct", "extended"])
@pytest.mark.parametrize("key", ["query", "residual", "logit_per_head", "logit_per_token"])
def test_every_virtual_token(key, value):
    arguments = qkv() | {"key": key, "value": value}
    if key == "residual":
        arguments["key_adapter"] = adapter(10)
    if key.startswith("logit"):
        arguments["logit"] = draw(H, seed=30) if key == "logit_per_head" else draw(B, H, N, seed=30)
    if value != "zero":
        arguments["value_adapter"] = adapter(20, "identity" if key == "query" else "tanh", up=value != "extended")
    check(arguments, {"causal": True}, {"seen": causal_mask()})


def test_settings_of_the_attention():
    distance = (torch.arange(N)[:, None] + M - N - torch.arange(M)[None])
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])
    lengths, starts = torch.tensor([11, 8], dtype=torch.int32), torch.tensor([2, 0], dtype=torch.int32)
    columns = torch.arange(M)[None, None, None]
    seen = (columns >= starts[:, None, None, None]) & (columns < lengths[:, None, None, None])
    for settings, expected in [
        ({}, {}),
        ({"softmax_scale": 0.7}, {"scale": 0.7}),
        ({"softcap": 0.5}, {"softcap": 0.5}),
        ({"window": (3, 1)}, {"seen": (distance <= 3) & (distance >= -1)}),
        ({"alibi_slopes": slopes}, {"bias": -slopes[:, None, None].double() * distance.abs()}),
        ({"key_lengths": lengths, "key_starts": starts}, {"seen": seen}),
    ]:
        check(qkv(), settings, expected)


def test_prefix_and_adaptive_length():
    prefix = (draw(HKV, L, D, seed=40), draw(HKV, L, D, seed=41))
    check(qkv() | {"prefix": prefix, "key": "query"}, {}, {})
    tau = torch.arange(1, N + 1).double().sqrt()
    check(qkv() | {"key": "query"}, {"adaptive_length": True}, {"tau": tau})
    positions = torch.arange(B * N, dtype=torch.int32).reshape(B, N)
    tau = positions.double().sqrt()[:, None]
    check(qkv() | {"key": "query"}, {"adaptive_length": True, "positions": positions}, {"tau": tau})


def test_packed_sequences():
    q, k, v = (draw(1, h, 10, D, seed=i) for i, h in enumerate((H, HKV, HKV)))
    bounds = torch.tensor([0, 4, 10], dtype=torch.int32)
    packed = inducer_attention(q, k, v, causal=True, cu_seqlens_q=bounds, cu_seqlens_k=bounds)
    for first, end in ((0, 4), (4, 10)):
        one = inducer_attention(*(t[:, :, first:end] for t in (q, k, v)), causal=True)
        assert torch.equal(packed[:, :, first:end], one)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype):
    arguments = qkv(dtype) | {"key": "residual", "value": "residual", "key_adapter": adapter(10), "value_adapter": adapter(20)}
    o = inducer_attention(**arguments)
    want = equations(**arguments)[0]
    assert o.dtype == dtype
    torch.testing.assert_close(o.double(), want, rtol=2e-2, atol=2e-2)
    upstream = draw(*o.shape, seed=90).detach()
    tensors = leaves(arguments)
    got = torch.autograd.grad((o * upstream.to(dtype)).sum(), tensors)
    exact = torch.autograd.grad((want * upstream).sum(), tensors)
    for a, b, t in zip(got, exact, tensors):
        assert a.dtype == t.dtype
        assert (a.double() - b.double()).norm() < 3e-2 * b.double().norm()


def test_gradients_that_are_not_wanted_and_upstream_without_strides():
    arguments = qkv() | {"key": "residual", "value": "residual", "key_adapter": adapter(10), "value_adapter": adapter(20)}
    for tensor in leaves(arguments):
        tensor.requires_grad_(False)
    assert not inducer_attention(**arguments).requires_grad
    weight = arguments["value_adapter"].up_weight.requires_grad_()
    # The gradient of a sum is one number seen everywhere.
    inducer_attention(**arguments).sum().backward()
    want = torch.autograd.grad(equations(**arguments)[0].sum(), weight)[0]
    torch.testing.assert_close(weight.grad, want, rtol=1e-4, atol=1e-5)
    assert arguments["q"].grad is None and arguments["value_adapter"].up_bias.grad is None


def test_dropout_follows_the_generator():
    arguments = qkv()
    def run(seed):
        torch.manual_seed(seed)
        return inducer_attention(**arguments, dropout_p=0.5)
    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))
    torch.manual_seed(3)
    mean = sum(inducer_attention(**arguments, dropout_p=0.5).detach() for _ in range(2000)) / 2000
    torch.testing.assert_close(mean, inducer_attention(**arguments).detach(), rtol=0, atol=0.15)


def test_the_module_is_the_published_initialisation():
    inducer = Inducer(H, D, rank=5)
    names = {name: tuple(p.shape) for name, p in inducer.named_parameters()}
    one = {"down_weight": (H, D, 5), "down_bias": (H, 5), "up_weight": (H, 5, D), "up_bias": (H, D)}
    assert names == {f"{side}.{part}": shape for side in ("key", "value") for part, shape in one.items()}
    for adapter_module in (inducer.key, inducer.value):
        assert 0.005 < adapter_module.down_weight.std() < 0.01 and adapter_module.down_weight.abs().max() <= 0.02
        assert not adapter_module.up_bias.any()
    arguments = qkv()
    want = equations(**arguments, seen=causal_mask())[0]
    torch.testing.assert_close(inducer(**arguments, causal=True).double(), want, rtol=0, atol=1e-2)


def test_nothing_at_all_has_gradients_too():
    for shape in ((0, H, N, D), (B, H, 0, D)):
        q = torch.randn(shape).requires_grad_()
        inducer_attention(q, q, q, key="query").sum().backward()
        assert q.grad.shape == q.shape
    # No key at all: every row is empty.
    q, k = torch.randn(B, H, N, D).requires_grad_(), torch.randn(B, HKV, 0, D)
    assert not inducer_attention(q, k, k).any()


def test_strides_of_any_kind():
    k = torch.randn(1, 8, 1).transpose(1, 2).unsqueeze(1).expand(1, 1, 5, 8).requires_grad_()
    q = torch.randn(1, 4, 8, 6).transpose(2, 3).requires_grad_()
    o = inducer_attention(q, k, k)
    o.sum().backward()
    want = equations(q.expand(1, 4, 6, 8), k.expand(1, 1, 5, 8).repeat(1, HKV, 1, 1), k.repeat(1, HKV, 1, 1))[0]
    torch.testing.assert_close(o.double(), want, rtol=1e-5, atol=1e-6)


def test_lists_of_other_integers_and_lists_that_change():
    arguments = qkv()
    lengths = torch.tensor([11, 8])
    want = inducer_attention(**arguments, key_lengths=lengths.to(torch.int32))
    assert torch.equal(inducer_attention(**arguments, key_lengths=lengths), want)
    assert torch.equal(inducer_attention(**arguments, key_lengths=[11, 8]), want)
    lengths = lengths.to(torch.int32)
    o = inducer_attention(**arguments, key_lengths=lengths)
    lengths.fill_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        o.sum().backward()


def test_autocast():
    arguments = qkv() | {"key": "residual", "value": "residual", "key_adapter": adapter(10), "value_adapter": adapter(20)}
    arguments["v"] = arguments["v"].detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        o = inducer_attention(**arguments)
    assert o.dtype == torch.bfloat16
    o.float().sum().backward()
    assert arguments["q"].grad.dtype == torch.float32


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_hears_of_it():
    q = torch.randn(2, 4, 512, 64)
    inducer_attention(q, q, q)
    child = os.fork()
    if child == 0:
        try:
            inducer_attention(q, q, q)
        except Error as error:
            os._exit(7 if "forked" in str(error) else 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_ranks():
    for rank in (0, 65, -1, 2.0, None):
        with pytest.raises(Error, match="rank: .*, expected 1 to 64"):
            Inducer(H, D, rank)
    with pytest.raises(Error, match="key_rank: 0"):
        Inducer(H, D, key_rank=0)
    assert "heads=4, head_dim=8, rank=64" in repr(Inducer(H, D, 64))


def test_torchs_defaults_do_not_matter():
    arguments = qkv() | {"key": "residual", "value": "residual", "key_adapter": adapter(10), "value_adapter": adapter(20)}
    want = inducer_attention(**arguments).sum()
    gradients = torch.autograd.grad(want, leaves(arguments))
    torch.set_default_dtype(torch.float64)
    try:
        assert Inducer(H, D).key.up_bias.dtype == torch.float32
        got = inducer_attention(**arguments).sum()
        assert torch.equal(got, want)
        for a, b in zip(torch.autograd.grad(got, leaves(arguments)), gradients):
            assert torch.equal(a, b)
    finally:
        torch.set_default_dtype(torch.float32)


def test_calls_from_several_threads():
    arguments = qkv() | {"key": "query"}
    want, failures = inducer_attention(**arguments), []

    def work():
        for _ in range(50):
            if not torch.equal(inducer_attention(**arguments), want):
                failures.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("change, message", [
    ({"key": "keys"}, "key: 'keys', expected one of"),
    ({"value": None}, "value: None, expected one of"),
    ({"key": "residual"}, "key_adapter.down_weight: null"),
    ({"value": "residual"}, "value: given, but key is IA_KEY_NONE"),
    ({"k": torch.zeros(B, 3, M, D)}, "v: shape [2, 2, 11, 8], expected [B, Hkv, M, d] = [2, 3, 11, 8]"),
    ({"k": torch.zeros(B, HKV, M, D, dtype=torch.float64)}, "k: torch.float64, expected one of"),
    ({"q": torch.zeros(B, H, N)}, "q: 3 dimensions, expected 4"),
    ({"q": torch.zeros(B, H, N, D, device="meta")}, "q: on meta, expected the CPU"),
    ({"dropout_p": 1.0}, "dropout_p: 1, expected 0 <= p < 1"),
    ({"window": (-1, None)}, "window_left: -1, expected 0 or more"),
    ({"softcap": -1.0}, "softcap: -1, expected"),
    ({"key_lengths": torch.tensor([1.5, 2.0])}, "key_lengths: torch.float32, expected torch.int32"),
    ({"window": 3}, "window: 3, expected a pair"),
    ({"alibi_slopes": torch.ones(H, requires_grad=True)}, "alibi_slopes: requires a gradient"),
    ({"key": "residual", "key_adapter": 7}, "key_adapter: int, expected an Adapter"),
    ({"positions": torch.zeros(B, N, dtype=torch.int32)}, "positions: given, but key is IA_KEY_NONE"),
])
def test_mistakes_are_named(change, message):
    with pytest.raises(Error, match=None) as raised:
        inducer_attention(**(qkv() | change))
    assert str(raised.value).startswith(message), raised.value
