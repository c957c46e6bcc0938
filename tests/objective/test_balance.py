"""Learned weights of terms: the published formulas by plain loops, micro-batches, ranks, resume."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from toy import RECIPE as TOY
from toy import ToyAdapter, adapter, engine, roles

from xmodal_kd.cli.main import call
from xmodal_kd.objective.balance import GradNorm, Uncertainty
from xmodal_kd.objective.objective import Objective
from xmodal_kd.objective.parts import LossOut, Part
from xmodal_kd.recipe.balance_spec import Balance
from xmodal_kd.recipe.recipe import Optimizer, Recipe, Term, Train
from xmodal_kd.recipe.schedules import Schedule
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.interrupt import Interrupted
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.signals.signals import Layout, Signals
from xmodal_kd.training.engine import Engine
from xmodal_kd.training.method import Distil

KINDS = ["uncertainty", "gradnorm"]
TERMS = (
    Term(loss="test_ce"),
    Term(loss="kd", weight=2.0),
    Term(loss="test_items", weight=0.5),
    Term(loss="hint", on="body"),
    Term(loss="at", on="body", schedule=Schedule(warmup=2)),
)


def parts(values: Tensor, counts: list[float], weight: float = 1.0) -> dict[str, Part]:
    """Terms a, b, and so on, of these means."""
    return {
        "abc"[i]: Part(value * count, torch.tensor(count, dtype=value.dtype), weight, "abc"[i])
        for i, (value, count) in enumerate(zip(values, counts, strict=True))
    }


def test_uncertainty_is_the_papers() -> None:
    """Eq. 10 for two terms, with log sigma for the parameter."""
    balance = Uncertainty(["a", "b"]).double()
    sigma = torch.tensor([0.7, 2.0], dtype=torch.float64)
    with torch.no_grad():
        balance.log_variance.copy_(2 * sigma.log())
    model = torch.tensor([1.5, 0.2], dtype=torch.float64, requires_grad=True)
    out = LossOut(balance(parts(model**2, [3.0, 5.0]), None, 0, Ranks()))
    out.value().backward()
    assert [float(p.total.detach() / p.count) for p in out.parts.values()] == pytest.approx([2.25, 0.04]), "as they are"
    for i in range(2):
        x, s = float(model[i].detach()), float(sigma[i])
        assert model.grad is not None and balance.log_variance.grad is not None
        assert float(model.grad[i]) == pytest.approx(2 * x / s**2)
        # d/ds of L / sigma^2 + log(sigma), where s = 2 log sigma
        assert float(balance.log_variance.grad[i]) == pytest.approx(0.5 - x**2 / s**2)


def test_a_recipes_weight_is_a_preference() -> None:
    """Where the variance is best, a term of twice the weight pulls twice."""
    balance = Uncertainty(["a", "b"])
    with torch.no_grad():
        balance.log_variance.copy_(torch.log(2 * torch.tensor([4.0, 0.5])))
    values = torch.tensor([4.0, 0.5], requires_grad=True)
    given = parts(values, [1.0, 1.0])
    given["b"] = Part(given["b"].total, given["b"].count, 2.0, "b")
    LossOut(balance(given, None, 0, Ranks())).value().backward()
    assert balance.log_variance.grad is not None and values.grad is not None
    torch.testing.assert_close(balance.log_variance.grad, torch.zeros(2))
    torch.testing.assert_close(values.grad * values.detach(), torch.tensor([0.5, 1.0]))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Linear(4, 3, bias=False).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.matrix(x)


def test_gradnorm_is_the_papers() -> None:
    """Algorithm 1 with autograd's gradient of L_grad and torch's Adam, the student learning by its weights as well."""
    torch.manual_seed(0)
    net, x, config = Net(), torch.randn(5, 4, dtype=torch.float64), Balance(name="gradnorm", alpha=0.7, rate=0.05)
    aims = torch.randn(3, 5, 3, dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.1])[:, None, None].double()
    balance = GradNorm(config, ["a", "b", "c"], "matrix.weight", 12).double()
    weights = torch.ones(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([weights], lr=0.05, eps=1e-12)
    first: list[float] = []
    for step in range(6):
        losses = torch.stack([(net(x) - aim).square().mean() for aim in aims])
        out = LossOut(balance(parts(losses, [2.0, 3.0, 7.0]), net, step, Ranks()))
        torch.testing.assert_close(balance.weights(), weights.detach())
        [student] = torch.autograd.grad(out.value(), [net.matrix.weight], retain_graph=True)
        [expected] = torch.autograd.grad((weights.detach() * losses).sum(), [net.matrix.weight], retain_graph=True)
        torch.testing.assert_close(student, expected)
        now = losses.tolist()
        first = first or now
        norms = [float(torch.autograd.grad(one, [net.matrix.weight], retain_graph=True)[0].norm()) for one in losses]
        pulls = [float(w) * norm for w, norm in zip(weights.tolist(), norms, strict=True)]
        rates = [a / b for a, b in zip(now, first, strict=True)]
        aim = [sum(pulls) / 3 * (rate / (sum(rates) / 3)) ** 0.7 for rate in rates]
        loss = sum((weights[i] * norms[i] - aim[i]).abs() for i in range(3))
        adam.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        adam.step()
        with torch.no_grad():
            weights *= 3 / weights.sum()
            net.matrix.weight -= 0.1 * student
    assert weights.detach().max() > 1.1 > 0.9 > weights.detach().min()


def test_gradnorm_makes_gradients_equal() -> None:
    """Without lag (alpha 0) and with a student that stands still."""
    net, x = Net(), torch.ones(2, 4, dtype=torch.float64)
    balance = GradNorm(Balance(name="gradnorm", alpha=0.0), ["a", "b"], "matrix.weight", 12).double()
    for step in range(120):
        rows = net(x)
        losses = torch.stack([(rows[:, 0] - 5).square().mean(), 9 * (rows[:, 1] - 5).square().mean()])
        norms = torch.stack(
            [torch.autograd.grad(one, [net.matrix.weight], retain_graph=True)[0].norm() for one in losses]
        )
        balance(parts(losses, [1.0, 1.0]), net, step, Ranks())
    pulls = balance.weights() * norms
    assert float(pulls.max() / pulls.min()) < 1.1 < float(norms.max() / norms.min())


# ---------------------------------------------------------------- in a training


def made(folder: Path, kind: str, accumulate: int = 1, optimizer: str = "sgd", **options: Any) -> Engine:
    toy = adapter(batch_size=6)
    train = Train(
        steps=5, batch_size=6, accumulate=accumulate, checkpoint_every=1, schedule=Schedule(),
        optimizer=Optimizer(name=optimizer, lr=0.05),  # type: ignore[arg-type]
    )  # fmt: skip
    objective = Objective(TERMS, steps=train.steps, balance=Balance(name=kind))  # type: ignore[arg-type]
    method = Distil(toy, objective, train, toy.streams)
    return engine(folder, train, toy=toy, models=roles(toy), method=method, **options)


def learnt(built: Engine) -> dict[str, Tensor]:
    return {**built.roles["student"].state_dict(), **built.method.modules()["objective"].state_dict()}


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_give_the_same_and_a_stop_changes_nothing(tmp_path: Path, kind: str) -> None:
    whole = made(tmp_path / "whole", kind)
    whole.fit()
    expected = learnt(whole)
    parts_ = made(tmp_path / "parts", kind, accumulate=3)
    parts_.fit()
    for name, value in learnt(parts_).items():
        scale = 1 if "balance.gradients" not in name and "balance.sums" not in name else 0  # sums go by the way
        torch.testing.assert_close(value * scale, expected[name] * scale, rtol=1e-4, atol=1e-5, equal_nan=True)
    objective: Any = whole.method.modules()["objective"]
    weights = objective.describe()["balance"]["weights"]
    assert weights.keys() == {"test_ce", "kd", "test_items", "hint", "at"}
    assert all(value > 0 for value in weights.values()) and len(set(weights.values())) == 5
    last = read_json_line(whole.log.path)
    assert last["weight/kd"] > 0 and "weight/at" in last and last["kd"] > 0
    if kind == "gradnorm":
        assert objective.describe()["balance"]["layer"] == "body.0.weight", "the last that logits and body share"
        assert sum(weights.values()) == pytest.approx(5)
    else:
        assert last["weight/kd"] == pytest.approx(2 * weights["kd"], rel=0.2), "as it was when the last step began"
    with pytest.raises(Interrupted):
        made(tmp_path / "stopped", kind, max_seconds=0.0).fit()
    again = made(tmp_path / "stopped", kind)
    again.fit(resume=True)
    for name, value in learnt(again).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, equal_nan=True)


def read_json_line(path: Path) -> Any:
    line = path.parent / "last.json"
    line.write_text(path.read_text().splitlines()[-1])
    return read_json(line)


def test_one_term_has_nothing_to_be_weighed_against() -> None:
    objective = Objective([Term(loss="test_ce"), Term(loss="kd", weight=0.0)], balance=Balance(name="uncertainty"))
    layout = Layout.samples(3)
    said = Signals().add("logits", torch.zeros(3, 4), layout).add("labels", torch.zeros(3, dtype=torch.int64), layout)
    assert objective(said, said).parts.keys() == {"test_ce"}
    assert objective.build(said, said, Streams(1)).balance is None


def toy_signals(model: bool = True) -> tuple[ToyAdapter, Any, Any]:
    toy = adapter()
    models = roles(toy)
    batch = toy.data("train").collate([toy.data("train").sample(i, 0) for i in range(4)])
    said = [toy.signals(role, models[role], batch, ["body"]) for role in ("student", "teacher")]
    said[0].model = models["student"] if model else None
    return toy, said[0], said[1].detach()


@pytest.mark.parametrize(("balance", "model", "message"), [
    (Balance(name="gradnorm"), False, r"set \.model of the student's signals"),
    (Balance(name="gradnorm", layer="boddy"), True, "no module 'boddy' with a weight"),
    (Balance(name="gradnorm", layer="head"), True, "term 'hint' does not reach 'head'"),
])  # fmt: skip
def test_a_layer_that_is_none(balance: Balance, model: bool, message: str) -> None:
    _, student, teacher = toy_signals(model)
    with pytest.raises(UserError, match=message):
        Objective(TERMS, balance=balance).build(student, teacher, Streams(1))


def test_a_layer_by_name() -> None:
    _, student, teacher = toy_signals()
    built = Objective(TERMS[:3], balance=Balance(name="gradnorm", layer="body.0")).build(student, teacher, Streams(1))
    assert built.describe()["balance"]["layer"] == "body.0.weight"
    plain = Objective(TERMS[:3], balance=Balance(name="gradnorm")).build(student, teacher, Streams(1))
    assert plain.describe()["balance"]["layer"] == "head.weight"


@pytest.mark.parametrize("kind", KINDS)
def test_losses_below_zero(kind: str) -> None:
    net = Net()
    value = net(torch.ones(1, 4, dtype=torch.float64)).square().mean()
    given = parts(torch.stack([value, value - 100]), [1.0, 1.0])
    names = ["a", "b"]
    balance = Uncertainty(names) if kind == "uncertainty" else GradNorm(Balance(), names, "matrix.weight", 12).double()
    with pytest.raises(UserError, match=f"balance {kind} needs losses of at least 0, and term 'b' fell below"):
        for step in range(2):
            balance(given, net, step, Ranks())


def test_what_is_refused(tmp_path: Path) -> None:
    _, student, teacher = toy_signals()
    with pytest.raises(UserError, match=r"balance uncertainty learns weights: call build\(\)"):
        Objective(TERMS, balance=Balance(name="uncertainty"))(student, teacher)
    toy, objective = adapter(), Objective(TERMS, balance=Balance(name="gradnorm"))
    with pytest.raises(UserError, match=r"balance gradnorm: .* bf16"):
        Distil(toy, objective, Train(steps=1, precision="fp16"), toy.streams)
    content = {"modality": "toy", "data": {}, "student": {"model": "mlp"}, "train": {"steps": 1}}
    assert Recipe.model_validate(content | {"balance": "gradnorm"}).balance.alpha == 1.5
    with pytest.raises(ValidationError, match="alpha is of balance gradnorm, not of uncertainty"):
        Recipe.model_validate(content | {"balance": {"name": "uncertainty", "alpha": 1.0}})
    dumped = Recipe.model_validate(content | {"balance": "uncertainty"}).model_dump(mode="json")
    assert Recipe.model_validate(dumped).balance.name == "uncertainty", "a run folder's recipe holds all defaults"
    assert math.isclose(
        float(LossOut({"w": Part(torch.ones(()), torch.ones(()), 0.0, "w")} | parts(torch.ones(1), [1.0])).value()), 1
    )


def test_a_runs_report_names_what_was_built(tmp_path: Path) -> None:
    recipe, out = tmp_path / "toy.yaml", tmp_path / "run"
    recipe.write_text(f"{TOY.replace('steps: 8', 'steps: 2')}balance: {{name: gradnorm, alpha: 0.5}}\n")
    assert call(["run", str(recipe), "--out", str(out), "--allow-import", "toy", "--quiet"]) == 0
    content = read_json(out / "report.json")["objective"]
    assert content.keys() == {"student"}, "teacher and control learn from one term"
    assert content["student"]["terms"] == [{"term": "hint", "projector": [8, 24]}]
    assert content["student"]["balance"]["weights"].keys() == {"test_ce", "kd", "hint"}
    text = (out / "report.md").read_text()
    assert "student, hint: channels 8 to 24" in text
    assert "student: weights by gradnorm, gradients of `body.0.weight`, at the last step: test_ce " in text
