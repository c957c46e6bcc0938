"""DisCo against somebody else's formulas and the release's values, over steps in which its queue fills."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import disco_by_another as oracle
from scheme_runs import begun, content, engine
from torch.nn import functional as F

from xmodal_kd.runtime.errors import UserError
from xmodal_kd.schemes.disco import distances, told_apart


@pytest.mark.parametrize("number", [0, 1, 2])
def test_both_losses_are_the_releases(number: int) -> None:
    _, case, released = oracle.cases()[number]
    at = {name: torch.from_numpy(case[name]) for name in ("q", "qk", "k", "tq", "tqk")}
    q = at["q"].requires_grad_()
    found = told_apart(q, F.normalize(at["k"], dim=1), torch.from_numpy(case["queue"].T), case["T"]).mean()
    assert found.item() == pytest.approx(released["nce"], rel=1e-12)
    whole = found * (not case["only"]) + distances([q, at["qk"]], [at["tq"], at["tqk"]]).sum()
    assert whole.item() == pytest.approx(released["loss"], rel=1e-12)
    whole.backward()
    rows = [case[name] for name in ("qk", "k", "tq", "tqk", "queue", "T", "only")]
    moved = [oracle.disco_loss(case["q"] + way * 1e-6 * np.eye(4, 6), *rows) for way in (1, -1)]
    assert q.grad is not None
    assert q.grad.diagonal().sum().item() == pytest.approx((moved[0] - moved[1]) / 2e-6, rel=1e-5)


def test_steps(tmp_path: Path) -> None:
    """A loss sees the queue and the average as they were before the step, which both move after it."""
    recipe = content("disco")
    recipe["data"] |= {"double": True}
    recipe["scheme"]["params"] |= {"crops": [0.5, 0.9], "momentum": 0.5, "temperature": 0.3}
    recipe["objective"] = [{"loss": "test_ce"}]
    method, roles, batch, ctx = begun(tmp_path, recipe)
    queue, size = method.memory.keys.numpy().copy(), len(batch["ids"])
    for step in range(3):
        ctx = replace(ctx, step=step)
        views = [method.crop(batch, ctx, number) for number in range(2)]
        with torch.no_grad():
            q, qk = (method.projected("student", "student", roles, view).numpy() for view in views)
            k = method.projected("mean", "mean", roles, views[1]).numpy()
            tq, tqk = (method.embedded(roles, view).numpy() for view in views)
        before = {name: x.clone() for name, x in method.heads["mean"].state_dict().items()}
        turns = method.losses(batch, roles, ctx)
        ((_, out),) = [next(turns)]
        parts = {name: part.weight * part.total / part.count for name, part in out.parts.items()}
        expected = oracle.disco_loss(q, qk, k, tq, tqk, queue.T, 0.3)
        assert (parts["contrast"] + parts["distance"]).item() == pytest.approx(expected, rel=1e-9)
        if step == 0:  # both reach the student's layers up to `on`, and its projection
            for name in ("contrast", "distance"):
                learning = [*roles["student"].body.parameters(), *method.heads["student"].parameters()]
                slopes = torch.autograd.grad(parts[name], learning, retain_graph=True)
                assert all(bool(slope.abs().max() > 0) for slope in slopes[-2:]) and slopes[0].abs().max() > 0
        with torch.no_grad():
            for parameter in [*roles["student"].parameters(), *method.heads["student"].parameters()]:
                parameter += 0.05 * torch.randn(parameter.shape, dtype=parameter.dtype)
        list(turns)
        for name, value in method.heads["mean"].state_dict().items():
            torch.testing.assert_close(value, (before[name] + method.heads["student"].state_dict()[name]) / 2)
        for row, key in enumerate(oracle.l2n(k)):
            queue[(step * size + row) % len(queue)] = key
        np.testing.assert_allclose(method.memory.keys.numpy(), queue, rtol=1e-9)


def test_the_teacher_alone(tmp_path: Path) -> None:
    recipe = content("disco")
    recipe["scheme"]["params"] |= {"contrast": 0.0, "distance": 2.0, "teacher": "head"}
    method, roles, batch, ctx = begun(tmp_path, recipe)
    out = next(method.losses(batch, roles, ctx))[1]
    assert "contrast" not in out.parts and out.parts["distance"].weight == 2.0
    assert method.memory.keys.shape[1] == 4  # the teacher's classes are its embedding


def test_layers_must_be_there(tmp_path: Path) -> None:
    recipe = content("disco")
    recipe["scheme"]["params"] |= {"teacher": "bodi"}
    with pytest.raises(UserError, match="body"):
        engine(tmp_path, recipe)


def test_autocast_does_not_round_the_contrast() -> None:
    query, key, others = (F.normalize(torch.randn(n, 6), dim=1) for n in (5, 5, 7))
    plain = told_apart(query, key, others, 0.2)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(told_apart(query, key, others, 0.2), plain, rtol=0, atol=0)
