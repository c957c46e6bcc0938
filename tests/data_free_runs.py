"""Trainings without data of the toy adapter, built from recipes; one of the processes of a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from scheme_runs import engine, learnt

from xmodal_kd.runtime.checkpoint import write_tensors

#: Parameters by method; two of a method differ behind a space.
EXAMPLES: dict[str, dict[str, Any]] = {
    "dafl": {"on": "body", "width": 8, "noise": 4},
    "zskt": {"student_steps": 2, "width": 8, "noise": 4},
    "dfad": {"student_steps": 2, "width": 8, "noise": 4},
    "dfad log": {"student_steps": 1, "width": 8, "noise": 4, "log": True},
    "deepinversion": {"steps": 3, "every": 2, "bank": 2},
}
#: What two processes train as one does: but for a bank, whose order is theirs, and noise of each.
TOGETHER = ("dafl", "zskt", "dfad", "dfad log")


def content(example: str, **train: Any) -> dict[str, Any]:
    settings = {"steps": 4, "batch_size": 8, "optimizer": {"lr": 2e-2}, "checkpoint_every": 1, "schedule": {}}
    teacher = {"model": "mlp", "params": {"width": 12, "batch_norm": True}}
    return {
        "modality": "toy:ToyAdapter", "seed": 3, "data": {"train": 16, "noise": 0.3},
        "teacher": teacher | {"train": {"steps": 4, "batch_size": 8}},
        "student": {"model": "mlp", "params": {"width": 8, "dropout": 0.2}},
        "method": {"name": example.partition(" ")[0], "params": dict(EXAMPLES[example])},
        "objective": [{"loss": "test_ce"}, {"loss": "kd", "params": {"temperature": 1.0}}],
        "train": settings | train, "trackers": [],
    }  # fmt: skip


def double(example: str, **params: Any) -> dict[str, Any]:
    """In double precision, without dropout."""
    made = content(example)
    made["data"]["double"] = True
    made["student"]["params"]["dropout"] = 0.0
    made["method"]["params"] |= params
    return made


def main(folder: Path) -> None:
    """One of two processes, or the only one."""
    torch.set_num_threads(1)
    for example in TOGETHER:
        made = double(example)
        made["train"]["optimizer"] = {"name": "sgd", "lr": 0.1}
        built = engine(folder / example, made)
        built.fit()
        write_tensors(folder / example / f"rank{built.ranks.rank}.safetensors", learnt(built))
