"""Models that are spread over two processes learn what they learn in one, and go on in the other number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsdp_worker
import pretrained_small
import pytest
import torch
from launch import ranks
from safetensors.torch import load_file
from torch import nn
from toy import TERMS, adapter, engine

from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term, Train
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.training.method import Distil
from xmodal_kd.training.sharding import check, fits

FSDP = {"sharding": "fsdp"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, nothing spread."""
    folder = tmp_path_factory.mktemp("alone")
    fsdp_worker.main(folder, {})
    return folder


@pytest.fixture(scope="module")
def accumulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, nothing spread, two micro-batches a step."""
    folder = tmp_path_factory.mktemp("accumulated")
    fsdp_worker.main(folder, {"accumulate": 2})
    return folder


def same(folder: Path, expected: Path, world: int = 2) -> None:
    one = load_file(expected / "rank0.safetensors")
    for rank in range(world):
        found = load_file(folder / f"rank{rank}.safetensors")
        assert found.keys() == one.keys()
        for key, value in one.items():
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6, msg=key)
    logs = [(path / "log.jsonl").read_text().splitlines() for path in (expected, folder)]
    for mine, theirs in zip(*logs, strict=True):
        assert json.loads(mine) == pytest.approx(json.loads(theirs), rel=1e-4)


@pytest.mark.parametrize("keys", [
    {}, pytest.param({"frozen": "sharded"}, marks=pytest.mark.full), {"frozen": "cpu", "recompute": True},
])  # fmt: skip
def test_two_processes_that_share_a_model_train_what_one_does(
    tmp_path: Path, alone: Path, keys: dict[str, Any]
) -> None:
    """Weights, gradients (clipped in every step), Adam's state and an average spread; a projector whole; dev."""
    with ranks(fsdp_worker.main, tmp_path, {**FSDP, **keys}):
        pass
    same(tmp_path, alone)


@pytest.mark.parametrize("keys", [
    {}, pytest.param({"frozen": "sharded", "recompute": True}, marks=pytest.mark.full),
])  # fmt: skip
def test_micro_batches_of_a_shared_model_add_up_to_what_one_process_adds_up(
    tmp_path: Path, accumulated: Path, keys: dict[str, Any]
) -> None:
    """Terms over rows, items and whole batches, whose counts differ: each a backward pass of its own."""
    with ranks(fsdp_worker.main, tmp_path, {**FSDP, "accumulate": 2, **keys}):
        pass
    same(tmp_path, accumulated)


@pytest.mark.parametrize(("keys", "how"), [
    pytest.param({}, {"backend": "aot_eager"}, marks=pytest.mark.full),
    pytest.param({"frozen": "sharded", "accumulate": 2}, {"backend": "aot_eager"}, marks=pytest.mark.full),
    pytest.param({"frozen": "sharded"}, None, marks=pytest.mark.full),
    pytest.param({"accumulate": 2}, None, marks=pytest.mark.full),
])  # fmt: skip
def test_compiled_blocks_of_a_shared_model_learn_what_one_process_learns(
    tmp_path: Path, keys: dict[str, Any], how: Any
) -> None:
    """Against a process that compiles nothing. Traced, forward and backward; to machine code as it is for users."""
    with ranks(fsdp_worker.compiled, tmp_path / "two", {**FSDP, "compile": "default", **keys}, how):
        plain = {key: value for key, value in keys.items() if key == "accumulate"}
        fsdp_worker.main(tmp_path / "one", plain, terms=fsdp_worker.ANSWERS)
    same(tmp_path / "two", tmp_path / "one")


@pytest.mark.full
@pytest.mark.parametrize("frozen", ["whole", "sharded"])
def test_a_conformer_that_wav2vec_teaches(tmp_path: Path, frozen: str) -> None:
    teacher = pretrained_small.write(tmp_path / "teacher", "layer", num_hidden_layers=2)
    with ranks(fsdp_worker.speech, tmp_path, teacher, {**FSDP, "frozen": frozen, "recompute": True}):
        fsdp_worker.speech(tmp_path / "one", teacher, {})
    one = load_file(tmp_path / "one" / "rank0.safetensors")
    for rank in range(2):
        for key, value in load_file(tmp_path / f"rank{rank}.safetensors").items():
            torch.testing.assert_close(value, one[key], rtol=1e-5, atol=1e-5, msg=key)


@pytest.mark.parametrize("first", [pytest.param(1, marks=pytest.mark.full), 2])
def test_a_stopped_training_goes_on_in_another_number_of_processes(tmp_path: Path, alone: Path, first: int) -> None:
    """Its checkpoints are those of a training that is not spread."""
    for world, (stop, resume) in ((first, (4, False)), (3 - first, (None, True))):
        if world == 1:
            fsdp_worker.main(tmp_path, {}, stop, resume)
        else:
            with ranks(fsdp_worker.main, tmp_path, FSDP, stop, resume):
                pass
        steps = sorted(path.name for path in (tmp_path / "run").glob("step-*"))
        assert steps[-1] == ("step-00000004" if stop else "step-00000006")
    same(tmp_path, alone, world=3 - first)


def test_one_process_recomputes_and_fetches_what_it_needs(tmp_path: Path, alone: Path) -> None:
    fsdp_worker.main(tmp_path, {"frozen": "cpu", "recompute": True, **FSDP})
    one, other = (load_file(folder / "rank0.safetensors") for folder in (alone, tmp_path))
    assert all(torch.equal(one[name], other[name]) for name in one), "to the bit"


# What cannot be


class Scalar(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
        self.blocks[1].weight = self.blocks[0].weight


@pytest.mark.parametrize(("model", "message"), [
    (Scalar(), r"the student \(Scalar\) has a parameter without a dimension, 'scale', which cannot be cut"),
    (Tied(), r"has one weight in two blocks, 'blocks\.0\.weight' and 'blocks\.1\.weight': say train\.sharding=none"),
])  # fmt: skip
def test_what_a_model_cannot_is_told_by_name(model: nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check("student", model)


@pytest.mark.parametrize(("keys", "message"), [
    ({**FSDP, "precision": "fp16"}, "train.sharding: fsdp does not go with train.precision: fp16"),
    ({"frozen": "sharded"}, "train.frozen: sharded needs train.sharding: fsdp"),
    ({"recompute": True, "compile": "default"}, "train.recompute does not go with train.compile"),
])  # fmt: skip
def test_what_does_not_go_together(keys: dict[str, Any], message: str) -> None:
    train = Train(steps=1, **keys)
    with pytest.raises(UserError, match=message):
        fits(train, made(train), Ranks())


def test_a_method_that_handles_models_itself_is_refused() -> None:
    train = Train(steps=1, recompute=True)
    method = made(train)
    method.shards = False  # type: ignore[misc]
    with pytest.raises(UserError, match=r"train\.recompute: Distil handles models itself"):
        fits(train, method, Ranks())


def test_a_model_without_blocks_is_not_recomputed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.recompute: the student \(Net\) has no list of blocks"):
        engine(tmp_path, Train(steps=1, recompute=True)).fit()


def test_terms_that_read_a_head_want_the_teacher_whole() -> None:
    train = Train(steps=1, frozen="cpu")
    with pytest.raises(UserError, match=r"train\.frozen: cpu: simkd reads the teacher's 'head': say whole"):
        fits(train, made(train, Term(loss="simkd", on="body.0", head="head")), Ranks())


def made(train: Train, *terms: Term) -> Distil:
    toy = adapter()
    return Distil(toy, Objective(terms or TERMS, steps=1), train, toy.streams)
