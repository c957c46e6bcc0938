"""A teacher that knows fewer classes, and labels that are none: what both know is compared, or the term is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from xmodal_kd.losses import LOSSES
from xmodal_kd.losses.known_classes import known_classes, relabelled
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.signals.signals import Layout, Signals

N, C = 10, 6
UNKNOWN = [1, 4]
KNOWN = [0, 2, 3, 5]
LABELS = torch.tensor([0, 2, 3, 5, 0, 2, 3, 5, 2, 0])


def rows(seed: int) -> Tensor:
    return 2 * torch.randn(N, C, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def fewer(teacher: Tensor) -> Tensor:
    return teacher.index_fill(1, torch.tensor(UNKNOWN), -torch.inf)


def said(logits: Tensor, labels: Tensor | None = None, layout: Layout | None = None) -> Signals:
    layout = layout or Layout.samples(len(logits))
    out = Signals(torch.arange(layout.items)).add("logits", logits, layout)
    labels = LABELS if labels is None else labels
    return out.add("labels", labels, layout).add("regions", torch.arange(len(logits)) % 2, layout)


def objective(name: str, student: Signals, teacher: Signals | None, **params: Any) -> Objective:
    term = Term(loss=name, on="logits", regions="regions", params=params, name="mine")
    torch.manual_seed(0)
    return Objective([term]).build(student, teacher, Streams(0))


#: Losses that gave NaN or Inf where the teacher knew fewer classes, and others of their kind.
COMPARED: list[tuple[str, dict[str, Any]]] = [
    ("kd", {}), ("kd", {"standardise": True}), ("kd", {"per_sample": True}), ("dkd", {}), ("gjsd", {}),
    ("gjsd", {"beta": 0.0}), ("gjsd", {"beta": 1.0}), ("skew_kl", {}), ("skew_rkl", {}), ("mlkd", {}),
    ("mlkd", {"confident": "half"}), ("region_kd", {}), ("ctkd", {}), ("ctkd", {"mode": "instance"}), ("adv_logit", {}),
    ("kd_lskd", {}), ("rcka", {}), ("logit_mse", {}), ("logit_mse", {"centre": True}), ("dist", {}),
    ("multi_label", {}), ("wsld", {}), ("ofa", {}), ("pearson", {}), ("hint", {}), ("infonce", {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "params"), COMPARED)
def test_what_both_know_is_compared(name: str, params: dict[str, Any]) -> None:
    """As if neither side had the other classes, of which the student gets no gradient."""
    student = rows(0).requires_grad_()
    mine, theirs = said(student), said(fewer(rows(1)))
    found = objective(name, mine, theirs, **params)
    value = found(mine, theirs).value()
    (grad,) = torch.autograd.grad(value, student)
    assert (grad[:, UNKNOWN] == 0).all() and grad[:, KNOWN].isfinite().all() and (grad[:, KNOWN] != 0).any()
    assert found.describe()["terms"][0]["classes"] == {"known": 4, "of": 6}
    numbers = relabelled(LABELS, known_classes(fewer(rows(1))))  # type: ignore[arg-type]
    alone = [said(side[:, KNOWN], numbers) for side in (rows(0), rows(1))]
    torch.testing.assert_close(value.detach(), objective(name, *alone, **params)(*alone).value().detach())


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_of_fewer_classes_is_uhc(temperature: float) -> None:
    mine, theirs = said(rows(0)), said(fewer(rows(1)))
    both = [objective(n, mine, theirs, temperature=temperature)(mine, theirs).value() for n in ("kd", "uhc")]
    torch.testing.assert_close(*both)


@pytest.mark.parametrize(("name", "params"), [c for c in COMPARED if not LOSSES[c[0]].is_module])
def test_a_loss_alone_does_the_same(name: str, params: dict[str, Any]) -> None:
    """In a loop of one's own, without an objective."""
    spec = LOSSES[name]
    item = torch.zeros(N, dtype=torch.int64)
    given: dict[str, Any] = {
        "student": rows(0), "teacher": fewer(rows(1)), "labels": LABELS, "item": item, "items": 1,
        "regions": torch.arange(N) % 2,
    }  # fmt: skip
    numbers = torch.tensor([0, -1, 1, 2, -1, 3])[LABELS]
    alone = given | {"student": rows(0)[:, KNOWN], "teacher": rows(1)[:, KNOWN], "labels": numbers}
    found, expected = (spec.fn(*(x[key] for key in spec.inputs), **params) for x in (given, alone))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["ctkd", "adv_logit"])
def test_a_module_alone_refuses(name: str) -> None:
    module = LOSSES[name].make(C, C).double()
    more = (0.5,) if name == "ctkd" else ()
    with pytest.raises(ValueError, match="both sides know"):
        module(rows(0), fewer(rows(1)), *more)


def test_rows_whose_label_the_teacher_does_not_know_do_not_count() -> None:
    labels = LABELS.clone()
    labels[:3] = torch.tensor([1, 4, 1])
    mine, theirs = said(rows(0), labels), said(fewer(rows(1)))
    part = objective("dkd", mine, theirs)(mine, theirs).parts["mine"]
    assert part.count == N - 3
    alone = [said(side[3:, KNOWN], torch.tensor([0, -1, 1, 2, -1, 3])[labels[3:]]) for side in (rows(0), rows(1))]
    torch.testing.assert_close(part.total, objective("dkd", *alone)(*alone).parts["mine"].total)


@pytest.mark.parametrize("name", ["ce", "dkd", "wsld", "ofa", "tfkd_reg"])
def test_a_loss_alone_gives_0_to_rows_without_a_label(name: str) -> None:
    spec, labels, student = LOSSES[name], LABELS.clone(), rows(0).requires_grad_()
    labels[[0, 7]] = torch.tensor([-100, 4])
    given = {"student": student, "teacher": fewer(rows(1)), "labels": labels}
    found = spec.fn(*(given[key] for key in spec.inputs))
    lost = [0, 7] if spec.needs_teacher else [0]  # without a teacher class 4 is known
    assert (found[lost] == 0).all() and (found > 0).sum() == N - len(lost)
    (grad,) = torch.autograd.grad(found.sum(), student)
    assert grad.isfinite().all() and (grad[lost] == 0).all()


def test_padding_of_minus_infinity_is_no_unknown_class() -> None:
    layout = Layout.padded("frame", torch.tensor([3, 5]), 5)
    teacher = rows(1).masked_fill(~layout.mask[:, None], -torch.inf)
    mine, theirs = said(rows(0), layout=layout), said(teacher, layout=layout)
    found = objective("kd", mine, theirs)
    assert found.describe()["terms"] == []
    torch.testing.assert_close(found(mine, theirs).parts["mine"].count, 8.0)


# ---------------------------------------------------------------- refused by name


@pytest.mark.parametrize(
    ("name", "teacher", "reason"),
    [
        ("weighted_ce", fewer(rows(1)), "teacher knows 4 of 6 classes .* take kd or uhc"),
        ("kd", rows(1).index_put((torch.tensor([2]), torch.tensor([3])), torch.tensor(-torch.inf).double()), "class 3"),
        ("kd", torch.full_like(rows(1), -torch.inf), "knows none"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_training(name: str, teacher: Tensor, reason: str) -> None:
    with pytest.raises(UserError, match=f"term 'mine': .*{reason}"):
        objective(name, said(rows(0)), said(teacher))


@pytest.mark.parametrize("name", ["ce", "dkd", "wsld", "ofa", "tfkd_reg"])
@pytest.mark.parametrize("wrong", [6, -1, 99])
def test_a_label_of_no_class_names_the_term(name: str, wrong: int) -> None:
    labels = LABELS.clone()
    labels[4] = wrong
    mine, theirs = said(rows(0), labels), said(rows(1))
    with pytest.raises(UserError, match=f"term 'mine': label {wrong} is none of the 6 classes.*-100"):
        objective(name, mine, theirs)(mine, theirs)
    given = {"student": rows(0), "teacher": rows(1), "labels": labels}
    with pytest.raises(ValueError, match=f"label {wrong} is none of its 6 classes"):
        LOSSES[name].fn(*(given[key] for key in LOSSES[name].inputs))


@pytest.mark.parametrize("name", ["ce", "dkd", "wsld", "ofa", "tfkd_reg"])
def test_ignored_labels_change_nothing_and_do_not_count(name: str) -> None:
    labels = LABELS.clone()
    labels[[0, 7]] = -100
    keep = labels >= 0
    mine, theirs = said(rows(0), labels), said(rows(1))
    part = objective(name, mine, theirs)(mine, theirs).parts["mine"]
    assert part.count == N - 2
    alone = said(rows(0)[keep], labels[keep]), said(rows(1)[keep], labels[keep])
    torch.testing.assert_close(part.total, objective(name, *alone)(*alone).parts["mine"].total)


def test_a_batch_of_ignored_labels_is_worth_nothing() -> None:
    student = rows(0).requires_grad_()
    mine = said(student, torch.full_like(LABELS, -100))
    out = objective("ce", mine, None)(mine, None)
    assert out.parts["mine"].count == 0 and out.value().item() == 0
    (grad,) = torch.autograd.grad(out.value(), student)
    assert (grad == 0).all()
