"""Gradients of the class loss as features: somebody else's formulas, the release's values, and autograd taken twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import crcd_by_another as oracle
from scheme_runs import begun, content, engine
from torch.nn import functional as F

from xmodal_kd.losses import LOSSES
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.schemes.gradients import class_gradients


def gradients(case: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of student and teacher, and the student's last layer."""
    at = {name: torch.from_numpy(np.asarray(value)) for name, value in case.items()}
    weights, labels = at["Ws"].requires_grad_(), at["label"]
    mine = class_gradients(at["fs"] @ weights.T + at["bs"], labels, weights) / len(labels)
    theirs = class_gradients(at["ft"] @ at["Wt"].T + at["bt"], labels, at["Wt"]) / len(labels)
    return mine, theirs, weights


@pytest.mark.parametrize("number", [0, 1, 2])
def test_gradients_are_the_releases(number: int) -> None:
    _, case, released = oracle.cases()[number]
    mine, theirs, weights = gradients(case)
    np.testing.assert_allclose(mine.detach(), released["gs"], rtol=1e-12)
    np.testing.assert_allclose(theirs, released["gt"], rtol=1e-12)
    assert oracle.oracle(case)["crcd"] == pytest.approx(released["crcd"], rel=1e-12)
    value = LOSSES["distilbert"].fn(mine, theirs).mean()
    assert value.item() == pytest.approx(released["cos"], rel=1e-12)
    value.backward()
    moved = [
        oracle.oracle(case | {"Ws": case["Ws"] + step})["cos"] for step in (1e-6 * np.eye(4, 5), -1e-6 * np.eye(4, 5))
    ]
    assert weights.grad is not None
    assert weights.grad.diagonal().sum().item() == pytest.approx((moved[0] - moved[1]) / 2e-6, rel=1e-6)


@pytest.mark.parametrize("number", [1, 2])
def test_contrast_of_their_relations(number: int) -> None:
    """Without a sample's relation to itself, and without the release's added constants: 1e-5 of it with them."""
    _, case, _ = oracle.cases()[number]
    mine, theirs, weights = gradients(case)
    call: Any = LOSSES["crcd"].make(5, 5, samples=10, negatives=4, width=6, temperature=case["T"]).double()
    for layer, w, b in ((call.embed_s, "Es", "es"), (call.embed_t, "Et", "et")):
        layer.load_state_dict({"weight": torch.from_numpy(case[w]), "bias": torch.from_numpy(case[b])})
    call.bank_s.copy_(torch.from_numpy(case["ms"])), call.bank_t.copy_(torch.from_numpy(case["mt"]))
    drawn = [i for i in range(10) if i not in case["y"]][:4]  # no sample's own
    call.drawn = lambda: torch.tensor(drawn)
    value = call(mine, theirs, torch.arange(3), torch.from_numpy(case["y"]))
    idx = np.array([[own, *drawn] for own in case["y"]])
    told = oracle.oracle(case, idx, apart=True)
    assert value.item() == pytest.approx(told["crcd"], rel=1e-5)
    value.backward()
    step, z = 1e-5 * np.eye(4, 5), {"Zs": told["Zs"], "Zt": told["Zt"]}
    moved = [oracle.oracle(case | {"Ws": case["Ws"] + way * step}, idx, True, **z)["crcd"] for way in (1, -1)]
    assert weights.grad is not None
    assert weights.grad.diagonal().sum().item() == pytest.approx((moved[0] - moved[1]) / 2e-5, rel=1e-4)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_step(labelled: bool, tmp_path: Path) -> None:
    """As the gradient of the class loss by autograd, and that of one minus its cosine by autograd again."""
    recipe = content("class_gradients")
    recipe["data"] |= {"double": True}
    recipe["teacher"]["params"] |= {"width": 8}  # the student's, so that no projector stands between
    recipe["objective"] = [{"loss": "test_ce"}]
    method, roles, batch, ctx = begun(tmp_path, recipe)
    if not labelled:
        batch["labelled"] = torch.arange(len(batch["labels"])) % 2 == 0
    taken = {}
    for role in ("student", "teacher"):
        with torch.no_grad():
            said = method.forward_features(role, {"student": roles[role], "teacher": roles[role]}, batch, ["body"])
        valid, labels = said.layout("logits").mask, said["labels"].rows
        valid = valid & batch["labelled"][said.layout("logits").item] if not labelled else valid
        made = roles[role].body(batch["x"][batch["labels"] >= 0])  # as the toy has it
        made = made if role == "student" else made.requires_grad_()
        scores, y = roles[role].head(made), labels[said.layout("logits").mask]
        kept = valid[said.layout("logits").mask]
        total = F.cross_entropy(scores[kept], y[kept], reduction="sum") / 8
        taken[role] = torch.autograd.grad(total, made, create_graph=True)[0][kept]
    expected = 10 * (1 - F.cosine_similarity(taken["student"], taken["teacher"].detach())).mean()
    wanted = torch.autograd.grad(expected, list(roles["student"].parameters()))
    ((_, out),) = method.losses(batch, roles, ctx)
    part = out.parts["gradient/distilbert"]
    found = part.weight * part.total / part.count
    assert found.item() == pytest.approx(expected.item(), rel=1e-9) and part.count == len(taken["student"])
    got = torch.autograd.grad(found, list(roles["student"].parameters()), allow_unused=True)
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(torch.zeros_like(theirs) if mine is None else mine, theirs)


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"head": "body"}, "not a linear layer"),
        ({"head": "body.0"}, "name the layer that these come from"),
        ({"terms": [{"loss": "kd"}]}, "compares no features"),
        ({"terms": [{"loss": "crdc"}]}, "crcd"),
    ],
)
def test_refusals(params: dict[str, Any], reason: str, tmp_path: Path) -> None:
    made = content("class_gradients")
    made["scheme"]["params"] = params
    with pytest.raises(UserError, match=reason):
        engine(tmp_path, made).fit()


def test_autocast_does_not_round_them() -> None:
    scores, labels, weights = torch.randn(5, 4), torch.arange(5) % 4, torch.randn(4, 6)
    plain = class_gradients(scores, labels, weights)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(class_gradients(scores, labels, weights), plain, rtol=0, atol=0)
