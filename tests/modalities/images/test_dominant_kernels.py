"""Dominant kernels and knowledge pre-regression, beside what somebody else wrote of the same statement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import dominant_by_another as oracle

from xmodal_kd.cli.main import call
from xmodal_kd.modalities.images.models.classifier import CNN, CNNConfig, Dominant
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.signals.signals import Layout, Signals


@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_layer_is_the_convolution_that_it_mixes(count: int) -> None:
    torch.manual_seed(count)
    layer = Dominant(3, 4, count).double()
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    kernels, mix = (part.weight.detach() for part in list(layer)[:2])  # type: ignore[union-attr,operator]
    whole = oracle.composed(
        kernels.reshape(3, count, 3, 3).numpy(),
        mix[:, :, 0, 0].reshape(4, 3, count).numpy(),  # type: ignore[index]
    )
    np.testing.assert_allclose(layer[1](layer[0](x)).detach(), oracle.conv(x.numpy(), whole), rtol=1e-9, atol=1e-12)
    assert sum(part.weight.numel() for part in list(layer)[:2]) == 3 * count * 9 + 4 * 3 * count  # type: ignore[union-attr,operator,misc]


def test_a_student_of_few_kernels_is_smaller() -> None:
    plain, few = (CNN(CNNConfig(dominant=count), channels=1, classes=10) for count in (None, 1))
    assert few(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    assert 4 * sum(p.numel() for p in few.parameters()) < sum(p.numel() for p in plain.parameters())


@pytest.mark.parametrize(("loss", "form"), [("kd", "softmax"), ("multi_label", "sigmoid")])
def test_pre_regression_is_a_term_of_scores_on_features(loss: str, form: str) -> None:
    """`kd` less the teacher's entropy, which no weight moves; `multi_label` a mean over channels."""
    draw = torch.Generator().manual_seed(1)
    layout = Layout.dense("pixel", 2, (3, 2))
    f_s, f_t = (torch.randn(12, c, generator=draw, dtype=torch.float64) * 2 for c in (4, 5))
    student, teacher = Signals().add("f", f_s, layout), Signals().add("f", f_t, layout)
    term = Term(loss=loss, on="f", projector="linear", params={"temperature": 1.0})
    objective = Objective([term]).build(student, teacher, Streams(1)).double()
    projector = next(iter(objective)).projector
    assert isinstance(projector, torch.nn.Linear)
    parts = [x.detach().numpy() for x in (f_t, f_s, projector.weight, projector.bias)]
    expected = oracle.pre_regression(*parts, form)
    if loss == "kd":
        expected += float((f_t.softmax(dim=1) * f_t.log_softmax(dim=1)).sum(dim=1).mean())
    else:
        expected /= 5
    assert float(objective(student, teacher).value().detach()) == pytest.approx(expected, rel=1e-9)


def test_the_recipe_learns_the_map_first(tmp_path: Path) -> None:
    sets = [w for one in ("train.steps=10", "teacher.train.steps=4", "control=false") for w in ("--set", one)]
    assert call(["run", "smoke/dominant_kernels", "--out", str(tmp_path / "run"), "--quiet", *sets]) == 0
    report = read_json(tmp_path / "run" / "report.json")
    assert report["roles"]["student"]["parameters"] < report["roles"]["teacher"]["parameters"] / 10
