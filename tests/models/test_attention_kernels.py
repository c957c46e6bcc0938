"""Which kernel attention takes: probed, refused, said; the kernels are stand-ins."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from attention_small import WIDTH, agree, item_by_item, ragged
from torch import Tensor

from xmodal_kd.models import attention as module
from xmodal_kd.models.attention import KernelStatus, attention, kernel_for, kernels


class Fake:
    """xformers.ops as far as it is used, on any device. `spoil` changes its result."""

    def __init__(self, spoil: Callable[[Tensor], Tensor]) -> None:
        self.spoil, self.calls = spoil, []
        self.fmha = SimpleNamespace(BlockDiagonalMask=SimpleNamespace(from_seqlens=self.from_seqlens))

    def from_seqlens(self, own: list[int], seen: list[int], *, device: torch.device) -> tuple[list[int], list[int]]:
        return own, seen

    def memory_efficient_attention(
        self, q: Tensor, k: Tensor, v: Tensor, attn_bias: Any, p: float, scale: float | None
    ) -> Tensor:  # fmt: skip
        assert q.shape[0] == 1 and q.dim() == 4
        self.calls.append((attn_bias, p, scale, q.dtype))
        return self.spoil(item_by_item(q[0], k[0], v[0], *attn_bias, scale=scale))[None]


class FakeVarlen:
    """torch.nn.attention.varlen as far as it is used, on any device. `spoil` sees its arguments and changes its result;
    ``scaled=False`` is torch 2.10, whose function takes no scale."""

    def __init__(self, spoil: Callable[[Tensor, int], Tensor], scaled: bool) -> None:
        self.spoil, self.calls = spoil, []
        self.varlen_attn = self.later if scaled else self.first

    def first(
        self, q: Tensor, k: Tensor, v: Tensor, from_q: Tensor, from_k: Tensor, max_q: int, max_k: int
    ) -> Tensor:  # fmt: skip
        return self.later(q, k, v, from_q, from_k, max_q, max_k)

    def later(
        self, q: Tensor, k: Tensor, v: Tensor, from_q: Tensor, from_k: Tensor, max_q: int, max_k: int, *,
        scale: float | None = None,
    ) -> Tensor:  # fmt: skip
        own, seen = from_q.diff().tolist(), from_k.diff().tolist()
        assert from_q.dtype == from_k.dtype == torch.int32 and from_q[0] == from_k[0] == 0
        assert (max_q, max_k) == (max(own), max(seen)) and q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
        self.calls.append((own, seen, scale, q.dtype))
        return self.spoil(item_by_item(q, k, v, own, seen, scale=scale), max_q)


def clear() -> None:
    kernel_for.cache_clear()
    module._tried.cache_clear()


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    clear()
    yield
    clear()


def install(patch: pytest.MonkeyPatch, spoil: Callable[[Tensor], Tensor] = lambda out: out) -> Fake:
    """A fake xformers, tried on this device too."""
    fake, package, ops = Fake(spoil), ModuleType("xformers"), ModuleType("xformers.ops")
    ops.__dict__.update(memory_efficient_attention=fake.memory_efficient_attention, fmha=fake.fmha)
    package.__dict__["ops"] = ops
    patch.setitem(sys.modules, "xformers", package)
    patch.setitem(sys.modules, "xformers.ops", ops)
    patch.setattr(module, "KERNEL_DEVICES", frozenset({"cpu"}))
    return fake


def install_varlen(
    patch: pytest.MonkeyPatch, spoil: Callable[[Tensor, int], Tensor] = lambda out, _: out, scaled: bool = True
) -> FakeVarlen:
    """A fake varlen of torch's, tried on this device too, and no xformers."""
    fake, varlen = FakeVarlen(spoil, scaled), ModuleType("torch.nn.attention.varlen")
    varlen.__dict__["varlen_attn"] = fake.varlen_attn
    patch.setitem(sys.modules, "torch.nn.attention.varlen", varlen)
    patch.setitem(sys.modules, "xformers", None)
    patch.setattr(module, "KERNEL_DEVICES", frozenset({"cpu"}))
    return fake


def test_an_operator_that_agrees_is_used_and_probed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch)
    state = torch.get_rng_state()
    for _ in range(2):
        agree(
            lambda q, k, v: attention(q, k, v, lengths=([3, 5, 0], [2, 7, 0]), scale=0.4),
            lambda q, k, v: item_by_item(q, k, v, [3, 5], [2, 7], scale=0.4),
            *ragged([3, 5], [2, 7]),
        )
    assert torch.equal(state, torch.get_rng_state())
    assert len(fake.calls) == 4 and fake.calls[2:] == [(([3, 5], [2, 7]), 0.0, 0.4, torch.float64)] * 2


def test_the_probe_works_where_no_gradient_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, (q, k, v) = install(monkeypatch), ragged([3, 5], [3, 5])
    with torch.inference_mode():
        attention(q, k, v, lengths=[3, 5], dropout=0.25)
    assert [call[1] for call in fake.calls] == [0.0, 0.0, 0.25]


def test_equal_and_keyless_items_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch)
    attention(*ragged([4, 4], [4, 4]), lengths=[4, 4])
    attention(*ragged([4, 3], [4, 0]), lengths=([4, 3], [4, 0]))
    assert fake.calls == []


def refuse(out: Tensor) -> Tensor:
    raise NotImplementedError("No operator found for `memory_efficient_attention_forward`\nwith many lines")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (refuse, "No operator found"),
        (lambda out: out.detach(), "does not require grad"),
        (lambda out: out.detach() + 0 * out, "gradient of q differs"),
        (lambda out: 1.1 * out, "result differs"),
        (lambda out: out * torch.nan, "result differs"),
    ],
    ids=["refuses", "no graph", "no gradient", "wrong", "nan"],
)
def test_an_operator_that_fails_is_not_used_and_why_is_said_once(
    spoil: Callable[[Tensor], Tensor], reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch, spoil)
    with caplog.at_level(logging.DEBUG, module.__name__):
        for _ in range(2):
            agree(
                lambda q, k, v: attention(q, k, v, lengths=[3, 5]),
                lambda q, k, v: item_by_item(q, k, v, [3, 5], [3, 5]),
                *ragged([3, 5], [3, 5]),
            )
    assert len(caplog.records) == 1 and reason in caplog.text and "\nwith many" not in caplog.text


@pytest.mark.parametrize("missing", ["xformers", "xformers.ops"])
def test_without_the_package_torch_does_it(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    monkeypatch.setitem(sys.modules, missing, None)
    assert kernel_for(torch.device("cpu"), torch.float32, 8, 8) is None


def test_the_kernel_gets_the_precision_of_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, (q, k, v) = install(monkeypatch), ragged([3, 5], [3, 5])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attention(q.float(), k.bfloat16(), v.float(), lengths=[3, 5])
    assert out.dtype == torch.bfloat16 and {call[3] for call in fake.calls} == {torch.bfloat16}


@pytest.mark.parametrize("scale", [0.4, None])
def test_torchs_varlen_is_used_where_there_is_no_xformers(scale: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install_varlen(monkeypatch)
    agree(
        lambda q, k, v: attention(q, k, v, lengths=([3, 5, 0], [2, 7, 0]), scale=scale),
        lambda q, k, v: item_by_item(q, k, v, [3, 5], [2, 7], scale=scale),
        *ragged([3, 5], [2, 7]),
    )
    assert fake.calls[2:] == [([3, 5], [2, 7], scale, torch.float64)]


def test_varlen_is_never_asked_to_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, (q, k, v) = install_varlen(monkeypatch), ragged([3, 5], [3, 5])
    kernel = kernel_for(torch.device("cpu"), torch.float64, WIDTH, WIDTH)
    assert kernel is not None and kernel.name == "varlen" and len(fake.calls) == 2
    whole = attention(q, k, v, lengths=[3, 5])
    assert not torch.allclose(whole, attention(q, k, v, lengths=[3, 5], dropout=0.9)) and len(fake.calls) == 3
    with pytest.raises(ValueError, match="drops nothing"):
        kernel.run(q, k, v, [3, 5], [3, 5], None, 0.1)


@pytest.mark.parametrize(("order", "names"), [(("xformers", "varlen"), ("xformers", "xformers")),
                                              (("varlen", "xformers"), ("varlen", "xformers")),
                                              ((), (None, None))])  # fmt: skip
def test_the_order_is_kept_and_what_cannot_drop_is_passed_over(
    order: tuple[str, ...], names: tuple[str | None, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    install_varlen(monkeypatch)
    install(monkeypatch)
    monkeypatch.setattr(module, "ORDER", order)
    cpu = torch.device("cpu")
    found = [kernel_for(cpu, torch.float32, WIDTH, WIDTH, drops=drops) for drops in (False, True)]
    assert tuple(kernel and kernel.name for kernel in found) == names


def refuse_varlen(out: Tensor, longest: int) -> Tensor:
    raise RuntimeError("FlashAttention only support fp16 and bf16 data type\nException raised from somewhere")


@pytest.mark.parametrize(
    ("spoil", "scaled", "reason"),
    [
        (refuse_varlen, True, "FlashAttention only support fp16"),
        (lambda out, longest: out if longest < 129 else 1.1 * out, True, "result differs"),
        (lambda out, longest: out.detach() + 0 * out, True, "gradient of q differs"),
        (lambda out, longest: out[..., :1], True, "Mismatch in shape"),
        (lambda out, longest: out, False, "unexpected keyword argument 'scale'"),
    ],
    ids=["refuses", "wrong for long items", "no gradient", "another shape", "torch 2.10"],
)
def test_a_varlen_that_fails_is_not_used(
    spoil: Callable[[Tensor, int], Tensor],
    scaled: bool,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fake = install_varlen(monkeypatch, spoil, scaled)
    with caplog.at_level(logging.DEBUG, module.__name__):
        for _ in range(2):
            agree(
                lambda q, k, v: attention(q, k, v, lengths=[3, 5], scale=0.2),
                lambda q, k, v: item_by_item(q, k, v, [3, 5], [3, 5], scale=0.2),
                *ragged([3, 5], [3, 5]),
            )
    assert len(caplog.records) == 1 and reason in caplog.text and "\nException" not in caplog.text
    assert len(fake.calls) <= 2


@pytest.mark.parametrize("missing", ["torch.nn.attention.varlen", "the function"])
def test_a_torch_without_varlen(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install_varlen(monkeypatch)
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None if "." in missing else ModuleType("varlen"))
    assert kernel_for(torch.device("cpu"), torch.float32, 8, 8) is None
    agree(
        lambda q, k, v: attention(q, k, v, lengths=[3, 5]),
        lambda q, k, v: item_by_item(q, k, v, [3, 5], [3, 5]),
        *ragged([3, 5], [3, 5]),
    )
    said = {status.name: status for status in kernels(torch.device("cpu"))}
    assert not said["varlen"].usable and "varlen" in said["varlen"].reason and said["torch"].chosen


def test_kernels_on_a_device_where_none_is_tried() -> None:
    *others, own = kernels(torch.device("cpu"))
    assert [status.name for status in others] == list(module.ORDER) and own.name == "torch"
    assert not any(status.usable or status.chosen for status in others) and own.usable and own.chosen
    assert all("not tried on cpu" in status.reason for status in others)


def test_kernels_says_which_is_used_in_which_precision_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """xformers without its kernels, and a varlen of half precision: what a GPU of today has."""

    def half(out: Tensor, longest: int) -> Tensor:
        return refuse_varlen(out, longest) if out.dtype == torch.float32 else out

    install_varlen(monkeypatch, half)
    cpu = torch.device("cpu")
    missing, varlen, own = kernels(cpu)
    assert missing[:2] == ("xformers", False) and "xformers" in missing.reason and not missing.chosen
    assert varlen == KernelStatus(
        "varlen",
        True,
        "FlashAttention only support fp16 and bf16 data type (float32); "
        "used where nothing is dropped (float16, bfloat16)",
        True,
    )
    assert own.chosen and "float32" in own.reason and "float16" not in own.reason

    clear()
    install(monkeypatch)
    first, varlen, own = kernels(cpu)
    assert first == KernelStatus("xformers", True, "used (float32, float16, bfloat16)", True)
    assert varlen.usable and not varlen.chosen and "xformers comes first (float16, bfloat16)" in varlen.reason
    assert not own.chosen and "padded batches" in own.reason


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_on_cuda_ragged_rows_are_their_items(dtype: torch.dtype) -> None:
    own, seen = [3, 70, 1, 33], [9, 70, 5, 12]
    leaves = [x.detach().to("cuda", dtype).requires_grad_() for x in ragged(own, seen)]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    found, wanted = attention(*leaves, lengths=(own, seen)), item_by_item(*exact, own, seen)
    weight = torch.randn_like(wanted)
    pairs = zip(
        [found, *torch.autograd.grad(found, leaves, weight.to(dtype))],
        [wanted, *torch.autograd.grad(wanted, exact, weight)],
        strict=True,
    )
    for a, b in pairs:
        torch.testing.assert_close(a.double(), b, atol=module.TOLERANCE[dtype] * float(b.abs().max()), rtol=0)
