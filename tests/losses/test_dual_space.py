"""DSKD against its release: values, and who learns of which part."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from oracles import dual_space_by_another as oracle
from torch import nn

from xmodal_kd.losses import LOSSES
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import On, Term
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.signals.signals import Layout, Signals


def linear(weight: Any, bias: Any = None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=torch.float64)
    made.weight.data = torch.from_numpy(weight)
    if bias is not None:
        made.bias.data = torch.from_numpy(bias)
    return made


def said(given: dict[str, Any], h: torch.Tensor, head: nn.Linear) -> Signals:
    """What a model says whose head is `head`, of all tokens; those without a label are masked."""
    there = torch.from_numpy(given["y"]).flatten() >= 0
    layout = Layout("token", there, torch.arange(2).repeat_interleave(4), 2)
    out = Signals().add("logits", head(h), layout).add("h", h, layout)
    out.add("labels", torch.from_numpy(given["y"]).flatten(), layout)
    out.model = nn.ModuleDict({"out": head})
    return out


@pytest.mark.parametrize("seed, temperature", oracle.RELEASE)
def test_values_and_gradients_are_the_releases(seed: int, temperature: float) -> None:
    """Through the objective: the heads are found by name, the student's weights learn by its own logits alone."""
    given = oracle.inputs(seed)
    h_s, h_t = (torch.from_numpy(given[name]).flatten(0, 1) for name in ("h_s", "h_t"))
    head_s, head_t = linear(given["head_s"]), linear(given["head_t"])
    student, teacher = said(given, h_s.requires_grad_(), head_s), said(given, h_t, head_t)
    term = Term(loss="dskd", on=("logits", "h"), head="out", params={"temperature": temperature})
    objective = Objective([term]).build(student, teacher, Streams(1))
    module: Any = next(iter(objective)).module
    module.to_student = linear(given["W_t2s"], given["b_t2s"])
    module.to_teacher = linear(given["W_s2t"], given["b_s2t"])
    part = objective(student, teacher).parts["dskd"]
    *sums, sizes = oracle.RELEASE[seed, temperature]
    assert part.count == 6 and part.total.item() == pytest.approx(sum(sums), rel=1e-10)
    keep = given["y"].ravel() >= 0
    found = [
        oracle.parts(
            *(one.detach().numpy()[i] for one in (student.rows("logits"), h_s, teacher.rows("logits"), h_t)),
            given["y"].ravel()[i], lambda x: given["head_s"] @ x, lambda x: given["head_t"] @ x,
            {key: value.detach().numpy() for key, value in module.state_dict().items()}, temperature,
        )
        for i in np.flatnonzero(keep)
    ]  # fmt: skip
    assert np.sum(found, axis=0).tolist() == pytest.approx(sums, rel=1e-10)
    part.total.backward()
    grads = {"h_s": h_s, "head_s": head_s.weight, "W_t2s": module.to_student.weight, "W_s2t": module.to_teacher.weight}
    for name, leaf in grads.items():
        assert leaf.grad is not None and leaf.grad.abs().sum().item() == pytest.approx(sizes[name], rel=1e-9), name
    assert head_t.weight.grad is None


def test_heads_are_named_for_each_side() -> None:
    given = oracle.inputs(0)
    h_s, h_t = (torch.from_numpy(given[name]).flatten(0, 1) for name in ("h_s", "h_t"))
    student, teacher = said(given, h_s, linear(given["head_s"])), said(given, h_t, linear(given["head_t"]))
    teacher.model = nn.ModuleDict({"other": linear(given["head_t"])})

    def value(**more: Any) -> float:
        objective = Objective([Term(loss="dskd", on=("logits", "h"), **more)]).build(student, teacher, Streams(1))
        return objective(student, teacher).value().item()

    assert value(head=On(student="out", teacher="other")) > 0
    with pytest.raises(UserError, match="term 'dskd': the teacher has no module 'out'"):
        value(head="out")
    with pytest.raises(UserError, match="term 'dskd': the student has no module 'other'"):
        value(head="other")
    with pytest.raises(UserError, match=r"term 'dskd': the student has no module 'x'"):
        value(head=On(student=("out", "x"), teacher="other"))
    with pytest.raises(UserError, match="through the teacher's head: say head"):
        value()
    student.model = None
    with pytest.raises(UserError, match="belongs to a student whose model this method does not give"):
        value(head=On(student="out", teacher="other"))


def test_other_lists_are_refused() -> None:
    with pytest.raises(ValueError, match=r"on: \[logits, features\]"):
        LOSSES["dskd"].make([5], [5])


def told(given: dict[str, Any], side: str, h: torch.Tensor) -> Signals:
    """What a model says of two texts of its own tokens, of which all count; embeddings without gradient."""
    head, read, following = linear(given[f"head_{side}"]), given[f"in_{side}"], given[f"y_{side}"]
    table = given[f"emb_{side}"]
    layout = Layout(
        "token", torch.ones(read.size, dtype=torch.bool), torch.arange(2).repeat_interleave(len(read[0])), 2
    )
    out = Signals().add("logits", head(h), layout).add("h", h, layout)
    pair = torch.from_numpy(np.concatenate([table[read], table[following]], axis=2)).flatten(0, 1)
    out.add("e", pair, layout).add("labels", torch.from_numpy(following).flatten(), layout)
    out.model = nn.ModuleDict({"out": head})
    return out


@pytest.mark.parametrize("seed, temperature", oracle.RELEASE_CROSS)
def test_of_two_vocabularies_too(seed: int, temperature: float) -> None:
    """Four tokens a text of seven classes beside five of six: none stands beside another."""
    given = oracle.inputs_cross(seed)
    h_s, h_t = (torch.from_numpy(given[name]).flatten(0, 1) for name in ("h_s", "h_t"))
    student, teacher = told(given, "s", h_s.requires_grad_()), told(given, "t", h_t)
    term = Term(loss="dskd_cma", on=("logits", "h", "e"), head="out", params={"temperature": temperature})
    objective = Objective([term]).build(student, teacher, Streams(1))
    module: Any = next(iter(objective)).module
    module.to_student = linear(given["W_t2s"], given["b_t2s"])
    module.to_teacher = linear(given["W_s2t"], given["b_s2t"])
    module.query = linear(given["W_q"], given["b_q"])
    part = objective(student, teacher).parts["dskd_cma"]
    *sums, sizes = oracle.RELEASE_CROSS[seed, temperature]
    assert part.count == 8 and part.total.item() == pytest.approx(sum(sums), rel=1e-10)
    part.total.backward()
    grads = {"h_s": h_s, "head_s": student.model["out"].weight, "W_q": module.query.weight}  # type: ignore[index]
    grads |= {"W_t2s": module.to_student.weight, "W_s2t": module.to_teacher.weight}
    for name, leaf in grads.items():
        assert leaf.grad is not None and leaf.grad.abs().sum().item() == pytest.approx(sizes[name], rel=1e-9), name
    with pytest.raises(ValueError, match="twice 4 columns are needed"):
        LOSSES["dskd_cma"].make([7, 3, 6], [6, 4, 4])
    with pytest.raises(ValueError, match=r"on: \[z, h, e\]"):
        LOSSES["dskd_cma"].make([7, 3], [6, 4])
