"""Losses of transducers against the enumeration of all ways through a lattice, in value and gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from oracles import transducer as oracle
from torch import Tensor

from xmodal_kd.losses import blocks
from xmodal_kd.losses.logits import kd
from xmodal_kd.modalities.speech.losses.transducer import lattice_nll, rnnt, rnnt_kd
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.signals.signals import Layout, Signals

#: Frames and symbols of each utterance; one has no frames, and so no nodes.
SHAPES, SYMBOLS = [(3, 2), (1, 0), (0, 0), (4, 3), (2, 4), (5, 0)], 5


class Lattices(NamedTuple):
    student: Tensor
    teacher: Tensor
    labels: Tensor
    item: Tensor
    texts: list[Any]


def lattices(blank: int = 0, dtype: torch.dtype = torch.float64, seed: int = 0) -> Lattices:
    rng = np.random.default_rng(seed)
    others = [k for k in range(SYMBOLS) if k != blank]
    texts = [rng.choice(others, size=symbols) for _, symbols in SHAPES]
    labels = [label for (frames, _), text in zip(SHAPES, texts, strict=True) for label in [*text, blank] * frames]
    nodes = torch.tensor([frames * (symbols + 1) for frames, symbols in SHAPES])
    rows = (torch.tensor(2 * rng.normal(size=(len(labels), SYMBOLS))).to(dtype) for _ in range(2))
    return Lattices(*rows, torch.tensor(labels), torch.arange(len(SHAPES)).repeat_interleave(nodes), texts)


def each(rows: Tensor) -> list[Any]:
    """``(T, U + 1, V)`` of each utterance."""
    parts = rows.detach().double().split([frames * (symbols + 1) for frames, symbols in SHAPES])
    shapes = [(frames, symbols + 1, SYMBOLS) for frames, symbols in SHAPES]
    return [part.reshape(shape).numpy() for part, shape in zip(parts, shapes, strict=True)]


def rows_of(values: list[Any]) -> Any:
    return np.concatenate([value.reshape(-1, SYMBOLS) for value in values])


@pytest.fixture(params=["whole", "in chunks"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "in chunks":
        monkeypatch.setattr(blocks, "BLOCK", 20 * SYMBOLS)


@pytest.mark.parametrize("blank", [0, 3])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["f64", "f32"])
def test_rnnt_is_the_sum_over_all_ways(block: None, dtype: torch.dtype, tolerance: float, blank: int) -> None:
    """By torchaudio's kernel, which is told of two classes, and by the recursion where it knows no such numbers."""
    given = lattices(blank, dtype)
    student = given.student.requires_grad_()
    values, counted = rnnt(student, given.item, len(SHAPES), given.labels, blank=blank)
    assert counted.tolist() == [frames > 0 for frames, _ in SHAPES] and values.dtype == dtype
    (gradient,) = torch.autograd.grad(values.sum(), student)
    expected, slopes = [], []
    for logits, text in zip(each(student), given.texts, strict=True):
        symbols = max(len(text), 1)
        expected.append(oracle.rnnt_loss(logits, text, blank) / symbols if len(logits) else 0.0)
        slopes.append(oracle.rnnt_grad(logits, text, blank) / symbols if len(logits) else logits)
    np.testing.assert_allclose(values.detach(), expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(gradient, rows_of(slopes), atol=tolerance)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("blank", [0, 3])
def test_rnnt_kd_is_the_kl_of_collapsed_nodes(block: None, blank: int, temperature: float) -> None:
    given = lattices(blank)
    student = given.student.requires_grad_()
    values = rnnt_kd(student, given.teacher, given.labels, temperature=temperature, blank=blank)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    expected, slopes = 0.0, []
    for mine, theirs, text in zip(each(student), each(given.teacher), given.texts, strict=True):
        more = {"temperature": temperature}
        expected += temperature**2 * oracle.collapsed_kd(mine, theirs, text, blank, **more) if len(mine) else 0.0
        slope = oracle.collapsed_kd_grad_fd(mine, theirs, text, blank, **more) if len(mine) else mine
        slopes.append(temperature**2 * slope)
    assert values.sum().item() == pytest.approx(expected, rel=1e-10)
    np.testing.assert_allclose(gradient, rows_of(slopes), atol=1e-8)


def test_collapsed_nodes_say_less_than_all_classes() -> None:
    given = lattices()
    collapsed, whole = rnnt_kd(*given[:3]), kd(*given[:2], temperature=1.0)
    assert (collapsed >= 0).all() and (collapsed <= whole + 1e-12).all()
    assert rnnt_kd(given.teacher, given.teacher, given.labels).abs().max() == 0
    moved = rnnt_kd(given.student + 3, given.teacher - 5, given.labels)
    torch.testing.assert_close(moved, collapsed)


def test_two_classes_have_no_rest() -> None:
    student = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    teacher, labels = torch.zeros(6, 2, dtype=torch.float64), torch.tensor([1, 0] * 3)
    values = rnnt_kd(student, teacher, labels)
    torch.testing.assert_close(values, kd(student, teacher, temperature=1.0))
    (gradient,) = torch.autograd.grad(values.sum(), student)
    torch.testing.assert_close(gradient, student.detach().softmax(dim=1) - 0.5)


def test_the_lattice_is_torchaudios() -> None:
    """Its fused loss on the padded lattice of all classes, value and gradient."""
    functional = pytest.importorskip("torchaudio.functional")
    rng = torch.Generator().manual_seed(1)
    whole = torch.randn(2, 5, 4, SYMBOLS, generator=rng, requires_grad=True)
    targets, frames, symbols = torch.tensor([[1, 2, 4], [3, 3, 0]]), torch.tensor([5, 3]), torch.tensor([3, 2])
    sizes = (targets.int(), frames.int(), symbols.int())
    theirs = functional.rnnt_loss(whole, *sizes, blank=0, reduction="none")
    rows = [whole[i, : frames[i], : symbols[i] + 1].reshape(-1, SYMBOLS) for i in range(2)]
    labels = [[*targets[i, : symbols[i]].tolist(), 0] * int(frames[i]) for i in range(2)]
    item = torch.arange(2).repeat_interleave(torch.tensor([len(one) for one in labels]))
    values, _ = rnnt(torch.cat(rows), item, 2, torch.tensor([*labels[0], *labels[1]]))
    torch.testing.assert_close(values * symbols, theirs)
    mine, fused = (torch.autograd.grad(x.sum(), whole, retain_graph=True)[0] for x in (values * symbols, theirs))
    torch.testing.assert_close(mine, fused, rtol=1e-4, atol=1e-5)
    log_p = torch.randn(3, 6, 4, 2, generator=rng).log_softmax(dim=-1)
    lengths = torch.tensor([6, 2, 1]), torch.tensor([3, 0, 2])
    torch.testing.assert_close(lattice_nll(log_p, *lengths), lattice_nll(log_p.double(), *lengths).float())


def test_what_is_no_lattice_is_refused() -> None:
    given = lattices()
    for rows in (slice(1, None), torch.arange(len(given.item)).flip(0)):
        with pytest.raises(ValueError, match="no whole lattices"):
            rnnt(given.student[rows], given.item[rows].sort().values, len(SHAPES), given.labels[rows])


def test_terms_meet_nodes_of_one_lattice_only() -> None:
    """An objective of both losses, whose rows are not copied; a teacher of other frames is refused by name."""
    given = lattices(dtype=torch.float32)
    layout = Layout.ragged("token", given.item, len(SHAPES))
    student = Signals().add("logits", given.student.requires_grad_(), layout).add("labels", given.labels, layout)
    teacher = Signals().add("logits", given.teacher, Layout.ragged("token", given.item.clone(), len(SHAPES)))
    objective = Objective([Term(loss="rnnt"), Term(loss="rnnt_kd", weight=2.0)])
    out = objective(student, teacher)
    counts = {name: float(part.count) for name, part in out.parts.items()}
    assert counts == {"rnnt": 5.0, "rnnt_kd": float(len(given.item))}
    out.value().backward()
    assert given.student.grad is not None and given.student.grad.isfinite().all()
    fewer = Signals().add("logits", given.teacher[1:], Layout.ragged("token", given.item[1:], len(SHAPES)))
    with pytest.raises(UserError, match="rnnt_kd"):
        objective(student, fewer)
    unsure = Objective([Term(loss="rnnt"), Term(loss="rnnt_kd", min_confidence=0.5)])(student, teacher)
    assert 0 < float(unsure.parts["rnnt_kd"].count) < len(given.item)
