"""Optimizers: which parameter gets which rate and decay, each of them once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from xmodal_kd.recipe.recipe import Optimizer as Config
from xmodal_kd.recipe.schedules import Schedule
from xmodal_kd.runtime.checkpoint import load_optimizer, optimizer_state
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.training.optim import build_optimizer, named_parameters, set_lr


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(2, 4, 3), nn.GroupNorm(2, 4))
        self.head = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x).mean(-1)) * self.scale
        return out


def groups(config: Config, modules: dict[str, nn.Module]) -> dict[str, tuple[float, float]]:
    """(learning rate, decay) of every parameter by name; fails where one stands in two groups."""
    names = {id(p): name for name, p in named_parameters(modules)}
    optimizer = build_optimizer(config, modules)
    found = [(names[id(p)], (g["lr"], g["weight_decay"])) for g in optimizer.param_groups for p in g["params"]]
    assert len(found) == len(dict(found)) == len(names)
    return dict(found)


def test_vectors_and_scalars_are_not_decayed() -> None:
    found = groups(Config(lr=0.1, weight_decay=0.01), {"student": Net()})
    decayed = {name for name, (_, decay) in found.items() if decay}
    assert decayed == {"student.body.0.weight", "student.head.weight"}
    assert {decay for _, decay in found.values()} == {0.0, 0.01}


def test_lr_scale_by_glob_and_the_first_match_counts() -> None:
    config = Config(lr=0.1, lr_scale={"student.head.bias": 5.0, "student.head.*": 2.0})
    found = groups(config, {"student": Net()})
    assert found["student.head.bias"][0] == 0.5 and found["student.head.weight"][0] == 0.2
    assert found["student.body.0.weight"][0] == 0.1


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "radam"])
def test_one_fused_call_steps_as_many_do(name: str) -> None:
    """And a checkpoint of either goes on with the other."""
    torch.manual_seed(0)
    one, two = Net(), Net()
    two.load_state_dict(one.state_dict())
    config = Config(name=name, lr=0.01, weight_decay=0.1)
    fused, plain = build_optimizer(config, {"student": one}), build_optimizer(config, {"student": two})
    for group in plain.param_groups:
        group["fused"] = False
    assert all(group.get("fused", False) == (name != "radam") for group in fused.param_groups)
    for step in range(4):
        x = torch.randn(5, 2, 7)
        for net, optimizer in ((one, fused), (two, plain)):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
        if step == 1:
            names = {id(p): key for net in (one, two) for key, p in net.named_parameters()}
            tensors, told = optimizer_state(fused, names)
            load_optimizer(plain, names, {key: value.clone() for key, value in tensors.items()}, told)
            assert not any(group.get("fused") for group in plain.param_groups)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(UserError, match=r"lr_scale: 'student.haed.\*' matches no parameter"):
        build_optimizer(Config(lr_scale={"student.haed.*": 2.0}), {"student": Net()})


def test_each_parameter_once_though_modules_share_it() -> None:
    net = Net()
    tied = nn.Linear(4, 3)
    tied.weight = net.head.weight
    names = [name for name, _ in named_parameters({"student": net, "objective": tied})]
    assert names.count("student.head.weight") == 1 and "objective.weight" not in names and "objective.bias" in names


def test_frozen_parameters_get_no_optimizer_state() -> None:
    """Trap 18."""
    net = Net()
    net.body.requires_grad_(False)
    optimizer = build_optimizer(Config(), {"student": net})
    net(torch.randn(2, 2, 5)).sum().backward()
    optimizer.step()
    assert {id(p) for p in optimizer.state} == {id(p) for p in (*net.head.parameters(), net.scale)}


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(UserError, match="nothing to train in student"):
        build_optimizer(Config(), {"student": nn.ReLU()})


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_every_kind_steps_and_takes_its_settings(kind: str) -> None:
    net = Net()
    before = net.head.weight.detach().clone()
    optimizer = build_optimizer(Config(name=kind, betas=(0.5, 0.6)), {"student": net})  # type: ignore[arg-type]
    net(torch.randn(2, 2, 5)).sum().backward()
    optimizer.step()
    assert type(optimizer).__name__.lower() == kind
    assert not torch.equal(net.head.weight, before)
    group = optimizer.param_groups[0]
    assert group["momentum"] == 0.5 if kind == "sgd" else group["betas"] == (0.5, 0.6)


def test_sgd_without_momentum() -> None:
    optimizer = build_optimizer(Config(name="sgd", betas=(0.0, 0.0)), {"student": Net()})
    assert optimizer.param_groups[0]["nesterov"] is False


def test_set_lr_is_a_function_of_the_step_and_keeps_ratios() -> None:
    optimizer = build_optimizer(Config(lr=0.1, lr_scale={"*.head.*": 2.0}), {"student": Net()})
    schedule = Schedule(kind="linear")
    for step in (3, 0, 3):  # nothing accumulates
        set_lr(optimizer, schedule, step, 4)
        factor = schedule(step, 4)
        assert sorted(g["lr"] for g in optimizer.param_groups) == pytest.approx([0.1 * factor, 0.2 * factor])


def test_building_changes_neither_config_nor_rates() -> None:
    """Trap 7: a factor was multiplied into the caller's settings."""
    config = Config(lr=0.1, lr_scale={"student.head.*": 2.0})
    before = config.model_copy(deep=True)
    found = [groups(config, {"student": Net()}) for _ in range(3)]
    assert found[0] == found[1] == found[2] and config == before
