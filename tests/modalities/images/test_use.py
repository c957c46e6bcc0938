"""A student at work: what a run leaves, ONNX, panels, and `classify`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xmodal_kd.adapter import moments, panels
from xmodal_kd.cli.main import call
from xmodal_kd.modalities.images.export.saved_folder import FP32, about, load_card, load_model
from xmodal_kd.modalities.images.show.panels import LEAST, bars, pixels
from xmodal_kd.modalities.images.use.classify import ImageClassifier
from xmodal_kd.models import onnx
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError


def test_a_run_leaves_metrics_panels_and_onnx(trained: Path) -> None:
    report = read_json(trained / "report.json")
    assert list(report["roles"]) == ["teacher", "control", "student"]
    for role in report["roles"].values():
        assert {"accuracy", "accuracy_interval", "nll", "ece"} <= role["metrics"].keys() and role["metrics"][
            "images"
        ] == 60
    session = onnx.session(trained / "student" / FP32, extra="images")
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert onnx.prove(load_model(trained / "student"), partial(onnx.run, session), x) <= 1e-4
    [panel] = panels.read(trained)
    assert panel.kind == "gallery" and panel.content["columns"] == ["image", "teacher", "control", "student"]
    told = about(load_card(trained / "student"))
    assert "grey images of 8x8: one of 10 (0, 1, 2" in told.what and "(batch, 1, 8, 8)" in told.use


def test_what_is_seen_while_it_learns(trained: Path) -> None:
    kept = moments.read(trained, "student")
    assert [one.step for one in kept] == [4]
    [panel] = moments.laid_over({"control": moments.read(trained, "control"), "student": kept})
    [row] = panel.content["rows"]
    assert panel.content["columns"] == ["control", "student"] and row["name"] == "step 4"
    assert all(caption.endswith(" of 6 right") for _, caption in row["cells"].values())


def test_a_folder_is_loaded_by_name(trained: Path, images: Path) -> None:
    said = ImageClassifier.from_pretrained(trained / "student").classify(str(images / "a.png"))
    assert list(said.values()) == sorted(said.values(), reverse=True) and len(said) == 10
    with pytest.raises(UserError, match="not a name that a repository could have"):
        ImageClassifier.from_pretrained("no/such/folder")


def test_pictures_of_pixels_and_probabilities() -> None:
    assert pixels(torch.tensor([[[-1.0, 1.0]]])).shape == (LEAST, 2 * LEAST, 3)
    assert pixels(torch.full((3, 80, 70), 0.0)).shape == (80, 70, 3)
    sheet = bars(np.array([0.25, 0.75]), label=0)
    heights = [int((sheet[:, column] != sheet[0, 0]).any(axis=1).sum()) for column in (3, 9)]
    assert heights == [16, 48] and tuple(sheet[-1, 3]) != tuple(sheet[-1, 9])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name, mode, size in (("a.png", "L", (8, 8)), ("deep/b.png", "RGBA", (30, 20))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new(mode, size, 40 if mode == "L" else (255, 0, 0, 0)).save(tmp_path / name)
    (tmp_path / "c.png").write_bytes(b"no image")
    return tmp_path


def test_classify_names_what_it_can_and_what_is_wrong(
    trained: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = str(trained / "student")
    assert call(["classify", student, str(images), str(images / "gone.png"), "--top", "2"]) == 2
    out, err = capsys.readouterr()
    path, first, p, second, q = out.strip().split("\t")
    assert path == str(images / "a.png") and {first, second} <= set("0123456789") and float(p) >= float(q)
    wrong = err.replace("\n", "")
    assert "b.png: 30x20 pixels" in wrong or "its mode is RGBA" in wrong
    assert "--fit" in wrong and "c.png: not an image that Pillow can read" in wrong and "gone.png" in wrong
    assert call(["classify", student, str(images / "deep"), "--fit", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["class"] == next(iter(said["probabilities"])) and sum(said["probabilities"].values()) == pytest.approx(
        1
    )
    white = images / "white.png"
    Image.new("L", (8, 8), 255).save(white)
    assert call(["classify", student, str(white), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["probability"] == pytest.approx(said["probability"]), "clear is white"


def test_classify_without_images_or_student(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert call(["classify", str(trained / "student"), str(tmp_path / "empty")]) == 2
    assert "has no images below it" in capsys.readouterr().err.replace("\n", " ")
    assert call(["classify", str(tmp_path / "empty"), str(tmp_path)]) == 2
    assert "not a saved classifier: it has no card.json" in capsys.readouterr().err
