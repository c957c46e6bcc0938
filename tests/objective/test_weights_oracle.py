"""Terms over some rows, and over rows that weigh more than others, against plain loops and the losses' oracles."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from harness import FUNCTIONS, KNOWN, SMALL
from oracles.losses import ORACLES
from torch import Tensor

from xmodal_kd.losses import LOSSES, blocks
from xmodal_kd.objective.objective import Objective
from xmodal_kd.objective.parts import LossOut, Part
from xmodal_kd.recipe.recipe import Term
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.signals.signals import Layout, Signals

NAN, CLASSES, ITEMS, GRID = float("nan"), 4, 3, (3, 5)
ROWS = ITEMS * math.prod(GRID)
ITEM = torch.arange(ITEMS).repeat_interleave(math.prod(GRID))
#: Losses that give a value a row, of logits (n, CLASSES) on both sides and perhaps a class a row.
BY_ROW = [
    name
    for name in FUNCTIONS
    if name in KNOWN and LOSSES[name].reduction == "rows" and not LOSSES[name].many and name not in SMALL
    and set(LOSSES[name].inputs) <= {"student", "teacher", "labels"} and name != "bounded_reg"
]  # fmt: skip
TAUGHT = [name for name in BY_ROW if LOSSES[name].needs_teacher]
Batch = dict[str, Any]


def draw(seed: int) -> Batch:
    """All that a batch may say: two masks, weights on both sides of which some are 0, labels, who is labelled."""
    random = torch.Generator().manual_seed(seed)
    weights = [torch.rand(ROWS, generator=random, dtype=torch.float64) * 3 for _ in range(2)]
    for w in weights:
        w[torch.rand(ROWS, generator=random) < 0.25] = 0
    return {
        "student": 2 * torch.randn(ROWS, CLASSES, generator=random, dtype=torch.float64),
        "teacher": 2 * torch.randn(ROWS, CLASSES, generator=random, dtype=torch.float64),
        "labels": torch.randint(CLASSES, (ROWS,), generator=random),
        "masks": [torch.rand(ROWS, generator=random) < 0.8 for _ in range(2)],
        "weights": weights,
        "labelled": torch.tensor([True, False, True]),
    }


def rows_of_the_term(name: str, drawn: Batch, sides: tuple[bool, bool], least: float | None, scarce: bool) -> list[int]:
    """Rows that count, one after another by what the docstring of `Term` and the spec of layouts say."""
    teacher, weights = LOSSES[name].needs_teacher, weights_of(name, drawn, sides)
    kept = []
    for i in range(ROWS):
        if not drawn["masks"][0][i] or (teacher and not drawn["masks"][1][i]):
            continue
        if weights is not None and weights[i] == 0:
            continue
        if scarce and "labels" in LOSSES[name].inputs and not drawn["labelled"][int(ITEM[i])]:
            continue
        if least is not None:
            odds = [math.exp(z) for z in drawn["teacher"][i].tolist()]
            if max(odds) / sum(odds) < least:
                continue
        kept.append(i)
    return kept


def weights_of(name: str, drawn: Batch, sides: tuple[bool, bool]) -> Tensor | None:
    """The teacher's where the loss has a teacher that gives them, else the student's."""
    side = 1 if sides[1] and LOSSES[name].needs_teacher else 0
    return drawn["weights"][side] if sides[side] else None


def expected(name: str, drawn: Batch, kept: list[int], weights: Tensor | None) -> tuple[float, float]:
    """Sum of w l and sum of w, l from the loss's oracle, one row at a time."""
    above = below = 0.0
    for i in kept:
        row = {key: drawn[key][i : i + 1].numpy() for key in LOSSES[name].inputs}
        weight = 1.0 if weights is None else float(weights[i])
        above += weight * float(ORACLES[name](**row)[0])
        below += weight
    return above, below


def said(
    drawn: Batch, used: list[int], sides: tuple[bool, bool], scarce: bool = False, junk: bool = True, grid: bool = True
) -> tuple[Signals, Signals]:
    """The batch as signals. Rows that are not `used` hold what no loss can take, but for their weights and masks."""
    other = torch.ones(ROWS, dtype=torch.bool).index_fill(0, torch.tensor(used, dtype=torch.int64), False)
    both = []
    for side, role in enumerate(("student", "teacher")):
        mask = drawn["masks"][side]
        layout = Layout("frame", mask, ITEM, ITEMS, GRID if grid else None)
        # a row that is left out for the teacher's doubts must hold the teacher's doubts
        out_of = other if side == 0 else other & ~mask
        rows = torch.where(out_of[:, None] & junk, NAN, drawn[role])
        labels = torch.where(other & junk, -7, drawn["labels"])
        weights = torch.where(mask, drawn["weights"][side], NAN)
        signals = Signals().add("logits", rows.requires_grad_(side == 0), layout).add("labels", labels, layout)
        both.append(signals.add("w", weights, layout) if sides[side] else signals)
    if scarce:
        both[0].labelled = drawn["labelled"]
    return both[0], both[1]


def part(name: str, student: Signals, teacher: Signals | None, **term: Any) -> Part:
    [found] = Objective([Term(loss=name, projector="none", **term)])(student, teacher).parts.values()
    return found


@pytest.mark.parametrize("block", [blocks.BLOCK, 8])
@pytest.mark.parametrize("sides", [(True, False), (True, True), (False, True)], ids=["student", "both", "teacher"])
@pytest.mark.parametrize("name", BY_ROW)
def test_a_weighted_mean(monkeypatch: Any, name: str, sides: tuple[bool, bool], block: int) -> None:
    """Sum and count, through rows with NaN that weigh nothing or are padding; whole, and in chunks where they lie."""
    if not LOSSES[name].needs_teacher and sides == (False, True):
        pytest.skip("nobody's weights")
    monkeypatch.setattr(blocks, "BLOCK", block)
    for seed in range(3):
        drawn, weights = draw(seed), weights_of(name, draw(seed), sides)
        kept = rows_of_the_term(name, drawn, sides, None, scarce=False)
        student, teacher = said(drawn, kept, sides, grid=seed != 1)
        got = part(name, student, teacher, weights="w")
        above, below = expected(name, drawn, kept, weights)
        assert float(got.count) == pytest.approx(below, rel=1e-12)
        assert float(got.total.detach()) == pytest.approx(above, rel=1e-9)
        [grad] = torch.autograd.grad(got.total, student.rows("logits"))
        reached = grad.isfinite().all(dim=1) & (grad != 0).any(dim=1)
        assert reached.nonzero().squeeze(1).tolist() == kept and not grad[~reached].any()


@pytest.mark.parametrize("block", [blocks.BLOCK, 8])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("name", TAUGHT)
def test_a_mean_over_what_the_teacher_is_sure_of(monkeypatch: Any, name: str, weighted: bool, block: int) -> None:
    """With weights and without, under labels for some of the samples."""
    monkeypatch.setattr(blocks, "BLOCK", block)
    sides, more = (weighted, weighted), {"weights": "w"} if weighted else {}
    seen = []
    for least in (0.3, 0.6, 0.9):
        drawn = draw(1)
        kept = rows_of_the_term(name, drawn, sides, least, scarce=True)
        student, teacher = said(drawn, kept, sides, scarce=True)
        got = part(name, student, teacher, min_confidence=least, **more)
        above, below = expected(name, drawn, kept, weights_of(name, drawn, sides))
        assert float(got.count) == pytest.approx(below, rel=1e-12)
        assert float(got.total.detach()) == pytest.approx(above, rel=1e-9, abs=1e-12)
        [grad] = torch.autograd.grad(got.total, student.rows("logits"))
        assert (grad != 0).any(dim=1).nonzero().squeeze(1).tolist() == kept
        seen.append(len(kept))
    assert 0 < seen[2] < seen[1] < seen[0]


@pytest.mark.parametrize("name", ["ce", "kd"])
def test_the_gradient_is_that_of_the_weighted_sum(name: str) -> None:
    """Against central differences of the loops, in every logit of the student."""
    drawn, sides, step = draw(5), (True, True), 1e-5
    kept = rows_of_the_term(name, drawn, sides, None, scarce=False)
    weights = weights_of(name, drawn, sides)
    student, teacher = said(drawn, kept, sides)
    [grad] = torch.autograd.grad(part(name, student, teacher, weights="w").total, student.rows("logits"))
    for i in range(ROWS):
        for k in range(CLASSES):
            ends = []
            for sign in (1, -1):
                moved = drawn | {"student": drawn["student"].clone()}
                moved["student"][i, k] += sign * step
                ends.append(expected(name, moved, [j for j in kept if j == i], weights)[0])
            assert float(grad[i, k]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("weight", [0.0, 1.0, 0.3])
def test_items_apart_add_up_to_the_batch(weight: float) -> None:
    """Of one item after another the sums and the counts add up, also where one of them has nothing to say."""
    drawn, sides = draw(7), (True, True)
    drawn["weights"] = [torch.where(ITEM == 1, weight * w, w) for w in drawn["weights"]]
    kept = rows_of_the_term("kd", drawn, sides, 0.5, scarce=False)
    whole = part("kd", *said(drawn, kept, sides), weights="w", min_confidence=0.5)
    total = count = 0.0
    for item in range(ITEMS):
        here = item == ITEM
        only = torch.zeros(int(here.sum()), dtype=torch.int64)
        both = []
        for side, role in enumerate(("student", "teacher")):
            layout = Layout("frame", drawn["masks"][side][here], only, 1)
            signals = Signals().add("logits", drawn[role][here], layout)
            both.append(signals.add("w", drawn["weights"][side][here], layout))
        one = part("kd", both[0], both[1], weights="w", min_confidence=0.5)
        if item == 1 and weight == 0:
            assert float(one.total) == 0 and float(one.count) == 0
        total, count = total + float(one.total), count + float(one.count)
    assert total == pytest.approx(float(whole.total.detach())) and count == pytest.approx(float(whole.count))


@pytest.mark.parametrize("name", TAUGHT)
def test_a_scale_of_all_weights_changes_no_mean_and_a_copy_of_a_row_weighs_twice(name: str) -> None:
    """What a weighted mean is: weight 2 is two rows of weight 1."""
    random = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(5, CLASSES, generator=random, dtype=torch.float64) for _ in range(2))
    labels, weights = torch.tensor([0, 3, 2, 1, 1]), torch.tensor([1.0, 2.0, 0.0, 3.0, 1.0])
    copies = torch.repeat_interleave(torch.arange(5), weights.long())

    def mean(rows: Tensor, w: Tensor | None) -> float:
        layout = Layout.ragged("point", torch.zeros(len(rows), dtype=torch.int64), 1)
        both = [Signals().add("logits", x[rows], layout) for x in (student, teacher)]
        both[0].add("labels", labels[rows], layout)
        if w is not None:
            both[0].add("w", w, layout)
        got = part(name, both[0], both[1], weights=None if w is None else "w")
        return float(got.total / got.count)

    value = mean(torch.arange(5), weights)
    assert value == pytest.approx(mean(torch.arange(5), 1e4 * weights), rel=1e-9)
    assert value == pytest.approx(mean(copies, None), rel=1e-9)


def test_a_teacher_of_the_least_confidence_is_sure_enough() -> None:
    """Rows at the bound count, at 1 too where nothing else is possible; half precision is no excuse."""
    teacher = torch.tensor([[0.0, 0.0, -1e4, -1e4], [1e4, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        layout = Layout.samples(3)
        both = [Signals().add("logits", x.to(dtype), layout) for x in (torch.zeros(3, 4), teacher)]
        counts = [float(part("kd", both[0], both[1], min_confidence=p).count) for p in (0.25, 0.26, 0.5, 0.51, 1.0)]
        assert counts == [3, 2, 2, 1, 1]


def test_dn_has_the_statistics_of_the_rows_that_count() -> None:
    """A loss whose rows know of each other sees the rows of the term and no other."""
    drawn, sides = draw(11), (True, False)
    kept = rows_of_the_term("dn", drawn, sides, None, scarce=False)
    student, teacher = said(drawn, kept, sides)
    objective = Objective([Term(loss="dn", on="logits", weights="w", projector="none")])
    objective.double().build(student, teacher, Streams(1))
    module = objective.terms[0].module
    assert module is not None
    state = {key: x.numpy().copy() for key, x in module.state_dict().items()}
    values = ORACLES["dn"](drawn["student"][kept].numpy(), drawn["teacher"][kept].numpy(), state=state)
    weights = drawn["weights"][0][kept].numpy()
    out: LossOut = objective(student, teacher)
    got = out.parts["dn"]
    np.testing.assert_allclose(float(got.total.detach()), sum(weights * values), rtol=1e-9)
    assert float(got.count) == pytest.approx(sum(weights))
