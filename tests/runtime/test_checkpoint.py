"""Checkpoints: to the bit, whole or not at all, and nothing is lost when a write fails."""

from __future__ import annotations

import copy
import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xmodal_kd.recipe.recipe import Optimizer
from xmodal_kd.runtime import saved_steps
from xmodal_kd.runtime.checkpoint import (
    digest,
    load_optimizer,
    load_weights,
    optimizer_state,
    prefixed,
    read_json,
    read_tensors,
    unprefixed,
    write_bytes,
    write_json,
    write_tensors,
)
from xmodal_kd.runtime.errors import RunError, UserError
from xmodal_kd.runtime.saved_steps import Checkpoints
from xmodal_kd.training.optim import build_optimizer


def model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.GroupNorm(2, 4), nn.Linear(4, 2))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        net(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def names(net: nn.Module) -> dict[int, str]:
    return {id(p): f"roles.student.{name}" for name, p in net.named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and torch.equal(a[k], b[k]) for k in a
    )


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# ---------------------------------------------------------------- tensors, weights, optimizers


def test_tensors_survive_to_the_bit(tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    given = {
        "float": base, "bits": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]), "half": base.bfloat16(),
        "double": base.double(), "int": torch.tensor(2**62), "bool": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3), "transposed": base.T, "view": base[1:3, ::2],
    }  # fmt: skip
    write_tensors(tmp_path / "a.safetensors", given)
    back = read_tensors(tmp_path / "a.safetensors")
    assert digest(back.items()) == digest(given.items())
    assert all(back[k].dtype == v.dtype and back[k].shape == v.shape for k, v in given.items())


def test_digest_tells_a_bit_and_a_name() -> None:
    a = {"x": torch.zeros(3), "y": torch.ones(2)}
    assert digest(a.items()) == digest(reversed(a.items()))
    assert digest(a.items()) != digest({"x": torch.tensor([0.0, 0.0, -0.0]), "y": torch.ones(2)}.items())
    assert digest(a.items()) != digest({"z": torch.zeros(3), "y": torch.ones(2)}.items())


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_optimizers_resume_to_the_bit(kind: str, momentum: float, tmp_path: Path) -> None:
    """State by parameter name, through files, into an optimizer that was made afresh."""
    config = Optimizer(name=kind, lr=0.01, weight_decay=0.1, betas=(momentum, 0.99), lr_scale={"student.0.*": 3.0})  # type: ignore[arg-type]
    net = model()
    optimizer = build_optimizer(config, {"student": net})
    train(net, optimizer, range(5))
    tensors, groups = optimizer_state(optimizer, names(net))
    assert all(name.startswith("roles.student.") for name in tensors)
    write_tensors(tmp_path / "o.safetensors", tensors)
    write_json(tmp_path / "o.json", groups)

    other = model(1)
    other.load_state_dict(copy.deepcopy(net.state_dict()))
    resumed = build_optimizer(config, {"student": other})
    load_optimizer(resumed, names(other), read_tensors(tmp_path / "o.safetensors"), read_json(tmp_path / "o.json"))
    assert same(optimizer_state(resumed, names(other))[0], tensors)
    train(net, optimizer, range(5, 9))
    train(other, resumed, range(5, 9))
    assert digest(net.state_dict().items()) == digest(other.state_dict().items())


def test_an_optimizer_of_other_parameters_is_refused() -> None:
    net = model()
    optimizer = build_optimizer(Optimizer(), {"student": net})
    tensors, groups = optimizer_state(optimizer, names(net))
    net[0].requires_grad_(False)
    with pytest.raises(UserError, match="the recipe has changed"):
        load_optimizer(build_optimizer(Optimizer(), {"student": net}), names(net), tensors, groups)


def test_mismatched_weights_are_one_line() -> None:
    net = model()
    own = net.state_dict()
    without = {k: v for k, v in own.items() if k not in ("1.bias", "2.weight")}
    for tensors, message in (
        (without, r"run/a: lacks '1.bias', which Sequential has"),
        ({**own, "3.weight": torch.zeros(1)}, r"run/a: holds '3.weight', which Sequential has not"),
        ({**own, "2.weight": torch.zeros(2, 5)}, r"run/a: '2.weight' is \(2, 5\), the model's \(2, 4\)"),
    ):
        with pytest.raises(UserError, match=message) as refused:
            load_weights(net, tensors, "run/a")
        assert "\n" not in str(refused.value)
    load_weights(net, model(3).state_dict(), "run/a")
    assert digest(net.state_dict().items()) == digest(model(3).state_dict().items())


def test_weights_of_two_names_may_be_given_by_one() -> None:
    net, other = model(), model(3)
    net.add_module("again", net[2])
    load_weights(net, other.state_dict(), "run/a")
    assert torch.equal(net.state_dict()["again.weight"], other.state_dict()["2.weight"])


def test_prefixes() -> None:
    both = prefixed("roles/a", {"w": torch.zeros(1)}) | prefixed("roles/ab", {"w": torch.ones(1)})
    assert unprefixed("roles/a", both) == {"w": torch.zeros(1)}


# ---------------------------------------------------------------- folders


def put(checkpoints: Checkpoints, step: int) -> Path:
    return checkpoints.save(step, {"w": torch.full((3,), float(step))}, {"step": step})


def test_the_last_keep_and_the_best_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    checkpoints.save_best({"w": torch.tensor(1.0)}, {"step": 1})
    for step in (1, 9, 10, 100_000_000):
        put(checkpoints, step)
    assert [path.name for path in checkpoints.steps()] == ["step-00000010", "step-100000000"]
    tensors, state = checkpoints.read(checkpoints.best())
    assert tensors["w"] == 1 and state == {"step": 1}
    latest = checkpoints.latest()
    assert latest is not None and checkpoints.read(latest)[1] == {"step": 100_000_000}


def test_best_and_a_step_are_replaced(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for value in (1.0, 2.0):
        checkpoints.save_best({"w": torch.tensor(value)}, {"value": value})
        checkpoints.save(5, {"w": torch.tensor(value)}, {"value": value})
    assert checkpoints.read(checkpoints.best())[1] == checkpoints.read(checkpoints.steps()[0])[1] == {"value": 2.0}
    assert {name for name in files(tmp_path) if "/" not in name} == {"best", "step-00000005"}


def test_an_incomplete_folder_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    put(checkpoints, 1)
    (tmp_path / "step-00000002").mkdir()
    latest = checkpoints.latest()
    assert latest is not None and latest.name == "step-00000001"


def full_disk(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["mkdir", "open", "fsync", "replace", "rename"])
def test_a_failed_write_leaves_the_previous_checkpoint(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    put(checkpoints, 1)
    checkpoints.save_best({"w": torch.tensor(1.0)}, {"step": 1})
    before = files(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os if where == "fsync" else Path, where, full_disk)
        for write in (lambda: put(checkpoints, 2), lambda: checkpoints.save_best({"w": torch.tensor(2.0)}, {})):
            with pytest.raises(UserError, match=r"cannot write .*the disk is full.*--resume"):
                write()
    assert files(tmp_path) == before, "nothing half-written stays"
    latest = checkpoints.latest()
    assert latest is not None and checkpoints.read(latest)[1] == {"step": 1}
    assert checkpoints.read(checkpoints.best())[0]["w"] == 1


def test_a_folder_that_may_not_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*Not a directory") as refused:
        write_bytes(tmp_path / "file" / "x.json", b"")
    assert "free some space" not in str(refused.value)


LIMITED = """
import resource, signal, sys
from pathlib import Path
import torch
from xmodal_kd.runtime.errors import RunError, UserError
from xmodal_kd.runtime.saved_steps import Checkpoints
checkpoints = Checkpoints(Path(sys.argv[1]))
checkpoints.save(1, {"w": torch.zeros(10)}, {"step": 1})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoints.save(2, {"w": torch.zeros(100_000)}, {"step": 2})
except UserError as error:
    print(error)
"""


def test_a_file_size_limit_in_a_process_of_its_own(tmp_path: Path) -> None:
    assert hasattr(resource, "RLIMIT_FSIZE")
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "file-size limit" in done.stdout and done.stdout.count("\n") == 1
    assert [path.name for path in Checkpoints(tmp_path).steps()] == ["step-00000001"]
    assert {name for name in files(tmp_path) if "/" not in name} == {"step-00000001"}


@pytest.mark.parametrize("killed_after", [1, 2])
def test_tidy_brings_back_an_interrupted_best(
    killed_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between stepping aside and stepping in (1), or before the old best is removed (2)."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_best({"w": torch.tensor(1.0)}, {"value": 1})
    calls = 0
    rename, rmtree = Path.rename, saved_steps.shutil.rmtree

    class Killed(BaseException): ...

    def counted(self: Path, target: Path) -> Path:
        nonlocal calls
        if calls == killed_after:
            raise Killed
        calls += 1
        return rename(self, target)

    def dies(path: Path, ignore_errors: bool = False) -> None:
        if calls >= killed_after:
            raise Killed
        rmtree(path, ignore_errors=ignore_errors)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", counted)
        patch.setattr(saved_steps.shutil, "rmtree", dies)
        with pytest.raises(Killed):
            checkpoints.save_best({"w": torch.tensor(2.0)}, {"value": 2})
    assert any(name.startswith(".") for name in files(tmp_path))
    checkpoints.tidy()
    assert checkpoints.read(checkpoints.best())[1] == {"value": killed_after}
    assert {name for name in files(tmp_path) if "/" not in name} == {"best"}


def test_tidy_of_nothing(tmp_path: Path) -> None:
    Checkpoints(tmp_path / "new").tidy()


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_never_holds_nan(value: float, tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(RunError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"deep": [{"x": value}]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"\xff{")
    for read in (read_json, read_tensors):
        with pytest.raises(UserError, match="nowhere is missing"):
            read(tmp_path / "nowhere")
        with pytest.raises(UserError, match="bad is not"):
            read(tmp_path / "bad")
    whole = tmp_path / "whole.safetensors"
    write_tensors(whole, {"w": torch.zeros(100)})
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"cut.safetensors is not a safetensors file"):
        read_tensors(tmp_path / "cut.safetensors")


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="not a safetensors file"):
        read_tensors(tmp_path / "model.safetensors")
