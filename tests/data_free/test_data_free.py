"""Distillation without data: losses against oracles of somebody else, what is never read, the control, the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_free_runs import EXAMPLES, TOGETHER, content, double, main
from launch import ranks
from oracles import data_free as oracle
from safetensors.torch import load_file
from scheme_runs import begun, engine, learnt, loaded, resumed, weights
from toy import ToySource

from xmodal_kd.cli.main import call
from xmodal_kd.data_free.base import DataFree
from xmodal_kd.models.generator import Generator
from xmodal_kd.run.roles import build, make_adapter, role_plans
from xmodal_kd.runtime.checkpoint import digest, read_json, read_tensors
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.training.engine import Engine
from xmodal_kd.training.method import METHODS

EACH = pytest.mark.parametrize("example", list(EXAMPLES))


def test_all_methods_have_an_example_and_say_where_they_are_from() -> None:
    mine = {name for name in METHODS if isinstance(METHODS[name], type) and issubclass(METHODS[name], DataFree)}
    assert {example.partition(" ")[0] for example in EXAMPLES} == mine
    assert all(METHODS[name].paper in " ".join(METHODS[name].__doc__.split()) for name in mine)


@EACH
def test_inputs_are_made_of_their_address_within_the_range(tmp_path: Path, example: str) -> None:
    method, roles, batch, ctx = begun(tmp_path, content(example))
    if example == "deepinversion":
        next(method.losses(batch, roles, ctx))
    x = method.inputs(batch)
    assert x.shape == (8, 1, 5, 6) and (x.abs() <= 9).all() and x.std() > 0.01
    again = begun(tmp_path / "again", content(example))[2]
    assert all(torch.equal(batch[key], again[key]) for key in batch if key != "keys")


# ---------------------------------------------------------------- against the oracles


def rows(method: Any, roles: Any, role: str, x: torch.Tensor, name: str = "logits") -> np.ndarray:
    with torch.no_grad():
        return method.said(role, roles, x, (name,) if name != "logits" else ()).rows(name).numpy()


def test_dafl(tmp_path: Path) -> None:
    method, roles, batch, ctx = begun(tmp_path, double("dafl", one_hot=0.7, activation=0.3, entropy=2.0))
    x = method.inputs(batch)
    found = method.generator_loss(x, roles, ctx).value().item()
    said, features = rows(method, roles, "teacher", x), rows(method, roles, "teacher", x, "body")
    assert found == pytest.approx(oracle.dafl_generator(said, features, oh=0.7, ie=2.0, a=0.3), rel=1e-10)
    learned = method.learns(x, roles, ctx).value().item()
    assert learned == pytest.approx(oracle.dafl_kd(rows(method, roles, "student", x), said), rel=1e-10)


def test_zskt(tmp_path: Path) -> None:
    method, roles, batch, ctx = begun(tmp_path, double("zskt"))
    x = method.inputs(batch)
    both = rows(method, roles, "student", x), rows(method, roles, "teacher", x)
    found = method.generator_loss(x, roles, ctx).value().item()
    assert found == pytest.approx(oracle.zskt_generator(*both, reduction="batchmean"), rel=1e-10)
    learned = method.learns(x, roles, ctx).value().item()
    assert learned == pytest.approx(oracle.zskt_student(*both, reduction="batchmean"), rel=1e-10)


@pytest.mark.parametrize("example", ["dfad", "dfad log"])
def test_dfad(tmp_path: Path, example: str) -> None:
    made = double(example)
    made["objective"][1] = {"loss": "logit_mae"}
    method, roles, batch, ctx = begun(tmp_path, made)
    x = method.inputs(batch)
    both = rows(method, roles, "student", x), rows(method, roles, "teacher", x)
    found = method.generator_loss(x, roles, ctx).value().item()
    assert found == pytest.approx(oracle.dfad_generator(*both, form="log" if "log" in example else "neg"), rel=1e-10)
    assert method.learns(x, roles, ctx).value().item() == pytest.approx(oracle.dfad_student(*both), rel=1e-10)


def test_deepinversion(tmp_path: Path) -> None:
    params = {"tv": 0.01, "l2": 0.02, "statistics": 0.3, "first": 10.0, "compete": 0.4}
    method, roles, batch, _ = begun(tmp_path, double("deepinversion", **params))
    x = torch.randn(8, 1, 5, 6, dtype=torch.float64)
    roles["teacher"].eval()
    with torch.no_grad():
        roles["student"].eval()
        value, classes = method.value(x, batch, roles, None)
        roles["student"].train()
        given = roles["teacher"].body[0](x.reshape(-1, 6)).numpy()[:, :, None, None]
    teacher, student = rows(method, roles, "teacher", x), rows(method, roles, "student", x)
    layer = roles["teacher"].body[1]
    expected = oracle.deepinversion(
        teacher, classes.numpy(), x.numpy(), [given], [layer.running_mean.numpy()], [layer.running_var.numpy()],
        a_tv_l2=0.01, a_l2=0.02, a_f=0.3,
    ) + 0.4 * (1 - oracle.js_textbook(student, teacher))  # fmt: skip
    assert value.item() == pytest.approx(expected, rel=1e-10)
    assert classes.tolist() == [int(4 * share) for share in batch["class"].tolist() for _ in range(5)]
    with torch.no_grad():
        start = method.value((9 * batch["x"].double()).clamp(-9, 9), batch, roles, None)[0]
    method.params = method.params.model_copy(update={"steps": 30})
    made = method.make(batch, roles)
    assert method.value(made, batch, roles, None)[0] < start and roles["student"].training


# ---------------------------------------------------------------- what a training keeps to


@EACH
def test_generator_and_student_learn_and_the_teacher_stays(tmp_path: Path, example: str) -> None:
    built = engine(tmp_path, content(example))
    before = {name: weights(built)[name] for name in built.roles}
    generator = [p.detach().clone() for p in _generator(built)]
    built.fit()
    after = weights(built)
    assert after["student"] != before["student"] and after["teacher"] == before["teacher"]
    if generator:
        assert all(not torch.equal(a, b) for a, b in zip(generator, _generator(built), strict=True))


def _generator(built: Engine) -> list[Any]:
    return list(getattr(built.method, "made", torch.nn.Module()).parameters())


def test_in_its_turn_only_the_generator_gets_a_gradient(tmp_path: Path) -> None:
    method, roles, batch, ctx = begun(tmp_path, content("zskt"))
    roles["teacher"].requires_grad_(False)  # as the engine has it
    name, out = next(method.losses(batch, roles, ctx))
    out.value().backward()
    assert name == "generator" and all(p.grad is not None for p in method.made.parameters())
    assert all(p.grad is None for role in roles.values() for p in role.parameters())
    assert all(p.requires_grad for p in roles["student"].parameters())


@EACH
def test_resumes_to_the_bit_from_any_step(tmp_path: Path, example: str) -> None:
    made = content(example, accumulate=2)
    whole = engine(tmp_path / "whole", made)
    whole.fit()
    for step in (1, 3):
        again = resumed(lambda step=step: engine(tmp_path / str(step), made), step)
        assert weights(again) == weights(whole), step


@pytest.mark.parametrize("example", ["dafl", "zskt", "dfad"])
def test_accumulation_gives_the_same_weights(tmp_path: Path, example: str) -> None:
    """But for what DAFL asks of a batch as a whole."""
    trained = []
    for accumulate in (1, 2):
        made = double(example, **({"entropy": 0.0} if example == "dafl" else {}))
        made["train"]["accumulate"] = accumulate
        built = engine(tmp_path / str(accumulate), made)
        built.fit()
        trained.append(learnt(built))
    for key, value in trained[0].items():
        torch.testing.assert_close(trained[1][key], value, rtol=1e-7, atol=1e-9, msg=key)


@pytest.mark.full
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    with ranks(main, tmp_path / "two"):
        main(tmp_path / "one")
    for example in TOGETHER:
        one = load_file(tmp_path / "one" / example / "rank0.safetensors")
        two = [load_file(tmp_path / "two" / example / f"rank{rank}.safetensors") for rank in range(2)]
        for key, value in one.items():
            assert torch.equal(two[0][key], two[1][key]), key
            torch.testing.assert_close(two[0][key], value, rtol=1e-6, atol=1e-8, msg=f"{example}: {key}")


@EACH
def test_the_control_is_the_same_student_on_noise(tmp_path: Path, example: str) -> None:
    recipe = loaded(tmp_path, content(example))
    streams = Streams(3)
    adapter = make_adapter(recipe, streams)
    planned = {one.role: one for one in role_plans(recipe, adapter)}
    made = {role: build(adapter, recipe, planned[role], streams) for role in ("control", "student")}
    assert digest(made["control"].state_dict().items()) == digest(made["student"].state_dict().items())
    assert planned["control"].teachers == planned["student"].teachers == ("teacher",)
    assert planned["control"].method is planned["student"].method


@EACH
def test_a_run_reads_no_training_sample(
    tmp_path: Path, example: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a saved teacher nothing is read but dev and test, by nobody; and the page shows what was made."""
    recipe = content(example, steps=2)
    saved = loaded(tmp_path / "taught", {**recipe, "method": {"name": "distil"}})
    adapter = make_adapter(saved, Streams(3))
    teacher = next(one for one in role_plans(saved, adapter) if one.role == "teacher")
    (tmp_path / "teacher").mkdir()
    adapter.save("teacher", build(adapter, saved, teacher, Streams(3)), tmp_path / "teacher")
    loaded(tmp_path, recipe | {"teacher": {"path": str(tmp_path / "teacher")}})
    sample = ToySource.sample

    def refused(self: ToySource, index: int, epoch: int) -> Any:
        assert self.split != "train", "a training sample was read"
        return sample(self, index, epoch)

    monkeypatch.setattr(ToySource, "sample", refused)
    out = tmp_path / "run"
    run = ["run", str(tmp_path / "recipe.yaml"), "--out", str(out), "--allow-import", "toy", "--device", "cpu"]
    assert call([*run, "--quiet"]) == 0, capsys.readouterr().err
    report = read_json(out / "report.json")
    assert {"control", "student"} <= report["roles"].keys() and report["control"]["inputs"] == "noise"
    assert "Neither saw a training sample" in (out / "report.md").read_text()
    assert 0 <= report["taught"]["student"]["made inputs, answered as by the teacher"] <= 1
    assert read_tensors(out / "student" / "made_inputs.safetensors")["inputs"].shape == (64, 1, 5, 6)
    [shown] = [panel for panel in read_json(out / "panels.json")["panels"] if panel["title"] == "Made inputs"]
    assert len(shown["content"]["rows"]) == 2


@pytest.mark.parametrize("example", ["dafl", "deepinversion"])
def test_check_finds_no_fault(tmp_path: Path, example: str, capsys: pytest.CaptureFixture[str]) -> None:
    loaded(tmp_path, content(example))
    found = call(["check", str(tmp_path / "recipe.yaml"), "--allow-import", "toy", "--device", "cpu", "--json"])
    told = json.loads(capsys.readouterr().out)
    rows = told if isinstance(told, list) else told["findings"]
    assert found == 0 and not [row for row in rows if row["status"] == "fail"]


# ---------------------------------------------------------------- refusals, and the generator


@pytest.mark.parametrize(
    ("example", "change", "reason"),
    [
        ("dafl", {"teacher": None}, "there is none: give one"),
        ("dafl", {"objective": [{"loss": "test_ce"}]}, "no term of the objective learns from a teacher"),
        (
            "zskt",
            {"objective": [{"loss": "test_ce"}, {"loss": "dkd"}]},
            "'dkd' reads labels, and made inputs have none",
        ),
        ("dafl", {"method": {"name": "dafl"}}, "method.params.on: .*embedding.*set method.params.activation to 0"),
        ("deepinversion", {"teacher": {"model": "mlp", "train": {"steps": 1}}}, "this teacher has none: give one with"),
    ],
)
def test_refuses_in_a_line(tmp_path: Path, example: str, change: dict[str, Any], reason: str) -> None:
    made = {key: value for key, value in (content(example) | change).items() if value is not None}
    with pytest.raises(UserError, match=reason) as caught:
        engine(tmp_path, made)
    assert f"method {example}" in str(caught.value) or "method.params" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_refuses_a_modality_that_does_not_say_what_an_input_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toy.ToyAdapter.input", lambda self: None)
    with pytest.raises(UserError, match="no input whose values could be set: use the method distil"):
        engine(tmp_path, content("zskt"))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 33, 20), (2, 5, 6), (1, 80, 300), (4, 2, 3), (1, 1, 7)])
def test_the_generator_fills_any_shape(shape: tuple[int, int, int]) -> None:
    made = Generator(4, shape, -2.0, 6.0, width=6)
    x = made(torch.randn(3, 4))
    assert x.shape == (3, *shape) and x.min() >= -2 and x.max() <= 6
    alone = made(torch.ones(1, 4))
    torch.testing.assert_close(made(torch.cat([torch.ones(1, 4), torch.randn(2, 4)]))[:1], alone)
