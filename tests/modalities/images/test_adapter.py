"""What a role says of a batch of images, and losses on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from oracles.losses import ORACLES

from xmodal_kd.modalities.images.adapter import ImagesAdapter
from xmodal_kd.modalities.images.data.source import ImagesData
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.signals.signals import Signals

FEATURES = ("stages.0", "embedding", "cells")


def adapter() -> ImagesAdapter:
    return ImagesAdapter(ImagesData(sources="digits"), Streams(1), 8)


def said(features: tuple[str, ...] = FEATURES, width: int = 4) -> Signals:
    made = adapter()
    torch.manual_seed(width)
    source = made.data("test")
    batch = source.collate([source.sample(i, 0) for i in range(6)])
    return made.signals("student", made.build("student", "cnn", {"width": width}), batch, features)


def test_rows_are_images_or_positions() -> None:
    signals = said()
    assert signals.rows("logits").shape == (6, 10) and signals.rows("embedding").shape == (6, 8)
    assert signals["embedding"].layout.same_rows(signals["labels"].layout)
    assert signals.rows("stages.0").shape == (6 * 64, 4) and signals["stages.0"].layout.grid == (8, 8)
    assert signals.maps("cells").shape == (6, 10, 4, 4)
    torch.testing.assert_close(signals.maps("cells").mean(dim=(2, 3)), signals.rows("logits"))
    tokens = said(("head",))["head"]  # scores of positions one after another
    assert tokens.rows.shape == (6 * 16, 10) and tokens.layout.grid == (16,) and tokens.layout.kind == "token"
    torch.testing.assert_close(tokens.rows.reshape(6, 16, 10).mean(dim=1), signals.rows("logits"))


def test_scales_of_scores_have_the_value_of_the_oracle() -> None:
    """`sdd` on cells, whose labels are the images': rows of another kind."""
    student, teacher = said(), said(width=3)
    objective = Objective([Term(loss="sdd", on="cells"), Term(loss="sdd_teacher", on="cells")])
    parts = objective(student, teacher).parts
    item, cell = np.arange(6).repeat(16), np.arange(96)
    rows = [side.rows("cells").detach().double().numpy() for side in (student, teacher)]
    labels = student.rows("labels").numpy()
    right = ORACLES["sdd"](*rows, labels, np.arange(6), item, 6, cell, (4, 4)).mean()
    same = ORACLES["sdd_teacher"](*rows, item, items=6, cell=cell, grid=(4, 4)).mean()
    for name, expected in (("sdd", right), ("sdd_teacher", same)):
        assert float((parts[name].total / parts[name].count).detach()) == pytest.approx(expected, rel=1e-4)


def test_models_of_other_data_are_refused(trained: Path, tmp_path: Path) -> None:
    made = adapter()
    assert made.load("teacher", trained / "teacher").card["model"] == "cnn"
    card = (trained / "teacher/card.json").read_text()
    for old, new, says in (('"0"', '"zero"', "knows the classes"), ('"images"', '"points"', "a model of 'points'")):
        (tmp_path / "card.json").write_text(card.replace(old, new, 1))
        with pytest.raises(UserError, match=says):
            made.load("teacher", tmp_path)
    made.config = ImagesData(sources="digits", dev=40, test=60)
    assert made.class_names("student") == tuple("0123456789")
