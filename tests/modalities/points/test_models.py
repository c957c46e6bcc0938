"""Segmentation models: shapes, what they are indifferent to, what they refuse, that they learn."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kd import flops
from xmodal_kd.capture import capture, only_call
from xmodal_kd.errors import UserError
from xmodal_kd.modalities.points.models import MODELS, SceneModel

CLASSES = 8


def build(name: str, channels: int, **params: object) -> SceneModel:
    torch.manual_seed(0)
    model = MODELS[name]
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
    model = build(name, 5)
    assert not [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert model.classes == CLASSES and model.view in ("range", "image", "points")


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


@pytest.mark.parametrize("params", [{"width": 0}, {"levels": 0}, {"widht": 3}])
@pytest.mark.parametrize("name", ["range_unet", "image_unet"])
def test_misconfigured(name: str, params: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        MODELS[name].Config(**params)
