"""A run from recipe to report: roles, resume, two processes, recorded frames, and bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from launch import ranks, told
from points_small import SETS, run

import xmodal_kd
from xmodal_kd.cli.main import call
from xmodal_kd.modalities.points.export.saved_folder import load_card
from xmodal_kd.run.run_folder import read_state, write_state
from xmodal_kd.runtime.checkpoint import digest, read_json, read_tensors, write_json

ROOT = Path(xmodal_kd.__file__).parents[1]
ALONE = ("control=false", "self_training=false")
Capture = pytest.CaptureFixture[str]


def weights(folder: Path) -> str:
    return digest(read_tensors(folder / "model.safetensors").items())


def test_the_report_has_all_roles_on_the_same_rows(trained: Path) -> None:
    report = read_json(trained / "report.json")
    assert set(report["roles"]) == {"teacher", "control", "student", "self_training"}
    metrics = {role: entry["metrics"] for role, entry in report["roles"].items()}
    assert len({m["rows"] for m in metrics.values()}) == 1
    assert {"miou", "accuracy", "ece", "iou", "miou_by_range"} <= metrics["student"].keys()
    assert 0 <= metrics["student"]["miou"] <= 1
    assert all(entry["flops_per_sample"] > 0 and entry["parameters"] > 0 for entry in report["roles"].values())
    assert report["roles"]["teacher"]["flops_per_sample"] > 3 * report["roles"]["student"]["flops_per_sample"]
    assert all((trained / path).stat().st_size > 1000 for path in report["pictures"].values())
    assert report["export"]["model.onnx"]["max_error"] < 1e-3 and (trained / "report.md").read_text().count("miou") > 2


def test_the_saved_roles_say_what_they_see(trained: Path) -> None:
    teacher, student = (load_card(trained / role) for role in ("teacher", "student"))
    assert (teacher.view.beams, student.view.beams, student.sensor, student.channels) == (None, 16, "hdl64e", 5)
    assert student.params["width"] == 4 and len(student.classes) == 8


def test_a_finished_run_is_measured_again_alike(trained: Path, capsys: Capture) -> None:
    assert call(["eval", str(trained), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    report = read_json(trained / "report.json")
    for role, metrics in again.items():
        assert metrics["miou"] == pytest.approx(report["roles"][role]["metrics"]["miou"], rel=1e-6)


def test_a_stopped_run_ends_with_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    """In the middle of the student's training, whose teacher's rows are then to be made anew."""
    out = tmp_path / "run"
    for part in ("teacher", "control", "checkpoints/teacher", "checkpoints/control"):
        shutil.copytree(trained / part, out / part)
    first = trained / "checkpoints/student/step-00000002"
    shutil.copytree(first, out / "checkpoints/student" / first.name)
    state = read_state(trained)
    state["roles"] = {role: state["roles"][role] for role in ("teacher", "control")}
    state.pop("overview")
    write_state(out, state)
    shutil.copy(trained / "recipe.yaml", out)
    assert run(out, more=["--resume"]) == 0
    assert weights(out / "student") == weights(trained / "student")


@pytest.mark.full
def test_a_saved_teacher_and_two_processes_make_the_same_student(trained: Path, tmp_path: Path) -> None:
    before = weights(trained / "teacher")
    kept = [item for item in (*SETS, *ALONE) if not item.startswith("teacher")]
    sets = [word for item in [*kept, f"teacher={{path: {trained / 'teacher'}}}"] for word in ("--set", item)]
    out = tmp_path / "run"
    with ranks(told, ["run", "smoke/points", "--out", str(out), "--quiet", *sets]):
        pass
    report = read_json(out / "report.json")
    assert report["processes"] == 2 and report["roles"]["teacher"]["flops_per_sample"] > 0
    one, two = (read_tensors(folder / "student/model.safetensors") for folder in (trained, out))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=1e-4, msg=key)
    assert weights(trained / "teacher") == before


def test_streets_without_labels_and_recorded_frames(
    trained: Path, drives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated labelled frames joined by recorded ones; every role on other recorded ones; paths from anywhere."""
    monkeypatch.chdir(drives.parent)
    name = drives.name
    sets = [item for item in SETS if not item.startswith("teacher")]
    sets += [
        f"teacher={{path: {trained / 'teacher'}}}", "labels=null", *ALONE,
        f"data.unlabelled={{sources: semantickitti, path: {name}, frames: {{last: 4}}, repeat: 2}}",
        f"data.real=[{{sources: semantickitti, path: {name}, frames: {{first: 4, last: 6}}}}]",
    ]  # fmt: skip
    listed = [word for item in sets for word in ("--set", item)]
    assert call(["run", "smoke/points", "--out", str(tmp_path / "run"), "--quiet", "--no-export", *listed]) == 0
    report = read_json(tmp_path / "run/report.json")
    assert report["labels"]["student"] == {"labelled": 6, "samples": 14, "unlabelled": True}
    [real] = report["facts"]["recorded"]
    assert real["frames"] == 2 and set(real["roles"]) == {"teacher", "student", "teacher_direct"}
    assert 0 <= real["roles"]["student"]["agreement"] <= 1 == real["roles"]["teacher"]["agreement"]
    saved = yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())["data"]
    assert saved["unlabelled"]["path"] == saved["real"][0]["path"] == str(drives)


# ---------------------------------------------------------------- bad input


def refused(capsys: Capture, out: Path, *sets: str) -> str:
    """The one line by which a run is refused."""
    assert run(out, *sets) == 2
    error = capsys.readouterr().err.strip()
    assert error and "\n" not in error and "Traceback" not in error
    return error


SPLITS = ("data.train={last: 4}", "data.dev={first: 4, last: 5}", "data.test={first: 5}")


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["data.sources=semantickitti"], "semantickitti needs path"),
        (["data.sources=semantickitti", "data.path=/nowhere", *SPLITS], "/nowhere"),
        (["data.sources=semantickitti", "data.path=/nowhere", *SPLITS[:2], "data.test={first: 4}"], "overlap"),
        (["data.real=[{sources: kitti, path: /nowhere}]"], "/nowhere"),
        (["student.model=image_unet"], "model 'image_unet' sees image, data.student.sees says range"),
        (["student.model=range_unett"], "range_unet"),
        (["student.params.widht=3"], "widht"),
        (["data.student.beams=10"], "10 beams cannot be kept of 64: choose a divisor"),
        (["data.student.columns=66", "data.teacher.columns=66", "student.params.levels=3"], "66 columns"),
        (["data.student.beems=16"], "beems"),
        (["data.sensor=hdl32"], "hdl64e"),
        (["labels=7"], "labels: 7 of 6 samples"),
        (["teacher={path: /nowhere}"], "/nowhere: no such folder"),
        (["objective.1.on=decoder.7"], "decoder.7"),
    ],
)
def test_bad_recipes_are_one_line_and_status_2(capsys: Capture, tmp_path: Path, sets: list[str], words: str) -> None:
    if sets[0].startswith("teacher={"):
        listed = [w for item in SETS if not item.startswith("teacher") for w in ("--set", item)]
        assert call(["run", "smoke/points", "--out", str(tmp_path / "run"), *listed, "--set", sets[0]]) == 2
        error = capsys.readouterr().err.strip()
    else:
        error = refused(capsys, tmp_path / "run", *sets)
    assert words in error and "\n" not in error


@pytest.mark.parametrize(
    ("change", "sets", "words"),
    [
        (lambda card: card, ["data.teacher.beams=32"], "trained with beams 64, data.teacher.beams says 32"),
        (lambda card: card | {"classes": card["classes"][::-1]}, [], "its class 0 is 'person', here it is 'ground'"),
        (lambda card: card | {"classes": card["classes"][:7]}, [], "'head.bias' is (8,), the model's (7,)"),
        (lambda card: card | {"modality": "speech"}, [], "card.json: no segmenter, but a model of 'speech'"),
    ],
)  # fmt: skip
def test_a_saved_teacher_that_does_not_fit(
    trained: Path, tmp_path: Path, capsys: Capture, change: Callable[[dict[str, object]], object], sets: list[str],
    words: str,
) -> None:  # fmt: skip
    shutil.copytree(trained / "teacher", tmp_path / "teacher")
    write_json(tmp_path / "teacher/card.json", change(read_json(tmp_path / "teacher/card.json")))
    kept = [item for item in SETS if not item.startswith("teacher")]
    listed = [w for item in [*kept, *sets, f"teacher={{path: {tmp_path / 'teacher'}}}"] for w in ("--set", item)]
    assert call(["run", "smoke/points", "--out", str(tmp_path / "run"), *listed]) == 2
    error = capsys.readouterr().err.strip()
    assert str(tmp_path / "teacher") in error and words in error
    assert "\n" not in error


def test_a_camera_that_sees_nothing_is_named(drives: Path, tmp_path: Path, capsys: Capture) -> None:
    shutil.copytree(drives, tmp_path / "drives")
    calibration = tmp_path / "drives/sequences/00/calib.txt"
    lines = calibration.read_text().splitlines()
    turned = "Tr: 0 1 0 0 0 0 -1 0 -1 0 0 -900"  # it looks back, and stands far ahead
    calibration.write_text("\n".join([*(line for line in lines if not line.startswith("Tr")), turned]) + "\n")
    error = refused(
        capsys, tmp_path / "run", "data.sources=semantickitti", f"data.path={tmp_path / 'drives'}", *SPLITS,
        "data.image=[24, 64]", "data.student={sees: image}", "student.model=image_unet", "labels=4",
    )  # fmt: skip
    assert "sequences/00/image_2/" in error and "the camera sees none of the scan's" in error


def test_frames_out_of_range_come_out_before_the_training(drives: Path, tmp_path: Path, capsys: Capture) -> None:
    error = refused(
        capsys, tmp_path / "run", "data.sources=semantickitti", f"data.path={drives}", "labels=4", *SPLITS[:2],
        "data.test={first: 5, last: 99}",
    )  # fmt: skip
    assert f"{drives}: frames 5 to 99 of 7" in error and not (tmp_path / "run/checkpoints").exists()
