"""Compression within trainings and whole runs: repair, resume, processes, controls, what is refused."""

from __future__ import annotations

import copy
import json
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import compress_worker
import numpy as np
import pytest
import torch
from killed_runs import command, kill_at, run, same
from launch import ranks
from oracles import scheme_compress as oracle
from safetensors.torch import load_file, save_file
from scheme_runs import resumed
from torch import Tensor, nn
from toy import compressed

from xmodal_kd.cli.catalogue import catalogue
from xmodal_kd.cli.main import call
from xmodal_kd.compress.known import COMPRESSIONS, fskd
from xmodal_kd.compress.origins import Origin
from xmodal_kd.compress.packed import PACKED
from xmodal_kd.models.weight_swap import weight_swap_of
from xmodal_kd.runtime.checkpoint import digest, read_json

RECIPE = compressed("COMPRESS", train="steps: 4, eval_every: 2, ema: 0.8")


def recipe(folder: Path, compress: str) -> Path:
    path = folder / "toy.yaml"
    path.write_text(RECIPE.replace("COMPRESS", compress))
    return path


# ---------------------------------------------------------------- repair


def stack(widths: tuple[int, ...], seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b, dtype=torch.float64), nn.Tanh()]
    return nn.Sequential(*layers)


def plainly(model: nn.Module, batch: Any) -> Any:
    return model(batch)


def test_repair_is_least_squares_absorbed_layer_by_layer() -> None:
    teacher, student = stack((5, 6, 4), 0), stack((5, 6, 4), 1)
    inputs = [torch.randn(30, 5, dtype=torch.float64) for _ in range(3)]
    before, x = copy.deepcopy(student), torch.cat(inputs)
    origins = {name: Origin(name) for name in student.state_dict()}
    layers = fskd.repair(student, teacher, origins, plainly, inputs, 1e-5)
    assert [one["layer"] for one in layers] == ["0", "2"]
    with torch.no_grad():
        s, t = before[0](x).numpy(), teacher[0](x).numpy()
        q = oracle.least_squares(s, t, 1e-5)
        weight, bias = oracle.absorbed(before[0].weight.numpy(), before[0].bias.numpy(), q)
        np.testing.assert_allclose(student[0].weight, weight, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(student[0].bias, bias, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(student[0](x), before[0](x).numpy() @ q.T, rtol=1e-7, atol=1e-9)
        s, t = before[2](student[:2](x)).numpy(), teacher[:3](x).numpy()  # behind the layer that is repaired already
        np.testing.assert_allclose(student[:3](x), s @ oracle.least_squares(s, t, 1e-5).T, rtol=1e-6, atol=1e-8)
        norm = float((t**2).sum(1).mean())
        assert layers[1]["before"] == pytest.approx(oracle.residual(s, t, np.eye(4)) / norm)
        assert layers[1]["after"] == pytest.approx(oracle.residual(s, t, oracle.least_squares(s, t, 1e-5)) / norm)


def test_repair_of_kept_channels_compares_with_these() -> None:
    teacher, student = stack((5, 6, 4), 0), stack((5, 3, 4), 1)
    kept = torch.tensor([1, 2, 5])
    with torch.no_grad():
        student[0].weight.copy_(2 * teacher[0].weight[kept])
        student[0].bias.copy_(2 * teacher[0].bias[kept])
    origins = {n: Origin(n) for n in student.state_dict()} | {"0.weight": Origin("0.weight", (kept, None))}
    x = torch.randn(50, 5, dtype=torch.float64)
    fskd.repair(student, teacher, origins, plainly, [x], 0.0)
    torch.testing.assert_close(student[0](x), teacher[0](x)[:, kept])


@pytest.mark.parametrize("layer", [nn.Conv1d(3, 4, 3), nn.Conv2d(3, 4, (3, 1), bias=False), nn.Linear(3, 4)])
def test_absorption_is_exact_in_every_kind_of_layer(layer: nn.Module) -> None:
    layer = layer.double()
    x = torch.randn(2, 3, *(7,) * (layer.weight.dim() - 2), dtype=torch.float64)  # type: ignore[operator,union-attr]
    q = torch.randn(4, 4, dtype=torch.float64)
    expected = fskd.rows(layer, layer(x)) @ q.T
    fskd.absorb(layer, q)
    torch.testing.assert_close(fskd.rows(layer, layer(x)), expected)


# ---------------------------------------------------------------- trainings


@pytest.mark.parametrize("kind", compress_worker.KINDS)
def test_resumes_to_the_bit(kind: str, tmp_path: Path) -> None:
    whole = compress_worker.made(tmp_path / "whole", kind)
    frozen = digest(whole.roles["teacher"].state_dict().items())
    whole.fit()
    expected = digest(whole.roles["student"].state_dict().items())
    for step in (1, 2, 4):
        again = resumed(lambda step=step: compress_worker.made(tmp_path / f"{step}", kind), step)
        assert digest(again.roles["student"].state_dict().items()) == expected, step
    assert digest(whole.roles["teacher"].state_dict().items()) == frozen


@pytest.mark.full
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    kind = "qat"
    with ranks(compress_worker.main, tmp_path / "two", kind):
        compress_worker.main(tmp_path / "one", kind)
    one, *two = (load_file(tmp_path / name) for name in ("one/rank0", "two/rank0", "two/rank1"))
    for key, value in one.items():
        assert torch.equal(two[0][key], two[1][key]), key
        torch.testing.assert_close(two[0][key], value, rtol=1e-5, atol=1e-6)


def test_ranges_wait_for_the_end_of_a_step(tmp_path: Path) -> None:
    built = compress_worker.made(tmp_path, "qat", steps=1)
    stand: Any = weight_swap_of(built.roles["student"])
    assert bool((stand.ranges[0] > stand.ranges[1]).all())  # none yet: the first step computes with what it is given
    built.fit()
    stand = weight_swap_of(built.roles["student"])
    assert bool((stand.ranges[0] < stand.ranges[1]).all()) and bool((stand.seen[0] > stand.seen[1]).all())


# ---------------------------------------------------------------- whole runs


def test_a_run_that_was_killed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    """While a start is repeated, weights are settled, files are written; the packed file as well as all others."""
    file = recipe(tmp_path, "[{name: width_prune, params: {importance: taylor}}, fskd, qat]")
    assert run(command(file, tmp_path / "whole")) == 0
    for number in (9, 14):
        assert run(command(file, tmp_path / "run", "--resume"), kill_at, number) == -signal.SIGKILL
    assert run(command(file, tmp_path / "run", "--resume")) == 0
    same(tmp_path / "run", tmp_path / "whole")
    for role in ("control", "student"):
        one, other = (tmp_path / run / role / PACKED for run in ("run", "whole"))
        assert one.read_bytes() == other.read_bytes()
    report = read_json(tmp_path / "run" / "report.json")
    entry = report["export"][PACKED]
    assert entry["metrics"] == report["roles"]["student"]["metrics"]
    assert entry["bytes"] == (tmp_path / "run" / "student" / PACKED).stat().st_size
    told = report["compressed"]["student"]["fskd"]
    assert told["samples"] == 24 and told["layers"][-1]["after"] < told["layers"][-1]["before"]
    assert report["compressed"]["control"]["fskd"]["layers"] == told["layers"]  # the same start


@pytest.mark.parametrize(("compress", "said"), [
    ("fskd", "compress fskd: it repairs a student that is part of its teacher: put width_prune before it"),
    ("{name: quantise, params: {points: learned}}", "put pretrained, layer_copy or width_prune before it"),
    ("[layer_copy, {name: quantise, params: {points: learned, rounding: stochastic}}]", "is of points: even"),
    ("{name: quantise, params: {bits: 3}}", "compress.0.params.bits"),
    ("{name: quantise, params: {full: [nothing]}}", "'nothing' is none of the student's weights"),
    ("[{name: quantise, params: {full: []}}, qat]", "there is only one of the two"),
    ("{name: pretrained, params: {path: ., fresh: [heed.*]}}", "fresh: 'heed.*' is none of the student's weights"),
    ("layer_copy", "widths must agree, or compress: width_prune chooses channels"),
    ("{name: pretrained, params: {path: nowhere}}", "nowhere"),
    ("pruning", "unknown compression 'pruning'"),
])  # fmt: skip
def test_what_cannot_be_is_said_before_anything_is_trained(
    compress: str, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(command(recipe(tmp_path, compress), tmp_path / "run")) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "run" / "teacher").exists()


def test_a_saved_student_is_quantised_to_points_of_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = recipe(tmp_path, "[]")
    assert call(command(file, tmp_path / "whole")) == 0
    saved = tmp_path / "whole" / "student"
    learned = "{name: quantise, params: {points: learned, full: [], bits: 2}}"
    file = recipe(tmp_path, f"[{{name: pretrained, params: {{path: {saved}}}}}, {learned}]")
    assert call([*command(file, tmp_path / "small"), "--no-export"]) == 0
    weight: Tensor = load_file(tmp_path / "small" / "student" / "model.safetensors")["body.0.weight"]
    assert len(weight.unique()) <= 4  # one bucket of two bits
    assert (tmp_path / "small" / "student" / PACKED).stat().st_size < (saved / "model.safetensors").stat().st_size
    assert read_json(tmp_path / "small" / "report.json")["export"] == {}
    capfd.readouterr()
    assert call(["export", str(tmp_path / "small"), "--allow-import", "toy", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert list(found) == ["exported.safetensors", PACKED], "what is small of it is measured as by a run"
    assert found[PACKED]["bytes"] == (tmp_path / "small" / "student" / PACKED).stat().st_size


def test_a_saved_student_starts_another_but_for_what_is_fresh(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = recipe(tmp_path, "[]")
    assert call(command(file, tmp_path / "whole")) == 0
    saved = tmp_path / "whole" / "student" / "model.safetensors"
    weights = load_file(saved)
    head = next(name for name in reversed(weights) if name.endswith("weight"))
    save_file(weights | {head: torch.zeros(5, 3)}, saved)  # of other classes
    layer = head.removesuffix("weight")

    def starts(fresh: str) -> int:
        text = f"{{name: pretrained, params: {{path: {saved.parent}, fresh: [{fresh}]}}}}"
        return call([*command(recipe(tmp_path, text), tmp_path / "next"), "--set", "train.optimizer.lr=1e-12"])

    assert starts("") == 2
    assert f"'{head}' is (5, 3)" in capfd.readouterr().err
    assert starts(f"'{layer}*'") == 0
    started = load_file(tmp_path / "next" / "student" / "model.safetensors")
    for name, value in weights.items():
        assert torch.allclose(started[name], value) != name.startswith(layer), name


def test_the_catalogue_shows_every_way() -> None:
    rows = {row["name"]: row for row in catalogue("compress")}
    assert rows.keys() == set(COMPRESSIONS) == {
        "bk_sdm", "fskd", "l0_prune", "layer_copy", "pc_lora", "pretrained", "qat", "quantise", "width_prune"
    }  # fmt: skip
    assert all(row["summary"] and row["paper"] and row["year"] > 2010 for row in rows.values())
