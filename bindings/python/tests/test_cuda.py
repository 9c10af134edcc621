"""Tensors of a GPU give what tensors of the CPU give. Where torch has no GPU, INDUCER_ATTENTION_EMULATED_DRIVER can name the folder
of the crate's emulated driver (README.md): then tensors stay on the CPU, and each call's are copied to the emulated device and back."""

import ctypes
import os
import pathlib

import pytest
import torch

from inducer_attention import Adapter, DeviceError, Error, backends, functional, inducer_attention
from inducer_attention import library as c

EMULATED = os.environ.get("INDUCER_ATTENTION_EMULATED_DRIVER")
B, H, N, D, R = 2, 4, 19, 16, 3


class Driver:
    """The emulated driver's device 0."""

    def __init__(self):
        self.lib = ctypes.CDLL(str(pathlib.Path(EMULATED) / "libcuda.so.1"))
        context = ctypes.c_void_p()
        for status in (self.lib.cuInit(0), self.lib.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)):
            assert status == 0
        self.context = context

    def call(self, name, *arguments):
        assert self.lib.cuCtxSetCurrent(self.context) == 0
        status = getattr(self.lib, name)(*arguments)
        assert status == 0, f"{name}: {status}"

    def allocate(self, size):
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        return address.value


def pointers(struct):
    """The struct's tensors, and a setter for each."""
    for name, kind, *_ in struct._fields_:
        value = getattr(struct, name)
        if kind is c.Adapter:
            yield from pointers(value)
        elif isinstance(value, ctypes.POINTER(c.Tensor)) and value:
            yield value.contents, lambda tensor, name=name: setattr(struct, name, ctypes.pointer(tensor))


class Emulated(backends.Cuda):
    """What torch lends lies in host memory: calls work on copies."""

    dlpack = (c.CPU, 0)

    def __init__(self, driver):
        self.driver, self.calls = driver, []

    def on_device(self, call, *structs):
        copies = []
        for struct in structs:
            for tensor, put in list(pointers(struct)):
                shape, strides = tensor.shape[:tensor.ndim], tensor.strides[:tensor.ndim]
                extent = 1 + sum((n - 1) * s for n, s in zip(shape, strides)) if all(shape) else 0
                size = extent * tensor.bits // 8
                # As on a GPU, what lies how in 16 bytes is kept.
                offset = (tensor.data or 0) % 16
                address = self.driver.allocate(size + offset) + offset
                self.driver.call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), ctypes.c_void_p(tensor.data), ctypes.c_size_t(size))
                copies.append((address, tensor.data, size))
                numbers = ctypes.c_int64 * len(shape)
                kind = tensor.ndim, tensor.code, tensor.bits, tensor.lanes
                put(c.Tensor(address, c.CUDA, 0, *kind, numbers(*shape), numbers(*strides), 0))
        result = call(*structs)
        self.driver.call("cuCtxSynchronize")
        for address, data, size in copies:
            self.driver.call("cuMemcpyDtoH_v2", ctypes.c_void_p(data), ctypes.c_uint64(address), ctypes.c_size_t(size))
        return result

    def stream(self):
        return 0

    def is_capturing(self):
        return False

    def forward(self, attention, outputs):
        self.calls.append(("forward", attention.max_seqlen_q, attention.max_seqlen_k))
        self.on_device(super().forward, attention, outputs)

    def backward(self, attention, gradients):
        self.calls.append(("backward", attention.max_seqlen_q, attention.max_seqlen_k))

        def call(attention, gradients):
            size = backends.loaded().cuda_backward_workspace(attention)
            workspace = self.driver.allocate(size)
            backends.loaded().cuda_backward(attention, gradients, workspace, size, self.stream())

        self.on_device(call, attention, gradients)


@pytest.fixture(scope="module")
def driver():
    return Driver() if EMULATED else None


@pytest.fixture
def gpu(driver, monkeypatch):
    """Computes like `inducer_attention`, on a GPU."""
    if not EMULATED and torch.cuda.is_available():
        def compute(*tensors, **settings):
            return inducer_attention(*(t.cuda() for t in tensors), **{name: to_gpu(x) for name, x in settings.items()})
        compute.calls = []
        return compute
    if driver is None:
        pytest.skip("no GPU, and INDUCER_ATTENTION_EMULATED_DRIVER is not set")
    emulated = Emulated(driver)

    def compute(*tensors, **settings):
        with monkeypatch.context() as patch:
            patch.setattr(functional, "backend", lambda device: emulated)
            return inducer_attention(*tensors, **settings)

    compute.calls = emulated.calls
    return compute


def to_gpu(x):
    if isinstance(x, torch.Tensor):
        return x.cuda()
    if isinstance(x, tuple):
        return type(x)(*map(to_gpu, x)) if hasattr(x, "_fields") else tuple(map(to_gpu, x))
    return x


def adapter(rank=R, dtype=torch.float32):
    shapes = (H, D, rank), (H, rank), (H, rank, D), (H, D)
    return Adapter(*(torch.randn(shape, dtype=dtype).mul(0.3).requires_grad_() for shape in shapes))


def leaves(*things):
    for x in things:
        if isinstance(x, tuple):
            yield from leaves(*x)
        elif isinstance(x, torch.Tensor) and x.requires_grad:
            yield x


def inputs(dtype=torch.float32, keys=N, batch=B):
    torch.manual_seed(0)
    q = torch.randn(batch, N, H, D).to(dtype).transpose(1, 2).requires_grad_()
    k, v = (torch.randn(batch, 2, keys, D).to(dtype).requires_grad_() for _ in range(2))
    return q, k, v


def check(gpu, tensors, tolerance=1e-4, **settings):
    """O, and all gradients of what requires one, are those of the CPU."""
    wanted = list(leaves(*tensors, *settings.values()))
    results = []
    for compute in (inducer_attention, gpu):
        result = compute(*tensors, return_all=True, **settings)
        seen = [t.cpu() for t in result if t is not None]
        torch.manual_seed(1)
        # Rows without a key have lse of -inf.
        loss = sum((t.masked_fill(t.isinf(), 0).float() * torch.randn(t.shape)).sum() for t in seen)
        results.append([*seen, *torch.autograd.grad(loss, wanted)])
    for a, b in zip(*results):
        torch.testing.assert_close(b, a, rtol=tolerance, atol=tolerance * a[a.isfinite()].abs().max().item())


def test_residual_adapters_causal(gpu):
    check(gpu, inputs(), key="residual", key_adapter=adapter(), value="residual", value_adapter=adapter(), causal=True)


def test_bf16_from_attn(gpu):
    settings = {"key_adapter": adapter(dtype=torch.bfloat16), "value_adapter": adapter()}
    check(gpu, inputs(torch.bfloat16), 2e-2, key="residual", value="direct", **settings)


def test_extended_prefix_and_lists(gpu):
    prefix = tuple(torch.randn(2, 3, D).requires_grad_() for _ in range(2))
    value = Adapter(*adapter()[:2])
    check(
        gpu, inputs(keys=23), key="query", value="extended", value_adapter=value, prefix=prefix, window=(9, 0),
        key_lengths=torch.tensor([23, 11]), key_starts=[2, 0], query_lengths=torch.tensor([19, 9]),
        alibi_slopes=[0.5, 0.25, 0.1, 0.0], adaptive_length=True, positions=torch.arange(1, B * N + 1).reshape(B, N),
    )


def test_packed_sequences_are_measured_where_the_list_is_on_the_cpu(gpu):
    bounds = torch.tensor([0, 5, 12, N])
    settings = {"key": "logit_per_head", "logit": torch.randn(H).requires_grad_(), "causal": True}
    check(gpu, inputs(batch=1), cu_seqlens_q=bounds, cu_seqlens_k=bounds, **settings)
    check(gpu, inputs(batch=1), cu_seqlens_q=bounds, cu_seqlens_k=bounds, max_seqlen_q=N, max_seqlen_k=12, **settings)
    # Without packed sequences they say nothing.
    check(gpu, inputs(), max_seqlen_q=3, max_seqlen_k=3)
    if EMULATED:
        limits = [(7, 7), (N, 12), (0, 0)]
        assert gpu.calls == [(name, *limit) for limit in limits for name in ("forward", "backward")]


def test_rows_that_begin_anywhere_are_copied(gpu):
    torch.manual_seed(0)
    whole = torch.randn(B, H, N, D + 3)
    shifted = [whole[..., i:i + D].detach().requires_grad_() for i in range(3)]
    check(gpu, shifted, key="logit_per_token", logit=torch.randn(B, H, N).requires_grad_())


def test_dropout_drops_what_it_drops_on_the_cpu(gpu):
    results = []
    for compute in (inducer_attention, gpu):
        torch.manual_seed(3)
        results.append(compute(*inputs(), dropout_p=0.5).cpu())
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


def test_gradients_that_are_not_there_are_not_made_up(gpu):
    q, k, v = inputs()
    o, lse, _ = gpu(q, k, v, return_all=True)
    expected = torch.autograd.grad(inducer_attention(q, k, v, return_all=True).lse.sum(), (q, k))
    for a, b in zip(torch.autograd.grad(lse.sum(), (q, k)), expected):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings, message", [
    ({"max_seqlen_q": -1}, "max_seqlen_q: -1"),
    ({"max_seqlen_q": 1.5}, "max_seqlen_q: 1.5"),
    ({"cu_seqlens_q": [0, 7, N], "cu_seqlens_k": [0, 7, N], "max_seqlen_q": 7}, "max_seqlen_q: 7, but a sequence has 12"),
    ({"cu_seqlens_q": [3, N], "cu_seqlens_k": [0, N]}, "cu_seqlens_q: expected 0 first"),
    ({"cu_seqlens_q": [0, 9, 5, N], "cu_seqlens_k": [0, 9, 9, N]}, "cu_seqlens_q: expected 0 first, and no entry below"),
    ({"cu_seqlens_q": [0, 9, 99], "cu_seqlens_k": [0, 9, N]}, f"cu_seqlens_q: 99, expected 0 to {N}"),
    ({"key_lengths": [N + 1]}, f"key_lengths: {N + 1}, expected 0 to {N}"),
    ({"key_starts": [-1]}, f"key_starts: -1, expected 0 to {N}"),
    ({"key_lengths": [2**32 + 3]}, f"key_lengths: {2**32 + 3}, expected what int32 can hold"),
    ({"alibi_slopes": [0.5, 0.5, float("nan"), 0.5]}, "alibi_slopes: expected finite numbers"),
    ({"alibi_slopes": [[0.5], [0.5], [0.5], [0.5]]}, "alibi_slopes: shape"),
    ({"positions": list(range(N)), "key": "query", "adaptive_length": True}, "positions: 1 dimensions, expected 2"),
])
def test_lists_of_the_cpu_are_checked(gpu, settings, message):
    with pytest.raises(Error, match=message):
        gpu(*inputs(batch=1), **settings)


def test_mistakes(gpu):
    with pytest.raises(Error, match="head_dim"):
        gpu(*(torch.randn(1, 2, 4, 12) for _ in range(3)))


def test_without_a_gpu_calls_say_so():
    if EMULATED or torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(DeviceError, match="driver|device"):
        backends.loaded().cuda_load(0)
