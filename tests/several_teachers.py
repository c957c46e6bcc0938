"""Three teachers and a student on toy data, by each scheme."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from toy import ToyAdapter, adapter, engine

from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import On, Optimizer, Term, Train
from xmodal_kd.recipe.schedules import Schedule
from xmodal_kd.schemes import SCHEMES
from xmodal_kd.training.engine import Engine

#: Roles by the width of their network.
TEACHERS = {"teacher": 24, "teacher-wide": 32, "teacher-thin": 12}
TERMS = (
    Term(loss="test_ce"),
    Term(loss="kd", params={"temperature": 2.0}),
    Term(loss="hint", on="body"),
    Term(loss="hint", on=On(student="body", teacher="thin/body"), name="thin", weights="thin/weight", weight=0.5),
)
VOTES = Term(
    loss="triplet_votes", on=On(student="body", teacher=("teacher/body", "wide/body", "thin/body")),
    params={"margin": 0.1},
)  # fmt: skip
#: Of each scheme, its parameters and its terms.
KINDS: dict[str, tuple[dict[str, Any], tuple[Term, ...]]] = {
    "average": ({}, TERMS),
    "you": ({"on": "body", "teachers": "body"}, (*TERMS, VOTES)),
    "ca_mkd": ({}, TERMS),
    "ae_kd": ({"cap": 2.0}, TERMS),
    "uhc": ({}, (Term(loss="test_ce"), Term(loss="uhc", params={"temperature": 2.0}))),
}


def models(toy: ToyAdapter, dropout: float) -> dict[str, torch.nn.Module]:
    """The student, and teachers of different widths."""
    made: dict[str, torch.nn.Module] = {}
    for number, (role, width) in enumerate({"student": 8, **TEACHERS}.items()):
        with toy.streams.forked("init", number):
            made[role] = toy.build(role, "mlp", {"width": width, "dropout": dropout * (role == "student")})
    return made


def made(
    name: str, folder: Path, *, accumulate: int = 1, every: int = 5, kind: type[ToyAdapter] = ToyAdapter,
    dropout: float = 0.2,
) -> Engine:  # fmt: skip
    """An engine of a scheme, six steps of twelve samples."""
    config = Train(
        steps=6, batch_size=12, accumulate=accumulate, checkpoint_every=every, eval_every=3,
        optimizer=Optimizer(lr=1e-2), schedule=Schedule(),
    )  # fmt: skip
    toy = adapter(batch_size=12)
    toy.__class__ = kind
    params, terms = KINDS[name]
    scheme = SCHEMES[name]
    method = scheme(
        toy, Objective(terms, steps=config.steps), config, toy.streams, params=scheme.Params.model_validate(params)
    )
    method.teachers = tuple(TEACHERS)
    return engine(
        folder, config, toy=toy, models=models(toy, dropout), method=method, metric=("loss", True),
        evaluate=lambda model: toy.evaluate("student", model, "dev").metrics,
    )  # fmt: skip
