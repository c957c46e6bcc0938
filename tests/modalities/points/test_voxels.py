"""The U-Net over voxels: its convolutions are dense ones where something is; what it is indifferent to; it learns."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from xmodal_kd.modalities.points.models import MODELS, SceneModel
from xmodal_kd.modalities.points.models.voxels import HALF, Coarser, Finer, Neighbours, mean_of, voxelise
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.signals.capture import capture, only_call

CLASSES = 8
#: Voxels along each axis of the dense grid that the sparse convolutions are compared with; the origin is its middle.
SIDE = 16


def cloud(*lengths: int, channels: int = 4, seed: int = 1) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(lengths), channels, generator=draw)
    x[:, :3] = (4.0 * x[:, :3]).clamp(-7.9, 7.9)
    return x, torch.tensor(lengths, dtype=torch.long)


def build(**params: object) -> SceneModel:
    torch.manual_seed(0)
    kind = MODELS["voxel_unet"]
    return kind(kind.Config(**{"width": 8, "cell": 1.0} | params), channels=4, classes=CLASSES)


def places(xyz: Tensor, lengths: Tensor) -> Tensor:
    """``(voxels, 4)`` item and cell of each occupied voxel of a grid around the origin, in their order."""
    item = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    return torch.cat([item[:, None], xyz.floor().long() + SIDE // 2], dim=1).unique(dim=0)


def dense(rows: Tensor, at: Tensor, side: int = SIDE) -> Tensor:
    """``(items, c, side, side, side)`` with zeros where nothing is."""
    grid = rows.new_zeros(int(at[:, 0].max()) + 1, side, side, side, rows.shape[1])
    grid[tuple(at.T)] = rows
    return grid.movedim(-1, 1)


def sparse(grid: Tensor, at: Tensor) -> Tensor:
    return grid.movedim(1, -1)[tuple(at.T)]


@pytest.fixture
def occupied() -> tuple[Tensor, list, Tensor, Tensor]:
    xyz, lengths = cloud(150, 1, 300, channels=3)
    _, levels = voxelise(xyz.double(), lengths.tolist(), cell=1.0, levels=2)
    at = places(xyz, lengths)
    coarse = torch.cat([at[:, :1], at[:, 1:] // 2], dim=1).unique(dim=0)
    assert [len(level) for level in levels] == [len(at), len(coarse)]
    return xyz, levels, at, coarse


def test_neighbours_are_a_dense_convolution_where_something_is(occupied: tuple[Tensor, list, Tensor, Tensor]) -> None:
    _, levels, at, _ = occupied
    conv, x = Neighbours(3, 5).double(), torch.randn(len(at), 3, dtype=torch.float64)
    kernel = torch.zeros(5, 3, 3, 3, 3, dtype=torch.float64)
    with torch.no_grad():
        kernel[:, :, 1, 1, 1] = conv.weight[0].T
        for k, place in enumerate(HALF):
            there, opposite = (tuple(1 + sign * d for d in place) for sign in (1, -1))
            kernel[:, :, *there], kernel[:, :, *opposite] = conv.weight[2 * k + 1].T, conv.weight[2 * k + 2].T
    torch.testing.assert_close(conv(x, levels[0]), sparse(F.conv3d(dense(x, at), kernel, padding=1), at))


def test_coarser_and_finer_are_dense_convolutions_of_stride_two(occupied: tuple[Tensor, list, Tensor, Tensor]) -> None:
    _, (fine, coarse), at, coarse_at = occupied
    down, up = Coarser(3, 5).double(), Finer(5, 3).double()
    x = torch.randn(len(at), 3, dtype=torch.float64)
    there = torch.zeros(5, 3, 2, 2, 2, dtype=torch.float64)
    back = torch.zeros(5, 3, 2, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        for k, place in enumerate(product((0, 1), repeat=3)):
            there[:, :, *place], back[:, :, *place] = down.weight[k].T, up.weight[k]
    y = down(x, fine, coarse)
    torch.testing.assert_close(y, sparse(F.conv3d(dense(x, at), there, stride=2), coarse_at))
    grid = dense(y, coarse_at, SIDE // 2)
    torch.testing.assert_close(up(y, fine), sparse(F.conv_transpose3d(grid, back, stride=2), at))


def test_a_voxel_has_the_mean_of_its_points() -> None:
    xyz = torch.tensor([[0.1, 0, 0], [5.2, 0, 0], [0.7, 0.2, 0], [0.1, 0, 0]])
    of, levels = voxelise(xyz, [3, 1], cell=1.0, levels=1)
    assert of.tolist() == [0, 1, 0, 2] and len(levels[0]) == 3 and levels[0].parent is None
    torch.testing.assert_close(mean_of(xyz, of, 3), torch.tensor([[0.4, 0.1, 0], [5.2, 0, 0], [0.1, 0, 0]]))


def test_points_beyond_the_grid_are_its_last_voxel_and_no_one_s_neighbour_across_axes() -> None:
    xyz = torch.tensor([[1e9, 0.5, 0.5], [3e9, 0.5, 0.5], [-1e9, 0.5, 0.5], [0.5, 1e9, 0.5], [0.5, 0.5, -1e9]])
    of, levels = voxelise(xyz, [5], cell=0.1, levels=3)
    assert of[0] == of[1] and len(levels[0]) == 4
    assert all(not len(here) for level in levels for here, _ in level.around)


@pytest.mark.parametrize("lengths", [[1], [100, 3, 40], [0, 20, 0], [0, 0], []])
@pytest.mark.parametrize("levels", [1, 3])
def test_every_point_gets_logits(lengths: list[int], levels: int) -> None:
    model, (x, given) = build(levels=levels), cloud(*lengths)
    with capture(model, ["features"]) as got:
        logits = model(x, given)
    assert logits.shape == (sum(lengths), CLASSES) and torch.isfinite(logits).all()
    torch.testing.assert_close(model.head(only_call("features", got["features"])), logits)
    logits.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_scan_has_the_same_logits_alone_in_a_batch_and_in_another_order() -> None:
    model, (x, lengths) = build(), cloud(30, 0, 57, 12)
    together = model(x, lengths).split(lengths.tolist())
    for points, found in zip(x.split(lengths.tolist()), together, strict=True):
        order = torch.randperm(len(points), generator=torch.Generator().manual_seed(3))
        one = torch.tensor([len(points)])
        torch.testing.assert_close(model(points, one), found, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(model(points[order], one), found[order], atol=1e-5, rtol=1e-4)


def test_a_step_of_the_coarsest_voxels_moves_the_logits_with_it() -> None:
    """What the network knows of the place itself comes from its inputs; the voxels shift with the points."""
    model, (x, lengths) = build(levels=3), cloud(200)
    model.scale[:3] = 0
    moved = x.clone()
    moved[:, :3] += torch.tensor([4.0, -8.0, 4.0])
    torch.testing.assert_close(model(moved, lengths), model(x, lengths), atol=1e-4, rtol=1e-3)


def test_more_levels_see_further() -> None:
    x, lengths = cloud(400)
    reach = []
    for levels in (1, 2, 3):
        points = x.clone().requires_grad_()
        build(levels=levels)(points, lengths)[0].sum().backward()
        reach.append(int((points.grad.abs().sum(1) > 0).sum()))
    assert 1 < reach[0] < reach[1] <= reach[2]


def test_it_learns_what_it_is_shown() -> None:
    model, (x, lengths) = build(levels=2, width=16), cloud(40, 24)
    labels = torch.randint(CLASSES, (64,), generator=torch.Generator().manual_seed(2))
    optimizer, losses = torch.optim.Adam(model.parameters(), 1e-2), []
    for _ in range(30):
        loss = F.cross_entropy(model(x, lengths), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="9 points, but lengths that sum to 8"):
        build()(cloud(9)[0], torch.tensor([8]))
    kind = MODELS["voxel_unet"]
    with pytest.raises(UserError, match="not 2 channels"):
        kind(kind.Config(), channels=2, classes=2)
    for params in ({"width": 0}, {"levels": 0}, {"levels": 9}, {"cell": 0}, {"voxel": 0.1}):
        with pytest.raises(ValidationError):
            kind.Config(**params)
