"""The program, called in process: what it teaches, prints and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
import yaml
from toy import RECIPE

import xmodal_kd
from xmodal_kd import report as reports
from xmodal_kd.checkpoint import read_json, read_tensors, write_json
from xmodal_kd.cli import call
from xmodal_kd.errors import UserError
from xmodal_kd.recipe import load
from xmodal_kd.resolving import resolved

COMMANDS = (
    "run", "check", "eval", "report", "export", "list", "transcribe", "sample", "compare", "cache",
    "new", "schema", "diff", "doctor",
)  # fmt: skip
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished toy run."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "toy.yaml").write_text(RECIPE)
    out = folder / "run"
    assert call(["run", str(folder / "toy.yaml"), "--out", str(out), "--allow-import", "toy", "--quiet", "--json"]) == 0
    return out


def fails(capfd: Capture, status: int, *arguments: str) -> str:
    """The one line on stderr of a call that must end with `status`."""
    capfd.readouterr()
    assert call(list(arguments)) == status
    captured = capfd.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert line.startswith("error: ")
    return line


# ---------------------------------------------------------------- what it teaches


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(command: str, capfd: Capture) -> None:
    assert call([command, "--help"]) == 0
    text = capfd.readouterr().out
    assert f"xmodal-kd {command}" in text or "Usage" in text
    assert len(text.splitlines()) > 8


def test_help_and_version(capfd: Capture) -> None:
    assert call(["--help"]) == 0
    text = capfd.readouterr().out
    assert all(command in text for command in COMMANDS) and "smoke/speech" in text
    assert call(["--version"]) == 0
    assert capfd.readouterr().out.strip() == xmodal_kd.__version__


def test_called_with_nothing_it_shows_its_help(capfd: Capture) -> None:
    assert call([]) in (0, 2)
    captured = capfd.readouterr()
    assert "Usage" in captured.out + captured.err


def test_misspelt_command_and_option(capfd: Capture) -> None:
    assert "No such command 'rnu'" in fails(capfd, 2, "rnu")
    assert "--stesp" in fails(capfd, 2, "run", "smoke/speech", "--stesp", "3")


def test_help_and_tables_keep_square_brackets(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich takes them for its markup: the name of an extra would be lost."""
    assert call(["transcribe", "--help"]) == 0
    text = capfd.readouterr().out
    assert "[decode]" in text and "\\" not in text
    monkeypatch.setattr("xmodal_kd.catalogue.KINDS", {"rooms": lambda: [{"name": "a [bold] one", "needs": "all"}]})
    assert call(["list", "rooms"]) == 0
    assert "a [bold] one" in capfd.readouterr().out


def test_a_table_of_losses_can_be_read(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert call(["list", "losses"]) == 0
    text = capfd.readouterr().out
    assert "logit_mse" in text and "2015" in text and "row_shift_invariant" not in text


@pytest.mark.parametrize("what", ["losses", "methods", "models", "modalities", "datasets", "recipes"])
def test_list(what: str, capfd: Capture) -> None:
    assert call(["list", what, "--json"]) == 0
    rows = [row for row in json.loads(capfd.readouterr().out) if not row["name"].startswith("test_")]
    assert rows and all({"name", "summary"} <= row.keys() and row["summary"] for row in rows)
    assert call(["list", what]) == 0
    assert rows[0]["name"][:4] in capfd.readouterr().out


def test_list_of_what_is_not(capfd: Capture) -> None:
    assert "nearest: losses" in fails(capfd, 2, "list", "loses")


# ---------------------------------------------------------------- a finished run


def test_without_a_teacher_the_student_is_its_own_control(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(RECIPE)
    out = tmp_path / "run"
    sets = ["--set", "teacher=null", "--set", "objective=[{loss: test_ce}]"]
    command = ["run", str(tmp_path / "toy.yaml"), "--out", str(out), "--allow-import", "toy", "--quiet", *sets]
    assert call(command) == 0
    report = read_json(out / "report.json")
    assert list(report["roles"]) == ["student"] and "own control" in report["control"]["reason"]
    assert report["gap_closed"] is None and report["gain"] is None
    assert "There is no control" in (out / "report.md").read_text()


def test_a_run_folder_holds_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load("smoke/speech", ["data.path=voices", "teacher.path=old/teacher"])
    content = resolved(loaded)
    assert content["data"]["path"] == str(tmp_path / "voices")
    assert content["teacher"]["path"] == str(tmp_path / "old/teacher")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    assert resolved(load(str(tmp_path / "recipe.yaml"))) == content, "what is written reads as the same recipe"


def test_report_json_has_what_scripts_rely_on(trained: Path) -> None:
    report = read_json(trained / "report.json")
    assert {
        "schema", "recipe", "overrides", "modality", "method", "seed", "versions", "device", "threads", "roles",
        "gap_closed", "reason", "cost", "artifacts", "data", "metric", "control", "export",
    } <= report.keys()  # fmt: skip
    assert list(report["roles"]) == ["teacher", "control", "student"]
    for role, entry in report["roles"].items():
        assert entry["parameters"] > 0 and entry["flops_per_sample"] > 0
        alone = entry["latency"]
        assert 0 < alone["median_ms"] <= alone["p95_ms"] and alone["runs"] > 1 and alone["threads"] == 1
        assert 0 <= entry["metrics"]["error"] <= 1
        cost = report["cost"][role]
        assert cost["samples"] == 48 and cost["seconds"] > 0 and cost["flops_per_step"] > 0
        assert isinstance(cost["milliseconds"], dict)
        assert Path(report["artifacts"][role]).is_dir()
    assert report["cost"]["peak_memory_bytes"] > 1e6
    assert (report["gap_closed"] is None) == bool(report["reason"])
    low, high = report["gain"]["interval"]
    assert low <= report["gain"]["difference"] <= high
    assert report["control"] == {"terms": ["test_ce"]}
    assert (report["seed"], report["threads"], report["device"]) == (3, 1, "cpu")
    assert report["versions"].keys() >= {"python", "torch", "xmodal-kd", "diffusers"}


def test_control_and_student_start_alike_and_see_the_same(trained: Path) -> None:
    cost = read_json(trained / "report.json")["cost"]
    assert cost["control"]["samples"] == cost["student"]["samples"]
    assert cost["control"]["steps"] == cost["student"]["steps"]


def test_run_folder(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert {
        "recipe.yaml",
        "report.json",
        "report.md",
        "report.html",
        "panels.json",
        "teacher",
        "control",
        "student",
        "checkpoints",
        "logs",
    } <= names
    assert "on: body" in (trained / "recipe.yaml").read_text().replace("'on'", "on")


def test_eval_again(trained: Path, capfd: Capture) -> None:
    assert call(["eval", str(trained), "--allow-import", "toy", "--json"]) == 0
    report = read_json(trained / "report.json")
    assert json.loads(capfd.readouterr().out) == {k: v["metrics"] for k, v in report["roles"].items()}
    assert call(["eval", str(trained), "--split", "dev", "--allow-import", "toy"]) == 0
    assert [line.split("\t")[0] for line in capfd.readouterr().out.splitlines()] == ["teacher", "control", "student"]
    assert "no split 'tset'" in fails(capfd, 2, "eval", str(trained), "--split", "tset", "--allow-import", "toy")


def test_report_again(trained: Path, capfd: Capture) -> None:
    (trained / "report.md").unlink()
    (trained / "report.html").unlink()
    assert call(["report", str(trained), "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == read_json(trained / "report.json")
    assert call(["report", str(trained)]) == 0
    assert capfd.readouterr().out.strip() == (trained / "report.md").read_text().strip()
    page = (trained / "report.html").read_text()
    assert call(["report", str(trained), "--show", "--allow-import", "toy"]) == 0
    assert (trained / "report.html").read_text() == page  # the toy has nothing to show
    assert call(["report", "--index", str(trained.parent)]) == 0
    assert 'href="run/report.html"' in (trained.parent / "index.html").read_text()


def test_a_bar_in_a_text_leaves_the_reports_table_whole(trained: Path) -> None:
    report = read_json(trained / "report.json")
    report["roles"]["student"]["examples"] = [{"key": "a", "reference": "x | y", "hypothesis": ""}]
    assert "| a | x \\| y | (nothing) |" in reports.markdown(report)


def test_export_again(trained: Path, capfd: Capture) -> None:
    (trained / "student" / "exported.safetensors").unlink()
    assert call(["export", str(trained), "--allow-import", "toy", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)["exported.safetensors"]
    assert (trained / "student" / "exported.safetensors").stat().st_size == found["bytes"]
    assert call(["export", str(trained), "--allow-import", "toy"]) == 0
    [line] = capfd.readouterr().out.splitlines()
    assert line.startswith(f"exported.safetensors\tbytes {found['bytes']}  error {found['metrics']['error']:.4f}")


def test_a_folder_that_is_no_run(tmp_path: Path, capfd: Capture) -> None:
    for command in ("eval", "report", "export"):
        assert str(tmp_path) in fails(capfd, 2, command, str(tmp_path))


# ---------------------------------------------------------------- bad recipes


@pytest.fixture
def refused(tmp_path: Path, capfd: Capture) -> Callable[..., str]:
    """The line with which a run of the toy recipe is refused; it must leave no folder behind."""
    (tmp_path / "toy.yaml").write_text(RECIPE)
    out = tmp_path / "run"

    def refuse(*more: str, allow: bool = True, recipe: str = "toy.yaml") -> str:
        allowed = ["--allow-import", "toy"] if allow else []
        line = fails(capfd, 2, "run", str(tmp_path / recipe), "--out", str(out), "--quiet", *allowed, *more)
        assert not out.exists()
        return line

    return refuse


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trian.steps=3", "unknown key 'trian' (nearest: train"),
        ("train.step=3", "unknown key 'train.step' (nearest: steps"),
        ("train.steps=many", "train.steps: Input should be a valid integer"),
        ("train.steps=0", "train.steps: Input should be greater than 0"),
        ("data.tests=3", "unknown key 'data.tests' (nearest: test"),
        ("student.params.widht=3", "unknown key 'student.params.widht' (nearest: width)"),
        ("student.model=mpl", "unknown model 'mpl' (nearest: mlp)"),
        ("objective.1.loss=kdd", "unknown loss 'kdd' (nearest: kd"),
        ("objective.1.params.temprature=3", "unknown key 'objective.1.params.temprature' (nearest: temperature)"),
        ("objective.2.on=body.9", "no module 'body.9' in Net (nearest: body.3, body.2, body.1)"),
        ("objective.2.on={student: body, teacher: bodies}", "no module 'bodies' in Net (nearest: body"),
        ("objective.2.on=body.*", "objective, teacher: 'body.*' names 4 modules (body.0, body.1, body.2, body.3)"),
        ("objective.2.on={student: bodies, teacher: body}", "objective, student: no module 'bodies'"),
        ("train.optimizer.lr_scale={student.haed.*: 0.1}", "lr_scale: 'student.haed.*' matches no parameter"),
        ("trackers=[tensorbord]", "trackers: unknown tracker 'tensorbord' (nearest: tensorboard"),
        ("trackers=[aim]", "trackers: the package of 'aim' is not installed"),
        ("trackers=tensorboard", "trackers: a list is expected, as in [a, b], got 'tensorboard'"),
        ("train=3", "train: a section with keys of its own is expected, got 3"),
        ("objective.7.loss=kd", "there is no 7 to go into"),
        ("objective.0={loss: kd}", "two terms are called kd"),
        ("method=distill", "unknown method 'distill' (nearest: distil)"),
        ("teacher={path: nowhere}", "nowhere/card.json is missing"),
        ("teacher={model: mlp}", "teacher: a teacher that is not loaded from a path needs train"),
        ("train.precision=fp16", "fp16 needs a GPU"),
        ("nonsense", "write key=value"),
        ("train.steps=[", "is not a YAML value"),
        ("modality=speach", "unknown modality 'speach' (nearest: speech)"),
        ("modality=toy:Nothing", "'toy:Nothing' cannot be imported"),
    ],
)
def test_bad_keys(override: str, expected: str, refused: Callable[..., str]) -> None:
    assert expected in refused("--set", override)


def test_bad_key_is_named_with_its_line(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(RECIPE.replace("  - {loss: hint, on: body}", "  - {loss: hint, onto: body}"))
    assert "bad.yaml:15: unknown key 'objective.2.onto' (nearest: on" in refused(recipe="bad.yaml")


def test_recipe_that_is_not_there(refused: Callable[..., str], capfd: Capture) -> None:
    assert "no recipe" in refused(recipe="other.yaml")
    assert "nearest: smoke/speech" in fails(capfd, 2, "run", "smoke/speach")


def test_not_yaml(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("modality: [speech\nseed: 1")
    assert "bad.yaml:2: not YAML" in refused(recipe="bad.yaml")


def test_import_needs_permission(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xmodal_kd.registry.allowed_imports", set())
    assert "allow it with --allow-import toy" in refused(allow=False)


def test_bad_device(refused: Callable[..., str]) -> None:
    assert "--device 'gpu': choose one of auto, cpu, cuda, mps" in refused("--device", "gpu")


def test_only_what_can_run_alone(refused: Callable[..., str]) -> None:
    assert "--only 'student'" in refused("--only", "student")


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no recipe"):
        call(["run", str(tmp_path / "none.yaml"), "--debug"])


def test_learning_rates_of_the_students_parts_hold_for_its_control(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(RECIPE)
    run = ["run", str(tmp_path / "toy.yaml"), "--out", str(tmp_path / "run"), "--allow-import", "toy", "--quiet"]
    scales = "train.optimizer.lr_scale={student.head.*: 0.0, objective.*: 2.0}"
    assert call([*run, "--set", scales, "--set", "objective.2.projector=linear"]) == 0
    roles = {role: read_tensors(tmp_path / "run" / role / "model.safetensors") for role in ("control", "student")}
    assert torch.equal(roles["control"]["head.weight"], roles["student"]["head.weight"])
    assert not torch.equal(roles["control"]["body.0.weight"], roles["student"]["body.0.weight"])


def test_time_may_not_be_negative(capfd: Capture) -> None:
    assert "--max-minutes" in fails(capfd, 2, "run", "smoke/speech", "--max-minutes", "-1")


def test_a_saved_teacher(trained: Path, tmp_path: Path, capfd: Capture) -> None:
    """Loaded, scored, and refused when it knows other classes."""
    (tmp_path / "toy.yaml").write_text(RECIPE)
    command = ["run", str(tmp_path / "toy.yaml"), "--allow-import", "toy", "--quiet"]
    teacher = ["--set", f"teacher={{path: {trained / 'teacher'}}}", "--set", "train.steps=2"]
    assert call([*command, "--out", str(tmp_path / "run"), *teacher]) == 0
    mine, theirs = (read_json(folder / "report.json")["roles"]["teacher"] for folder in (tmp_path / "run", trained))
    for entry in (mine, theirs):
        entry.pop("latency")
    assert mine == theirs
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes((trained / "teacher" / "model.safetensors").read_bytes())
    write_json(other / "card.json", read_json(trained / "teacher" / "card.json") | {"classes": ["one", "two"]})
    line = fails(capfd, 2, *command, "--out", str(tmp_path / "run2"), "--set", f"teacher={{path: {other}}}")
    assert "its teacher knows the classes ['one', 'two']" in line


# ---------------------------------------------------------------- bad recordings


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """A manifest folder of a few noises that are called words."""
    folder, draw = tmp_path / "data", np.random.default_rng(0)
    folder.mkdir()
    for split, count in (("train", 6), ("dev", 2), ("test", 2)):
        lines = []
        for i in range(count):
            name = f"{split}{i}.wav"
            sf.write(folder / name, 0.1 * draw.standard_normal(4000), 8000, subtype="FLOAT")
            lines.append({"audio_filepath": name, "text": ("yes", "no")[i % 2], "speaker": split, "duration": 0.5})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "speech.yaml").write_text(SPEECH.format(folder=folder))
    return folder


SPEECH = """\
modality: speech
data: {{sources: manifest, path: {folder}, features: {{sample_rate: 8000, mels: 8}}}}
student: {{model: conv, params: {{width: 8, dilations: [1]}}}}
objective: [{{loss: ctc}}]
control: false
trackers: []
train: {{steps: 2, batch_size: 3, eval_every: 2}}
"""


def speak(recordings: Path, *more: str) -> list[str]:
    folder = recordings.parent
    return ["run", str(folder / "speech.yaml"), "--out", str(folder / "run"), "--quiet", *more]


def edit(recordings: Path, index: int, **change: Any) -> None:
    path = recordings / "train.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[index] = {k: v for k, v in (lines[index] | change).items() if v is not None}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_missing_audio(recordings: Path, capfd: Capture) -> None:
    (recordings / "train1.wav").unlink()
    assert "train1.wav" in fails(capfd, 2, *speak(recordings))


def test_truncated_audio(recordings: Path, capfd: Capture) -> None:
    whole = (recordings / "train1.wav").read_bytes()
    (recordings / "train1.wav").write_bytes(whole[: len(whole) // 3])
    assert "train1.wav" in fails(capfd, 2, *speak(recordings))


def test_empty_audio(recordings: Path, capfd: Capture) -> None:
    (recordings / "train1.wav").write_bytes(b"")
    assert "train1.wav" in fails(capfd, 2, *speak(recordings))


def test_nan_in_audio(recordings: Path, capfd: Capture) -> None:
    wave = np.zeros(4000)
    wave[100] = np.nan
    sf.write(recordings / "train1.wav", wave, 8000, subtype="FLOAT")
    assert "train1.wav" in fails(capfd, 2, *speak(recordings))


def test_manifest_line_that_is_not_json(recordings: Path, capfd: Capture) -> None:
    with (recordings / "train.jsonl").open("a") as file:
        file.write("{audio: \n")
    assert "train.jsonl line 7: not JSON" in fails(capfd, 2, *speak(recordings))
    assert not (recordings.parent / "run").exists()


def test_manifest_line_that_lacks_a_key(recordings: Path, capfd: Capture) -> None:
    edit(recordings, 2, text=None)
    assert "train.jsonl line 3: lacks 'text'" in fails(capfd, 2, *speak(recordings))


def test_transcript_that_cannot_be_aligned_is_counted_and_listed(recordings: Path, capfd: Capture) -> None:
    edit(recordings, 2, text="yes no " * 20)
    assert call(speak(recordings)) == 0
    report = read_json(recordings.parent / "run" / "report.json")
    assert report["data"]["train"]["left_out"] == 1
    [entry] = report["data"]["train"]["left_out_examples"]
    assert entry["key"] == "train2.wav" and "needs 40 output frames" in entry["reason"]
    text = (recordings.parent / "run" / "report.md").read_text()
    assert "train: 1 left out, for example train2.wav (its text needs 40 output frames" in text


def test_teacher_of_another_vocabulary_or_features(recordings: Path, capfd: Capture) -> None:
    assert call(speak(recordings)) == 0
    saved = f"teacher={{path: {recordings.parent / 'run' / 'student'}}}"
    other = [*speak(recordings, "--set", saved), "--out", str(recordings.parent / "other")]
    line = fails(capfd, 2, *other, "--set", "data.features.mels=10")
    assert "its teacher hears features.mels = 8, the recipe says 10" in line
    edit(recordings, 0, text="maybe")
    assert "its teacher writes another vocabulary" in fails(capfd, 2, *other)
    assert not (recordings.parent / "other").exists()


def test_a_broken_sample_keeps_what_was_done(recordings: Path, capfd: Capture) -> None:
    """The line names it, and once it is mended the run goes on."""
    good = (recordings / "train1.wav").read_bytes()
    (recordings / "train1.wav").write_bytes(b"")
    assert "train1.wav" in fails(capfd, 2, *speak(recordings))
    (recordings / "train1.wav").write_bytes(good)
    assert call(speak(recordings, "--resume")) == 0
