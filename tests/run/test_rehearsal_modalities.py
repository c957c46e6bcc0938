"""The same of real recordings, clouds and images: files, labels, symbols, samplers that cannot be written."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import points_small
import pytest
import soundfile as sf
import yaml
from PIL import Image

from xmodal_kd.cli.main import call
from xmodal_kd.modalities.diffusion.adapter import DiffusionAdapter
from xmodal_kd.modalities.diffusion.data.config import DiffusionData
from xmodal_kd.modalities.diffusion.data.source import DiffusionSource, load_split
from xmodal_kd.modalities.points.data.config import PointsData
from xmodal_kd.modalities.points.data.frames import frames_of
from xmodal_kd.modalities.speech.data.source import Sample, SpeechSource
from xmodal_kd.recipe.recipe import load
from xmodal_kd.report.markdown import left_out
from xmodal_kd.run.listed_files import THREADS, look
from xmodal_kd.run.rehearsal import ITEMS
from xmodal_kd.run.runner import Options, Run
from xmodal_kd.runtime.random_streams import Streams

WORDS = ("one", "two")
Refused = Callable[..., str]


@pytest.fixture(autouse=True)
def around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    yield


@pytest.fixture
def refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Refused:
    """``refused(recipe, *sets, words=...)``: status 2, one line with all words, and nothing is left behind."""

    def ask(recipe: Path | str, *sets: str, words: tuple[str, ...]) -> str:
        out = tmp_path / "run"
        listed = [word for one in sets for word in ("--set", one)]
        capfd.readouterr()
        assert call(["run", str(recipe), "--out", str(out), "--device", "cpu", "--quiet", *listed]) == 2
        [line] = capfd.readouterr().err.splitlines()
        assert all(word in line for word in words), line
        assert not out.exists(), "a run that was refused leaves nothing behind"
        return line

    return ask


# ---------------------------------------------------------------- speech


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """A recipe of recordings of a third of a second, listed with their durations."""
    folder = tmp_path / "speech"
    for split, count in (("train", 8), ("dev", 3), ("test", 3)):
        entries = []
        for i in range(count):
            wave = 0.1 * np.random.default_rng(i).standard_normal(2800)
            (folder / split).mkdir(parents=True, exist_ok=True)
            sf.write(folder / split / f"{i}.wav", wave, 8000)
            name = f"{split}/{i}.wav"
            entries.append({"audio_filepath": name, "text": WORDS[i % 2], "duration": 0.35, "speaker": f"s{i % 2}"})
        write(folder / f"{split}.jsonl", entries)
    train = {"steps": 2, "batch_size": 4}
    recipe = {
        "modality": "speech",
        "data": {"sources": "manifest", "path": str(folder), "features": {"sample_rate": 8000, "mels": 20}},
        "teacher": {"model": "conv", "params": {"width": 8, "dilations": [1]}, "train": train},
        "student": {"model": "conv", "params": {"width": 8, "dilations": [1]}},
        "objective": [{"loss": "ctc"}, {"loss": "kd"}],
        "train": train,
    }
    path = tmp_path / "speech.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def write(file: Path, entries: list[dict[str, object]]) -> None:
    file.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))


def changed(recipe: Path, split: str, **change: object) -> None:
    """The last entry of a list, or with ``every`` all of them, says something else."""
    file = recipe.parent / "speech" / f"{split}.jsonl"
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    for entry in entries if change.pop("every", False) else entries[-1:]:
        entry.update(change)
    write(file, entries)


def test_few_utterances_are_measured(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long dev and test are, with each role."""
    for split in ("dev", "test"):
        folder, listed = speech.parent / "speech" / split, speech.parent / "speech" / f"{split}.jsonl"
        lines = listed.read_text()
        for i in range(20):
            shutil.copy(folder / "0.wav", folder / f"more-{i}.wav")
            lines += lines.splitlines()[0].replace("0.wav", f"more-{i}.wav") + "\n"
        listed.write_text(lines)
    seen, sample = list[str](), SpeechSource.sample

    def counted(self: SpeechSource, index: int, epoch: int) -> Sample:
        seen.append(self.split)
        return sample(self, index, epoch)

    monkeypatch.setattr(SpeechSource, "sample", counted)
    run = Run(load(speech), Options(tmp_path / "run", "cpu", quiet=True))
    for split, more in (("dev", 0), ("test", 1)):  # and one that the role is asked about
        assert 0 < seen.count(split) <= len(run.role_plans) * (ITEMS + more)


@pytest.mark.parametrize("split", ["dev", "test"])
def test_a_symbol_that_training_never_saw(speech: Path, refused: Refused, split: str) -> None:
    changed(speech, split, text="three")
    refused(speech, words=(f"{split} utterance {split}/2.wav", "three"))


@pytest.mark.parametrize("split", ["dev", "test"])
def test_a_split_without_texts(speech: Path, refused: Refused, split: str) -> None:
    changed(speech, split, text=" ", every=True)
    refused(speech, words=(f"no utterance of the {split} split has a text", "transcripts"))


@pytest.mark.parametrize("split", ["dev", "test"])
def test_a_split_that_is_not_there_or_empty(speech: Path, refused: Refused, split: str) -> None:
    (speech.parent / "speech" / f"{split}.jsonl").write_text("")
    refused(speech, words=("data.path", split))
    (speech.parent / "speech" / f"{split}.jsonl").unlink()
    refused(speech, words=("data.path", f"{split}.jsonl is missing"))


def test_no_speakers_for_a_split(speech: Path, refused: Refused) -> None:
    lists = ("data.train_speakers=[s0]", "data.dev_speakers=[s1]", "data.test_speakers=[]")
    refused(speech, *lists, words=("data.test_speakers", "list at least one speaker"))


@pytest.mark.parametrize("split", ["train", "dev", "test"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "no audio"])
def test_a_recording_that_cannot_be_read(speech: Path, refused: Refused, split: str, damage: str) -> None:
    file = speech.parent / "speech" / split / "2.wav"
    content = file.read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes({"empty": b"", "cut": content[:2000], "no audio": b"hello" * 100}[damage])
    line = refused(speech, words=(f"sample {split}/2.wav", str(file), "data.skip"))
    why = {"missing": "no such file", "empty": "no bytes", "cut": "truncated", "no audio": "not an audio"}
    assert why[damage] in line


def test_several_recordings_are_counted_and_named(speech: Path, refused: Refused) -> None:
    for i in range(3):
        (speech.parent / "speech" / "test" / f"{i}.wav").unlink()
    refused(speech, words=("3 samples cannot be read: test/0.wav, test/1.wav, test/2.wav",))


def test_what_is_skipped_is_not_looked_at_and_counted(speech: Path, tmp_path: Path) -> None:
    (speech.parent / "speech" / "test" / "2.wav").unlink()
    (speech.parent / "speech" / "train" / "5.wav").write_bytes(b"")
    (tmp_path / "bad.txt").write_text("test/2.wav\ntrain/5.wav\n")
    loaded = load(str(speech), [f"data.skip={tmp_path / 'bad.txt'}"])
    data = Run(loaded, Options(tmp_path / "run", "cpu", quiet=True)).adapter.describe()  # it has been rehearsed
    assert [data[split]["skipped"] for split in ("train", "dev", "test")] == [1, 0, 1]
    assert [data[split]["utterances"] for split in ("train", "dev", "test")] == [7, 3, 2]
    assert left_out(data) == ("## Left out\n\n- train: 1 left out by data.skip\n- test: 1 left out by data.skip")


def test_a_list_to_skip_that_is_not_there(speech: Path, refused: Refused, tmp_path: Path) -> None:
    refused(speech, f"data.skip={tmp_path / 'none.txt'}", words=("data.skip", "none.txt", "No such file"))


# ---------------------------------------------------------------- points


@pytest.fixture
def points(tmp_path: Path) -> tuple[str, ...]:
    """Settings of the smoke recipe for a short drive with photographs, and one without labels."""
    points_small.drive(tmp_path / "drive", 6, camera=True)
    ranges = {"train": {"first": 0, "last": 4}, "dev": {"first": 4, "last": 5}, "test": {"first": 5, "last": 6}}
    student = {"sees": "image", "columns": points_small.COLUMNS}
    data = {
        "sources": "semantickitti", "path": str(tmp_path / "drive"), **ranges, "student": student,
        "teacher": {"sees": "range", "columns": points_small.COLUMNS}, "image": list(points_small.IMAGE),
    }  # fmt: skip
    sizes = ("teacher.params={width: 4, levels: 2}", "student={model: image_unet, params: {width: 4, levels: 2}}")
    return f"data={json.dumps(data)}", *sizes, "train.batch_size=2", "teacher.train.batch_size=2", "labels=null"


@pytest.mark.parametrize(("where", "kind"), [
    ("image_2/000005.png", "photograph"), ("labels/000004.label", "labels"), ("velodyne/000005.bin", "scan"),
])  # fmt: skip
@pytest.mark.parametrize("damage", ["missing", "empty", "cut"])
def test_a_file_of_a_frame_that_cannot_be_read(
    points: tuple[str, ...], refused: Refused, tmp_path: Path, where: str, kind: str, damage: str
) -> None:
    [file] = tmp_path.glob(f"drive/**/{where}")
    if kind == "scan" and damage == "missing":
        pytest.skip("frames are listed by their scans: one that is not there is no frame")
    content = file.read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes(b"" if damage == "empty" else content[: len(content) // 2 // 16 * 16 + 2])
    refused("smoke/points", *points, words=("sample 00/", str(file), "data.skip"))


def test_frames_without_labels(points: tuple[str, ...], refused: Refused, tmp_path: Path) -> None:
    """All points of the test frame are of no class."""
    [file] = tmp_path.glob("drive/**/labels/000005.label")
    file.write_bytes(bytes(file.stat().st_size))
    refused("smoke/points", *points, words=("test", "labels"))


# ---------------------------------------------------------------- diffusion

SMALL = (
    "teacher.params={channels: [8]}", "train.batch_size=8", "teacher.train.batch_size=8", "data.dev=40",
    "data.test=40", "data.samples=20",
)  # fmt: skip


@pytest.mark.parametrize(("sets", "words"), [
    (
        ("data.process.steps=100", "data.sampling.steps=48", "method={name: progressive, params: {end: 24}}"),
        ("24 steps of 100 timesteps", "power of 2"),
    ),
    (("data.sampling.steps=6",), ("method.params.end", "6 steps")),
    (("data.process.steps=1000", "method={name: consistency, params: {grid: 64}}"), ("method.params.grid", "1000")),
    (("data.process.steps=1000", "data.sampling.steps=61", "method=distil"), ("61 steps of 1000", "another number")),
])  # fmt: skip
def test_samplers_that_cannot_be_trained_or_saved(
    refused: Refused, sets: tuple[str, ...], words: tuple[str, ...]
) -> None:
    refused("smoke/diffusion", *SMALL, *sets, words=words)


def test_an_image_that_is_cut(refused: Refused, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(30):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (8, 8), np.uint8)).save(folder / f"{i}.png")
    content = (folder / "7.png").read_bytes()
    (folder / "7.png").write_bytes(content[: len(content) // 2])
    refused("smoke/diffusion", *SMALL, f"data.path={folder}", "data.sources=folder", words=(str(folder / "7.png"),))


@pytest.mark.parametrize("kind", ["folder", "edm"])
def test_images_that_are_skipped(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "images"
    for i in range(30):
        (folder / str(i % 2)).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(np.random.default_rng(i).integers(0, 255, (8, 8), np.uint8))
        image.save(folder / str(i % 2) / f"{i}.png")
    (folder / "1" / "7.png").write_bytes(b"broken")
    path = folder
    if kind == "edm":
        path = tmp_path / "images.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(folder.glob("*/*.png")):
                archive.write(file, file.relative_to(folder))
    data = DiffusionData(sources=kind, path=path, dev=6, test=6)  # type: ignore[arg-type]
    tables: list[object] = []
    real = zipfile.ZipFile._RealGetContents  # type: ignore[attr-defined]
    monkeypatch.setattr(zipfile.ZipFile, "_RealGetContents", lambda zip_: (tables.append(zip_), real(zip_))[1])
    looked = look(DiffusionAdapter.files(data))
    assert [bad.key for bad in looked.bad] == ["1/7.png"] and looked.files == 30
    assert len(tables) <= 2 + THREADS, "a zip's table is read for its listing, and not again for each of its members"
    (tmp_path / "bad.txt").write_text("1/7.png\n")
    skipping = data.model_copy(update={"skip": tmp_path / "bad.txt"})
    train = DiffusionSource(skipping, "train", load_split(skipping, "train"), Streams(1), 4)
    assert train.describe()["skipped"] == 1 and len(train) == 30 - 1 - 12


def test_frames_that_are_skipped(tmp_path: Path) -> None:
    points_small.drive(tmp_path / "drive", 6)
    ranges = {"train": {"first": 0, "last": 4}, "dev": {"first": 4, "last": 5}, "test": {"first": 5}}
    (tmp_path / "bad.txt").write_text("00/000002\n")
    content = {"sources": "semantickitti", "path": tmp_path / "drive", "skip": tmp_path / "bad.txt", **ranges}
    data = PointsData.model_validate(content | {"teacher": {"sweeps": 3}})
    frames = frames_of(data, "train")
    assert len(frames) == 3 and frames.describe()["skipped"] == 1
    assert [frame.key for frame in frames[2]] == ["00/000003", "00/000001"], "nor is it a sweep of another"
    assert len(frames_of(data, "dev")) == 1
