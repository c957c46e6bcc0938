"""What every registered loss is held to: its oracle, its gradient, its declared properties, its refusals."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import log
from typing import Any

import numpy as np
import pytest
import torch
from oracles.losses import ORACLES, SETTINGS
from torch import Tensor

from xmodal_kd.losses import LOSSES, LossSpec

Batch = dict[str, Any]
Settings = dict[str, Any]

# the core's own: a modality's losses (ctc) have their oracles in the modality's tests
NAMES = [name for name in LOSSES if LOSSES[name].fn.__module__.startswith("xmodal_kd.losses.")]
#: Losses that random rows can be given to; the others (two views, memory of samples ...) have a test of their own.
GENERIC = [name for name in NAMES if {"student", "teacher", "item", "items", "labels"}.issuperset(LOSSES[name].inputs)]
TAUGHT = [name for name in GENERIC if LOSSES[name].needs_teacher]
FUNCTIONS = [name for name in GENERIC if not LOSSES[name].is_module]
KNOWN = [name for name in FUNCTIONS if name in ORACLES]

WIDTH, ITEMS = 6, 4
COUNTS = (7, 0, 5, 8)  # rows of each item: ragged, and one item has none
FEW = (2, 0, 1, 1)  # fewer rows than channels, and items of a single row


def settings(names: list[str]) -> list[Any]:
    """Every loss with each of its hyper-parameters."""
    return [
        pytest.param(name, params, id="-".join([name, *(f"{key}={value}" for key, value in params.items())]))
        for name in names
        for params in SETTINGS.get(name, [{}])
    ]


def declared(word: str, names: list[str] = GENERIC) -> list[str]:
    return [name for name in names if word in LOSSES[name].properties]


def batch(seed: int, spec: LossSpec, dtype: torch.dtype = torch.float64, counts: tuple[int, ...] = COUNTS) -> Batch:
    """Random rows of four items; odd seeds mix the items' rows. The teacher is wider where the loss allows it."""
    random = torch.Generator().manual_seed(seed)
    item = torch.arange(ITEMS).repeat_interleave(torch.tensor(counts))
    if seed % 2:
        item = item[torch.randperm(len(item), generator=random)]
    wide = WIDTH + 3 if "widths_differ" in spec.properties else WIDTH
    return {
        "student": (2 * torch.randn(len(item), WIDTH, dtype=torch.float64, generator=random)).to(dtype),
        "teacher": (2 * torch.randn(len(item), wide, dtype=torch.float64, generator=random) + 0.5).to(dtype),
        "item": item,
        "items": ITEMS,
        "labels": torch.randint(WIDTH, (len(item),), generator=random),
    }


def rows_of(inputs: Batch, keep: Tensor) -> Batch:
    """The batch of these rows as one item."""
    alone = {key: value[keep] for key, value in inputs.items() if key != "items"}
    return alone | {"items": 1, "item": torch.zeros_like(alone["item"])}


def call(spec: LossSpec, inputs: Batch, **params: Any) -> Tensor:
    """The loss's values; a module is built first, always with the same weights."""
    fn: Callable[..., Any] = spec.fn
    if spec.is_module:
        torch.manual_seed(0)
        widths = inputs["student"].shape[1], inputs.get("teacher", inputs["student"]).shape[1]
        fn = spec.fn(*widths, **params).to(inputs["student"].dtype)
        params = {}
    out = fn(*[inputs[name] for name in spec.inputs], **params)
    return out[0] if isinstance(out, tuple) else out


def oracle(spec: LossSpec, inputs: Batch, **params: Any) -> Tensor:
    """What the oracle says of the same rows, in float64."""
    given = [inputs[name] for name in spec.inputs]
    arrays = [(x.double() if x.is_floating_point() else x).numpy() if isinstance(x, Tensor) else x for x in given]
    return torch.from_numpy(np.asarray(ORACLES[spec.name](*arrays, **params)))


def gradient(spec: LossSpec, inputs: Batch, **params: Any) -> tuple[Tensor, Tensor]:
    """Values and the gradient of their sum at the student's rows."""
    student = inputs["student"].clone().requires_grad_()
    values = call(spec, inputs | {"student": student}, **params)
    return values.detach(), torch.autograd.grad(values.sum(), student)[0]


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_has_an_oracle(name: str) -> None:
    assert name in ORACLES, f"write tests/oracles for {name!r}, from the paper and not from its code"


@pytest.mark.parametrize("counts", [COUNTS, FEW], ids=["many", "few"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("name", "params"), settings(KNOWN))
def test_agrees_with_its_oracle(name: str, params: Settings, seed: int, counts: tuple[int, ...]) -> None:
    """Value, shape and dtype, in float64 and in float32."""
    spec = LOSSES[name]
    for dtype, rtol, atol in ((torch.float64, 1e-9, 1e-12), (torch.float32, 1e-4, 1e-5)):
        inputs = batch(seed, spec, dtype, counts)
        expected = oracle(spec, inputs, **params).to(dtype)
        torch.testing.assert_close(call(spec, inputs, **params), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize(("name", "params"), settings(KNOWN))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_rows_are_computed_in_float32(name: str, params: Settings, dtype: torch.dtype) -> None:
    spec = LOSSES[name]
    inputs = batch(0, spec, dtype)
    torch.testing.assert_close(
        call(spec, inputs, **params), oracle(spec, inputs, **params).float(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("name", "params"), settings(KNOWN))
def test_autocast_changes_nothing(name: str, params: Settings) -> None:
    """Losses compute in at least float32 whatever the autocast."""
    spec = LOSSES[name]
    inputs = batch(0, spec, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = call(spec, inputs, **params)
    torch.testing.assert_close(values, call(spec, inputs, **params), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("temperature", [1, 4])
def test_kd_by_hand(temperature: int) -> None:
    """Teacher (1/2, 1/4, 1/4), student (1/4, 1/4, 1/2): KL = 1/2 log 2 + 1/4 log 1 - 1/4 log 2 = 1/4 log 2."""
    p = [Fraction(1, 2), Fraction(1, 4), Fraction(1, 4)]
    q = [Fraction(1, 4), Fraction(1, 4), Fraction(1, 2)]
    teacher, student = (torch.tensor([[temperature * log(x) for x in row]], dtype=torch.float64) for row in (p, q))
    got = LOSSES["kd"].fn(student, teacher, temperature=float(temperature))
    assert got.tolist() == pytest.approx([temperature**2 * Fraction(1, 4) * log(2)], rel=1e-12)


@pytest.mark.parametrize(("name", "params"), settings(GENERIC))
def test_gradient_reaches_every_row_of_the_student(name: str, params: Settings) -> None:
    values, grad = gradient(LOSSES[name], batch(0, LOSSES[name]), **params)
    assert values.isfinite().all()
    assert grad.isfinite().all()
    assert (grad.abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize(("name", "params"), settings([n for n in FUNCTIONS if n not in declared("held_weight")]))
def test_gradient_is_that_of_the_value(name: str, params: Settings) -> None:
    inputs = batch(1, LOSSES[name])
    student = inputs["student"].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: call(LOSSES[name], inputs | {"student": x}, **params), student)


def test_wsld_holds_its_weight() -> None:
    """Gradient ``T w (softmax(student/T) - softmax(teacher/T))``: none through w."""
    inputs = batch(1, LOSSES["wsld"])
    _, grad = gradient(LOSSES["wsld"], inputs, temperature=3.0)
    s, t, y = inputs["student"], inputs["teacher"], inputs["labels"]
    ce_s, ce_t = (torch.nn.functional.cross_entropy(z, y, reduction="none") for z in (s, t))
    expected = 3.0 * (1 - torch.exp(-ce_s / ce_t))[:, None] * (torch.softmax(s / 3, -1) - torch.softmax(t / 3, -1))
    torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("name", "params"), settings(declared("zero_at_teacher", TAUGHT)))
def test_zero_and_least_at_the_teacher(name: str, params: Settings) -> None:
    spec, inputs = LOSSES[name], batch(2, LOSSES[name])
    values, grad = gradient(spec, inputs | {"teacher": inputs["student"]}, **params)
    torch.testing.assert_close(values, torch.zeros_like(values), rtol=0, atol=1e-12)
    torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-9)
    assert (call(spec, inputs, **params) >= 0).all()


def shifted_rows(rows: Tensor) -> Tensor:
    """A constant of its own added to each row."""
    return rows + torch.linspace(-30, 50, len(rows), dtype=rows.dtype)[:, None]


def shifted_together(rows: Tensor) -> Tensor:
    """One vector added to all rows."""
    return rows + torch.linspace(-3, 5, rows.shape[1], dtype=rows.dtype)


def scaled(rows: Tensor) -> Tensor:
    return 37.0 * rows


def shrunk(rows: Tensor) -> Tensor:
    return 1e-3 * rows


CHANGES: dict[str, list[Callable[[Tensor], Tensor]]] = {
    "shift_invariant": [shifted_rows],
    "row_shift_invariant": [shifted_together],
    "scale_invariant": [scaled, shrunk],
}
INVARIANCES = [(name, change) for word in CHANGES for name in declared(word) for change in CHANGES[word]]


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize(("name", "change"), INVARIANCES)
def test_declared_invariance(name: str, change: Callable[[Tensor], Tensor], side: str) -> None:
    spec, inputs = LOSSES[name], batch(3, LOSSES[name])
    moved = call(spec, inputs | {side: change(inputs[side])})
    torch.testing.assert_close(moved, call(spec, inputs), rtol=1e-9, atol=1e-12)


def narrower(rows: Tensor) -> Tensor:
    return rows[:, :-1]


def one_column(rows: Tensor) -> Tensor:
    return rows[:, :1]


def one_row(rows: Tensor) -> Tensor:
    return rows[:1]


def fewer_rows(rows: Tensor) -> Tensor:
    return rows[:-1]


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("cut", [narrower, one_column, one_row, fewer_rows])
@pytest.mark.parametrize("name", TAUGHT)
def test_never_broadcasts(name: str, cut: Callable[[Tensor], Tensor], side: str) -> None:
    """Other shapes are refused by name, but for widths where the loss compares rows of different widths."""
    spec, inputs = LOSSES[name], batch(0, LOSSES[name])
    inputs[side] = cut(inputs[side])
    if "widths_differ" in spec.properties and cut in (narrower, one_column):
        assert call(spec, inputs).isfinite().all()
        return
    with pytest.raises(ValueError) as refused:
        call(spec, inputs)
    for role in ("student", "teacher"):
        assert str(tuple(inputs[role].shape)) in str(refused.value)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("name", "params"), settings([n for n in GENERIC if LOSSES[n].reduction != "batch"]))
def test_ragged_equals_a_loop_over_items(name: str, params: Settings, seed: int) -> None:
    spec = LOSSES[name]
    inputs = batch(seed, spec)
    together = call(spec, inputs, **params)
    for i in range(ITEMS):
        keep = inputs["item"] == i
        own = together[keep] if spec.reduction == "rows" else together[i : i + 1]
        if keep.any():
            torch.testing.assert_close(own, call(spec, rows_of(inputs, keep), **params), rtol=1e-12, atol=1e-14)
        else:
            assert (own == 0).all()


FLAT: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": torch.zeros_like,
    "one constant": lambda rows: torch.full_like(rows, 3.0),
    "constant rows": lambda rows: rows[:, :1].expand_as(rows).clone(),
    "equal rows": lambda rows: rows[:1].expand_as(rows).clone(),
    "certain": lambda rows: 1e4 * torch.eye(rows.shape[1], dtype=rows.dtype)[torch.arange(len(rows)) % 3],
    "itself": lambda rows: rows,
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("flat", FLAT)
@pytest.mark.parametrize(("name", "params"), settings(GENERIC))
def test_finite_on_flat_rows(name: str, params: Settings, flat: str, dtype: torch.dtype) -> None:
    """A dead or certain student, beside the same teacher and beside a lively one: finite value, finite gradient."""
    spec = LOSSES[name]
    inputs = batch(0, spec, dtype)
    student = FLAT[flat](inputs["student"])
    for teacher in (student, inputs["teacher"]):
        values, grad = gradient(spec, inputs | {"student": student, "teacher": teacher}, **params)
        assert values.isfinite().all()
        assert grad.isfinite().all()


@pytest.mark.parametrize(("name", "params"), settings(GENERIC))
def test_one_row_works_or_says_why_not(name: str, params: Settings) -> None:
    spec, inputs = LOSSES[name], batch(0, LOSSES[name])
    only = torch.arange(len(inputs["item"])) == 3
    try:
        values, grad = gradient(spec, rows_of(inputs, only), **params)
    except ValueError as refused:
        assert "row" in str(refused)
    else:
        assert values.isfinite().all()
        assert grad.isfinite().all()
