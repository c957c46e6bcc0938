"""Every loss through the objective: padding, several ranks; and what large inputs cost in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch
from harness import LINKING, NAMES, Settings, batch, build, call, each, gradient, listed, signals, term
from oracles.contrastive_losses import crd_update
from torch import Tensor

from xmodal_kd.losses import LOSSES, LossSpec, blocks
from xmodal_kd.objective.objective import Objective
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.peak_memory import peak_bytes
from xmodal_kd.signals.signals import Layout, Signals

#: Losses whose labels are not one class a row; their own tests take them through the objective.
OTHER_LABELS = {"bounded_reg"}
THROUGH = [name for name in NAMES if name not in OTHER_LABELS]


def objective(spec: LossSpec, inputs: dict[str, Any]) -> Objective:
    """The loss as an objective, its module the one that `harness.build` makes."""
    made = Objective([term(spec)])
    if spec.is_module:
        next(iter(made)).module = build(spec, inputs)
    made.built = True
    return made


def value(spec: LossSpec, inputs: dict[str, Any], junk: float | None) -> tuple[Tensor, list[Tensor]]:
    student = each(lambda x: x.clone().requires_grad_(), inputs["student"])
    torch.manual_seed(0)
    out = objective(spec, inputs)(*signals(spec, inputs | {"student": student}, junk)).value()
    return out.detach(), list(torch.autograd.grad(out, listed(student), materialize_grads=True))


@pytest.mark.parametrize("name", THROUGH)
def test_padding_changes_nothing(name: str) -> None:
    """Cells of a grid without a valid row, be they 0, NaN or huge: equal to the bit in value and gradient."""
    spec = LOSSES[name]
    inputs = batch(0, spec)
    expected = value(spec, inputs, 0.0)
    assert expected[0].isfinite() and all(grad.isfinite().all() for grad in expected[1])
    for junk in (float("nan"), 1e30):
        got = value(spec, inputs, junk)
        assert torch.equal(got[0], expected[0])
        assert all(torch.equal(a, b) for a, b in zip(got[1], expected[1], strict=True))
    if not {"cell", "grid"} & set(spec.inputs):
        ragged = value(spec, inputs, None)
        torch.testing.assert_close(ragged[0], expected[0], rtol=1e-9, atol=1e-12)


class Recording(Ranks):
    """One of two ranks; on the first pass it keeps what it gathers, on the second it adds what the other had kept."""

    world = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.kept: list[Tensor] = []
        self.other: Iterator[Tensor] | None = None

    def gather_rows(self, rows: Tensor) -> Tensor:
        if self.other is None:
            self.kept.append(rows.detach())
            return rows
        return torch.cat([rows, next(self.other)] if self.rank == 0 else [next(self.other), rows])


def half(inputs: dict[str, Any], rank: int) -> dict[str, Any]:
    """The rows of the first two items, or of the others, numbered from 0."""
    item = listed(inputs["item"])[0]
    keep = (item < 2) if rank == 0 else (item >= 2)
    mine = {key: each(lambda x: x[keep], inputs[key]) for key in ("student", "teacher", "labels", "regions", "cell")}
    return inputs | mine | {
        "item": each(lambda x: x[keep] - 2 * rank, inputs["item"]),
        "items": 2,
        "ids": inputs["ids"][2 * rank : 2 * rank + 2],
    }  # fmt: skip


RANDOM = {name for name in NAMES if "random" in LOSSES[name].properties}


@pytest.mark.parametrize("name", [n for n in THROUGH if LOSSES[n].reduction == "batch" and n not in RANDOM])
def test_two_ranks_give_the_value_and_gradients_of_one(name: str) -> None:
    """Of losses over the batch: the ranks' totals, rows' gradients and modules' gradients add up to one process's."""
    spec = LOSSES[name]
    inputs = batch(0, spec)
    whole = objective(spec, inputs)
    student = each(lambda x: x.clone().requires_grad_(), inputs["student"])
    total = whole(*signals(spec, inputs | {"student": student})).parts[name].total
    total.backward()
    learns = slice(LINKING.get(name, 0), None)
    expected = torch.cat([x.grad for x in listed(student)[learns]], dim=1)

    ranks = [Recording(0), Recording(1)]
    for rank in ranks:
        with torch.no_grad(), suppress(IndexError, UserError):  # what is gathered is all that this pass is for
            objective(spec, inputs)(*signals(spec, half(inputs, rank.rank)), ranks=rank)
    totals, grads, learnt = [], [], []
    for rank, other in zip(ranks, ranks[::-1], strict=True):
        rank.other = iter(other.kept)
        mine = half(inputs, rank.rank)
        leaf = each(lambda x: x.clone().requires_grad_(), mine["student"])
        made = objective(spec, inputs)
        part = made(*signals(spec, mine | {"student": leaf}), ranks=rank).parts[name]
        part.total.backward()
        assert part.count == 0.5
        totals.append(part.total.detach())
        grads.append(torch.cat([x.grad for x in listed(leaf)[learns]], dim=1))
        learnt.append({key: p.grad for key, p in made.named_parameters()})
        state = {key: x for key, x in made.state_dict().items() if key not in learnt[-1]}
        for key, buffer in state.items():
            torch.testing.assert_close(buffer, whole.state_dict()[key], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(totals[0] + totals[1], total.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.cat(grads), expected, rtol=1e-7, atol=1e-12)
    if "mhgd" in name:  # its heads drop out by each rank's own draws
        return
    for key, parameter in whole.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(learnt[0][key] + learnt[1][key], parameter.grad, rtol=1e-7, atol=1e-12)


def test_banks_follow_the_oracle() -> None:
    spec = LOSSES["crd"]
    inputs = batch(0, spec)
    module = build(spec, inputs)
    state = {key: x.numpy().copy() for key, x in module.state_dict().items()}
    call(spec, inputs, module)
    given = {key: inputs[key].numpy() for key in ("student", "teacher", "item", "ids")}
    for side, expected in zip("st", crd_update(**given, state=state), strict=True):
        torch.testing.assert_close(module.get_buffer(f"bank_{side}"), torch.from_numpy(expected))
    first = module.drawn()
    assert int(module.get_buffer("draws")) == 1 and not torch.equal(first, build(spec, inputs).drawn())
    with torch.no_grad():
        call(spec, inputs, module)
    assert torch.equal(module.drawn(), first), "an evaluation writes nothing"


def test_what_banks_refuse() -> None:
    spec = LOSSES["crd"]
    inputs = batch(0, spec)
    with pytest.raises(ValueError, match="sample 40 in banks of 40: set the parameter samples"):
        call(spec, inputs | {"ids": torch.tensor([1, 2, 3, 40])})
    twice = torch.tensor([0, 0, 1, 2])
    with pytest.raises(ValueError, match="one row a sample, got 4 rows of 3"):
        call(spec, inputs | {"item": twice})
    made = objective(spec, inputs)
    with pytest.raises(UserError, match="needs the samples' ids"):
        s, t = signals(spec, inputs)
        s.ids = None
        made(s, t)


# ---------------------------------------------------------------- large inputs


@contextmanager
def small_blocks(size: int) -> Iterator[None]:
    before = blocks.BLOCK
    blocks.BLOCK = size
    try:
        yield
    finally:
        blocks.BLOCK = before


@pytest.mark.parametrize("size", [1, 40])
@pytest.mark.parametrize("name", NAMES)
def test_blocks_change_nothing(name: str, size: int) -> None:
    """Chunks of rows and blocks of pairs, down to one row at a time: the same values and gradients."""
    spec, inputs = LOSSES[name], batch(0, LOSSES[name])
    torch.manual_seed(1)
    expected = gradient(spec, inputs)
    with small_blocks(size):
        torch.manual_seed(1)
        got = gradient(spec, inputs)
    torch.testing.assert_close(got[0], expected[0], rtol=1e-10, atol=1e-13)
    for a, b in zip(got[1], expected[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-13)


ALONE = [name for name in THROUGH if LOSSES[name].alone]


@pytest.mark.parametrize("name", ALONE)
def test_padded_rows_are_not_copied_and_count_as_before(name: str) -> None:
    """Taken in chunks from where they are: value, gradient (0 at padding), half precision, NaN in the padding."""
    spec = LOSSES[name]
    inputs = batch(0, spec)
    expected = value(spec, inputs, 0.0)
    with small_blocks(20):
        got = value(spec, inputs, float("nan"))
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", [name for name in ALONE if "labels" not in LOSSES[name].inputs])
def test_a_row_alone_has_the_value_that_it_has_among_others(name: str) -> None:
    """What chunks rest on."""
    spec, inputs = LOSSES[name], batch(1, LOSSES[name])
    together = call(spec, inputs)
    for i in (0, 5):
        alone = {side: inputs[side][i : i + 1] for side in ("student", "teacher")}
        torch.testing.assert_close(call(spec, inputs | alone), together[i : i + 1], rtol=1e-12, atol=1e-14)


LARGE = ["kd", "kd_lskd", "logit_mse", "tfkd_reg", "dkd", "wsld", "ofa", "gjsd", "skew_kl", "skew_rkl", "multi_label",
         "weighted_ce", "dist"]  # fmt: skip


@pytest.mark.parametrize("layout", ["padded", pytest.param("full", marks=pytest.mark.full)])
@pytest.mark.parametrize("name", LARGE)
def test_logits_cost_themselves_their_gradient_and_a_tenth(name: str, layout: str) -> None:
    """At most the student's logits, their gradient and the teacher's logits, plus 10 %: no copy of all rows."""
    if name == "dist" and layout == "padded":
        pytest.skip("a loss over the batch gathers its rows")
    n, c = 2000, 500
    unit = 4 * n * c
    lengths = torch.full((10,), n // 10) - torch.arange(10) * 7
    rows = Layout.dense("frame", 10, (n // 10,)) if layout == "full" else Layout.padded("frame", lengths, n // 10)
    made = Objective([term(LOSSES[name]).model_copy(update={"on": "logits", "params": {}})])
    student, teacher = (torch.randn(n, c, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    student.requires_grad_()
    labels = torch.arange(n) % c

    def step() -> None:
        s = Signals().add("logits", student, rows).add("labels", labels, rows)
        made(s, Signals().add("logits", teacher, rows)).value().backward()

    with small_blocks(n * c // 100):
        assert peak_bytes(step) <= 1.3 * unit  # beside the two sides' logits: the gradient, and a tenth of all three
    assert student.grad is not None and student.grad.isfinite().all()


OTHERS = [pytest.param(name, marks=pytest.mark.full) for name in ("pkt", "cc", "rkd", "darkrank")]


@pytest.mark.parametrize("name", ["sp", "infonce", *OTHERS])
def test_pairs_of_rows_are_never_all_in_memory(name: str) -> None:
    n, c = 1500, 8
    spec = LOSSES[name]
    student, teacher = (torch.randn(n, c, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    student.requires_grad_()
    params: Settings = {"angle": 0.0} if name == "rkd" else {}
    with small_blocks(n * 10):
        assert peak_bytes(lambda: spec.fn(student, teacher, **params).backward()) < 0.25 * 4 * n * n


def test_mlkd_never_holds_a_matrix_of_all_classes() -> None:
    """Beside the gradient 16 chunks, which are 10 % of the logits of 64 x 1,000 frames and 5,000 classes."""
    n, c, size = 401, 400, 25_000
    student, teacher = (torch.randn(n, c, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    student.requires_grad_()
    with small_blocks(size):
        peak = peak_bytes(lambda: LOSSES["mlkd"].fn(student, teacher, temperatures=(4.0,)).backward())
    assert peak <= 4 * (n * c + 16 * size) < 4 * (n * c + 3 * c * c)
    assert student.grad is not None and student.grad.isfinite().all()
