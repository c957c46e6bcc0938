"""Images given back: what is taken from them, read, said as signals, measured, made of tiles, saved and used."""

from __future__ import annotations

import os
import signal
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from once import once
from PIL import Image
from pydantic import ValidationError
from toy import engine

from xmodal_kd.adapter import moments, panels
from xmodal_kd.cli.main import call
from xmodal_kd.modalities.images.adapter import ImagesAdapter
from xmodal_kd.modalities.images.data.restoration.degraded import as_bytes, as_seen, degraded, enlarged
from xmodal_kd.modalities.images.data.restoration.pictures import load_pictures
from xmodal_kd.modalities.images.data.source import ImagesData
from xmodal_kd.modalities.images.evaluate.restored import compared, luma, metrics, psnr, ssim
from xmodal_kd.modalities.images.export.onnx import FP32
from xmodal_kd.modalities.images.export.restoration_folder import about, load_card, load_model
from xmodal_kd.modalities.images.losses.restoration import pixel_l1
from xmodal_kd.modalities.images.models.restoration import EDSR, EDSRConfig, restored
from xmodal_kd.modalities.images.tasks.restoration import RestorationAdapter
from xmodal_kd.modalities.images.use.restore import ImageRestorer, placed
from xmodal_kd.models import onnx
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Optimizer, Term, Train
from xmodal_kd.runtime.checkpoint import digest, read_json
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.interrupt import Interrupted
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.training.engine import Engine

SETS = (
    "teacher.params={width: 4, blocks: 2}", "teacher.train.steps=3", "teacher.train.eval_every=3",
    "student.params={width: 3, blocks: 1}", "train.steps=3", "train.eval_every=3", "data.dev=4", "data.test=5",
    "data.restoration={scale: 3, noise: 5, crop: 24}",
    "objective=[{loss: pixel_l1, on: prediction}, {loss: wavelet_kd, on: prediction, params: {levels: 2}}, "
    "{loss: patch_gan, on: [prediction, enlarged], weight: 0.01, params: {hidden: 4, layers: 2}}, "
    "{loss: logit_mae, on: prediction}, {loss: ickd, on: features}, {loss: at, on: features}]",
)  # fmt: skip


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(out: Path) -> None:
        sets = [word for one in SETS for word in ("--set", one)]
        assert call(["run", "smoke/restoration", "--out", str(out), "--quiet", *sets]) == 0

    return once(tmp_path_factory, "restoration", make)


def section(**changed: Any) -> ImagesData:
    given = {"task": "restoration", "sources": "photos", "dev": 20, "test": 20, **changed}
    return ImagesData.model_validate(given)


def adapter(seed: int = 1, **changed: Any) -> RestorationAdapter:
    found = ImagesAdapter.of(section(**changed))
    assert found is RestorationAdapter
    return found(section(**changed), Streams(seed), 4)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def opened(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


# ---------------------------------------------------------------- what is taken


def test_bicubic_sampling_keeps_means_and_sizes() -> None:
    flat = np.full((3, 12, 18), 77, np.uint8)
    small = degraded(flat, 3, 0.0, torch.Generator())
    assert small.shape == (3, 4, 6) and (small == 77).all() and (enlarged(small, 3) == 77).all()
    assert degraded(flat[:1], 2, 0.0, torch.Generator()).shape == (1, 6, 9)
    assert torch.equal(as_seen(np.array([[[0, 255]]], np.uint8)), torch.tensor([[[-1.0, 1.0]]]))
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    assert (as_bytes(as_seen(every)) == every).all()


def test_noise_has_its_deviation() -> None:
    flat = np.full((1, 200, 200), 128, np.uint8)
    made = degraded(flat, 1, 10.0, torch.Generator().manual_seed(0)).astype(float)
    assert made.std() == pytest.approx(10, rel=0.02) and made.mean() == pytest.approx(128, abs=0.3)


def test_samples_are_functions_of_their_address() -> None:
    train = adapter(restoration={"noise": 10}).data("train")
    same, other = adapter(restoration={"noise": 10}).data("train"), adapter(2, restoration={"noise": 10}).data("train")
    a, b = train.sample(3, 1), same.sample(3, 1)
    assert torch.equal(a.x, b.x) and torch.equal(a.target, b.target)
    assert not torch.equal(a.target, other.sample(3, 1).target) and not torch.equal(a.target, train.sample(3, 2).target)
    assert a.x.shape == (3, 24, 24) and a.target.shape == (3, 48, 48)
    dev = [adapter(seed, restoration={"noise": 10}).data("dev") for seed in (1, 2)]
    assert torch.equal(dev[0].sample(3, 0).x, dev[1].sample(3, 0).x)
    for one, two in zip(dev[0].whole(3), dev[1].whole(3), strict=True):
        assert (one == two).all()


def test_flipped_crops_are_still_of_the_image() -> None:
    train = adapter(flip=True, restoration={"crop": 64}).data("train")
    seen = {
        mirrored
        for epoch in range(8)
        for mirrored in (False, True)
        if (as_bytes(train.sample(0, epoch).target) == train.pictures[0][:, :, :: -1 if mirrored else 1]).all()
    }
    assert seen == {False, True}


@pytest.mark.parametrize("held", [True, False], ids=["in memory", "read when asked for"])
@pytest.mark.parametrize("kind", ["folder", "edm"])
def test_images_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, held: bool) -> None:
    folder = tmp_path / "images"
    sizes = {f"{i:02d}.png": (50 + 7 * i, 90 - 5 * i) for i in range(8)}
    folder.mkdir()
    for i, (name, (height, width)) in enumerate(sizes.items()):
        Image.fromarray(noise(height, width, 3, seed=i)).save(folder / name)
    if kind == "edm":
        with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
            for name in sizes:
                file.write(folder / name, name)
    if not held:
        monkeypatch.setattr("xmodal_kd.modalities.images.data.restoration.pictures.HELD", 1)
    path = folder if kind == "folder" else tmp_path / "images.zip"
    made = adapter(sources=kind, path=path, dev=2, test=2, restoration={"scale": 4, "crop": 32})
    parts = [made.data(split) for split in ("train", "dev", "test")]
    assert [len(part) for part in parts] == [4, 2, 2]
    assert {key for part in parts for key in part.pictures.keys} == set(sizes)
    for part in parts:
        for i, key in enumerate(part.pictures.keys):
            height, width = sizes[key]
            assert part.pictures[i].shape == (3, height, width)
            assert (part.pictures[i].transpose(1, 2, 0) == opened(folder / key)).all()
    small, target = parts[2].whole(0)
    assert target.shape[1] % 4 == 0 and small.shape[1] * 4 == target.shape[1]
    said = parts[0].describe()
    assert said["samples"] == 4 and said["channels"] == 3 and said["smallest"] < said["largest"]
    assert [one.key for one in RestorationAdapter.files(made.config)] == list(sizes)
    for one in RestorationAdapter.files(made.config):
        one.look(one.path)


def test_images_that_do_not_fit_are_named(tmp_path: Path) -> None:
    Image.fromarray(noise(60, 60, 3)).save(tmp_path / "a.png")
    Image.fromarray(noise(20, 60, 3)).save(tmp_path / "b.png")
    Image.fromarray(noise(60, 60)).save(tmp_path / "c.png")
    (tmp_path / "d.png").write_bytes(b"no image")
    given = {"sources": "folder", "path": tmp_path, "dev": 1, "test": 1}
    with pytest.raises(UserError, match=r"b.png: 60x20 pixels are less than a training crop of 48.*2 others: c.png, d"):
        load_pictures(section(**given), "train")
    (tmp_path / "skip").write_text("b.png\nc.png\nd.png\n")
    with pytest.raises(UserError, match="has 1 images, of which dev and test take 2: none are left for training"):
        load_pictures(section(**given, skip=tmp_path / "skip"), "train")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"restoration": {"scale": 1}}, "scale 1 without noise takes nothing away"),
        ({"restoration": {"scale": 3, "crop": 32}}, "crop: 32 is no multiple of restoration.scale, which is 3"),
        ({"restoration": {"crop": 96}}, "crop: 96 is more than the 64 that an image has"),
        ({"sources": "digits", "restoration": {"crop": 16}}, "more than the 8 that an image has"),
        ({"shift": 2}, "training crops of the task restoration lie anywhere"),
        ({"sources": "folder", "path": "x", "size": 64}, "images of the task restoration may have any"),
        ({"mode": "L"}, "the photos are RGB"),
        ({"path": "x"}, "the photos come with scikit-learn"),
        ({"sources": "coco", "path": "x"}, "is of the task keypoints"),
        (
            {"task": "classes", "sources": "digits", "restoration": {"scale": 4}},
            "the task is classes: set task to rest",
        ),
    ],
)
def test_sections_that_cannot_be(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        section(**changed)


# ---------------------------------------------------------------- networks and signals


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_tiles_have_no_seams(scale: int) -> None:
    torch.manual_seed(scale)
    model = EDSR(EDSRConfig(width=4, blocks=2), channels=3, scale=scale).eval()
    x = torch.rand(3, 37, 29) * 2 - 1
    with torch.no_grad():
        fresh = restored(model, x)
        expected = x if scale == 1 else torch.nn.functional.interpolate(x[None], scale_factor=scale, mode="bicubic")[0]
        torch.testing.assert_close(fresh, expected)
        torch.nn.init.normal_(model.up.weight, std=0.2)
        whole = model(x[None])[0]
    torch.testing.assert_close(restored(model, x, tile=8), whole, rtol=0, atol=1e-5)
    assert not torch.allclose(restored(model, x, tile=1000), fresh)


def test_signals_are_pixels_and_maps() -> None:
    made = adapter()
    train = made.data("train")
    batch = train.collate([train.sample(i, 0) for i in range(4)])
    model = made.build("student", "edsr", {"width": 4, "blocks": 2})
    signals = made.signals("student", model, batch, ["blocks.1", "features", "enlarged"])
    assert torch.equal(signals.maps("labels"), batch["target"])
    torch.testing.assert_close(signals.maps("prediction"), model(batch["x"]))
    assert signals.layout("prediction").same_rows(signals.layout("enlarged"))
    assert signals.maps("features").shape == (4, 4, 24, 24) == signals.maps("blocks.1").shape
    assert made.class_names("student") == ("red", "green", "blue") and made.input().shape == (3, 24, 24)
    for on, loss in (("features", "cwd"), ("features", "skd_pair"), ("blocks.1", "sp"), ("prediction", "wavelet_kd")):
        objective = Objective([Term(loss=loss, on=on)]).build(signals, signals.detach(), Streams(1))
        assert objective(signals, signals.detach()).value().isfinite()


def test_pixel_l1_is_a_mean_over_colours() -> None:
    said, right = torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([[0.0, 0.5], [0.5, 1.0]])
    assert pixel_l1(said, right).tolist() == [0.75, 0.25]
    with pytest.raises(ValueError, match="say on: prediction in the term"):
        pixel_l1(said, torch.zeros(2, dtype=torch.long))


def test_models_that_do_not_fit_are_refused(trained: Path) -> None:
    with pytest.raises(UserError, match="student: model 'cnn' restores no images: the task restoration needs edsr"):
        adapter().build("student", "cnn", {})
    with pytest.raises(UserError, match="this teacher enlarges by 3, the data say 2"):
        adapter().load("teacher", trained / "teacher")
    with pytest.raises(UserError, match=r"is of another task: set data\.task to restoration"):
        ImagesAdapter(ImagesData(sources="digits"), Streams(1), 4).build("student", "edsr", {})


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_game_between_generator_and_discriminator_resumes_to_the_bit(tmp_path: Path, accumulate: int) -> None:
    """GAN compression: student, discriminator and projector go on as if nothing had been."""
    train = Train(
        steps=4, batch_size=4, accumulate=accumulate, optimizer=Optimizer(lr=1e-2), eval_every=4, checkpoint_every=2
    )
    terms = [
        Term(loss="pixel_l1", on="prediction", weight=100),
        Term(loss="patch_gan", on=("prediction", "enlarged"), params={"hidden": 4, "layers": 2}),
        Term(loss="hint", on="features"),
    ]

    def made(folder: str) -> Engine:
        held: Any = adapter(restoration={"noise": 5, "crop": 16})
        with held.streams.forked("init"):
            models = {role: held.build(role, "edsr", {"width": w}) for role, w in (("teacher", 6), ("student", 4))}
        return engine(tmp_path / folder, train, toy=held, models=models, terms=terms, metric=("psnr", False))

    def learnt(built: Engine) -> str:
        return digest([*built.roles["student"].state_dict().items(), *built.method.objective.state_dict().items()])

    whole, stopped = made("whole"), made("stopped")
    whole.fit()
    milestones = stopped._milestones

    def interrupt(*args: Any) -> None:
        if stopped.at.total == 2:
            os.kill(os.getpid(), signal.SIGINT)
        milestones(*args)

    stopped._milestones = interrupt  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        stopped.fit()
    again = made("stopped")
    again.fit(resume=True)
    assert learnt(again) == learnt(whole) != learnt(stopped)
    assert any("critic" in name for name in again.method.objective.state_dict())


# ---------------------------------------------------------------- metrics


def test_metrics_are_those_of_torchmetrics() -> None:
    """Whose SSIM is a mean over a padded image; without its border it is Wang's, as Matlab and papers have it."""
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    a = noise(1, 40, 33)
    b = np.clip(a + noise(1, 40, 33, seed=1) / 8 - 16, 0, 255).astype(np.uint8)
    x, y = (torch.from_numpy(one.astype(np.float64))[None] for one in (a, b))
    _, full = structural_similarity_index_measure(x, y, data_range=255.0, return_full_image=True)
    assert ssim(luma(a), luma(b)) == pytest.approx(full[..., 5:-5, 5:-5].mean().item(), rel=1e-9)
    assert psnr(luma(a), luma(b)) == pytest.approx(peak_signal_noise_ratio(x, y, data_range=255.0).item(), rel=1e-6)


def test_the_border_is_not_measured_and_the_luma_is() -> None:
    right = np.full((3, 20, 20), 100, np.uint8)
    made = right.copy()
    made[:, :2] = made[:, :, -2:] = 0
    assert compared(made, right, 2) == (100.0, pytest.approx(1.0))
    assert compared(made, right, 1)[0] < 30
    assert compared(right[:, :8, :8], right[:, :8, :8], 4) == (100.0, None)
    assert luma(np.array([[[255]], [[255]], [[255]]], np.uint8)).item() == pytest.approx(235)
    assert luma(np.zeros((3, 1, 1), np.uint8)).item() == 16


def test_means_have_intervals_over_images() -> None:
    said = metrics([(30.0, 0.8), (40.0, None), (35.0, 0.9)])
    assert said["psnr"] == 35 and said["ssim"] == pytest.approx(0.85) and said["images"] == 3
    low, high = said["psnr_interval"]
    assert 30 <= low < 35 < high <= 40
    assert metrics([(30.0, None)]) == {
        "psnr": 30.0, "psnr_interval": None, "psnr_interval_over": "images",
        "ssim": None, "ssim_interval": None, "ssim_interval_over": "images", "images": 1,
    }  # fmt: skip


# ---------------------------------------------------------------- a run and its student


def test_a_run_leaves_metrics_panels_and_onnx_of_any_size(trained: Path) -> None:
    report = read_json(trained / "report.json")
    for role in ("teacher", "control", "student"):
        said = report["roles"][role]["metrics"]
        assert 10 < said["psnr"] < 60 and 0 < said["ssim"] < 1 and said["images"] == 5
    [bicubic] = report["curve"]
    assert bicubic["role"] == "bicubic" and 10 < bicubic["metrics"]["psnr"] < 60
    session = onnx.session(trained / "student" / FP32, extra="images")
    for size in ((8, 8), (13, 40), (1, 3)):
        x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
        assert onnx.prove(load_model(trained / "student"), partial(onnx.run, session), x) <= 1e-4
    [panel] = panels.read(trained)
    assert panel.content["columns"] == ["input", "bicubic", "teacher", "control", "student", "target"]
    assert len(panel.content["rows"]) == 5
    [now] = moments.read(trained, "student")
    assert now.step == 3
    told = about(load_card(trained / "student"))
    assert "colour images of any size it makes 3 times as many pixels on a side and images without noise" in told.what


def test_restore_writes_what_it_can(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student, images, out = str(trained / "student"), tmp_path / "in", tmp_path / "out"
    (images / "deep").mkdir(parents=True)
    Image.fromarray(noise(30, 21, 3)).save(images / "a.jpg")
    Image.fromarray(noise(9, 5, 3)).save(images / "deep" / "b.png")
    Image.fromarray(noise(9, 9)).save(images / "grey.png")
    (images / "bad.png").write_bytes(b"no image")
    assert call(["restore", student, str(images), str(tmp_path / "gone.png"), "--out", str(out)]) == 2
    said, err = capsys.readouterr()
    assert said.splitlines() == [
        f"{images / 'a.jpg'}\t{out / 'a.png'}",
        f"{images / 'deep/b.png'}\t{out / 'deep/b.png'}",
    ]
    err = err.replace("\n", " ")
    assert "bad.png: not an image" in err and "gone.png is missing" in err and "--fit brings it to that" in err
    assert opened(out / "a.png").shape == (90, 63, 3) and opened(out / "deep" / "b.png").shape == (27, 15, 3)
    assert call(["restore", student, str(images / "grey.png"), "--fit", "--out", str(out)]) == 0
    assert opened(out / "grey.png").shape == (27, 27, 3)
    made = ImageRestorer(student, tile=4).restore(images / "a.jpg")
    assert np.abs(np.asarray(made).astype(int) - opened(out / "a.png")).max() <= 1
    assert call(["restore", str(trained), str(images), "--out", str(out)]) == 2
    assert f"give its student: {trained / 'student'}" in capsys.readouterr().err.replace("\n", "")


def test_places_that_are_taken(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "b.png"):
        Image.fromarray(noise(4, 4, 3)).save(tmp_path / name)
    found = placed([tmp_path], tmp_path / "out")
    assert found[tmp_path / "b.png"] == tmp_path / "out" / "b.png"
    assert "is that of" in str(found[tmp_path / "a.png"])
    assert "would be written over" in str(placed([tmp_path / "b.png"], tmp_path)[tmp_path / "b.png"])
