"""What the training loop promises, trap by trap."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toy import RELATION, TERMS, Net, ToyAdapter, adapter, engine, roles

from xmodal_kd.recipe.recipe import EarlyStop, Optimizer, Term, Train
from xmodal_kd.recipe.schedules import Schedule
from xmodal_kd.runtime import flops
from xmodal_kd.runtime.checkpoint import digest, read_tensors
from xmodal_kd.runtime.device import make_accelerator
from xmodal_kd.runtime.errors import RunError, UserError
from xmodal_kd.training.engine import Engine, Interrupted
from xmodal_kd.training.method import probe
from xmodal_kd.training.optim import build_optimizer

CONSTANT = Schedule()


def train(steps: int = 6, **more: Any) -> Train:
    return Train(**{"steps": steps, "batch_size": 6, "optimizer": Optimizer(lr=1e-2), "schedule": CONSTANT} | more)


def of(model: nn.Module) -> str:
    return digest(model.state_dict().items())


def fitted(folder: Path, config: Train, **options: Any) -> Engine:
    made = engine(folder, config, **options)
    made.fit()
    return made


def dev(toy: ToyAdapter, name: str = "loss") -> dict[str, Any]:
    return {
        "evaluate": lambda model: toy.evaluate("student", model, "dev").metrics,
        "metric": (name, True),
    }


# ---------------------------------------------------------------- a frozen teacher


@pytest.mark.parametrize("left", ["ready", "training", "trainable"])
def test_teacher_is_frozen_however_the_caller_left_it(tmp_path: Path, left: str) -> None:
    toy = adapter()
    models = roles(toy, teacher={"batch_norm": True, "dropout": 0.5})
    models["teacher"].train(left == "training").requires_grad_(left != "ready")
    before = of(models["teacher"])
    made = fitted(tmp_path, train(), toy=toy, models=models)
    teacher = models["teacher"]
    assert of(teacher) == before  # weights and BatchNorm's buffers
    assert not any(module.training for module in teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    mine = {id(p) for p in teacher.parameters()}
    assert not any(id(p) in mine for o in made.optimizers.values() for g in o.param_groups for p in g["params"])
    saved = made.checkpoints.latest()
    assert saved is not None
    assert not [name for name in read_tensors(saved / "tensors.safetensors") if "teacher" in name]


def test_teacher_stays_frozen_after_train_on_the_whole_system(tmp_path: Path) -> None:
    toy = adapter()
    models = roles(toy, teacher={"batch_norm": True, "dropout": 0.5})
    whole, before = nn.ModuleDict(models), of(models["teacher"])

    def evaluate(model: nn.Module) -> dict[str, float]:
        whole.train()  # what a wrapper does behind the engine's back
        return {"loss": 0.0}

    fitted(tmp_path, train(eval_every=1), toy=toy, models=models, evaluate=evaluate)
    assert of(models["teacher"]) == before


def test_teacher_speaks_without_a_graph(tmp_path: Path) -> None:
    class Watched(ToyAdapter):
        def signals(self, role: str, *args: Any, **more: Any) -> Any:
            said = super().signals(role, *args, **more)
            heard.append((role, said.rows("logits").requires_grad))
            return said

    heard: list[tuple[str, bool]] = []
    toy = adapter()
    toy.__class__ = Watched
    fitted(tmp_path, train(2), toy=toy)
    assert {("teacher", False), ("student", True)} <= set(heard) and ("teacher", True) not in heard


def test_parts_of_a_student_that_its_maker_froze_stay_frozen(tmp_path: Path) -> None:
    toy = adapter()
    models = roles(toy)
    models["student"].head.requires_grad_(False)
    before = digest(models["student"].head.state_dict().items())
    fitted(tmp_path, train(), toy=toy, models=models)
    assert digest(models["student"].head.state_dict().items()) == before


# ---------------------------------------------------------------- learning


def test_student_learns_and_its_projector_too(tmp_path: Path) -> None:
    toy = adapter()
    models = roles(toy)
    made = engine(tmp_path / "made", train(60), toy=toy, models=models)
    before = toy.evaluate("student", models["student"], "train").metrics["loss"]
    made.fit()
    assert toy.evaluate("student", models["student"], "train").metrics["loss"] < 0.85 * before
    [term] = [t for t in made.method.objective if t.name == "hint"]
    fresh = engine(tmp_path / "other", train(1, optimizer=Optimizer(lr=1e-30)))
    fresh.fit()
    [start] = [t for t in fresh.method.objective if t.name == "hint"]
    assert not torch.allclose(term.projector.weight, start.projector.weight)


@pytest.mark.parametrize("accumulate", [2, 3, 4])
def test_accumulation_gives_the_same_weights(tmp_path: Path, accumulate: int) -> None:
    """Rows, items and counted items differ between micro-batches: a mean of means would be another gradient."""
    weights = []
    for n in (1, accumulate):
        toy = adapter(batch_size=12, double=True)
        models = roles(toy)
        made = engine(tmp_path / str(n), train(5, batch_size=12, accumulate=n), toy=toy, models=models)
        made.method.objective.double()
        _double_projectors(made)
        made.fit()
        weights.append(models["student"].state_dict())
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-9, atol=1e-11)


def _double_projectors(made: Engine) -> None:
    """Float64 for what the objective builds."""
    build = made.method.objective.build
    made.method.objective.build = lambda *args: build(*args).double()


def test_the_log_gives_the_mean_over_the_whole_batch(tmp_path: Path) -> None:
    """And not the mean of the micro-batches' means."""
    entries = []
    for n in (1, 3):
        made = fitted(tmp_path / str(n), train(1, batch_size=12, accumulate=n), toy=adapter(batch_size=12))
        entries.append(made.log.path.read_text())
    one, three = map(json.loads, entries)
    assert {"test_ce", "kd", "test_items", "hint", "grad_norm/student", "lr/student"} <= one.keys()
    assert three == pytest.approx(one, rel=1e-5)


def test_gradients_are_clipped(tmp_path: Path) -> None:
    moved = {}
    for clip in (None, 1e-3):
        toy = adapter()
        models = roles(toy)
        start = torch.cat([p.detach().clone().flatten() for p in models["student"].parameters()])
        sgd = Optimizer(name="sgd", lr=1.0, betas=(0.0, 0.0))
        terms = (Term(loss="test_ce"),)
        fitted(tmp_path / str(clip), train(1, clip=clip, optimizer=sgd), toy=toy, models=models, terms=terms)
        end = torch.cat([p.detach().flatten() for p in models["student"].parameters()])
        moved[clip] = float((end - start).norm())
    assert moved[1e-3] == pytest.approx(1e-3, rel=1e-2)
    assert moved[None] > 0.1


@pytest.mark.parametrize("tied", [False, True])
def test_average_is_what_is_evaluated_and_kept(tmp_path: Path, tied: bool) -> None:
    """Weights that have two names, as a decoder's embedding and head, take one step of it."""
    toy = adapter()
    models = roles(toy)
    if tied:
        models["student"].add_module("again", next(models["student"].children()))
    seen, raw = [], []

    def evaluate(model: nn.Module) -> dict[str, float]:
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        raw.append({k: v.clone() for k, v in models["student"].state_dict().items()})
        return {"loss": -float(len(seen))}

    start = {k: v.clone() for k, v in models["student"].state_dict().items()}
    config = train(3, ema=0.75, eval_every=1)
    fitted(tmp_path, config, toy=toy, models=models, evaluate=evaluate)
    average = start
    for shown, weights in zip(seen, raw, strict=True):
        average = {k: 0.75 * average[k] + 0.25 * weights[k] for k in average}
        for key, value in average.items():
            torch.testing.assert_close(shown[key], value)
    assert digest(models["student"].state_dict().items()) == digest(seen[-1].items()) != digest(raw[-1].items())


def test_average_without_dev_is_what_is_left(tmp_path: Path) -> None:
    models = roles(adapter())
    made = fitted(tmp_path, train(3, ema=0.9), models=models)
    assert of(models["student"]) == of(made.roles["average"])


def test_learning_rate_follows_its_schedule(tmp_path: Path) -> None:
    schedule = Schedule(kind="linear", warmup=4, end=0.1)
    made = fitted(tmp_path, train(30, schedule=schedule, optimizer=Optimizer(lr=0.01)))
    rates = {e["step"]: e["lr/student"] for e in map(json.loads, made.log.path.read_text().splitlines())}
    assert rates == {s: pytest.approx(0.01 * schedule(s - 1, 30)) for s in (1, 10, 20, 30)}
    assert rates[1] < rates[10] > rates[30]


def test_parameter_groups() -> None:
    model = Net(Net.Config())
    config = Optimizer(lr=0.1, weight_decay=0.5, lr_scale={"student.head.*": 0.1, "student.*": 2.0})
    before = config.model_copy(deep=True)
    for _ in range(3):  # building changes nothing in the recipe
        optimizer = build_optimizer(config, {"student": model})
    assert config == before
    found = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert found[id(model.head.weight)] == pytest.approx((0.01, 0.5))
    assert found[id(model.head.bias)] == pytest.approx((0.01, 0.0))
    assert found[id(model.body[0].weight)] == pytest.approx((0.2, 0.5))
    assert found[id(model.body[1].weight)] == pytest.approx((0.2, 0.0))  # a norm's weight is not decayed
    with pytest.raises(UserError, match=r"lr_scale: 'student\.tail\.\*' matches no parameter"):
        build_optimizer(Optimizer(lr_scale={"student.tail.*": 1.0}), {"student": model})


def test_early_stop_and_best_on_dev(tmp_path: Path) -> None:
    values, kept = iter([0.5, 0.3, 0.4, 0.35, 0.1]), []
    models = roles(adapter())

    def evaluate(model: nn.Module) -> dict[str, float]:
        kept.append(of(model))
        return {"loss": next(values)}

    config = train(50, eval_every=2, early_stop=EarlyStop(patience=2))
    at = fitted(tmp_path, config, models=models, evaluate=evaluate).at
    assert (at.step, at.best, at.best_at, at.stopped_early) == (8, 0.3, 4, True)
    assert of(models["student"]) == kept[1]


def test_a_dev_metric_of_nan_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="dev loss is nan"):
        fitted(tmp_path, train(2, eval_every=1), evaluate=lambda model: {"loss": float("nan")})


def test_bfloat16_autocast_on_the_cpu(tmp_path: Path) -> None:
    kinds = set()
    models = roles(adapter())
    models["student"].head.register_forward_hook(lambda module, args, out: kinds.add(out.dtype))
    fitted(tmp_path, train(3, precision="bf16"), models=models)
    assert torch.bfloat16 in kinds
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in models["student"].parameters())


# ---------------------------------------------------------------- trouble


def test_nan_in_a_batch_names_the_sample(tmp_path: Path) -> None:
    toy = adapter(nan=7)
    with pytest.raises(UserError, match=r"^sample toy-7: its x hold NaN"):
        fitted(tmp_path, train(8), toy=toy)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_cannot_be_read_is_one_line(tmp_path: Path, workers: int) -> None:
    with pytest.raises(UserError, match=r"^toy-7: cannot be read$"):
        fitted(tmp_path, train(8, workers=workers), toy=adapter(broken=7))


def test_nan_of_a_term_names_it_and_moves_nothing(tmp_path: Path) -> None:
    toy = adapter()
    models = roles(toy)
    with torch.no_grad():
        models["teacher"].body[0].weight.fill_(torch.nan)
    before = of(models["student"])
    with pytest.raises(RunError, match=r"^student: term 'hint' became NaN or Inf at step 0"):
        fitted(tmp_path, train(), toy=toy, models=models, terms=(Term(loss="test_ce"), Term(loss="hint", on="body")))
    assert of(models["student"]) == before


def test_a_gradient_of_nan_moves_nothing(tmp_path: Path) -> None:
    models = roles(adapter())
    models["student"].head.weight.register_hook(lambda grad: grad * torch.nan)
    before = of(models["student"])
    with pytest.raises(RunError, match="gradient became nan at step 0"):
        fitted(tmp_path, train(), models=models)
    assert of(models["student"]) == before


def test_two_engines_do_not_disturb_each_other(tmp_path: Path) -> None:
    def alone(name: str) -> tuple[Engine, nn.Module]:
        models = roles(adapter(), student={"dropout": 0.3})
        return engine(tmp_path / name, train(), models=models), models["student"]

    one, student = alone("one")
    one.fit()
    first, early = alone("first")
    fitted(tmp_path / "second", train(4, precision="bf16"), models=roles(adapter(seed=9)), toy=adapter(seed=9))
    first.fit()
    assert of(student) == of(early)


def test_hooks_are_gone_after_training(tmp_path: Path) -> None:
    models = roles(adapter())
    fitted(tmp_path, train(2), models=models, terms=(*TERMS, RELATION))
    assert not any(module._forward_hooks for model in models.values() for module in model.modules())


def test_time_is_up_with_a_checkpoint(tmp_path: Path) -> None:
    made = engine(tmp_path, train(50, checkpoint_every=40), max_seconds=0.0)
    with pytest.raises(Interrupted, match=r"the time given by --max-minutes is up at step 1 of 50"):
        made.fit()
    latest = made.checkpoints.latest()
    assert latest is not None and latest.name == "step-00000001"


@pytest.mark.parametrize("step", [2, 6])
def test_interrupt_stops_at_a_step_boundary_with_a_checkpoint(tmp_path: Path, step: int) -> None:
    """The last step is no exception: what follows the training must not start."""

    class Pressed(ToyAdapter):
        calls = 0

        def signals(self, role: str, *args: Any, **more: Any) -> Any:
            Pressed.calls += role == "student"
            if Pressed.calls == 1 + step:  # one call is the dry run
                os.kill(os.getpid(), signal.SIGINT)
            return super().signals(role, *args, **more)

    toy = adapter()
    toy.__class__ = Pressed
    before = signal.getsignal(signal.SIGINT)
    made = engine(tmp_path, train(6, checkpoint_every=50), toy=toy)
    with pytest.raises(Interrupted, match=f"interrupted at step {step} of 6"):
        made.fit()
    latest = made.checkpoints.latest()
    assert latest is not None and latest.name == f"step-0000000{step}"
    assert signal.getsignal(signal.SIGINT) is before


def test_a_folder_with_checkpoints_is_not_trained_over(tmp_path: Path) -> None:
    fitted(tmp_path, train(4))
    with pytest.raises(UserError, match="holds checkpoints"):
        fitted(tmp_path, train(2))


# ---------------------------------------------------------------- beside the loop


def test_tensorboard_event_file(tmp_path: Path) -> None:
    accelerator = make_accelerator("cpu", "fp32", trackers=("tensorboard",), logs=tmp_path / "logs")
    accelerator.init_trackers("student")
    fitted(tmp_path / "run", train(2), accelerator=accelerator)
    accelerator.end_training()
    [events] = (tmp_path / "logs").rglob("events.out.tfevents.*")
    content = events.read_bytes()
    assert all(tag in content for tag in (b"kd", b"lr/student", b"grad_norm/student"))


def test_counting_operations_changes_nothing(tmp_path: Path) -> None:
    def trained(counted: bool) -> str:
        toy = adapter()
        models = roles(toy, student={"dropout": 0.3})
        made = engine(tmp_path / str(counted), train(4), toy=toy, models=models)
        if counted:
            source = toy.data("train")
            batch = source.collate([source.sample(i, 0) for i in range(4)])
            made.method.begin(made.method.stages()[0], models, batch)
            assert flops.count(lambda: probe(made.method, models, batch, toy.streams)) > 0
            flops.forward(models["student"], lambda: toy.signals("student", models["student"], batch))
        made.fit()
        return of(models["student"])

    assert trained(False) == trained(True)


def test_time_of_a_step_is_split(tmp_path: Path) -> None:
    at = fitted(tmp_path, train(20)).at
    assert {"teacher", "student", "loss", "backward", "optimizer", "other", "step"} == at.split.keys()
    assert at.split["step"] == pytest.approx(sum(v for k, v in at.split.items() if k != "step"), rel=0.01)
