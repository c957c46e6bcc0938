"""Superpixels of photographs, the points that they show, and encoders of images whose features teach."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from points_small import IMAGE, VIEWS, adapter, batch_of
from safetensors.torch import load_file, save_file

from xmodal_kd.modalities.points.models.vision_encoder import load_encoder
from xmodal_kd.modalities.points.views.source import PointsSource
from xmodal_kd.modalities.points.views.superpixels import lab, superpixels
from xmodal_kd.modalities.points.views.views import fitted, see
from xmodal_kd.runtime.errors import UserError

SIDES = (48, 96)


def scene() -> tuple[np.ndarray, np.ndarray]:
    """Three colours with some noise, and which is where: edges on no grid."""
    truth = np.zeros(SIDES, int)
    truth[:, 41:], truth[10:27, 62:81] = 1, 2
    colours = np.array([(200, 40, 40), (40, 60, 200), (60, 180, 60)])
    noise = np.random.default_rng(0).normal(0, 5, (*SIDES, 3))
    return np.clip(colours[truth] + noise, 0, 255).astype(np.uint8), truth


def impure(label: np.ndarray, truth: np.ndarray) -> float:
    """Share of the pixels that are not of the commonest colour of their superpixel."""
    counts = [np.bincount(truth[label == k]) for k in np.unique(label)]
    return float(sum(count.sum() - count.max() for count in counts) / truth.size)


def test_superpixels_end_where_colours_do() -> None:
    rgb, truth = scene()
    label = superpixels(rgb, 30)
    i, j = np.indices(SIDES)
    grid = i * 4 // SIDES[0] * 8 + j * 8 // SIDES[1]
    assert impure(grid, truth) > 0.05 > 0.005 > impure(label, truth)
    assert 20 < len(np.unique(label)) <= 40 and label.min() == 0
    assert all(np.ptp(i[label == k]) < 40 and np.ptp(j[label == k]) < 40 for k in np.unique(label)), "they are compact"


def test_they_are_those_of_a_slow_k_means() -> None:
    """The same rounds, a pixel at a time."""
    rgb, _ = scene()
    rgb, count = rgb[:16, :24], 6
    from scipy.ndimage import gaussian_filter

    side, (h, w) = (16 * 24 / count) ** 0.5, (16, 24)
    down, right = round(h / side), round(w / side)
    colour = gaussian_filter(lab(rgb), (3 * h / 900, 3 * h / 900, 0))
    vector = {(i, j): np.array([*colour[i, j], i * 6 / side, j * 6 / side]) for i in range(h) for j in range(w)}
    cell = {(i, j): (i * down // h, j * right // w) for i, j in vector}
    label = {at: a * right + b for at, (a, b) in cell.items()}
    for turn in range(11):
        members: dict[int, list[np.ndarray]] = {}
        for at, k in label.items():
            members.setdefault(k, []).append(vector[at])
        centres = {k: np.mean(some, axis=0) for k, some in members.items()}
        if turn == 10:
            break
        for at, (a, b) in cell.items():
            near = [
                x * right + y for x in (a - 1, a, a + 1) for y in (b - 1, b, b + 1) if 0 <= x < down and 0 <= y < right
            ]
            label[at] = min(near, key=lambda k: ((vector[at] - centres[k]) ** 2).sum())
    found = superpixels(rgb, count)
    assert np.mean([found[at] == k for at, k in label.items()]) > 0.99, "ties aside"


def test_a_row_has_the_superpixel_of_a_point_that_it_shows() -> None:
    made = adapter("image", "sparse", superpixels=12)
    source = made.data("train")
    assert isinstance(source, PointsSource)
    batch = batch_of(source, (0, 1), epoch=1)
    shown, layout = batch["student"]["superpixels"], batch["student"]["valid"]
    assert len(shown) == len(layout) and (shown >= 0).any() and (shown < 0).any() and shown.max() < 20
    sample, moment = source.sample(0, 1), source.moment(0)
    frame = source.frames[0][0]
    label = superpixels(fitted(frame, made.config.image).rgb, 12).reshape(-1)
    pixel = see([frame], made.config.teacher, made.config).element
    held: dict[int, set[int]] = {}
    for at, row in zip(pixel.tolist(), sample.student.element.tolist(), strict=True):
        if at >= 0 and row >= 0:
            held.setdefault(row, set()).add(int(label[at]))
    assert sample.superpixel is not None and moment.patch is not None
    for row, one in enumerate(sample.superpixel.tolist()):
        assert (one in held[row]) if row in held else one == -1
    model = made.build("student", "range_unet", {"width": 4, "levels": 2})
    made.begin("student", range(6))
    assert torch.equal(made.signals("student", model, batch).rows("superpixels"), shown)


def encoder(folder: Path, kind: str = "vit") -> Path:
    transformers = pytest.importorskip(
        "transformers", reason="of use to those who have transformers: encoders of images"
    )
    torch.manual_seed(0)
    small: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    if kind == "vit":
        made = transformers.ViTModel(
            transformers.ViTConfig(**small, image_size=32, patch_size=8), add_pooling_layer=False
        )
    elif kind == "dinov2":
        made = transformers.Dinov2Model(transformers.Dinov2Config(**small, image_size=32, patch_size=8, mlp_ratio=1))
    else:
        config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
        made = transformers.ResNetModel(config)
    made.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("kind", "shape"), [("vit", (3, 8)), ("dinov2", (3, 8)), ("resnet", (3, 8))])
def test_features_lie_where_the_photograph_is(tmp_path: Path, kind: str, shape: tuple[int, int]) -> None:
    """A change in a patch changes the feature there most, or, where patches overlap, beside it."""
    model = load_encoder(encoder(tmp_path, kind), IMAGE)
    x = torch.rand(2, 3, *IMAGE)
    y = x.clone()
    y[:, :, 8:16, 40:48] = 1 - y[:, :, 8:16, 40:48]
    one, two = model(x), model(y)
    assert one.shape == (2, 8, *shape)
    change = (one - two).norm(dim=1)[0]
    i, j = divmod(int(change.argmax()), shape[1])
    assert abs(i - 1) + abs(j - 5) <= (kind == "resnet")


def test_an_encoder_teaches_by_its_features(tmp_path: Path) -> None:
    made = adapter("image", "sparse", superpixels=12)
    model = made.load("teacher", encoder(tmp_path / "vit"))
    made.begin("student", range(6))
    batch = batch_of(made.data("train"))
    said = made.signals("teacher", model, batch, ("features",))
    assert "logits" not in said and said.rows("features").shape[1] == 8
    mask = said.layout("features").mask
    assert torch.equal(mask, batch["student"]["valid"] & batch["match"].reached) and mask.any()
    assert made.evaluate("teacher", model, "dev").metrics == {"miou": None}
    assert made.answer("teacher", model, batch).shape[1] == 8
    with pytest.raises(UserError, match=r"an encoder of images: set data\.teacher\.sees to image"):
        adapter("scan").load("teacher", tmp_path / "vit")
    odd = adapter({**VIEWS["image"]}, "sparse", image=[20, 64])
    with pytest.raises(UserError, match=r"data.image: \[20, 64\] is no whole number of the encoder's patches of 8"):
        odd.load("teacher", tmp_path / "vit")


def test_what_is_no_encoder_is_one_line(tmp_path: Path) -> None:
    folder = encoder(tmp_path)
    weights = load_file(folder / "model.safetensors")
    save_file(dict(list(weights.items())[3:]), folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"its weights lack .* it is no trained network"):
        load_encoder(folder, IMAGE)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "own.Net"}}))
    with pytest.raises(UserError, match="asks for code of its own"):
        load_encoder(folder, IMAGE)


@pytest.mark.full
def test_whole_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe in small, with an encoder of a folder."""
    from points_small import run

    from xmodal_kd.runtime.checkpoint import read_json

    monkeypatch.setattr("xmodal_kd.run.runner.LATENCY", 0.01)
    sets = [
        f"teacher={{path: {encoder(tmp_path / 'vit')}}}", "data.image=[24, 64]", "data.superpixels=12", "labels=4",
        "data.teacher={sees: image, columns: 64}",
    ]  # fmt: skip
    assert run(tmp_path / "run", *sets, recipe="points/slidr") == 0
    report = read_json(tmp_path / "run/report.json")
    assert report["roles"]["teacher"]["metrics"] == {"miou": None} and report["roles"]["student"]["metrics"]["miou"] > 0
