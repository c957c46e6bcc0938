"""Exits: found by watching the model, the same answer as in training, and nothing computed behind them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scheme_runs import content, engine, loaded
from torch import Tensor, nn
from torch.nn import functional as F
from toy import Net, adapter

from xmodal_kd.cli.main import call
from xmodal_kd.models.early_exit import Exit, Exits, Route, early, leaves, load_early
from xmodal_kd.runtime import flops
from xmodal_kd.runtime.checkpoint import load_weights, read_json, read_tensors
from xmodal_kd.runtime.errors import UserError


class Maps(nn.Module):
    """Convolutions of one width, channels first."""

    def __init__(self, *, between: bool = False) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv2d(c, 6, 3, padding=1) for c in (2, 6, 6))
        self.head = nn.Conv2d(6, 4, 1)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return self.head(F.relu(x) if self.between else x)  # type: ignore[no-any-return]


def test_way_to_an_exit_and_the_answer_there() -> None:
    model, x = Maps(), torch.randn(2, 2, 5, 7)
    route = leaves(model, "stages.0", lambda net: net(x), 6)
    assert route == Route("stages.0", ("stages.1", "stages.2"), "head", axis=1)
    exit_ = Exit(6, 6, 4)
    small = early(model, exit_, route)
    expected = exit_(model.stages[0](x).movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(small(x), expected)
    assert flops.forward(small, lambda: small(x)) < 0.5 * flops.forward(model, lambda: model(x))
    assert model.head is not small.head and isinstance(model.stages[1], nn.Conv2d)


def test_modules_inside_and_around_an_exit() -> None:
    """What lies in the same block behind it is passed, what the block holds is not named again."""
    toy = adapter(equal=True)
    model = toy.build("student", "mlp", {})
    source = toy.data("train")
    batch = source.collate([source.sample(i, 0) for i in range(2)])
    route = leaves(model, "body.0", lambda net: toy.signals("student", net, batch), 16)
    assert route == Route("body.0", ("body.1", "body.2", "body.3"), "head")
    assert leaves(model, "body", lambda net: toy.signals("student", net, batch), 16).passed == ()


@pytest.mark.parametrize(("path", "reason"), [
    ("head", "no module comes after it"), ("stages", "puts out 0 tensors"),
])  # fmt: skip
def test_exits_that_cannot_be(path: str, reason: str) -> None:
    model = Maps()
    with pytest.raises(UserError, match=reason):
        leaves(model, path, lambda net: net(torch.randn(1, 2, 3, 3)), 6)


def trained(folder: Path, changes: Any = None) -> Any:
    built = engine(folder, content("byot"))
    if changes is not None:
        changes(built.roles["student"])
    built.fit()
    return built


def test_a_way_that_skips_what_is_no_module_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ReLU behind the body is a function: an answer from an exit would go through it, in training it did not."""
    monkeypatch.setattr(Net, "forward", lambda self, x, mask: self.head(F.relu(self.body(x[mask]) - 0.1)))
    built = trained(tmp_path)
    [batch] = [built.source.collate([built.source.sample(i, 0) for i in range(4)])]
    with torch.no_grad():
        closed = built.method.facts(built.roles, batch)["closed"]
    assert closed.keys() == {"exit-1", "exit-2"}
    assert all("computes more behind it than modules" in reason for reason in closed.values())


def test_exits_are_part_of_the_best_and_of_the_average(tmp_path: Path) -> None:
    made = content("byot", ema=0.5, eval_every=1)
    made["student"]["params"] = {"width": 8}
    built = engine(tmp_path, made)
    values = iter([3.0, 1.0, 2.0, 4.0])
    built.evaluate = lambda model: {"loss": next(values)}
    averages = []
    average = built._average

    def watched() -> None:
        average()
        averages.append(built.roles["average"].early_exits.exits[0].head[1].weight.clone())  # type: ignore[union-attr,index]

    built._average = watched  # type: ignore[method-assign]
    built.fit()
    exits = built.method.exits  # type: ignore[attr-defined]
    assert torch.equal(exits[0].head[1].weight, averages[1])
    source = built.source
    with torch.no_grad():
        built.method.facts(built.roles, source.collate([source.sample(0, 0)]))
    assert not any("early_exits" in name for name in built.roles["student"].state_dict())


def test_a_run_saves_exits_that_load_and_answer_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded(tmp_path, content("byot", steps=2))
    out = tmp_path / "run"
    assert call(["run", str(tmp_path / "recipe.yaml"), "--out", str(out), "--allow-import", "toy", "--quiet"]) == 0
    report = read_json(out / "report.json")
    points = [point for point in report["curve"] if point["role"] == "student"]
    assert [point["exit"] for point in points] == [1, 2, 3]
    assert "| exit |" in (out / "report.md").read_text() and "median_ms" in (out / "report.html").read_text()
    assert {"exit-1/exported.safetensors", "exit-2/exported.safetensors"} <= report["export"].keys()
    toy = adapter(train=16, noise=0.3)
    student = toy.load("student", out / "student")
    small = load_early(student, out / "student", 1)
    metrics = toy.evaluate("student", small, "test").metrics
    assert metrics["loss"] == pytest.approx(points[0]["metrics"]["loss"])
    assert metrics != pytest.approx(points[2]["metrics"])
    exported = read_tensors(out / "student" / "exit-1" / "exported.safetensors")
    load_weights(small, exported, "exported")
    assert not any(name.startswith("body.1") for name in exported)
    with pytest.raises(UserError, match="it has exits 1 to 2, not 3"):
        load_early(student, out / "student", 3)
    capsys.readouterr()


def test_a_closed_exit_is_saved_and_says_so(tmp_path: Path) -> None:
    exits = Exits(["stages.0"], [(6, 6, 4)])
    exits.save(tmp_path, [None])
    with pytest.raises(UserError, match=r"cannot be left at exit 1, 'stages.0'"):
        load_early(Maps(), tmp_path, 1)
