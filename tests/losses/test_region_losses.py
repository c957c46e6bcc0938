"""What the property suite cannot know of losses over regions, and of `dn`: counts, both forms, memory, moments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xmodal_kd.losses import LOSSES
from xmodal_kd.losses.normalisation import DimensionNorm
from xmodal_kd.losses.regions import affinity, region_kd
from xmodal_kd.objective.objective import Objective
from xmodal_kd.objective.parts import LossOut
from xmodal_kd.recipe.recipe import Term
from xmodal_kd.runtime.peak_memory import peak_bytes
from xmodal_kd.signals.signals import Layout, Signals


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two matrices of cosines."""
    s, t = (nn.functional.normalize(x, dim=1) for x in (student, teacher))
    return (s @ s.T - t @ t.T).square().mean()


@pytest.mark.parametrize("rows", [4, 7, 8, 60])
def test_affinity_is_that_of_all_pairs(rows: int) -> None:
    """Of few rows by pairs, of many by products of channels: the same value and gradient."""
    student, teacher = randn(rows, 6).requires_grad_(), randn(rows, 9, seed=1)
    item = regions = torch.zeros(rows, dtype=torch.int64)
    values, counted = affinity(student, teacher, item, 1, regions)
    expected = pairs(student, teacher)
    torch.testing.assert_close(values, expected[None])
    assert counted.tolist() == [1]
    grads = [torch.autograd.grad(value, student, retain_graph=True)[0] for value in (values.sum(), expected)]
    torch.testing.assert_close(*grads)


def test_affinity_of_regions_of_all_sizes() -> None:
    """Regions of 1 to 40 rows in any order, over two items: the sum of each item's, single rows left out."""
    sizes = torch.arange(1, 41)
    which = torch.repeat_interleave(torch.arange(40), sizes)[torch.randperm(int(sizes.sum()))]
    student, teacher = randn(len(which), 6), randn(len(which), 9, seed=1)
    values, counted = affinity(student, teacher, which % 2, 2, which // 2)
    expected = [pairs(student[which == r], teacher[which == r]) for r in range(40)]
    torch.testing.assert_close(values, torch.stack([sum(expected[2::2]), sum(expected[1::2])]))  # type: ignore[list-item]
    assert counted.tolist() == [19, 20]


def test_a_dead_row_gets_a_gradient_of_ordinary_size() -> None:
    student, teacher = randn(5, 6), randn(5, 6, seed=1)
    student[2] = 0
    student.requires_grad_()
    item = torch.zeros(5, dtype=torch.int64)
    affinity(student, teacher, item, 1, item)[0].sum().backward()
    assert student.grad is not None and 0 < student.grad[2].norm() < 10


def signals(rows: Tensor, item: Tensor, regions: Tensor) -> Signals:
    layout = Layout.ragged("point", item, int(item.max()) + 1)
    return Signals().add("logits", rows, layout).add("voxels", regions, layout)


def part(name: str, student: Tensor, teacher: Tensor, item: Tensor, regions: Tensor) -> Any:
    term = Term(loss=name, on="logits", regions="voxels", projector="none")
    out: LossOut = Objective([term])(signals(student, item, regions), signals(teacher, item, regions))
    return out.parts[name]


@pytest.mark.parametrize("name", ["affinity", "region_kd"])
def test_every_region_counts_alike(name: str) -> None:
    """Whatever its item and its rows; two micro-batches give what one gives; rows of no region are not seen."""
    item = torch.tensor([0] * 9 + [1] * 5)
    regions = torch.tensor([0, 0, 1, 1, 2, 2, 2, 2, -1, 3, 3, 3, 3, -1])
    student, teacher = randn(14, 4), randn(14, 4, seed=1)
    student[8] = float("nan")
    whole = part(name, student, teacher, item, regions)
    assert whole.count == 4
    alone = []
    for region in range(4):
        inside = regions == region
        given = (x[inside] for x in (student, teacher))
        zeros = torch.zeros(int(inside.sum()), dtype=torch.int64)
        alone.append(LOSSES[name].fn(*given, zeros, 1, zeros)[0][0])
    torch.testing.assert_close(whole.total / whole.count, torch.stack(alone).mean())
    first, second = item == 0, item == 1
    halves = [part(name, student[k], teacher[k], item[k] - item[k][0], regions[k]) for k in (first, second)]
    torch.testing.assert_close(sum(half.total for half in halves), whole.total)
    assert sum(half.count for half in halves) == 4


def test_without_a_region_there_is_nothing_and_the_graph_holds() -> None:
    student = randn(3, 4).requires_grad_()
    item = torch.arange(3)
    for name in ("affinity", "region_kd"):
        nothing = part(name, student, randn(3, 4, seed=1), item, torch.full((3,), -1))
        assert nothing.total == 0 and nothing.count == 0
        assert torch.autograd.grad(nothing.total, student)[0].abs().sum() == 0


def test_a_region_speaks_with_its_mean_logits() -> None:
    """Two points of one voxel, whose logits differ by what cancels in their mean: nothing to learn."""
    teacher = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
    student = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    zeros = torch.zeros(2, dtype=torch.int64)
    assert region_kd(student, teacher, zeros, 1, zeros)[0].tolist() == pytest.approx([0.0], abs=1e-7)
    assert region_kd(student, teacher, zeros, 1, torch.arange(2))[0] > 0.5


def test_affinity_of_a_scan_costs_a_few_times_its_rows() -> None:
    """20,000 points of one large region and many small ones: no matrix of pairs, of 1.6 GB."""
    n, c = 20_000, 8
    regions = torch.where(torch.arange(n) < n // 2, 0, torch.arange(n) // 16)
    item = torch.zeros(n, dtype=torch.int64)
    student, teacher = (torch.randn(n, c, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    student.requires_grad_()
    peak = peak_bytes(lambda: affinity(student, teacher, item, 1, regions)[0].sum().backward())
    assert peak < 40 * 4 * n * c
    assert student.grad is not None and student.grad.isfinite().all()


# ---------------------------------------------------------------- dn


def made(**params: Any) -> DimensionNorm:
    torch.manual_seed(0)
    return DimensionNorm(4, 3, **params).double()


def test_dn_brings_rows_to_the_teachers_mean_and_deviation() -> None:
    """What the connector is given, in the first batch, whose moments are the teacher's running ones."""
    dn, seen = made(eps=1e-12), []
    dn.connector.register_forward_hook(lambda _module, given, _out: seen.append(given[0]))
    teacher = 5 * randn(200, 3, seed=1) + torch.tensor([100.0, 0.0, -7.0])
    dn(randn(200, 4), teacher)
    torch.testing.assert_close(seen[0].mean(dim=0), teacher.mean(dim=0))
    torch.testing.assert_close(seen[0].std(dim=0, correction=0), teacher.std(dim=0))


def test_dn_watches_the_teacher_in_training_only() -> None:
    """A plain mean over the first batches, a running one from then on; evaluation moves nothing."""
    dn = made(momentum=0.25)
    batches = [randn(10, 3, seed=seed) + seed for seed in range(6)]
    for teacher in batches[:4]:
        dn(randn(10, 4), teacher)
    torch.testing.assert_close(dn.mean, torch.stack(batches[:4]).mean(dim=(0, 1)))
    torch.testing.assert_close(dn.variance, torch.stack([x.var(dim=0) for x in batches[:4]]).mean(dim=0))
    before = dn.mean.clone()
    dn(randn(10, 4), batches[4])
    torch.testing.assert_close(dn.mean, 0.75 * before + 0.25 * batches[4].mean(dim=0))
    state = {key: x.clone() for key, x in dn.state_dict().items()}
    dn.eval()
    alone = dn(randn(1, 4), batches[5][:1])
    assert alone.shape == (1,) and all(torch.equal(x, state[key]) for key, x in dn.state_dict().items())


def test_dn_learns_a_teacher_on_another_scale() -> None:
    """Rows that follow from the student's, on a scale of 20 around 30: most of their variance within 100 steps."""
    torch.manual_seed(0)
    dn, student = DimensionNorm(4, 16).double(), randn(64, 4)
    teacher = 10 * student @ randn(4, 16, seed=1) + 30
    adam = torch.optim.Adam(dn.parameters(), lr=0.02)
    for _ in range(100):
        adam.zero_grad()
        value = dn(student, teacher).mean()
        value.backward()
        adam.step()
    assert value < 0.1 * teacher.var(dim=0).mean()
