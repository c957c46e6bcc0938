"""Scaled dot-product attention (Vaswani et al., 2017, section 3.2.1) over padded batches or over rows of items laid end
to end; every transformer of this package calls it.

On CUDA ragged rows go through a kernel that computes no padding: xformers' ``memory_efficient_attention`` with a
block-diagonal mask (extra ``gpu``), or torch's own ``torch.nn.attention.varlen`` (since torch 2.10; half precision, no
dropout). Wheels may import without their kernels, give gradients of nothing, or lack an argument; hence a kernel is
used only where small forward and backward passes agree with torch's ``scaled_dot_product_attention``, tried once for
each device, precision and head width. Everything else is that function. `kernels` says what is used and why.

`ORDER` has not been measured: no GPU was at hand when ``varlen`` joined. xformers comes first because it serves dropout
and float32 too, so that training and evaluation take the same kernel. ``benchmarks/attention.py`` times each kernel on
a GPU; the order is a constant and not the quickest of the moment, so that a resumed run computes what it did before.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from itertools import accumulate
from math import inf
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ..runtime.binary_packages import load

log = logging.getLogger(__name__)

#: Where a kernel is tried at all.
KERNEL_DEVICES = frozenset({"cuda"})
#: Kernels for ragged rows: the first that works is used.
ORDER = ("xformers", "varlen")
#: Without one, items are taken together with those of their length up to so many lengths, and padded beyond: many small
#: launches cost a GPU more than the padding. A CPU pays for what it computes (benchmarks/attention.py).
MOST_GROUPS: dict[str, float] = {"cpu": inf, "cuda": 16}
#: Largest difference that the probe allows, relative to the largest value.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2, torch.float16: 2e-2, torch.bfloat16: 5e-2}

#: Width of a head, and precisions, that `kernels` asks for.
USUAL_WIDTH, USUAL = 64, (torch.float32, torch.float16, torch.bfloat16)

Lengths = Sequence[int] | Int[Tensor, " b"]
#: ``(q, k, v, q_lengths, k_lengths, scale, dropout)`` of rows laid end to end.
Run = Callable[[Tensor, Tensor, Tensor, list[int], list[int], float | None, float], Tensor]


class Kernel(NamedTuple):
    """Attention over ragged rows under this module's own signature."""

    name: str
    run: Run
    drops: bool
    """Whether it serves dropout."""


class KernelStatus(NamedTuple):
    """What `kernels` says of one way to compute attention over ragged rows."""

    name: str
    usable: bool
    """In one of the usual precisions at least."""
    reason: str
    chosen: bool
    """For one of the usual precisions at least."""


def attention(
    q: Float[Tensor, "*rows h d"], k: Float[Tensor, "*keys h d"], v: Float[Tensor, "*keys h e"], *,
    mask: Bool[Tensor, "#b #h #n #m"] | None = None,
    lengths: Lengths | tuple[Lengths, Lengths] | None = None,
    scale: float | None = None, dropout: float = 0.0,
) -> Float[Tensor, "*rows h e"]:  # fmt: skip
    """``softmax(scale q kᵀ) v`` for every head. A query without any key gets zeros, and gradients of zero.

    Args:
        q: ``(b, n, h, d)``; or, with `lengths`, the rows of all items laid end to end: ``(total, h, d)``. Finite, also
            where a mask hides them, as `k` and `v`.
        k: ``(b, m, h, d)``, or ``(total, h, d)``.
        v: ``(b, m, h, e)``, or ``(total, h, e)``.
        mask: which keys a query may see, broadcastable to ``(b, h, n, m)``; not with `lengths`.
        lengths: ``(b,)`` rows of each item, which may be none; queries see the keys of their own item. A pair of them
            where queries and keys differ in number. Numbers on the CPU spare a wait for the device.
        scale: ``1 / sqrt(d)`` by default.
        dropout: share of the weights that are dropped, whatever the mode: a module passes 0 when it evaluates.

    Raises:
        ValueError: `mask` and `lengths` together, axes that do not fit, or lengths that do not sum to the rows.
    """
    if lengths is None:
        if q.dim() != 4:
            raise ValueError(
                f"attention over a batch takes (b, n, heads, width), got {tuple(q.shape)}: or give lengths"
            )
        return _dense(q, k, v, mask, scale, dropout)
    if mask is not None:
        raise ValueError("attention takes a mask or lengths, not both: lengths say already who sees whom")
    if q.dim() != 3:
        raise ValueError(f"attention over ragged rows takes (total, heads, width), got {tuple(q.shape)}")
    own, seen = map(_numbers, lengths if isinstance(lengths, tuple) else (lengths, lengths))
    if len(own) != len(seen):
        raise ValueError(f"attention: lengths of {len(own)} items of queries, but of {len(seen)} of keys")
    for name, rows, numbers in (("queries", q, own), ("keys", k, seen), ("values", v, seen)):
        if sum(numbers) != len(rows) or min(numbers, default=0) < 0:
            raise ValueError(f"attention: {len(rows)} {name}, but {len(numbers)} lengths that sum to {sum(numbers)}")
    items = [pair for pair in zip(own, seen, strict=True) if pair != (0, 0)]
    return _ragged(q, k, v, [n for n, _ in items], [m for _, m in items], scale, dropout)


def _numbers(lengths: Lengths) -> list[int]:
    return list(lengths.tolist() if isinstance(lengths, Tensor) else lengths)


def _dense(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, dropout: float
) -> Tensor:  # fmt: skip
    """Queries that see nothing are shown everything, and their result is put to zero: no softmax over nothing, which
    torch's kernels and ONNX Runtime answer differently."""
    blind = None
    if mask is not None:
        blind = ~mask.any(dim=-1, keepdim=True)
        mask = mask | blind
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
    if blind is not None:
        out = out.masked_fill(blind, 0.0)
    return out.transpose(1, 2)


def _ragged(
    q: Tensor, k: Tensor, v: Tensor, own: list[int], seen: list[int], scale: float | None, dropout: float
) -> Tensor:  # fmt: skip
    """As `attention`, of items that have a query or a key."""
    kinds = sorted(set(zip(own, seen, strict=True)))
    if len(kinds) <= 1:
        b = len(own)
        q, k, v = (x.reshape(b, -1, *x.shape[1:]) if b else x[None] for x in (q, k, v))
        return _dense(q, k, v, None, scale, dropout).flatten(0, 1)
    q, k, v = _autocast(q, k, v)
    # an item with queries and no keys, or the other way round, is left to torch: kernels differ in what they do there
    if q.device.type in KERNEL_DEVICES and 0 not in own and 0 not in seen:
        kernel = kernel_for(q.device, q.dtype, q.shape[-1], v.shape[-1], drops=dropout > 0)
        if kernel is not None:
            return kernel.run(q, k, v, own, seen, scale, dropout)
    if len(kinds) <= MOST_GROUPS.get(q.device.type, MOST_GROUPS["cuda"]):
        return _grouped(q, k, v, own, seen, kinds, scale, dropout)
    return _padded(q, k, v, own, seen, scale, dropout)


def _autocast(*rows: Tensor) -> list[Tensor]:
    """In the precision of a surrounding autocast, which knows torch's function but not the kernel."""
    device = rows[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(rows)
    return [x.to(torch.get_autocast_dtype(device)) for x in rows]


def _grouped(
    q: Tensor, k: Tensor, v: Tensor, own: list[int], seen: list[int], kinds: list[tuple[int, int]],
    scale: float | None, dropout: float,
) -> Tensor:  # fmt: skip
    """Items of the same numbers of queries and keys together: as many products as there are such pairs, no padding."""
    rows, keys = torch.tensor(own), torch.tensor(seen)
    row_start, key_start = rows.cumsum(0) - rows, keys.cumsum(0) - keys
    parts, places = [], []
    for n, m in kinds:
        chosen = (rows == n) & (keys == m)
        at = (row_start[chosen, None] + torch.arange(n)).to(q.device)
        from_ = (key_start[chosen, None] + torch.arange(m)).to(q.device)
        parts.append(_dense(q[at], k[from_], v[from_], None, scale, dropout).flatten(0, 1))
        places.append(at.flatten())
    return torch.cat(parts)[torch.cat(places).argsort()]


def _padded(
    q: Tensor, k: Tensor, v: Tensor, own: list[int], seen: list[int], scale: float | None, dropout: float
) -> Tensor:  # fmt: skip
    """All items as one batch, zeros behind the end of the shorter ones."""
    valid, visible = (torch.arange(max(n)) < torch.tensor(n)[:, None] for n in (own, seen))
    valid, visible = valid.to(q.device), visible.to(q.device)
    padded = [pad_sequence(list(x.split(n)), batch_first=True) for x, n in ((q, own), (k, seen), (v, seen))]
    out = _dense(padded[0], padded[1], padded[2], visible[:, None, None], scale, dropout)
    return out[valid]


@cache
def kernel_for(
    device: torch.device, dtype: torch.dtype, width: int, out: int, *, drops: bool = False
) -> Kernel | None:  # fmt: skip
    """The first of `ORDER` that works, else None; the reasons are logged once at level debug.

    Args:
        width: of a head's queries and keys; kernels are compiled for some only.
        out: of its values.
        drops: whether weights are dropped.
    """
    why = []
    for name in ORDER:
        found = _tried(name, device, dtype, width, out)
        if isinstance(found, Kernel) and (found.drops or not drops):
            log.debug("attention on %s in %s, heads of %d: %s", device, dtype, width, name)
            return found
        why.append(f"{name}: {'no dropout' if isinstance(found, Kernel) else found}")
    log.debug("attention on %s in %s, heads of %d: torch's own (%s)", device, dtype, width, "; ".join(why))
    return None


def kernels(device: torch.device) -> list[KernelStatus]:
    """Every kernel in the order in which they are tried on `device`, torch's own last: which of them work, for heads of
    `USUAL_WIDTH` in each usual precision, which are used, and why the others are not."""
    if device.type not in KERNEL_DEVICES:
        reason = f"not tried on {device.type}: torch's own computes no padding there"
        others = [KernelStatus(name, False, reason, False) for name in ORDER]
        return [*others, KernelStatus("torch", True, f"all attention on {device.type}", True)]
    taken = {dtype: kernel_for(device, dtype, USUAL_WIDTH, USUAL_WIDTH) for dtype in USUAL}
    left = [_short(dtype) for dtype, kernel in taken.items() if kernel is None]
    rest = ", ".join(
        [*(f"ragged rows in {', '.join(left)}" for _ in left[:1]), "padded batches, whatever no kernel serves"]
    )
    return [*(_status(name, device, taken) for name in ORDER), KernelStatus("torch", True, rest, bool(left))]


def _status(name: str, device: torch.device, taken: dict[torch.dtype, Kernel | None]) -> KernelStatus:
    said: dict[str, list[str]] = {}
    chosen = usable = False
    for dtype, kernel in taken.items():
        found = _tried(name, device, dtype, USUAL_WIDTH, USUAL_WIDTH)
        if isinstance(found, str):
            reason = found
        elif kernel == found:
            reason, chosen = "used" if found.drops else "used where nothing is dropped", True
        else:
            reason = f"works, but {kernel.name if kernel else 'torch'} comes first"
        usable |= isinstance(found, Kernel)
        said.setdefault(reason, []).append(_short(dtype))
    parts = [f"{reason} ({', '.join(dtypes)})" for reason, dtypes in said.items()]
    return KernelStatus(name, usable, "; ".join(parts), chosen)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@cache
def _tried(name: str, device: torch.device, dtype: torch.dtype, width: int, out: int) -> Kernel | str:
    """The kernel, or in a line why it does not serve."""
    try:
        kernel = LOADERS[name]()
        # the first call may come from within a mode in which no gradient can be taken
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            for own, seen, scale in PROBES:
                _probe(kernel.run, device, dtype, (width, out), own, seen, scale)
    except Exception as error:  # missing, built for another torch, no kernel for this device: all mean the same here
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return kernel


def _xformers() -> Kernel:
    """Raises `UserError` where it is missing or does not load."""
    ops = load("xformers.ops")
    operator: Any = ops.memory_efficient_attention
    block: Any = ops.fmha.BlockDiagonalMask

    def run(
        q: Tensor, k: Tensor, v: Tensor, own: list[int], seen: list[int], scale: float | None, dropout: float
    ) -> Tensor:  # fmt: skip
        bias = block.from_seqlens(own, seen, device=q.device)
        out: Tensor = operator(q[None], k[None], v[None], attn_bias=bias, p=dropout, scale=scale)
        return out[0]

    return Kernel("xformers", run, drops=True)


def _varlen() -> Kernel:
    """Raises `ImportError` where torch has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        operator: Any = import_module("torch.nn.attention.varlen").varlen_attn

    def run(
        q: Tensor, k: Tensor, v: Tensor, own: list[int], seen: list[int], scale: float | None, dropout: float
    ) -> Tensor:  # fmt: skip
        if dropout:
            raise ValueError("torch's varlen attention drops nothing")
        starts = [torch.tensor([0, *accumulate(n)], dtype=torch.int32, device=q.device) for n in (own, seen)]
        # torch 2.10 has no scale: there the probe fails
        further = {} if scale is None else {"scale": scale}
        out: Tensor = operator(q, k, v, *starts, max(own), max(seen), **further)
        return out

    return Kernel("varlen", run, drops=False)


LOADERS: dict[str, Callable[[], Kernel]] = {"xformers": _xformers, "varlen": _varlen}
#: Rows and keys of each item, and scale. torch's varlen changes to another library (cuDNN) above 128 rows.
PROBES: tuple[tuple[list[int], list[int], float | None], ...] = (
    ([3, 17, 1], [5, 17, 9], None),
    ([3, 140], [150, 131], 0.3),
)


def _probe(
    run: Run, device: torch.device, dtype: torch.dtype, widths: tuple[int, int], own: list[int], seen: list[int],
    scale: float | None,
) -> None:  # fmt: skip
    """Raises where the operator fails, or its result or any gradient differs from torch's own.

    Rows do not lie next to each other in memory: those of a model are often slices of one projection."""
    (width, out), n, m = widths, sum(own), sum(seen)
    random = torch.Generator().manual_seed(0)
    shapes = ((n, 2, 2, width), (m, 2, 2, width), (m, 2, 2, out), (n, 2, 2, out))
    *rows, weight = (torch.randn(shape, generator=random).to(device, dtype)[:, 1] for shape in shapes)
    kinds = sorted(set(zip(own, seen, strict=True)))

    def reference(
        q: Tensor, k: Tensor, v: Tensor, own: list[int], seen: list[int], scale: float | None, dropout: float
    ) -> Tensor:
        return _grouped(q, k, v, own, seen, kinds, scale, dropout)

    found: list[list[Tensor]] = []
    for one in (run, reference):
        leaves = [x.detach().requires_grad_() for x in rows]
        result = one(leaves[0], leaves[1], leaves[2], own, seen, scale, 0.0)
        found.append([result.detach(), *torch.autograd.grad(result, leaves, weight)])
    for name, mine, theirs in zip(("result", "gradient of q", "gradient of k", "gradient of v"), *found, strict=True):
        error = float((mine - theirs).abs().max() / theirs.abs().max())
        if not error <= TOLERANCE.get(dtype, 0.0):
            raise RuntimeError(f"its {name} differs from torch's by {error:.1e}")


__all__ = ["Kernel", "KernelStatus", "attention", "kernel_for", "kernels"]
