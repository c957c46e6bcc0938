"""Losses of 2021 to 2024 against oracles of somebody else, who had read papers and releases and not the code.

Where those are more or other than the loss, the test that compares says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from oracles import features_by_another as oracle
from released_rows import filled
from torch import Tensor

from xmodal_kd.losses import LOSSES

Array = np.ndarray[Any, Any]


def maps(seed: int, items: int, width: int, side: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(items, width, side, side, generator=random, dtype=torch.float64)


def rows(maps: Tensor) -> Tensor:
    return maps.flatten(2).transpose(1, 2).flatten(0, 1)


def stands(items: int, side: int) -> tuple[Tensor, Tensor, tuple[int, int]]:
    cells = items * side * side
    return torch.arange(items).repeat_interleave(side * side), torch.arange(cells), (side, side)


def plain(*tensors: Tensor) -> tuple[Array, ...]:
    return tuple(x.detach().numpy() for x in tensors)


def of_sequential(mlp: Any) -> Any:
    return plain(mlp[0].weight, mlp[0].bias, mlp[2].weight, mlp[2].bias)


def agree(found: Tensor, expected: Array | float) -> None:
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------- SemCKD


def regressed(one: Any) -> Callable[[Array], Array]:
    """The release's bottleneck of an oracle's parts."""
    enter, middle, leave = plain(one.enter.weight, one.middle.weight, one.leave.weight)
    norms = [plain(norm.weight, norm.bias) for norm in one.norms]

    def call(x: Array) -> Array:
        for kernel, norm in zip((enter[:, :, None, None], middle), norms, strict=True):
            x = np.maximum(oracle.batch_norm(np.stack([oracle.convolved(v, kernel) for v in x]), *norm), 0)
        return np.stack([oracle.convolved(v, leave[:, :, None, None]) for v in x])

    return call


@pytest.mark.parametrize(
    ("student", "teacher"), [([(3, 5), (4, 3)], [(4, 5), (2, 3)]), ([(3, 3)], [(4, 3), (2, 3), (3, 3)])]
)
def test_semckd(student: list[tuple[int, int]], teacher: list[tuple[int, int]]) -> None:
    """Layers of a width and a side; a grid of 5 is no multiple of one of 3. As the release: divided by the student's
    layers, which the paper's eq. 8 is not."""
    call: Any = filled(
        LOSSES["semckd"].make([w for w, _ in student], [w for w, _ in teacher], [2] * 3, batch=4, width=3)
    )
    own = [maps(k, 4, *at) for k, at in enumerate(student)]
    other = [maps(9 + k, 4, *at) for k, at in enumerate(teacher)]
    at = [stands(4, side) for _, side in student]
    item, cell, grid = (list(part) for part in zip(*at, strict=True))
    values, _ = call([rows(x) for x in own], [rows(x) for x in other], item, 4, cell, grid)
    layers = [[of_sequential(e) for e in side] for side in (call.query, call.key)]
    shares = oracle.semckd_shares(plain(*own), plain(*other), *layers)
    assert np.abs(shares - 1 / len(teacher)).max() > 0.05, "attention, not a mean"
    project = [[regressed(one) for one in side] for side in call.regressors]
    agree(values, oracle.semckd(plain(*own), plain(*other), shares, project))


# ---------------------------------------------------------------- AttnFD


def brought(call: Any, student: Tensor) -> Array:
    """The student's maps weighed, and at the teacher's width."""
    rows, norm = call.rows_norm, call.norm
    s = oracle.weighed_student(
        student.numpy(), of_sequential(call.channels), *plain(call.rows.weight, rows.weight, rows.bias)
    )
    (connector,) = plain(call.connector.weight)
    return oracle.batch_norm(
        np.stack([oracle.convolved(v, connector[:, :, None, None]) for v in s]), *plain(norm.weight, norm.bias)
    )


def test_attnfd() -> None:
    """Lengths of a sample's map, as the paper reads. Those of the whole batch, which the release has, give other
    values, by the samples' sizes and not by a factor; of one sample they are its own."""
    call: Any = filled(LOSSES["attnfd"].make(6, 5, 2, reduction=2))
    student, teacher = maps(1, 3, 6, 4), maps(2, 3, 5, 4) * torch.tensor([1.0, 3.0, 0.5]).reshape(3, 1, 1, 1)
    item, cell, grid = stands(3, 4)
    values, _ = call(rows(student), rows(teacher), item, 3, cell, grid)
    s, t = brought(call, student), oracle.weighed_teacher(teacher.numpy())
    agree(values, oracle.attnfd(s, t))
    assert np.ptp(oracle.attnfd(s, t, "batch") / values.detach().numpy()) > 0.05
    values, _ = call(rows(student[:1]), rows(teacher[:1]), item[:16], 1, cell[:16], grid)
    agree(values, oracle.attnfd(brought(call, student[:1]), t[:1], "batch"))


# ---------------------------------------------------------------- Af-DCD


@pytest.mark.parametrize(("groups", "pool", "patch"), [(3, 2, 2), (2, 1, 4), (6, 4, 1)])
def test_af_dcd(groups: int, pool: int, patch: int) -> None:
    call: Any = filled(
        LOSSES["af_dcd"].make(6, 6, 2, groups=groups, patch=patch, pool=pool, temperature=0.7, regenerate=0.02)
    )
    student, teacher = maps(1, 2, 6, 8), maps(2, 2, 6, 8)
    keep = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(3)) > 0.4
    call.kept = lambda *_: keep.reshape(-1, 1)
    item, cell, grid = stands(2, 8)
    values, _ = call(rows(student), rows(teacher), item, 2, cell, grid)
    made = (student * keep[:, None]).numpy()
    for k in range(2):
        kernel, bias = plain(call.generator[k].weight, call.generator[k].bias)
        made = np.stack(
            [oracle.convolved(v, kernel) + bias[:, None, None] for v in (np.maximum(made, 0) if k else made)]
        )
    told = oracle.af_dcd(made, teacher.numpy(), groups, pool, patch, 0.7)
    agree(values, told + 0.02 * ((made - teacher.numpy()) ** 2).sum(axis=(1, 2, 3)))


# ---------------------------------------------------------------- CRCD


@pytest.mark.parametrize("first", [True, False])
def test_crcd(first: bool) -> None:
    """Of pairs of two samples and without the release's added constants; with them 1e-5 of it. The release counts a
    sample's relation to itself, too, and gradients of relations are contrasted in the paper alone."""
    call: Any = filled(LOSSES["crcd"].make(5, 7, samples=12, negatives=4, width=6, temperature=0.5))
    for seed, bank in ((3, call.bank_s), (4, call.bank_t)):
        bank.copy_(torch.nn.functional.normalize(maps(seed, 12, 6, 1).flatten(1)))
    if not first:
        call.z_s.fill_(20.0), call.z_t.fill_(30.0)
    own, negatives = [2, 7, 0, 5], [9, 6, 11, 10]
    call.drawn = lambda: torch.tensor(negatives)
    student, teacher = maps(1, 4, 5, 1).flatten(1), maps(2, 4, 7, 1).flatten(1)
    banks = [bank.numpy().copy() for bank in (call.bank_t, call.bank_s)]
    made = [[oracle.unit(v) for v in plain(e(x))[0]] for e, x in ((call.embed_s, student), (call.embed_t, teacher))]
    value = call(student, teacher, torch.arange(4), torch.tensor(own))
    expected = {0.0: 0.0, 1e-7: 0.0}
    pairs = [(i, a) for i in range(4) for a in range(4) if i != a]
    for eps in expected:
        for f, bank, z in zip(made, banks, (20.0, 30.0), strict=True):
            scores = [oracle.crcd_scores(np.stack(f), bank, own, negatives, pair, 0.5, 10 * eps) for pair in pairs]
            z = 12 * float(np.mean(scores)) if first else z
            expected[eps] += float(np.mean([oracle.crcd_row(row, z, 12, eps) for row in scores]))
    agree(value, expected[0.0])
    assert math.isclose(value.item(), expected[1e-7], rel_tol=1e-5)
    for bank, f, before in zip((call.bank_s, call.bank_t), made, banks[::-1], strict=True):
        agree(bank, oracle.remembered(before, np.stack(f), own, 0.5))
