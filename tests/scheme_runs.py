"""Trainings of the toy adapter's schemes, built from recipes as a run builds them; one of the processes of a test."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from xmodal_kd.recipe.recipe import Loaded, load
from xmodal_kd.run.roles import make_adapter, make_method, models_of, role_plans, training_source
from xmodal_kd.runtime.checkpoint import digest, write_tensors
from xmodal_kd.runtime.device import make_accelerator
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.registry import allowed_imports
from xmodal_kd.runtime.timing import StepTimer
from xmodal_kd.training.engine import Engine, Interrupted
from xmodal_kd.training.loader import steps
from xmodal_kd.training.method import Context

Content = dict[str, Any]
MODEL = {"model": "mlp", "params": {"width": 8}}
TEACHER = {"model": "mlp", "params": {"width": 24}, "train": {"steps": 4, "batch_size": 8}}
SEVERAL = {"teacher": TEACHER, "teachers": {"wide": {**TEACHER, "params": {"width": 32}}}}
HINT = {"loss": "hint", "on": "body"}
#: Three teachers, a term on the feature of one of which is weighed as its answers are.
SEVERAL: Content = {
    "teacher": TEACHER,
    "teachers": {name: TEACHER | {"params": {"width": width}} for name, width in (("wide", 32), ("thin", 12))},
    "objective": [HINT, {"loss": "hint", "on": {"student": "body", "teacher": "thin/body"}, "name": "thin",
                         "weights": "thin/weight", "weight": 0.5}],
}  # fmt: skip
#: Of schemes that start as the old model.
KEEPING: Content = {"teacher": TEACHER | {"params": {"width": 8}}}
OLD = {"train": 12, "dev": 4, "test": 6, "noise": 0.5}

#: For each scheme what a recipe changes; several recipes of one scheme differ behind a space.
EXAMPLES: dict[str, Content] = {
    "assistants": {
        "teacher": TEACHER,
        "scheme": {"params": {"assistants": [{"model": "mlp", "params": {"width": 12}}]}},
    },
    "dgkd": {
        "teacher": TEACHER,
        "scheme": {
            "params": {
                "drop": 1,
                "assistants": [
                    {"model": "mlp", "params": {"width": 16}},
                    {"model": "mlp", "params": {"width": 12}},
                ],
            }
        },
    },
    "born_again": {"scheme": {"params": {"generations": 1}}},
    "tfkd_self": {},
    "dml": {"scheme": {"params": {"peers": 2}}, "objective": [HINT]},
    "ktg": {
        "scheme": {"params": {"edges": [["linear", "through"], ["correct", "through"]]}},
    },
    "ktg features": {
        "scheme": {
            "params": {
                "edges": [
                    ["through", "linear", "cutoff"],
                    ["through", "cutoff", "cutoff"],
                    ["linear", "through", "through"],
                ]
            }
        },
        "objective": [HINT],
    },
    "kdcl": {"scheme": {"params": {"peers": 2}}},
    "kdcl linear": {"scheme": {"params": {"peers": 2, "how": "linear", "own_views": True}}},
    "kdcl general": {"data": {"train": 22}, "scheme": {"params": {"how": "general", "held": 0.25, "own_views": True}}},
    "one": {"scheme": {"params": {"on": "body.0", "shared": ["body.0"], "ramp": 0.5}}},
    "pcl": {"scheme": {"params": {"on": "body", "shared": ["body.0"], "ramp": 0.5, "decay": 0.5}}},
    "pcl views": {"scheme": {"params": {"on": "body", "ramp": 0.5, "decay": 0.5, "own_views": True}}},
    "ffl": {"scheme": {"params": {"on": "body", "shared": ["body.0"], "ramp": 0.5}}},
    "okdhp": {"scheme": {"params": {"on": "body", "shared": ["body.0"], "ramp": 0.5}}},
    "okddip": {"scheme": {"params": {"on": "body", "ramp": 0.5}}},
    "okddip branches": {"scheme": {"params": {"on": "body", "shared": ["body.0", "body.1"], "peers": 2}}},
    "ard": {"teacher": TEACHER, "scheme": {"params": {"steps": 2}}, "objective": [HINT]},
    "rslad": {"teacher": TEACHER, "scheme": {"params": {"steps": 2, "radius": 0.05}}},
    "sskd": {"teacher": TEACHER, "data": {"single": True}, "scheme": {"params": {"on": "body"}}},
    "two_views": {"teacher": TEACHER, "scheme": {"params": {"first": ["hint"], "second": ["kd"]}}, "objective": [HINT]},
    "two_stage": {"teacher": TEACHER, "scheme": {"params": {"first": ["hint"]}}, "objective": [HINT]},
    "two_stage teachers": {
        "teacher": TEACHER,
        "teachers": {"wide": {**TEACHER, "params": {"width": 32}}},
        "scheme": {"params": {"first": ["hint"], "share": 0.25}},
        "objective": [HINT, {**HINT, "name": "later"}],
    },
    "deit": {"teacher": TEACHER, "scheme": {"params": {"teacher": "head"}}, "objective": [HINT]},
    "dino": {
        "data": {"single": True},
        "scheme": {
            "params": {
                "on": "body",
                "prototypes": 12,
                "hidden": 6,
                "bottleneck": 4,
                "local": 1,
                "local_size": 1.0,
                "neighbours": 3,
            }
        },
    },
    "data2vec": {
        "scheme": {
            "params": {"on": "body", "at": "body.0", "layers": ["body.1", "body"], "span": 2, "momentum": [0.5, 0.9]}
        },
    },
    "disco": {
        "teacher": TEACHER,
        "data": {"single": True},
        "scheme": {"params": {"on": "body", "hidden": 7, "queue": 12, "momentum": 0.9, "neighbours": 3}},
    },
    "c2kd": {"teacher": TEACHER, "scheme": {"params": {"on": "body"}}, "objective": [HINT]},
    "class_gradients": {
        "teacher": TEACHER,
        "scheme": {"params": {"terms": [{"loss": "distilbert", "weight": 10.0}]}},
        "objective": [HINT],
    },
    "knowledge_flow": SEVERAL
    | {
        "scheme": {"params": {"layers": {"body.0": ["body.0", "wide/body"], "body": ["thin/body.0"]}, "every": 2}},
        "objective": [HINT],
    },
    "knowledge_flow alone": {
        "teacher": TEACHER,
        "scheme": {"params": {"layers": {"body": ["body"]}, "alone": 0.502, "change": 0.0}},
    },
    "sftn": {
        "teacher": TEACHER,
        "scheme": {"params": {"layers": {"body.0": "body.0", "body": "body"}, "steps": 3, "agree": 2.0}},
        "objective": [HINT],
    },
    "kdgan": {"teacher": TEACHER, "scheme": {"params": {"returned": 0.1, "negatives": 3}}},
    "maskd": {"teacher": TEACHER, "scheme": {"params": {"on": "body", "tokens": 3}}, "objective": [HINT]},
    "dot": {"teacher": TEACHER, "train": {"optimizer": {"name": "sgd", "lr": 2e-2}}, "objective": [HINT]},
    "byot": {"scheme": {"params": {"exits": ["body.0", "body.1"], "feature": "body"}}, "objective": [HINT]},
    "cs_kd": {"objective": [HINT]},
    "cs_kd single": {"data": {"single": True}},
    "ddgsd": {"scheme": {"params": {"on": "body", "mmd": 0.5}}, "objective": [HINT]},
    "ema_teacher": {"scheme": {"params": {"decay": 0.5}}, "objective": [HINT]},
    "ps_kd": {"scheme": {"params": {"every": 2}}},
    "average": SEVERAL,
    "you": SEVERAL | {"scheme": {"params": {"on": "body", "teachers": "body", "margin": 0.1}}},
    "ca_mkd": SEVERAL,
    "ae_kd": SEVERAL | {"scheme": {"params": {"cap": 2.0}}},
    "uhc": SEVERAL | {"objective": [{"loss": "uhc", "weight": 0.5}]},
    "lwf": KEEPING | {"scheme": {"params": {"old": OLD}}},
    "lwf heads": KEEPING | {"scheme": {"params": {"old": OLD, "head": "head", "warm_up": 0.25}}},
    "pdr": KEEPING | {"scheme": {"params": {"old": OLD, "exemplars": 5, "per_batch": 4, "labelled": True}}},
    "pdr heads": KEEPING | {"scheme": {"params": {"old": OLD, "head": "head", "exemplars": 5}}},
    "tkd": {"teacher": TEACHER, "data": {"train": 32}, "objective": [{"loss": "tkd"}]},
    "tkd every": {"teacher": TEACHER, "data": {"train": 32}, "scheme": {"params": {"every": 3, "times": 1}}},
}


def content(example: str, **train: Any) -> Content:
    """The recipe of an example, as data."""
    changed, name = copy.deepcopy(EXAMPLES[example]), example.partition(" ")[0]  # a caller may change what it is given
    settings = {"steps": 4, "batch_size": 8, "optimizer": {"lr": 2e-2}, "checkpoint_every": 4, "schedule": {}}
    return {
        "modality": "toy:ToyAdapter", "seed": 3, "student": MODEL, **changed,
        "data": {"train": 16, "noise": 0.3, **changed.get("data", {})},
        "scheme": {"name": name, **changed.get("scheme", {})},
        "objective": [
            {"loss": "test_ce"}, {"loss": "kd", "params": {"temperature": 2.0}}, *changed.get("objective", []),
        ],
        "train": {**settings, **changed.get("train", {}), **train}, "trackers": [],
    }  # fmt: skip


def loaded(folder: Path, made: Content) -> Loaded:
    allowed_imports.add("toy")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"recipe{os.environ.get('RANK', '')}.yaml"  # each of several processes has its own
    path.write_text(yaml.safe_dump(made))
    return load(str(path))


def engine(folder: Path, made: Content) -> Engine:
    """Of the student's training; roles of earlier ones have their initial weights."""
    recipe = loaded(folder, made)
    streams = Streams(recipe.recipe.seed)
    adapter = make_adapter(recipe, streams)
    stand: dict[str, nn.Module] = {}
    for role_plan in role_plans(recipe, adapter):
        models = models_of(adapter, recipe, role_plan, streams, stand)
        stand[role_plan.role] = models[role_plan.role]
        if role_plan.role == "student":
            break
    method = make_method(recipe, adapter, role_plan, streams)
    method.check(models)
    train = role_plan.steps
    return Engine(
        method, training_source(adapter, recipe.recipe, "student"), models, train, streams=streams,
        accelerator=make_accelerator("cpu", train.precision), folder=folder / "run", quiet=True,
    )  # fmt: skip


def begun(folder: Path, made: Content) -> tuple[Any, Any, Any, Context]:
    """Method, roles, first batch and context of the student's first step."""
    built: Any = engine(folder, made)
    [batch] = next(steps(built.source))
    stage = built.method.stages()[0]
    built.method.begin(stage, built.roles, batch)
    ctx = Context(stage, 0, 0, built.streams, StepTimer(torch.device("cpu")), Ranks())
    return built.method, built.roles, batch, ctx


def weights(built: Engine) -> dict[str, str]:
    owners = {**built.roles, **built.method.modules()}
    return {name: digest(model.state_dict().items()) for name, model in owners.items()}


def stop_after(built: Engine, step: int) -> None:
    """As Ctrl-C in that step."""
    milestones = built._milestones

    def patched(*args: Any) -> None:
        if built.at.total == step:
            built.stop._signalled = True
        milestones(*args)

    built._milestones = patched  # type: ignore[method-assign]


def resumed(make: Callable[[], Engine], step: int) -> Engine:
    """What is stopped in that step and, made once more, goes on to its end."""
    stopped = make()
    stop_after(stopped, step)
    with pytest.raises(Interrupted):
        stopped.fit()
    again = make()
    again.fit(resume=True)
    return again


def learnt(built: Engine) -> dict[str, torch.Tensor]:
    owners = {**built.roles, **built.method.modules()}
    return {f"{n}.{key}": copy.deepcopy(x) for n, owner in owners.items() for key, x in owner.state_dict().items()}


def main(folder: Path, examples: Sequence[str]) -> None:
    """One of two processes, or the only one."""
    torch.set_num_threads(1)
    for example in examples:
        made = content(example)
        made["data"]["double"] = True
        made["train"]["optimizer"] = {"name": "sgd", "lr": 0.1}  # Adam makes steps of rounding where a gradient is 0
        built = engine(folder / example, made)
        built.fit()
        write_tensors(folder / example / f"rank{built.ranks.rank}.safetensors", learnt(built))
