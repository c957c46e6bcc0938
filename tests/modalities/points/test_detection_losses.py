"""Losses of centre heads against slow ones of the papers' formulas, and through the objective."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from oracles import detection_losses as oracle
from torch import Tensor

from xmodal_kd.losses import LOSSES
from xmodal_kd.modalities.points.losses import centres
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.signals.signals import Layout, Signals

NAMES = ("gaussian_focal", "reg_l1", "sparsekd", "sparsekd_reg")


def given(seed: int = 0, classes: int = 3) -> dict[str, Any]:
    """Cells of three items, of which the second has none; a few labels are ones."""
    random = torch.Generator().manual_seed(seed)
    n = 23

    def rows() -> Tensor:
        return 2 * torch.randn(n, classes, generator=random, dtype=torch.float64)

    labels = torch.rand(n, classes, generator=random, dtype=torch.float64) ** 3
    labels[[2, 5, 15], [0, 1, 1]] = 1.0
    item = torch.tensor([0] * 9 + [2] * (n - 9))
    return {"student": rows(), "teacher": rows(), "item": item, "items": 3, "labels": labels}


@pytest.mark.parametrize(("name", "params"), [
    ("gaussian_focal", {}), ("gaussian_focal", {"alpha": 1.0, "beta": 2.5}), ("reg_l1", {}),
    ("reg_l1", {"columns": (1.0, 0.5, 2.0)}), ("sparsekd", {}), ("sparsekd", {"rank": 4}),
    ("sparsekd", {"rank": 2, "foreground": False}), ("sparsekd", {"foreground": False}),
    ("sparsekd_reg", {}), ("sparsekd_reg", {"columns": (0.0, 0.5, 2.0)}),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_agrees_with_its_oracle(name: str, params: dict[str, Any], dtype: torch.dtype) -> None:
    spec = LOSSES[name]
    for seed in range(2):
        inputs = given(seed)
        plain = {key: value.numpy() if isinstance(value, Tensor) else value for key, value in inputs.items()}
        names = ("student", "teacher") if name == "sparsekd_reg" else spec.inputs
        expected = getattr(oracle, name)(*(plain[key] for key in names), **params)
        cast = {key: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
                for key, value in inputs.items()}  # fmt: skip
        got = spec.fn(*(cast[key] for key in spec.inputs), **params)
        exact = 1e-12 if dtype == torch.float64 else 1e-5
        for a, b in zip(got if isinstance(got, tuple) else (got,), np.atleast_2d(expected), strict=True):
            torch.testing.assert_close(a, torch.from_numpy(b).to(dtype), rtol=exact, atol=exact)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_that_of_the_value(name: str) -> None:
    spec, inputs = LOSSES[name], given()

    def value(student: Tensor) -> Tensor:
        found = spec.fn(*({**inputs, "student": student}[key] for key in spec.inputs))
        return found[0] if isinstance(found, tuple) else found

    assert torch.autograd.gradcheck(value, inputs["student"].clone().requires_grad_(), fast_mode=True)


def test_focal_by_hand() -> None:
    """A centre said with p = 1/2 costs log(2) / 4, a cell of heat 1/2 beside it (1/2)^4 log(2) / 4; divided by one."""
    student, labels = torch.zeros(2, 1, dtype=torch.float64), torch.tensor([[1.0], [0.5]], dtype=torch.float64)
    values, number = centres.gaussian_focal(student, torch.zeros(2, dtype=torch.long), 1, labels)
    assert values.item() == pytest.approx(math.log(2) / 4 * (1 + 1 / 16)) and number.item() == 1
    sure = torch.tensor([[60.0], [-60.0]], dtype=torch.float64)
    assert centres.gaussian_focal(sure, torch.zeros(2, dtype=torch.long), 1, labels)[0].item() < 1e-20


def test_a_student_that_is_its_teacher_costs_nothing() -> None:
    inputs = given()
    values, number = centres.sparsekd(inputs["teacher"], *(inputs[k] for k in ("teacher", "item", "items", "labels")))
    assert values.abs().max() == 0 and (number > 0).tolist() == [True, False, True]


def signals(rows: Tensor, labels: Tensor, boxes: Tensor, centre: Tensor) -> Signals:
    layout = Layout.dense("pixel", 2, (2, 3))
    out = Signals().add("logits", rows[:, :2], layout).add("boxes", rows, layout).add("labels", labels, layout)
    out.add("box_labels", boxes, Layout("pixel", centre, layout.item, 2, (2, 3)))
    return out.add("centre", centre.float(), layout)


def test_terms_name_the_signal_of_their_labels_and_rows_without_are_none() -> None:
    random = torch.Generator().manual_seed(0)
    rows, theirs, boxes = (torch.randn(12, 8, generator=random) for _ in range(3))
    labels = torch.zeros(12, 2)
    labels[[1, 7], [0, 1]] = 1.0
    centre = labels.amax(dim=1) == 1
    terms = [
        Term(loss="gaussian_focal"), Term(loss="reg_l1", on="boxes", labels="box_labels"),
        Term(loss="sparsekd"), Term(loss="sparsekd_reg", on="boxes", weights="centre"),
    ]  # fmt: skip
    mine, other = (signals(x, labels, boxes, centre) for x in (rows, theirs))
    parts = Objective(terms)(mine, other).parts
    assert float(parts["reg_l1"].count) == 2 and float(parts["sparsekd_reg"].count) == 2
    assert parts["reg_l1"].total.item() == pytest.approx((rows - boxes)[centre].abs().sum().item(), rel=1e-5)
    assert parts["sparsekd_reg"].total.item() == pytest.approx((rows - theirs)[centre].abs().sum().item(), rel=1e-5)
    assert float(parts["gaussian_focal"].count) == 2


def test_what_does_not_fit_is_named() -> None:
    layout = Layout.dense("pixel", 1, (2, 3))
    mine = Signals().add("logits", torch.zeros(6, 2), layout).add("labels", torch.zeros(6, dtype=torch.long), layout)
    with pytest.raises(UserError, match=r"gaussian_focal.: labels \(6,\) are not one real target"):
        Objective([Term(loss="gaussian_focal")])(mine)
    mine.add("labels", torch.zeros(6, 2), layout)
    with pytest.raises(UserError, match="term 'reg_l1': columns: 3 weights for 2 numbers a row"):
        Objective([Term(loss="reg_l1", params={"columns": [1, 1, 1]})])(mine)
    with pytest.raises(UserError, match="term 'reg_l1': labels: there is no signal 'box_labels'"):
        Objective([Term(loss="reg_l1", labels="box_labels")])(mine)
