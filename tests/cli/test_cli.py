"""The program, called in process: what it teaches, prints and refuses."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from refusals import Capture, fails
from toy import RECIPE

import xmodal_kd
from xmodal_kd import report as reports
from xmodal_kd.cli.main import call
from xmodal_kd.recipe.recipe import load
from xmodal_kd.run.resolved_recipe import resolved
from xmodal_kd.runtime import run_status
from xmodal_kd.runtime.checkpoint import read_json, read_tensors, write_json
from xmodal_kd.runtime.errors import UserError

COMMANDS = (
    "run", "check", "eval", "report", "export", "list", "transcribe", "sample", "compare", "cache",
    "new", "distil", "schema", "diff", "doctor", "watch", "runs", "push",
)  # fmt: skip


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished toy run."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "toy.yaml").write_text(RECIPE)
    out = folder / "run"
    tell = ["cp", "/dev/stdin", str(folder / "told.json")]
    run = ["run", str(folder / "toy.yaml"), "--out", str(out), "--allow-import", "toy", "--quiet", "--json",
           "--set", f"on.done={json.dumps({'command': tell})}", "--allow-hook", shlex.join(tell)]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xmodal_kd.run.runner.LATENCY", 2.0)  # as shipped
        assert call(run) == 0
    return out


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
    assert all(command in text for command in COMMANDS) and "smoke/images" in text
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
    monkeypatch.setattr("xmodal_kd.cli.catalogue.KINDS", {"rooms": lambda: [{"name": "a [bold] one", "needs": "all"}]})
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
        assert isinstance(cost["milliseconds"], dict) and 0 <= cost["waited_for_data"] < 1
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


def test_who_looks_on_is_told_how_it_went(trained: Path) -> None:
    report, told = read_json(trained / "report.json"), read_json(trained.parent / "told.json")
    assert told["event"] == "done" and told["run"] == str(trained) and told["gain"] == report["gain"]
    assert told["values"] == {role: entry["metrics"]["error"] for role, entry in report["roles"].items()}
    for name in ("recipe.yaml", "report.json", "report.md", "student/README.md"):
        path = trained / name
        assert not path.exists() or "told.json" not in path.read_text(), "where a hook leads may be a secret"
    status, progress = run_status.read_status(trained), run_status.read_progress(trained, "student")
    assert status is not None and progress is not None and run_status.condition(trained) == ("finished", "")
    assert [one.role for one in status.plan] == list(report["roles"])
    assert progress.step == progress.steps == report["cost"]["student"]["steps"]
    assert [one.value for one in progress.dev] == [one["error"] for one in report["cost"]["student"]["dev"]]
    assert progress.machine.peak > 1e6 and progress.machine.memory is None


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
        ("method=distill", "unknown method 'distill' (nearest: distil"),
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
    monkeypatch.setattr("xmodal_kd.runtime.registry.allowed_imports", set())
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
