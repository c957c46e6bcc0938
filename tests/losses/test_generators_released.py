"""Losses of networks that make images, against what the papers' releases say of the same arrays in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from oracles.wavelets_by_another import wavelet_kd as oracle
from torch import Tensor, nn

from xmodal_kd.losses import LOSSES
from xmodal_kd.losses.adversarial import _play
from xmodal_kd.losses.base import frozen


def rows(maps: Tensor) -> Tensor:
    return maps.movedim(1, -1).flatten(0, -2)


#: github.com/ArchipLab-LinfengZhang/wkd-datasets, 1427bcf, on pytorch_wavelets, 9a0c507: seed, height, width, wave,
#: levels, the loss, the sum of the absolute values of its gradient.
WAVELETS = [
    (0, 16, 16, "haar", 4, 4.2467822157563715, 8.725694444444446),
    (0, 13, 10, "haar", 1, 1.0720568189936295, 0.9523809523809526),
    (0, 13, 10, "db3", 3, 1.1272846710318511, 0.8187817994198434),
    (1, 13, 10, "haar", 4, 3.4454368635546047, 5.549933862433864),
]


@pytest.mark.parametrize(("seed", "height", "width", "wave", "levels", "value", "slope"), WAVELETS)
def test_wavelet_kd_is_the_release(
    seed: int, height: int, width: int, wave: str, levels: int, value: float, slope: float
) -> None:
    random = np.random.RandomState(seed)
    s, t = (torch.from_numpy(random.randn(2, 3, height, width)) for _ in range(2))
    student = rows(s).requires_grad_()
    given: dict[str, Any] = {"cell": torch.arange(2 * height * width), "items": 2, "grid": (height, width)}
    got, counted = LOSSES["wavelet_kd"].fn(student, rows(t), **given, levels=levels, wave=wave)
    got.mean().backward()
    assert counted.all() and got.mean().item() == pytest.approx(value, rel=1e-12)
    assert student.grad is not None and student.grad.abs().sum().item() == pytest.approx(slope, rel=1e-12)
    given["cell"] = given["cell"].numpy()
    assert oracle(rows(s).numpy(), rows(t).numpy(), **given, levels=levels, wave=wave) == pytest.approx(got.tolist())


def test_wavelets_of_sequences_and_volumes() -> None:
    """A sequence has one high band, a volume seven; of a constant difference only edges and the low band are left."""
    fn = LOSSES["wavelet_kd"].fn
    s, t = torch.tensor([[3.0], [1.0], [0.0], [0.0]]), torch.zeros(4, 1)
    got, _ = fn(s, t, torch.arange(4), 1, (4,), levels=1)
    assert got.item() == pytest.approx((2 / 2**0.5 + 0) / 2)
    whole, _ = fn(torch.ones(64, 2), torch.zeros(64, 2), torch.arange(64), 1, (4, 4, 4), levels=2)
    assert whole.item() == pytest.approx(0, abs=1e-6)


class Given(nn.Module):
    """A critic that says what it is told to, of each of the two things it is asked about."""

    def __init__(self, made: Tensor, right: Tensor) -> None:
        super().__init__()
        self.told, self.shift = torch.cat([right, made]), nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, maps: Tensor) -> Tensor:
        right, made = self.told.chunk(2)
        return (right if maps.mean() > 0 else made) + self.shift + 0 * maps.sum()


#: github.com/mit-han-lab/gan-compression, 111093f: the game by both names, whether there are pairs, then the terms of
#: the generator with their weights of 1, 100 and 1, their sum, the critic's loss.
GAMES = [
    ("hinge", True, -0.66265110536464, 100.6582496476539, 9.556759958584696, 109.55235850087395, 1.4269076231737574),
    ("hinge", False, -0.66265110536464, 120.05583463814892, 9.556759958584696, 128.94994349136897, 1.4269076231737574),
    ("lsgan", True, 0.7920068191975342, 100.6582496476539, 9.556759958584696, 111.00701642543613, 1.8432487945433893),
    ("lsgan", False, 0.7920068191975342, 120.05583463814892, 9.556759958584696, 130.40460141593115, 1.8432487945433893),
    ("bce", True, 0.48752633217637825, 100.6582496476539, 9.556759958584696, 110.70253593841497, 1.0166854617935408),
    ("bce", False, 0.48752633217637825, 120.05583463814892, 9.556759958584696, 130.10012092891, 1.0166854617935408),
]


@pytest.mark.parametrize(("game", "paired", "gan", "reconstruction", "feature", "total", "critic"), GAMES)
def test_gan_compression_is_the_release(
    game: Any, paired: bool, gan: float, reconstruction: float, feature: float, total: float, critic: float
) -> None:
    """Its generator's loss is terms of patch_gan, an L1 and hint behind a projector; its critic's half of ours."""
    random = np.random.RandomState(0)
    made, right = (torch.from_numpy(random.randn(2, 1, 3, 3)) for _ in range(2))
    student, teacher, real = (torch.from_numpy(random.randn(2, 3, 4, 4)) for _ in range(3))
    widths = [(2, 3), (3, 5)]
    mine = [torch.from_numpy(random.randn(2, s, 4, 4)) for s, _ in widths]
    theirs = [torch.from_numpy(random.randn(2, t, 4, 4)) for _, t in widths]
    weights = [torch.from_numpy(random.randn(t, s)) for s, t in widths]
    biases = [torch.from_numpy(random.randn(t)) for _, t in widths]

    judge = Given(made, right)
    said = _play(judge, -torch.ones(2, 1, 3, 3), torch.ones(2, 1, 3, 3), game).mean()
    assert said.item() == pytest.approx(gan, rel=1e-12)
    l1 = LOSSES["logit_mae"].fn(rows(student), rows(real if paired else teacher)).mean()
    assert 100 * l1.item() == pytest.approx(reconstruction, rel=1e-12)
    hints = torch.stack([
        LOSSES["hint"].fn(rows(s) @ w.T + b, rows(t)).mean()
        for s, t, w, b in zip(mine, theirs, weights, biases, strict=True)
    ]).sum()  # fmt: skip
    assert hints.item() == pytest.approx(feature, rel=1e-12)
    assert (said + 100 * l1 + hints).item() == pytest.approx(total, rel=1e-12)

    slope = torch.autograd.grad(said, judge.shift)[0]
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    own = half_of_critic(game, made + shift, right + shift)
    assert own.item() == pytest.approx(critic, rel=1e-12)
    assert slope.item() == pytest.approx(2 * torch.autograd.grad(own, shift)[0].item(), rel=1e-12)


def half_of_critic(game: str, made: Tensor, right: Tensor) -> Tensor:
    """The release's, from its formulas."""
    if game == "hinge":
        return ((1 - right).clamp(min=0).mean() + (1 + made).clamp(min=0).mean()) / 2
    if game == "lsgan":
        return ((right - 1).square().mean() + made.square().mean()) / 2
    return ((1 + (-right).exp()).log().mean() + (1 + made.exp()).log().mean()) / 2


def test_a_critic_of_pairs_sees_the_condition_and_gives_it_no_gradient() -> None:
    """Its score of the same image hangs on the image beside it; the critic alone learns by the labels."""
    torch.manual_seed(0)
    module = LOSSES["patch_gan"].make([3, 2], [3, 2], [2, 2], hidden=4, layers=2)
    made, beside, labels = (torch.randn(32, width, requires_grad=True) for width in (3, 2, 3))
    cell = [torch.arange(32)] * 2
    values, counted = module([made, beside], labels, cell, 2, [(4, 4), (4, 4)])
    values.sum().backward()
    assert counted.all() and made.grad is not None and beside.grad is None
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in module.parameters() if p.ndim > 1)
    other, _ = module([made, -beside], labels, cell, 2, [(4, 4), (4, 4)])
    assert not torch.allclose(values, other)
    plain = frozen(module.critic, torch.cat([rows_to_maps(made), rows_to_maps(beside)], dim=1))
    torch.testing.assert_close(values, -plain.flatten(1).mean(dim=1))
    with pytest.raises(ValueError, match="one real target"):
        module([made, beside], torch.zeros(32, dtype=torch.long), cell, 2, [(4, 4), (4, 4)])


def rows_to_maps(rows: Tensor) -> Tensor:
    return rows.detach().reshape(2, 4, 4, -1).movedim(-1, 1)
