"""What every registered loss is held to: its oracle, its gradient, its declared properties, its refusals."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from math import log

import pytest
import torch
from harness import (
    COUNTS,
    FEW,
    FUNCTIONS,
    ITEMS,
    KNOWN,
    LINKING,
    MODULES,
    NAMES,
    ORACLES,
    TAUGHT,
    Settings,
    batch,
    build,
    call,
    declared,
    each,
    gradient,
    listed,
    oracle,
    rows_of,
    settings,
)
from torch import Tensor

from xmodal_kd.losses import LOSSES


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_has_an_oracle(name: str) -> None:
    assert name in ORACLES, f"write tests/oracles for {name!r}, from the paper and not from its code"


@pytest.mark.parametrize(("seed", "counts"), [(0, COUNTS), (1, COUNTS), (2, FEW)], ids=["sorted", "mixed", "few"])
@pytest.mark.parametrize(("name", "params"), settings(KNOWN))
def test_agrees_with_its_oracle(name: str, params: Settings, seed: int, counts: tuple[int, ...]) -> None:
    """Value, shape and dtype, in float64 and in float32."""
    spec = LOSSES[name]
    for dtype, rtol, atol in ((torch.float64, 1e-9, 1e-12), (torch.float32, 1e-4, 1e-5)):
        inputs = batch(seed, spec, dtype, counts)
        expected = oracle(spec, inputs, **params).to(dtype)
        torch.testing.assert_close(call(spec, inputs, **params), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_rows_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    spec = LOSSES[name]
    inputs = batch(0, spec, dtype)
    torch.testing.assert_close(call(spec, inputs), oracle(spec, inputs).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_nothing(name: str) -> None:
    """Losses compute in at least float32 whatever the autocast."""
    spec = LOSSES[name]
    inputs = batch(0, spec, torch.float32)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = call(spec, inputs)
    torch.manual_seed(0)
    torch.testing.assert_close(values, call(spec, inputs), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("temperature", [1, 4])
def test_kd_by_hand(temperature: int) -> None:
    """Teacher (1/2, 1/4, 1/4), student (1/4, 1/4, 1/2): KL = 1/2 log 2 + 1/4 log 1 - 1/4 log 2 = 1/4 log 2."""
    p = [Fraction(1, 2), Fraction(1, 4), Fraction(1, 4)]
    q = [Fraction(1, 4), Fraction(1, 4), Fraction(1, 2)]
    teacher, student = (torch.tensor([[temperature * log(x) for x in row]], dtype=torch.float64) for row in (p, q))
    got = LOSSES["kd"].fn(student, teacher, temperature=float(temperature))
    assert got.tolist() == pytest.approx([temperature**2 * Fraction(1, 4) * log(2)], rel=1e-12)


@pytest.mark.parametrize(("name", "params"), settings(NAMES))
def test_gradient_reaches_every_row_of_the_student(name: str, params: Settings) -> None:
    """Every row of every signal, but for losses that choose rows: some of each signal."""
    values, grads = gradient(LOSSES[name], batch(0, LOSSES[name]), **params)
    assert values.isfinite().all()
    for grad in grads[LINKING.get(name, 0) :]:
        assert grad.isfinite().all()
        reached = grad.abs().sum(dim=1) > 0
        if params.get("layers") == "skip" and not reached.any():
            continue  # the layer that it leaves out
        assert reached.any() if name in declared("selective") else reached.all()


DIFFERENTIABLE = [name for name in NAMES if name not in declared("held_weight")]


@pytest.mark.parametrize(("name", "params"), settings(DIFFERENTIABLE))
def test_gradient_is_that_of_the_value(name: str, params: Settings) -> None:
    """Along a random direction. Of a module's too: what learns beside the student adds nothing to its gradient."""
    assert gradient_is_right(name, params, fast_mode=True)


@pytest.mark.full
@pytest.mark.parametrize(("name", "params"), settings([name for name in DIFFERENTIABLE if name in FUNCTIONS]))
def test_gradient_is_that_of_the_value_in_each_coordinate(name: str, params: Settings) -> None:
    assert gradient_is_right(name, params, fast_mode=False)


def gradient_is_right(name: str, params: Settings, *, fast_mode: bool) -> bool:
    """Against finite differences. A module has seen one batch before, where some fix their constants, and is then the
    same at every evaluation."""
    spec, inputs = LOSSES[name], batch(1, LOSSES[name])
    student = [x.clone().requires_grad_() for x in listed(inputs["student"])]
    module = build(spec, inputs, **params) if spec.is_module else None
    if module is not None:
        call(spec, inputs, module)

    def value(*rows: Tensor) -> Tensor:
        torch.manual_seed(0)
        return call(spec, inputs | {"student": list(rows) if spec.many else rows[0]}, copy.deepcopy(module), **params)

    return torch.autograd.gradcheck(value, student, fast_mode=fast_mode)


@pytest.mark.parametrize("name", TAUGHT)
def test_the_teacher_gets_no_gradient(name: str) -> None:
    """Not even in a loop of one's own that forgot ``no_grad``."""
    inputs = batch(0, LOSSES[name])
    teacher = each(lambda x: x.clone().requires_grad_(), inputs["teacher"])
    student = each(lambda x: x.clone().requires_grad_(), inputs["student"])
    call(LOSSES[name], inputs | {"teacher": teacher, "student": student}).sum().backward()
    assert all(x.grad is None for x in listed(teacher))
    assert any(x.grad is not None for x in listed(student))


def test_wsld_holds_its_weight() -> None:
    """Gradient ``T w (softmax(student/T) - softmax(teacher/T))``: none through w."""
    inputs = batch(1, LOSSES["wsld"])
    _, [grad] = gradient(LOSSES["wsld"], inputs, temperature=3.0)
    s, t, y = inputs["student"], inputs["teacher"], inputs["labels"]
    ce_s, ce_t = (torch.nn.functional.cross_entropy(z, y, reduction="none") for z in (s, t))
    expected = 3.0 * (1 - torch.exp(-ce_s / ce_t))[:, None] * (torch.softmax(s / 3, -1) - torch.softmax(t / 3, -1))
    torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("name", "params"), settings(declared("zero_at_teacher", TAUGHT)))
def test_zero_and_least_at_the_teacher(name: str, params: Settings) -> None:
    spec, inputs = LOSSES[name], batch(2, LOSSES[name])
    values, grads = gradient(spec, inputs | {"teacher": inputs["student"]}, **params)
    torch.testing.assert_close(values, torch.zeros_like(values), rtol=0, atol=1e-12)
    for grad in grads:
        torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-9)
    assert (call(spec, inputs, **params) >= -1e-14).all()


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
    moved = call(spec, inputs | {side: each(change, inputs[side])})
    torch.testing.assert_close(moved, call(spec, inputs), rtol=1e-9, atol=1e-12)


def narrower(rows: Tensor) -> Tensor:
    return rows[:, :-1]


def one_column(rows: Tensor) -> Tensor:
    return rows[:, :1]


def one_row(rows: Tensor) -> Tensor:
    return rows[:1]


def fewer_rows(rows: Tensor) -> Tensor:
    return rows[:-1]


def free_widths(spec: LossSpec) -> bool:
    """Any width of either side goes."""
    return "widths_differ" in spec.properties and "tied_widths" not in spec.properties


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("cut", [narrower, one_column, one_row, fewer_rows])
@pytest.mark.parametrize("name", TAUGHT)
def test_never_broadcasts(name: str, cut: Callable[[Tensor], Tensor], side: str) -> None:
    """Other shapes are refused by name, but for widths where the loss compares rows of different widths."""
    spec, inputs = LOSSES[name], batch(0, LOSSES[name])
    module = build(spec, inputs) if spec.is_module else None
    whole = listed(inputs[side])
    inputs[side] = [*whole[:-1], cut(whole[-1])] if spec.many else cut(whole[0])
    if free_widths(spec) and cut in (narrower, one_column):
        assert call(spec, inputs).isfinite().all()
        return
    with pytest.raises(ValueError) as refused:
        call(spec, inputs, module)
    for role in ("student", "teacher"):
        assert str(tuple(listed(inputs[role])[-1].shape)) in str(refused.value)


OF_A_BATCH = {*declared("batch_statistics"), *declared("random")}
BY_ITEM = [n for n in NAMES if LOSSES[n].reduction != "batch" and n not in OF_A_BATCH]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("name", "params"), settings(BY_ITEM))
def test_ragged_equals_a_loop_over_items(name: str, params: Settings, seed: int) -> None:
    spec = LOSSES[name]
    inputs = batch(seed, spec)
    together = call(spec, inputs, **params)
    for i in range(ITEMS):
        keep = listed(inputs["item"])[0] == i
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


@pytest.mark.parametrize("flat", FLAT)
@pytest.mark.parametrize("name", NAMES)
def test_finite_on_flat_rows(name: str, flat: str) -> None:
    """A dead or certain student, beside the same teacher and beside a lively one: finite value, finite gradient."""
    spec = LOSSES[name]
    inputs = batch(0, spec, torch.float32)
    student = each(FLAT[flat], inputs["student"])
    own_form = "tied_widths" in spec.properties or ("widths_differ" in spec.properties and spec.is_module)
    same = [] if own_form else [student]
    for teacher in [*same, inputs["teacher"]]:
        values, grads = gradient(spec, inputs | {"student": student, "teacher": teacher})
        assert values.isfinite().all()
        assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("name", NAMES)
def test_one_row_works_or_says_why_not(name: str) -> None:
    spec, inputs = LOSSES[name], batch(0, LOSSES[name])
    only = torch.arange(len(listed(inputs["item"])[0])) == 3
    try:
        values, grads = gradient(spec, rows_of(inputs, only))
    except ValueError as refused:
        assert "row" in str(refused)
    else:
        assert values.isfinite().all()
        assert all(grad.isfinite().all() for grad in grads)


# ---------------------------------------------------------------- modules


@pytest.mark.parametrize("name", MODULES)
def test_a_module_goes_on_from_its_state(name: str) -> None:
    """Parameters, banks, counters: another module with this one's state gives the next values, and the next state."""
    spec = LOSSES[name]
    first = build(spec, batch(0, spec))
    for seed in (0, 2):
        torch.manual_seed(seed)
        call(spec, batch(seed, spec), first)
    other = build(spec, batch(0, spec))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    other.load_state_dict(first.state_dict())
    values = []
    for module in (first, other):
        torch.manual_seed(4)
        values.append(call(spec, batch(4, spec), module).detach())
    assert torch.equal(*values)
    state, restored = first.state_dict(), other.state_dict()
    assert state.keys() == restored.keys() and all(torch.equal(state[key], restored[key]) for key in state)


@pytest.mark.parametrize(("name", "params"), settings([name for name in MODULES if name != "skd_adv"]))
def test_every_parameter_of_a_module_learns(name: str, params: Settings) -> None:
    learns(name, batch(0, LOSSES[name]), **params)


@pytest.mark.parametrize("grid", [(40,), (20, 24), (17, 18, 19)])
def test_every_parameter_of_the_holistic_critic_learns(grid: tuple[int, ...]) -> None:
    """On maps of which something is left after four strides. What it adds to all scores cancels."""
    spec = LOSSES["skd_adv"]
    random = torch.Generator().manual_seed(0)
    cells = 2 * math.prod(grid)
    student, teacher, image = (torch.randn(cells, width, generator=random) for width in (5, 5, 3))
    inputs = {
        "student": [student, image], "teacher": [teacher, image], "cell": [torch.arange(cells)] * 2, "items": 2,
        "grid": [grid, grid],
    }  # fmt: skip
    learns("skd_adv", inputs, but={"critic.score.bias"})
    _, grads = gradient(spec, inputs)
    assert (grads[0].abs().sum(dim=1) > 0).float().mean() > 0.9 and (grads[1] == 0).all(), "a condition is none's loss"


def learns(name: str, inputs: dict[str, Any], but: Iterable[str] = (), **params: Any) -> None:
    """Within a few steps: what starts behind a factor of 0, or cancels, learns once another part has moved."""
    spec = LOSSES[name]
    module = build(spec, inputs, **params)
    if not list(module.parameters()):
        assert list(module.buffers()), "a module has something of its own"
        return
    optimizer = torch.optim.SGD(module.parameters(), lr=5e-2)
    reached = dict.fromkeys(dict(module.named_parameters()), False)
    for _ in range(10):
        optimizer.zero_grad()
        value = call(spec, inputs, module).sum()
        if value.requires_grad:
            value.backward()
        for key, parameter in module.named_parameters():
            reached[key] |= parameter.grad is not None and bool((parameter.grad != 0).any())
        optimizer.step()
    assert {key for key, found in reached.items() if not found} == set(but)
