"""Oracles by another, who had read papers and releases and not the code, in the form that the registry asks for."""

from __future__ import annotations

import numpy as np

from . import amalgamation_by_another, category_by_another, dphubert_by_another, token_by_another
from .layers import Params, under
from .maths import Array, Ints


def category(
    student: Array,
    teacher: Array,
    labels: Ints,
    *,
    intra: float = 1.0,
    inter: float = 1.0,
    released: bool = False,
) -> float:
    """Chen et al. (2020): rows around the centres of their classes, and cosines of the centres."""
    if not len(student):
        return 0.0
    parts = [
        intra * category_by_another.intra(student, teacher, labels, divide=released),
        inter * category_by_another.inter(student, teacher, labels, divide=released),
    ]
    return float(np.sum(parts))


def hard_label(student: Array, teacher: Array, *, smoothing: float = 0.0) -> Array:
    """Touvron et al. (2021), eq. 3: the second half."""
    labels = token_by_another.hard_labels(teacher)
    rows = range(len(student))
    return np.array([token_by_another.cross_entropy(student[[i]], labels[[i]], smoothing) for i in rows])


def cfl(
    student: list[Array],
    teacher: list[Array],
    *,
    state: Params,
    width: int = 128,
    common: int = 128,
    mmd: float = 1.0,
    reconstruction: float = 1.0,
    sigmas: tuple[float, ...] = amalgamation_by_another.RELEASE_SIGMAS,
) -> float:
    """Luo et al. (2019) on vectors, as the release has it."""
    if not len(student[0]):
        return 0.0

    def layer(name: str) -> tuple[Array, Array]:
        return state[f"{name}.weight"], state[f"{name}.bias"]

    teachers = range(len(teacher))
    parts = {"align_s": layer("student"), "extract1": layer("common.0"), "extract2": layer("common.2")}
    parts |= {"align_t": [layer(f"teachers.{j}") for j in teachers]}
    parts |= {f"dec{i}": [layer(f"back.{j}.{at}") for j in teachers] for i, at in ((1, 0), (2, 2))}
    mine, theirs, rebuilt = amalgamation_by_another.fc_block(student[0], teacher, parts)
    apart = amalgamation_by_another.mmd_term(mine, theirs, sigmas=sigmas)
    return float(mmd * apart + reconstruction * amalgamation_by_another.reconstruction_term(rebuilt, teacher))


def dphubert(
    student: list[Array], teacher: list[Array], *, state: Params, l1: float = 1.0, cosine: float = 1.0,
    form: str = "raw", apart: int = 1,
) -> Array:  # fmt: skip
    """Peng et al. (2023): one row is a batch of one utterance of one frame."""
    maps = [under(state, f"maps.{min(at, apart)}") for at in range(len(student))]
    said = [s @ one["weight"].T + one["bias"] for s, one in zip(student, maps, strict=True)]
    kind = {"raw": "raw", "log_sigmoid": "log_sig"}[form]
    stacks = [np.stack(side, axis=1)[:, :, None] for side in (said, teacher)]
    rows = zip(*stacks, strict=True)
    return np.array([dphubert_by_another.distill_loss(s[None], t[None], 0.0, l1, cosine, kind)[0] for s, t in rows])
