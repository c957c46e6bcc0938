"""What docs/own_data.md says of folders, manifests and classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xmodal_kd.cli.main import call
from xmodal_kd.modalities.points.data.frame import CLASSES
from xmodal_kd.recipe.recipe import load
from xmodal_kd.run.roles import make_adapter
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "assets/digits/recordings"


def adapter(recipe: str, *sets: str) -> Any:
    loaded = load(recipe, sets)
    return make_adapter(loaded, Streams(loaded.recipe.seed))


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    """Three digits in a split each, by the manifests of the page."""
    (tmp_path / "clips").mkdir()
    for split, voice in (("train", "anna"), ("dev", "brian"), ("test", "carla")):
        lines = []
        for digit, word in enumerate(("zero", "one", "two")):
            name = f"clips/{digit}_{voice}.wav"
            shutil.copy(DIGITS / f"{digit}_{voice}_0.wav", tmp_path / name)
            lines.append({"audio_filepath": name, "text": word, "speaker": voice})
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_recordings(manifests: Path) -> None:
    made = adapter("speech/kathleen", f"data.path={manifests}", "data.license=cc0-1.0")
    assert [len(made.data(split)) for split in ("train", "dev", "test")] == [3, 3, 3]
    made.build("student", "conv", {})
    assert list(made.class_names("student")) == ["<blank>", *sorted(set("zeroonetwo"))]


def test_a_teacher_of_another_vocabulary_is_refused_by_the_class(manifests: Path) -> None:
    made = adapter("speech/kathleen", f"data.path={manifests}", "data.tokens=words", "data.features.sample_rate=8000")
    with pytest.raises(UserError, match=r"another vocabulary than the training texts: class 1 is 'eight' there, 'one'"):
        made.load("teacher", ROOT / "assets/teachers/speech")


def test_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("dog", "cat"):
        (tmp_path / name).mkdir()
        for i in range(20):
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / name / f"{i:03d}.png")
    sets = ("data.sources=folder", f"data.path={tmp_path}", "data.conditional=true", "data.dev=8", "data.test=8",
            "train.batch_size=8")  # fmt: skip
    made = adapter("diffusion/digits", *sets)
    assert made.class_labels == ("cat", "dog") and len(made.data("train")) == 24
    with pytest.raises(UserError, match="its teacher is conditioned on no classes, the data have 2"):
        made.load("teacher", ROOT / "assets/teachers/diffusion")


def test_scans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["simulate", str(tmp_path), "--frames", "6", "--columns", "64"]) == 0
    layout = {"calib.txt", "labels", "poses.txt", "velodyne"}
    assert layout <= {path.name for path in (tmp_path / "sequences/00").iterdir()}
    splits = ("data.train={first: 0, last: 3}", "data.dev={first: 3, last: 4}", "data.test={first: 4}", "labels=2")
    made = adapter("points/scarce", "data.sources=semantickitti", f"data.path={tmp_path}", *splits)
    assert [len(made.data(split)) for split in ("train", "dev", "test")] == [3, 1, 2]
    batch = made.data("train").collate([made.data("train").sample(0, 0)])
    known = set(batch["student"]["labels"].unique().tolist())
    assert known <= set(range(-1, len(CLASSES))) and CLASSES.index("ground") in known
