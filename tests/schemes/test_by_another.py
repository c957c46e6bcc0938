"""Schemes against oracles of somebody else, who had read papers and releases and not the code."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from oracles import schemes_by_another as oracle
from torch import nn

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
