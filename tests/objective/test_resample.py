"""The teacher's rows on the student's grid: by plain loops, chosen in a dry run, kept over resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import resampling
from torch import Tensor, nn
from torch.nn import functional as F
from toy import ToyAdapter, adapter, engine, roles

from xmodal_kd.objective.objective import Objective
from xmodal_kd.objective.resample import Way, choose, pair, resample_rows
from xmodal_kd.recipe.recipe import Term, Train
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.interrupt import Interrupted
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.signals.signals import Layout, Signal, Signals

NAN = float("nan")
FRAME_WAYS: list[Way] = ["average", "linear", "nearest"]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def says(rows: Tensor, layout: Layout, xyz: Tensor | None = None) -> Signals:
    out = Signals().add("f", rows, layout)
    return out if xyz is None else out.add("xyz", xyz, layout)


def brought(way: Way, student: Signals, teacher: Signals) -> Signal:
    return resample_rows("t", way, pair(student["f"], teacher["f"], student, teacher))


def agree(got: Signal, expected: list[np.ndarray | None], at: Tensor) -> None:
    """The rows that `at` numbers are as expected; None: not valid."""
    for row, valid, known in zip(got.rows[at], got.layout.mask[at], expected, strict=True):
        assert bool(valid) == (known is not None)
        if known is not None:
            np.testing.assert_allclose(row.numpy(), known, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("way", FRAME_WAYS)
@pytest.mark.parametrize("ragged", [False, True])
def test_sequences(way: Way, ragged: bool) -> None:
    """Finer, coarser and equal items in one batch; an item without rows on either side; a hole; NaN in the padding."""
    own, other = torch.tensor([3, 5, 4, 0, 2]), torch.tensor([7, 2, 4, 3, 0])
    mine = Layout.padded("frame", own, 6)
    theirs = Layout.padded("frame", other, 8)
    mask = theirs.mask.clone()
    mask[1] = False  # a hole in the first item
    rows = randn(40, 2).masked_fill(~mask[:, None], NAN)
    theirs = Layout("frame", mask, theirs.item, 5, theirs.grid)
    if ragged:  # the items' rows behind one another in turn, the hole still a row
        keep = Layout.padded("frame", other, 8).mask.nonzero().squeeze(1)
        keep = keep[torch.argsort(keep % 8, stable=True)]
        theirs, rows = Layout("frame", mask[keep], theirs.item[keep], 5), rows[keep]
    got = brought(way, says(randn(30, 4), mine), says(rows, theirs))
    for item in range(5):
        of = (theirs.item == item).nonzero().squeeze(1)[: int(other[item])]
        listed = [rows[i].numpy() if theirs.mask[i] else None for i in of]
        expected = resampling.sequence(listed, int(own[item]), way) if listed else [None] * int(own[item])
        agree(got, expected, torch.arange(int(own[item])) + 6 * item)
    assert not got.layout.mask[~mine.mask].any()


@pytest.mark.parametrize("way", FRAME_WAYS)
@pytest.mark.parametrize("other", [(4, 6), (3, 2), (2, 7), (1, 1)])
def test_grids(way: Way, other: tuple[int, int]) -> None:
    own, n = (2, 3), 2 * other[0] * other[1]
    theirs = Layout.dense("pixel", 2, other)
    mask = torch.ones(n, dtype=torch.bool)
    mask[n // 2] = n == 2  # a cell of the second item shows nothing
    theirs, rows = Layout("pixel", mask, theirs.item, 2, other), randn(n, 3)
    got = brought(
        way, says(randn(12, 3), Layout.dense("pixel", 2, own)), says(rows.masked_fill(~mask[:, None], NAN), theirs)
    )
    for item in range(2):
        cells = {(i, j): item * (n // 2) + i * other[1] + j for i in range(other[0]) for j in range(other[1])}
        listed = {cell: rows[k].numpy() if mask[k] else None for cell, k in cells.items()}
        agree(got, resampling.grid(listed, own, other, way), torch.arange(6) + 6 * item)


def test_as_torch_interpolates() -> None:
    maps = randn(2, 3, 6, 8)
    rows = maps.movedim(1, -1).reshape(-1, 3)
    teacher = says(rows, Layout.dense("pixel", 2, (6, 8)))
    for size, way, mode in [
        ((3, 4), "average", "area"),
        ((3, 16), "linear", "bilinear"),
        ((4, 5), "nearest", "nearest-exact"),
    ]:
        layout = Layout.dense("pixel", 2, size)
        got = brought(way, says(randn(len(layout), 3), layout), teacher)  # type: ignore[arg-type]
        expected = F.interpolate(maps, size, mode=mode).movedim(1, -1).reshape(-1, 3)
        torch.testing.assert_close(got.rows, expected, rtol=1e-6, atol=1e-7)
        assert got.layout.full, "nothing need be gathered"


@pytest.mark.parametrize(("way", "count"), [("knn", 3), ("nearest", 1)])
def test_points(way: Way, count: int) -> None:
    """Items of unequal numbers in mixed order, one with fewer points than neighbours, one without; NaN coordinates."""
    a, b = torch.tensor([0, 1, 0, 2, 1, 3]), torch.tensor([1, 0, 0, 3, 0, 0, 1, 0, 3])
    here, there, rows = randn(6, 3), randn(9, 3, seed=1), randn(9, 2, seed=2)
    here[2], there[1], mask = NAN, NAN, torch.ones(9, dtype=torch.bool)
    mask[5] = False
    mine, theirs = Layout.ragged("point", a, 4), Layout("point", mask, b, 4)
    got = brought(way, says(randn(6, 2), mine, here), says(rows.masked_fill(~mask[:, None], NAN), theirs, there))
    for item in range(4):
        at, of = (a == item).nonzero().squeeze(1), (b == item).nonzero().squeeze(1)
        listed = [rows[i].numpy() if mask[i] else None for i in of]
        agree(got, resampling.points(here[at].numpy(), there[of].numpy(), listed, count), at)


def test_what_auto_chooses() -> None:
    def chosen(mine: Layout, theirs: Layout, points: bool = False) -> str:
        sides = [says(randn(len(x), 2), x, randn(len(x), 3) if points else None) for x in (mine, theirs)]
        return choose(pair(sides[0]["f"], sides[1]["f"], *sides))

    coarse, fine = Layout.padded("frame", torch.tensor([2, 3]), 9), Layout.padded("frame", torch.tensor([4, 6]), 6)
    assert chosen(coarse, fine) == "average" and chosen(fine, coarse) == "linear"
    assert chosen(fine, fine) == "none"
    flat, tall = Layout.dense("pixel", 2, (2, 6)), Layout.dense("pixel", 2, (6, 2))
    assert chosen(flat, tall) == "average", "as many cells and other ones"
    assert not flat.same_rows(tall) and flat.same_rows(Layout.dense("pixel", 2, (12,)))
    assert chosen(flat, Layout.dense("pixel", 2, (1, 3))) == "linear"
    cloud, other = Layout.ragged("point", torch.tensor([0, 1]), 2), Layout.ragged("point", torch.tensor([0, 0, 1]), 2)
    assert chosen(cloud, other) == "none" and chosen(cloud, other, points=True) == "knn"
    assert chosen(cloud, flat, points=True) == "knn", "pixels whose points are known"
    assert chosen(flat, Layout.dense("pixel", 3, (1, 3))) == "none", "other items"


@pytest.mark.parametrize("name", ["hint", "at", "cka", "fsp"])
def test_a_loss_sees_rows_side_by_side(name: str) -> None:
    """Of a dry run: resampled and projected, for losses of rows, items, batches and several signals."""
    own, other = Layout.dense("pixel", 2, (2, 3)), Layout.dense("pixel", 2, (4, 6))
    on = ["f", "g"] if name == "fsp" else "f"
    student = Signals().add("f", randn(12, 4).requires_grad_(), own).add("g", randn(12, 5, seed=3), own)
    teacher = Signals().add("f", randn(48, 4, seed=1), other).add("g", randn(48, 5, seed=4), other)
    aligned = Signals()
    for signal in ("f", "g"):
        pooled = F.avg_pool2d(teacher.maps(signal), 2).movedim(1, -1)
        aligned.add(signal, pooled.reshape(12, -1), own)
    objective = Objective([Term(loss=name, on=on)]).build(student, teacher, Streams(1))
    plain = Objective([Term(loss=name, on=on)]).build(student, aligned, Streams(1))
    torch.testing.assert_close(objective(student, teacher).value(), plain(student, aligned).value())
    [made] = objective.describe()["terms"]
    assert made["resample"][0] == {"way": "average", "kind": "pixel", "student": 12, "teacher": 48}
    assert plain.describe()["terms"] == []


def test_the_recipe_decides() -> None:
    own, other = Layout.dense("frame", 2, (3,)), Layout.dense("frame", 2, (6,))
    student, teacher = Signals().add("logits", randn(6, 4), own), Signals().add("logits", randn(12, 4), other)
    streams = Streams(1)
    with pytest.raises(UserError, match=r"6 frame rows and the teacher's 12 frame rows are not aligned: .* resample"):
        Objective([Term(loss="kd")]).build(student, teacher, streams)  # answers only where the recipe says so
    objective = Objective([Term(loss="kd", resample="nearest")])
    picked = Signals().add("logits", teacher.maps("logits")[:, :, 1::2].movedim(1, -1), own)
    expected = Objective([Term(loss="kd")])(student, picked).value()
    torch.testing.assert_close(objective(student, teacher).value(), expected)
    torch.testing.assert_close(objective.build(student, teacher, streams)(student, teacher).value(), expected)
    student.add("f", randn(6, 4), own)
    teacher.add("f", randn(12, 4), other)
    with pytest.raises(UserError, match="not aligned"):
        Objective([Term(loss="hint", on="f", resample="none")]).build(student, teacher, streams)


@pytest.mark.parametrize(("way", "other", "message"), [
    ("knn", Layout.dense("frame", 2, (6,)), "coordinates are not known on both sides"),
    ("linear", Layout.dense("pixel", 2, (2, 3)), "do not lie over one another"),
    ("average", Layout.dense("frame", 3, (2,)), "2 items and the teacher 3"),
])  # fmt: skip
def test_what_cannot_be_resampled(way: Any, other: Layout, message: str) -> None:
    student, teacher = says(randn(4, 2), Layout.dense("frame", 2, (2,))), says(randn(len(other), 2), other)
    with pytest.raises(UserError, match=f"term 'hint': resample: {way}: .*{message}"):
        Objective([Term(loss="hint", on="f", resample=way)]).build(student, teacher, Streams(1))


def test_pairs_only() -> None:
    layout = Layout.dense("frame", 2, (2,))
    student = Signals().add("f", randn(4, 2), layout).add("g", randn(4, 2), layout)
    term = Term(loss="fsp", on={"student": ["f", "g"], "teacher": ["f", "f", "g"]}, resample="linear")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="2 signals of the student and 3 of the teacher are no pairs"):
        Objective([term]).build(student, student, Streams(1))


# ---------------------------------------------------------------- in a training


class Coarse(ToyAdapter):
    """A teacher that answers every row twice, in one grid of longer sequences."""

    def signals(self, role: str, model: nn.Module, batch: Any, features: Any = ()) -> Signals:
        said = super().signals(role, model, batch, features)
        if role != "teacher":
            return said
        out, steps = Signals(batch["ids"]), batch["x"].shape[1]
        layout = Layout.padded("frame", 2 * batch["lengths"], 2 * steps)
        return out.add("body", said.rows("body").repeat_interleave(2, dim=0), layout)


def trained(folder: Path, accumulate: int = 1, stop: int | None = None, resume: bool = False) -> dict[str, Tensor]:
    toy = adapter(batch_size=6)
    toy.__class__ = Coarse
    models = roles(toy)
    terms = [Term(loss="test_ce"), Term(loss="hint", on="body"), Term(loss="at", on="body")]
    train = Train(steps=4, batch_size=6, accumulate=accumulate, checkpoint_every=1)
    built = engine(folder, train, toy=toy, models=models, terms=terms, max_seconds=0.0 if stop else None)
    if stop:
        with pytest.raises(Interrupted):
            built.fit()
    else:
        built.fit(resume=resume)
    made = built.method.objective.describe()["terms"]  # type: ignore[attr-defined]
    assert [one["resample"][0]["way"] for one in made] == ["average", "average"]
    assert made[0]["projector"] == [8, 24]
    return models["student"].state_dict()


def test_trains_accumulates_and_resumes(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")
    for name, value in trained(tmp_path / "parts", accumulate=3).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-4, atol=1e-5)
    trained(tmp_path / "stopped", stop=1)
    for name, value in trained(tmp_path / "stopped", resume=True).items():
        assert torch.equal(value, whole[name])


def test_a_checkpoint_keeps_the_choice() -> None:
    """Whatever the batch is that a resumed run sees first."""
    short, long = Layout.padded("frame", torch.tensor([2, 3]), 3), Layout.padded("frame", torch.tensor([4, 6]), 6)
    term = Term(loss="hint", on="f")
    first = Objective([term]).build(says(randn(6, 2), short), says(randn(12, 2), long), Streams(1))
    again = Objective([term]).build(says(randn(12, 2), long), says(randn(6, 2), short), Streams(1))
    assert again.terms[0].ways == ("linear",)
    again.load_state_dict(first.state_dict())
    assert next(iter(again)).ways == ("average",)
