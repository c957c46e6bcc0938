"""Segmentation models: shapes, what they are indifferent to, what they refuse, that they learn."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kd.modalities.points.models import MODELS, SceneModel
from xmodal_kd.modalities.points.models.serial import cut, morton, windows
from xmodal_kd.runtime import flops
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.signals.capture import capture, only_call

CLASSES = 8


def build(model_name: str, channels: int, **params: object) -> SceneModel:
    torch.manual_seed(0)
    model = MODELS[model_name]
    return model(model.Config(**params), channels=channels, classes=CLASSES)


def image(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [1, 5, 8, 16, 64])
@pytest.mark.parametrize("columns", [4, 20, 64])
def test_range_logits_have_the_scan_s_size(rows: int, columns: int) -> None:
    logits = build("range_unet", 5, width=4)(image(2, 5, rows, columns))
    assert logits.shape == (2, CLASSES, rows, columns) and torch.isfinite(logits).all()


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (8, 16), (37, 50)])
def test_image_logits_have_the_picture_s_size(size: tuple[int, int]) -> None:
    model = build("image_unet", 3, width=4)
    with capture(model, ["features"]) as got:
        logits = model(image(2, 3, *size))
    assert logits.shape == (2, CLASSES, *size) and torch.isfinite(logits).all()
    assert only_call("features", got["features"]).shape == (2, 4, *size)


def test_azimuth_has_no_seam() -> None:
    model, x = build("range_unet", 5, width=4).eval(), image(1, 5, 16, 64)
    torch.testing.assert_close(model(x.roll(12, dims=-1)), model(x).roll(12, dims=-1), atol=1e-5, rtol=0)


def test_elevation_does_not_wrap() -> None:
    model, x = build("range_unet", 5, width=4, levels=1).eval(), image(1, 5, 16, 8)
    x.requires_grad_()
    hidden = model.encoder[0][0].conv(torch.cat([x[..., -1:], x, x[..., :1]], dim=-1))
    hidden[0, :, 0].sum().backward()
    assert x.grad[0, :, 15].abs().max() == 0 < x.grad[0, :, 1].abs().max()


@pytest.mark.parametrize(("rows", "lowest"), [(64, 16), (16, 4), (8, 4), (6, 6), (5, 5)])
def test_few_rows_are_not_pooled_away(rows: int, lowest: int) -> None:
    model = build("range_unet", 5, width=4)
    with capture(model, ["encoder.2"]) as got:
        model(image(1, 5, rows, 16))
    assert only_call("encoder.2", got["encoder.2"]).shape[2:] == (lowest, 4)


def test_columns_that_do_not_halve_are_refused() -> None:
    with pytest.raises(UserError, match="range image of 30 columns: 3 levels need a number that 4 divides"):
        build("range_unet", 5)(image(1, 5, 16, 30))


@pytest.mark.parametrize(("name", "channels"), [("range_unet", 5), ("image_unet", 3)])
def test_an_image_has_the_same_logits_alone_and_in_a_batch(name: str, channels: int) -> None:
    model, x = build(name, channels, width=4).train(), image(3, channels, 8, 16)
    torch.testing.assert_close(model(x)[1:2], model.eval()(x[1:2]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_no_model_has_batch_statistics(name: str) -> None:
    if name == "timm":
        pytest.importorskip("timm", reason="of use to those who have timm: its encoders")
    model = build(name, 5, **({"name": "resnet18"} if name in ("torchvision", "timm") else {}))
    assert not [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert model.classes == CLASSES and model.view in ("range", "image", "points", "pillars")


@pytest.mark.parametrize(("name", "channels"), [("range_unet", 5), ("image_unet", 3)])
def test_features_are_what_the_head_sees(name: str, channels: int) -> None:
    model = build(name, channels, width=4)
    with capture(model, ["features", "encoder.*", "decoder.*"]) as got:
        logits = model(image(2, channels, 8, 16))
    torch.testing.assert_close(model.head(only_call("features", got["features"])), logits)
    assert {"encoder.0", "encoder.2", "decoder.0", "decoder.1"} <= set(got)


@pytest.mark.parametrize(("name", "channels"), [("range_unet", 5), ("image_unet", 3)])
def test_a_model_of_a_grid_learns_what_it_is_shown(name: str, channels: int) -> None:
    model, x = build(name, channels, width=8), image(2, channels, 8, 16)
    labels = torch.randint(CLASSES, (2, 8, 16), generator=torch.Generator().manual_seed(2))
    optimizer, losses = torch.optim.Adam(model.parameters(), 1e-2), []
    for _ in range(120):
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_sizes_and_work_of_teacher_and_student() -> None:
    teacher, student = build("range_unet", 5), build("range_unet", 5, width=6)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (teacher, student)]
    assert 110_000 < sizes[0] < 130_000 and 15_000 < sizes[1] < 20_000
    macs = flops.forward(student, lambda: student(image(1, 5, 16, 256))) / 2
    assert 16e6 < macs < 18e6


def scan(*lengths: int, channels: int = 4, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Points some tens of metres around the origin, no two in one cell."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(lengths), channels, generator=random)
    x[:, :3] *= torch.tensor([20.0, 20.0, 3.0])
    return x, torch.tensor(lengths)


def transformer(**params: object) -> SceneModel:
    return build("point_transformer", 4, **{"width": 16, "heads": 2, "window": 8} | params)


@pytest.mark.parametrize("lengths", [[1], [8], [50], [100, 3, 40], [0, 20, 0], [0, 0], []])
@pytest.mark.parametrize("blocks", [1, 2, 3, 6])
def test_every_point_gets_logits(lengths: list[int], blocks: int) -> None:
    model, (x, given) = transformer(blocks=blocks), scan(*lengths)
    with capture(model, ["features", "encoder.0", "decoder.0"]) as got:
        logits = model(x, given.long())
    assert logits.shape == (sum(lengths), CLASSES) and torch.isfinite(logits).all()
    assert all(only_call(name, calls).shape == (sum(lengths), 16) for name, calls in got.items())
    torch.testing.assert_close(model.head(got["features"][0]), logits)
    logits.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_scan_has_the_same_logits_alone_and_in_a_batch() -> None:
    model, (x, lengths) = transformer(), scan(30, 0, 57, 12)
    together = model(x, lengths).split(lengths.tolist())
    for points, found in zip(x.split(lengths.tolist()), together, strict=True):
        torch.testing.assert_close(model(points, torch.tensor([len(points)])), found, atol=1e-5, rtol=1e-4)


def test_the_order_of_the_file_does_not_matter_where_no_cell_is_shared() -> None:
    model, (x, lengths) = transformer(cell=0.01), scan(90)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(model(x[order], lengths), model(x, lengths)[order], atol=1e-5, rtol=1e-4)


def test_a_point_is_seen_beyond_its_window() -> None:
    """One block sees one window; four see what two orders and two cuts put together."""
    x, lengths = scan(200)
    reach = []
    for blocks in (1, 2, 4):
        points = x.clone().requires_grad_()
        transformer(blocks=blocks)(points, lengths)[0].sum().backward()
        # the mean of a window, by which positions are centred, is data: gradients go through the features
        reach.append(int((points.grad.abs().sum(1) > 0).sum()))
    assert reach[0] == 8 < reach[1] < reach[2]


def test_morton_codes_by_hand() -> None:
    cells = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [2, 3, 1], [-1, 0, 0]])
    zero = morton(torch.zeros(1, 3), 0.5)
    xyz = 0.5 * cells + 0.25
    assert (morton(xyz, 0.5)[:4] - zero).tolist() == [1, 2, 4, 30]
    assert (morton(xyz, 0.5, (2, 1, 0))[:3] - zero).tolist() == [4, 2, 1]
    assert morton(xyz, 0.5)[4] < zero


def test_morton_codes_are_the_interleaved_bits_and_stay_in_range() -> None:
    xyz = torch.tensor([[-1e9, 1e9, 0.3], [40.1, -33.3, 2.0], [0.0, 7.7, -1.2]])
    cells = (xyz / 0.1).floor().clamp(-(2**15), 2**15 - 1).long() + 2**15
    slow = [
        sum((int(c) >> bit & 1) << 3 * bit + axis for axis, c in enumerate(row) for bit in range(16)) for row in cells
    ]
    assert morton(xyz, 0.1).tolist() == slow and max(slow) < 2**48


@pytest.mark.parametrize(
    ("lengths", "shift", "sizes"),
    [([5, 2], 0, [4, 1, 2]), ([9, 2], 2, [2, 4, 3, 2]), ([0, 4], 0, [4]), ([0, 1], 2, [1]), ([8], 2, [2, 4, 2])],
)
def test_windows_end_where_items_end(lengths: list[int], shift: int, sizes: list[int]) -> None:
    assert cut(lengths, 4, shift) == sizes


def test_windows_hold_neighbours_of_one_item() -> None:
    x, lengths = scan(3000, 5, 200)
    item = torch.repeat_interleave(torch.arange(3), lengths)
    ways = windows(x[:, :3], lengths.tolist(), window=16, cell=0.2, orders=2, shifts=2)
    assert len(ways) == 4
    for way in ways:
        assert torch.equal(way.order[way.place], torch.arange(3205)) and sum(way.lengths) == 3205
        for chosen, centred in zip(way.order.split(way.lengths), way.centred.split(way.lengths), strict=True):
            assert len(item[chosen].unique()) == 1
            torch.testing.assert_close(centred, x[chosen, :3] - x[chosen, :3].mean(0), atol=1e-5, rtol=0)
        assert way.centred.norm(dim=1).mean() < 0.3 * x[:, :3].norm(dim=1).mean()


def test_points_learn_what_they_are_shown() -> None:
    model, (x, lengths) = transformer(width=32), scan(64, 40)
    labels = torch.randint(CLASSES, (104,), generator=torch.Generator().manual_seed(2))
    optimizer, losses = torch.optim.Adam(model.parameters(), 5e-3), []
    for _ in range(100):
        loss = F.cross_entropy(model(x, lengths), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_points_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="9 points, but lengths that sum to 8"):
        transformer()(scan(9)[0], torch.tensor([8]))
    with pytest.raises(UserError, match="not 2 channels"):
        build("point_transformer", 2)


@pytest.mark.parametrize(
    ("params", "message"), [({"width": 10}, "heads"), ({"window": 7}, "even"), ({"cell": 0}, "cell"), ({"w": 1}, "w")]
)
def test_misconfigured_transformer(params: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MODELS["point_transformer"].Config(**params)


@pytest.mark.parametrize("params", [{"width": 0}, {"levels": 0}, {"widht": 3}])
@pytest.mark.parametrize("name", ["range_unet", "image_unet"])
def test_misconfigured(name: str, params: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        MODELS[name].Config(**params)
