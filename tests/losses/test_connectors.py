"""What learned feature losses are built of, against torch's own layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import ranks_worker
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import xmodal_kd
from xmodal_kd.losses.connectors import Place, RowNorm, grid_conv
from xmodal_kd.signals.signals import Layout

HERE = Path(__file__).parents[1]
ROOT = Path(xmodal_kd.__file__).parents[1]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_batch_norm_is_torchs_in_training_and_in_evaluation() -> None:
    ours, theirs = RowNorm("batch", 4).double(), nn.BatchNorm1d(4).double()
    for seed in range(3):
        rows = [3 * randn(7, 4, seed=seed) + 1 for _ in range(2)]
        outs = [norm(x.requires_grad_()) for norm, x in zip((ours, theirs), rows, strict=True)]
        torch.testing.assert_close(outs[0], outs[1])
        grads = [
            torch.autograd.grad((out * randn(7, 4, seed=9)).sum(), x)[0] for out, x in zip(outs, rows, strict=True)
        ]
        torch.testing.assert_close(grads[0], grads[1])
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(randn(1, 4)), theirs(randn(1, 4)))


def test_layer_norm_and_none() -> None:
    rows = randn(3, 4)
    torch.testing.assert_close(RowNorm("layer", 4).double()(rows), nn.LayerNorm(4).double()(rows))
    assert RowNorm("none", 4)(rows) is rows
    assert not list(RowNorm("none", 4).parameters())


def test_batch_norm_of_one_row_is_refused_and_of_none_is_empty() -> None:
    norm = RowNorm("batch", 4).double()
    with pytest.raises(ValueError, match="at least 2"):
        norm(randn(1, 4))
    assert norm(randn(0, 4)).shape == (0, 4)
    assert norm.running_mean.tolist() == [0, 0, 0, 0]


def test_two_ranks_normalise_as_one_process_does(tmp_path: Path) -> None:
    """Values, running averages and all gradients, of ranks with different numbers of rows."""
    given = {"rows": 2 * randn(8, 3) + 1, "wanted": randn(8, 3, seed=1)}
    save_file(given, tmp_path / "given.safetensors")
    one = ranks_worker.normed(**given)
    ranks = ranks_worker.two("norm", tmp_path)
    for key in ("out", "rows"):
        torch.testing.assert_close(torch.cat([rank[key] for rank in ranks]), one[key], rtol=1e-12, atol=1e-12)
    for key in ("weight", "bias"):  # the engine sums the ranks' gradients
        torch.testing.assert_close(ranks[0][key] + ranks[1][key], one[key], rtol=1e-12, atol=1e-12)
    for key in ("mean", "var"):
        assert torch.equal(ranks[0][key], ranks[1][key])
        torch.testing.assert_close(ranks[0][key], one[key], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("grid", [(5,), (3, 4), (2, 3, 2)], ids=str)
def test_a_convolution_over_the_grid_is_torchs(grid: tuple[int, ...]) -> None:
    layout = Layout.dense("pixel", 2, grid)
    conv = grid_conv(3, 4, 3, len(grid)).double()
    rows = randn(len(layout), 3)
    maps = rows.reshape(2, *grid, 3).movedim(-1, 1)
    expected = conv(maps).movedim(1, -1).reshape(-1, 4)
    torch.testing.assert_close(Place(torch.arange(len(rows)), 2, grid).apply(conv, rows), expected)


def test_cells_without_a_row_are_zeros_and_items_do_not_touch() -> None:
    layout = Layout.padded("frame", torch.tensor([3, 1]), 3)
    conv = grid_conv(2, 2, 3, 1).double()
    rows = randn(6, 2)
    cell = layout.mask.nonzero().squeeze(1)
    got = Place(cell, 2, (3,)).apply(conv, rows[layout.mask])
    alone = [conv(x.T[None])[0].T for x in (rows[:3], rows[3:4])]
    torch.testing.assert_close(got, torch.cat(alone))


def test_rows_without_a_grid_get_a_linear_map() -> None:
    assert isinstance(grid_conv(3, 4, 3, 0), nn.Linear)
    assert isinstance(grid_conv(3, 4, 1, 2), nn.Linear)
    layer, rows = grid_conv(3, 4, 3, 0).double(), randn(5, 3)
    torch.testing.assert_close(Place(torch.arange(5), 2, None).apply(layer, rows), layer(rows))
    with pytest.raises(ValueError, match="grid of 4 axes"):
        grid_conv(3, 4, 3, 4)
