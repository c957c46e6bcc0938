"""Schemes against oracles of somebody else, who had read papers and releases and not the code."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import peers_by_another as peers
from oracles import schemes_by_another as oracle
from oracles import transformed_by_another as transformed
from scheme_runs import begun, content
from torch import nn

from xmodal_kd.schemes.transformed import turned
from xmodal_kd.schemes.two_momenta import Dot, Kept


def test_dot() -> None:
    """Weights that both losses reach, in every step or not in all, and that one alone does.

    The release does not decay the first step of a weight that the teacher alone reaches; this does.
    """
    draw = np.random.default_rng(0)
    settings = {"lr": 0.1, "momentum": 0.9, "delta": 0.075, "decay": 0.02}
    values = list(draw.standard_normal((4, 3)))
    reached = [("both", "both"), ("both", "task"), ("task", "task"), ("taught", "taught")]
    weights = [nn.Parameter(torch.tensor(v)) for v in values]
    groups = [{"params": weights, "lr": settings["lr"], "weight_decay": settings["decay"]}]
    taught = Kept(groups)
    optimizer = Dot(groups, taught, settings["momentum"], settings["delta"])
    kept: list[Any] = [(None, None)] * 4
    for step in range(6):
        gradients = [
            [draw.standard_normal(3) if how[step % 2] in (loss, "both") else None for how in reached]
            for loss in ("task", "taught")
        ]
        for one, found in ((taught, gradients[1]), (optimizer, gradients[0])):
            for weight, gradient in zip(weights, found, strict=True):
                weight.grad = None if gradient is None else torch.tensor(gradient)
            one.step()
        for i, (task, teacher) in enumerate(zip(*gradients, strict=True)):
            if i == 3 and step == 0:
                released, _ = oracle.dot_step(values[i], task, teacher, kept[i], **settings, released=True)
                undecayed = released - 0.1 * 0.02 * values[i]
            values[i], kept[i] = oracle.dot_step(values[i], task, teacher, kept[i], **settings)
            np.testing.assert_allclose(weights[i].detach().numpy(), values[i], rtol=1e-12)
            if i == 3 and step == 0:
                np.testing.assert_allclose(undecayed, values[i], rtol=1e-12)


@pytest.mark.parametrize("name", ["ard", "rslad"])
def test_robust(name: str, tmp_path: Path) -> None:
    """Attack and loss of a step, with labels beside; a student under attack is in eval mode."""
    made = content(name)
    made["data"] |= {"single": True, "double": True}
    made["scheme"]["params"] |= {"random_start": False, "steps": 3, "radius": 0.02, "step": 0.009}
    temperature, weight = (3.0, 0.7) if name == "ard" else (1.0, 1.0)
    taught = {"loss": "kd", "params": {"temperature": temperature}, "weight": weight}
    made["objective"] = [{"loss": "test_ce", "weight": 0.3}, taught]
    method, roles, batch, ctx = begun(tmp_path, made)

    def said(role: str, x: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = method.forward_role(role, roles, {**batch, "x": x}).rows("logits")
        return rows

    clean, labels = batch["x"], batch["labels"].reshape(-1)
    teacher = said("teacher", clean).detach()
    x, (low, high) = clean.numpy(), (method.adapter.input().low, method.adapter.input().high)
    for _ in range(3):
        leaf = torch.tensor(x).requires_grad_()
        log_q = said("student", leaf).log_softmax(dim=1)
        harm = -log_q.gather(1, labels[:, None]) if name == "ard" else -teacher.softmax(dim=1) * log_q
        (slope,) = torch.autograd.grad(harm.sum(), leaf)
        x = oracle.pgd_step(x, clean.numpy(), slope.numpy(), 0.009 * (high - low), 0.02 * (high - low), low, high)
    with torch.no_grad():
        rows = [one.numpy() for one in (said("student", torch.tensor(x)), said("student", clean), teacher)]
    values = []
    for *row, label in zip(*rows, labels.tolist(), strict=True):
        one = oracle.ard(*row, label, 0.7, 3.0)
        values.append(one if name == "ard" else oracle.rslad(*row) + 0.3 * oracle.ard(*row, label, 0.0, 1.0))
    found = method.loss("student", roles, batch, ctx).value().item()
    np.testing.assert_allclose(found, np.mean(values), rtol=1e-10)
    assert np.abs(x - clean.numpy()).max() > 0.1


@pytest.mark.parametrize("own_views", [False, True])
@pytest.mark.parametrize("shared", [[], ["body.0"]])
def test_pcl(shared: list[str], own_views: bool, tmp_path: Path) -> None:
    """All parts of a step, with averages that are other networks than the branches."""
    made = content("pcl")
    made["data"] |= {"single": True, "double": True}
    made["scheme"]["params"] |= {"shared": shared, "own_views": own_views}
    method, roles, batch, ctx = begun(tmp_path, made)
    assert method.stages()[0].ema.keys() == {"mean-student", "mean-peer-1", "mean-peer-2"}
    for role in method.learners:
        roles[f"mean-{role}"] = copy.deepcopy(roles[role])
        for parameter in roles[f"mean-{role}"].parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape, dtype=parameter.dtype)

    def rows(role: str, name: str = "logits") -> Any:
        with torch.no_grad():
            return method.forward_role(role, roles, batch).rows(name).numpy()

    z, z_mean = (np.stack([rows(f"{kind}{role}") for role in method.learners]) for kind in ("", "mean-"))
    joint = np.concatenate([rows(role, "body") for role in method.learners], axis=1)
    mixer = method.mixer
    z_ens = joint @ mixer.weight.detach().numpy().T + mixer.bias.detach().numpy()
    for step in (0, 1, 3):
        ctx = replace(ctx, step=step)
        found = next(method.losses(batch, roles, ctx))[1].value().item()
        expected = peers.pcl(z, z_ens, z_mean, batch["labels"].reshape(-1), omega=method.ramp(ctx), T=2.0)
        np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_sskd(tmp_path: Path) -> None:
    """All parts of a step, with copies that the teacher errs on."""
    made = content("sskd")
    made["data"] |= {"double": True}
    weights = {"transfer": 2.7, "relations": 10.0, "transfer_kept": 0.5}
    made["scheme"]["params"] |= weights | {"temperature": 3.0, "relation_temperature": 0.7, "relations_kept": 0.6}
    made["objective"] = [{"loss": "test_ce", "weight": 0.1}, {"loss": "kd", "weight": 0.9}]
    method, roles, batch, ctx = begun(tmp_path, made)
    turns = method.losses(batch, roles, ctx)
    copies = method.adapter.given(turned(batch["x"]))

    def both(role: str, side: str) -> tuple[Any, Any]:
        """Scores and projected features, each sample before its copies."""
        with torch.no_grad():
            said = [method.forward_role(role, roles, one) for one in (batch, copies)]
            found = [[one.rows("logits"), method.heads[side](one.rows("body"))] for one in said]
        clean, turned_ = ([rows.numpy() for rows in one] for one in found)
        return tuple(  # type: ignore[return-value]
            np.concatenate([a[:, None], b.reshape(len(a), 3, -1)], axis=1).reshape(4 * len(a), -1)
            for a, b in zip(clean, turned_, strict=True)
        )

    student, teacher = both("student", "student"), both("teacher", "teacher")
    name, out = next(turns)
    assert name == "teacher's head"
    np.testing.assert_allclose(out.value().item(), transformed.sskd_teacher_head(teacher[1]), rtol=1e-10)
    expected = transformed.sskd(
        student[0], teacher[0], student[1], teacher[1], batch["labels"].reshape(-1).numpy(),
        T_tf=3.0, T_ss=0.7, ratio_tf=0.5, ratio_ss=0.6,
    )  # fmt: skip
    np.testing.assert_allclose(next(turns)[1].value().item(), expected["total"], rtol=1e-10)


def test_copies_are_quarter_turns() -> None:
    x = torch.arange(8.0).reshape(2, 1, 2, 2)
    assert turned(x)[:, 0].tolist() == [
        [[1, 3], [0, 2]], [[3, 2], [1, 0]], [[2, 0], [3, 1]], [[5, 7], [4, 6]], [[7, 6], [5, 4]], [[6, 4], [7, 5]],
    ]  # fmt: skip
    assert turned(torch.arange(6.0).reshape(1, 2, 3)).tolist() == [
        [[3, 4, 5], [0, 1, 2]], [[2, 1, 0], [5, 4, 3]], [[5, 4, 3], [2, 1, 0]],
    ]  # fmt: skip
