"""A cached teacher whose rows a term resamples: the loss is that of the live one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from filled_stores import fill, filler
from torch import nn
from toy import Data, ToyAdapter, adapter, roles

from xmodal_kd.adapter.adapter import CACHED, Batch
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.signals.signals import Layout, Signals
from xmodal_kd.teacher_cache.entries import restored
from xmodal_kd.teacher_cache.own_rows import own_rows, rows_of_their_own
from xmodal_kd.teacher_cache.source import CachedSource
from xmodal_kd.teacher_cache.store import Store
from xmodal_kd.training.loader import steps


class Finer(ToyAdapter):
    """Whose teacher has two frames of features to the student's one."""

    def signals(self, role: str, model: nn.Module, batch: Batch, features: Sequence[str] = ()) -> Signals:
        said = super().signals(role, model, batch, features)
        if role != "teacher" or "body" not in said:
            return said
        out, lengths, frames = Signals(said.ids), batch["lengths"], batch["x"].shape[1]
        for name in said:
            if name != "body":
                out.add(name, *said[name])
        fine = said.rows("body").reshape(len(lengths), frames, -1).repeat_interleave(2, dim=1)
        fine = fine + 0.1 * torch.arange(2 * frames)[:, None]
        return out.add("body", fine.flatten(0, 1), Layout.padded("frame", 2 * lengths, 2 * frames))


@pytest.mark.parametrize("way", ["auto", "average", "nearest"])
def test_the_loss_is_that_of_the_live_teacher(tmp_path: Path, way: Any) -> None:
    terms = [Term(loss="kd"), Term(loss="hint", on="body", resample=way)]
    toy = Finer(Data(noise=0.0), Streams(3), 6)
    made = filler(toy)
    made.objective = Objective(terms)
    student = roles(toy)["student"]
    own = own_rows(made, student)
    assert own == {"body"} and student.training, "and it is left as it was"
    kept, _ = fill(made, tmp_path)
    other = Finer(toy.config, toy.streams, batch_size=8)  # other company and padding than when it was filled
    source = CachedSource(other.data("train"), made.spec, 1, toy, Store(tmp_path), kept, own)
    stream = steps(source)
    for _ in range(3):
        [batch] = next(stream)
        mine = toy.signals("student", student.eval(), batch, ["body"])
        live = toy.signals("teacher", made.teacher, batch, ["body"])
        cached = restored(kept, batch[CACHED], mine, own)
        values = []
        for teacher in (live, cached):
            objective = Objective(terms)
            with torch.no_grad():
                objective.build(mine, teacher, Streams(3))
                out = objective(mine, teacher, step=0)
            values.append({name: float(part.total) / float(part.count) for name, part in out.parts.items()})
        assert values[1] == pytest.approx(values[0], rel=1e-3) and values[0]["hint"] > 0.01
    stream.close()


def test_rows_that_meet_stay_the_students(tmp_path: Path) -> None:
    toy = adapter(noise=0.0)
    assert own_rows(filler(toy), roles(toy)["student"]) == frozenset()


def test_a_masked_grid_of_several_axes_cannot_be_kept() -> None:
    objective = Objective([Term(loss="hint", on="body")])
    mine = Signals().add("body", torch.zeros(8, 2), Layout.dense("pixel", 2, (2, 2)))
    grid = Layout.dense("pixel", 2, (4, 4))
    whole = Signals().add("body", torch.zeros(32, 2), grid).add("xyz", torch.zeros(32, 3), grid)
    assert rows_of_their_own(objective, mine, whole) == {"body", "xyz"}, "and where they are"
    mask = grid.mask.clone()
    mask[3] = False
    some = Signals().add("body", torch.zeros(32, 2), Layout("pixel", mask, grid.item, 2, (4, 4)))
    with pytest.raises(UserError, match=r"term 'hint' resamples rows of a grid \(4, 4\) of which some do not count"):
        rows_of_their_own(objective, mine, some)
