"""Random blanks, priors, and CTC between blocks through the last head, beside what somebody else wrote."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from oracles import blanks_by_another as oracle
from torch import Tensor, nn

from xmodal_kd.modalities.speech.losses import sequence
from xmodal_kd.modalities.speech.losses.ctc import ctc
from xmodal_kd.modalities.speech.losses.sequence import ctc_kd
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.signals.signals import Layout, Signals

ITEM = torch.arange(3).repeat_interleave(8)


def _loss(d: Any, **params: Any) -> float:
    student, teacher = (torch.tensor(d[key]).reshape(-1, 5) for key in ("student", "teacher"))
    values, counts = ctc_kd(student, teacher, ITEM, 3, blank=4, temperature=2.0, **params)
    return float(values.sum() / counts.sum().clamp(min=1))


def _numbers(blank: Any, perm: Any) -> Tensor:
    """By which the frames of a permutation are drawn in its order."""
    found = torch.ones(blank.shape)
    for b, order in enumerate(perm):
        for rank, k in enumerate(order):
            found[b, np.flatnonzero(blank[b])[k]] = rank / 10
    return found.reshape(-1)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_random_blanks(seed: int, ratio: float, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    d = oracle.inputs(seed)
    prior = tuple(d["prior"].tolist()) if scale else None
    blank = oracle.blank_frames(d["teacher"], d["prior"] if scale else None, scale)
    perm = oracle.perm_of(d, blank)
    monkeypatch.setattr(sequence.torch, "rand", lambda *_, **__: _numbers(blank, perm))
    found = _loss(d, blanks="random", ratio=ratio, prior=prior, prior_scale=scale)
    assert found == pytest.approx(
        oracle.kd(d["student"], d["teacher"], oracle.keep_random(blank, ratio, perm)), rel=1e-10
    )
    if not scale and (seed, ("random", ratio)) in oracle.RANDOM:
        assert found == pytest.approx(oracle.RANDOM[seed, ("random", ratio)], rel=1e-10)


def test_a_prior_moves_what_is_blank() -> None:
    d = oracle.inputs(0)
    blank = oracle.blank_frames(d["teacher"], d["prior"], 0.3)
    assert (blank != oracle.blank_frames(d["teacher"])).any()
    found = _loss(d, blanks="eliminate", prior=tuple(d["prior"].tolist()), prior_scale=0.3)
    assert found == pytest.approx(oracle.kd(d["student"], d["teacher"], ~blank), rel=1e-10)
    with pytest.raises(ValueError, match="prior has 2 numbers, and there are 5 symbols"):
        _loss(d, prior=(0.5, 0.5))


def test_draws_are_the_steps_own() -> None:
    d = oracle.inputs(0)
    torch.manual_seed(1)
    one = [_loss(d, blanks="random", ratio=0.5) for _ in range(4)]
    torch.manual_seed(1)
    assert [_loss(d, blanks="random", ratio=0.5) for _ in range(4)] == one and len(set(one)) > 1


class Model(nn.Module):
    """A last layer alone."""

    def __init__(self, d: Any) -> None:
        super().__init__()
        self.norm, self.head = nn.Identity(), nn.Linear(4, 5, dtype=torch.float64)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor(d["W"]))
            self.head.bias.copy_(torch.tensor(d["b"]))


def _said(d: Any, model: nn.Module) -> tuple[Signals, Any]:
    frames, tokens = torch.tensor(d["frames"]), torch.tensor([len(one) for one in d["labels"]])
    layout = Layout.padded("frame", frames, 7)
    hidden = {k: torch.tensor(x).requires_grad_() for k, x in d["hidden"].items()}
    said = Signals()
    said.model = model
    said.add("logits", model.head(hidden[6]).reshape(-1, 5), layout)
    for k in (2, 4):
        said.add(f"blocks.{k}", hidden[k].reshape(-1, 4), layout)
    flat = torch.tensor([y for one in d["labels"] for y in one])
    item = torch.arange(3).repeat_interleave(tokens)
    return said.add("labels", flat, Layout.ragged("token", item, 3)), tokens


@pytest.mark.parametrize("seed", sorted(oracle.SHARED))
@pytest.mark.parametrize("head", ["head", ("norm", "head")])
def test_blocks_through_the_last_head(seed: int, head: Any) -> None:
    """ESPnet sums labels and divides by utterances, here values are by label: so they are multiplied."""
    d, (last, inter, whole, gradient) = oracle.blocks(seed), oracle.SHARED[seed]
    model = Model(d)
    said, tokens = _said(d, model)
    terms = [Term(loss="inter_ctc_shared", on=(f"blocks.{k}",), head=head, name=f"b{k}") for k in (2, 4)]
    objective = Objective(terms).build(said, None, Streams(1))
    rows = {name: said.rows(name)[said.layout(name).mask] for name in ("logits", "blocks.2", "blocks.4")}
    item, (labels, label_layout) = said.layout("logits").item[said.layout("logits").mask], said["labels"]
    values = [ctc(rows["logits"], item, 3, labels, label_layout.item)[0]]
    for k in (2, 4):
        values.append(ctc(model.head(rows[f"blocks.{k}"]), item, 3, labels, label_layout.item)[0])
    sums = [(one * tokens).sum() / 3 for one in values]
    assert [float(one.detach()) for one in sums] == pytest.approx([last, *inter], rel=1e-9)
    mixed = 0.7 * sums[0] + 0.3 * (sums[1] + sums[2]) / 2
    assert float(mixed.detach()) == pytest.approx(whole, rel=1e-9)
    mixed.backward(retain_graph=True)
    np.testing.assert_allclose(model.head.weight.grad, gradient, rtol=1e-8, atol=1e-10)
    # the terms are those values, as `ctc` counts them, and the head learns of them
    model.zero_grad()
    out = objective(said)
    for k, one in zip((2, 4), values[1:], strict=True):
        assert float(out.parts[f"b{k}"].total.detach()) == pytest.approx(float(one.sum().detach()), rel=1e-10)
    both = Objective([Term(loss="inter_ctc_shared", on=("blocks.2", "blocks.4"), head=head)]).build(
        said, None, Streams(1)
    )
    total = next(iter(both(said).parts.values())).total
    assert float(total.detach()) == pytest.approx(float((values[1] + values[2]).sum().detach()) / 2, rel=1e-10)
    total.backward()
    assert model.head.weight.grad is not None and model.head.weight.grad.abs().sum() > 0


def test_a_shared_head_is_named() -> None:
    d = oracle.blocks(0)
    said, _ = _said(d, Model(d))
    with pytest.raises(UserError, match="through the student's head: say head"):
        Objective([Term(loss="inter_ctc_shared", on=("blocks.2",))])(said)
    with pytest.raises(UserError, match=r"are \[4, 5\] wide, .* without the logits"):
        Objective([Term(loss="inter_ctc_shared", on=("logits", "blocks.2"), head="head")])(said)
