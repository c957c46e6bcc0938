"""The cells of a comparison as jobs of a scheduler: texts to read and to submit. Nothing is run.

Slurm gets job arrays, Kubernetes indexed jobs; both run teachers first, then all that stands on them. They leave what
``compare`` leaves, so the comparison's own command, called last, finds all cells done and writes the report.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .cells import Pool
from .plan import Cell

KINDS = ("cells", "slurm", "kubernetes")


@dataclass(frozen=True)
class Jobs:
    """What is to be run where.

    Attributes:
        teachers: commands that others wait for.
        others: those that need them, or nothing.
        last: what writes the report.
        gpus: of each.
    """

    name: str
    folder: Path
    teachers: Sequence[str]
    others: Sequence[str]
    last: str
    threads: int
    gpus: int


def jobs_of(pool: Pool, cells: Sequence[Cell], last: str) -> Jobs:
    """Of cells and the teachers that they stand on, each once."""
    wanted: dict[str, Cell] = {}
    for cell in cells:
        wanted |= {one.key: one for one in (cell.teacher, cell) if one is not None}
    commands: dict[bool, list[str]] = {True: [], False: []}
    for one in wanted.values():
        commands[one.only_teacher].append(shlex.join(["xmodal-kd", *pool.arguments(one), "--resume"]))
    threads = max(one.loaded.recipe.threads for one in wanted.values())
    gpus = 0 if pool.settings.device == "cpu" else 1
    name = re.sub(r"[^a-z0-9]+", "-", pool.settings.out.name.lower()).strip("-")[:40] or "compare"
    return Jobs(name, Path.cwd(), commands[True], commands[False], last, threads, gpus)


def text(kind: str, what: Jobs) -> str:
    """Args:
    kind: of `KINDS`: ``cells`` are commands, a line each.
    """
    match kind:
        case "slurm":
            return slurm(what)
        case "kubernetes":
            return kubernetes(what)
        case _:
            return "".join(f"{line}\n" for line in (*what.teachers, *what.others, what.last))


def slurm(what: Jobs) -> str:
    """A script that submits three jobs, each after the one before it."""
    parts = [
        f"#!/bin/bash\n# Submit by: bash THIS. {len(what.teachers)} teachers, then {len(what.others)} cells, then the "
        f"report; sbatch options of your cluster (partition, account, time) by SBATCH_* variables.\n"
        f"# A job that is sent again goes on from its last checkpoint.\nset -eu\ncd {shlex.quote(str(what.folder))}\n"
    ]
    after = ""
    for role, commands in (("teachers", what.teachers), ("cells", what.others)):
        if commands:
            parts.append(_array(what, role, commands, after))
            after = f"--dependency=afterok:${role}"
    parts.append(_array(what, "report", [what.last], after.replace("afterok", "afterany"), gpus=0))
    return "\n".join(parts)


def _array(what: Jobs, role: str, commands: Sequence[str], after: str, gpus: int | None = None) -> str:
    gpu = f" --gpus={what.gpus}" if (what.gpus if gpus is None else gpus) else ""
    options = f"--parsable --job-name={what.name}-{role} --array=0-{len(commands) - 1} --cpus-per-task={what.threads}"
    lines = "\n".join(f"{shlex.quote(command)}" for command in commands)
    return (
        f"{role}=$(sbatch {options}{gpu} --requeue {after} <<'JOB'\n#!/bin/bash\ncells=(\n{lines}\n)\n"
        f"export OMP_NUM_THREADS={what.threads}\n"
        'exec bash -c "${cells[$SLURM_ARRAY_TASK_ID]}"\nJOB\n)\n'
        f'echo "{role}: ${role}"\n'
    )


def kubernetes(what: Jobs) -> str:
    """Indexed jobs; the image and the volume are named as the comparison, for you to change."""
    wait = (
        f"# kubectl apply -f THIS. Image and claim {what.name!r} are yours to name; the claim is mounted where this "
        f"was called, {what.folder}.\n"
    )
    documents = []
    if what.teachers:
        wait += (
            f"# Then: kubectl wait --for=condition=complete --timeout=-1s job/{what.name}-teachers && \\\n"
            f'#     kubectl patch job {what.name}-cells -p \'{{"spec": {{"suspend": false}}}}\'\n'
        )
        documents.append(_job(what, "teachers", what.teachers, suspend=False))
    documents.append(_job(what, "cells", what.others, suspend=bool(what.teachers)))
    wait += f"# At last, where the volume is: {what.last}\n"
    return wait + str(yaml.safe_dump_all(documents, sort_keys=False, width=1000))


def _job(what: Jobs, role: str, commands: Sequence[str], *, suspend: bool) -> dict[str, Any]:
    lines = "\n".join(shlex.quote(command) for command in commands)
    room: dict[str, Any] = {"cpu": what.threads, **({"nvidia.com/gpu": what.gpus} if what.gpus else {})}
    container = {
        "name": "cell", "image": what.name, "workingDir": str(what.folder),
        "command": ["bash", "-c", f'cells=(\n{lines}\n)\nexec bash -c "${{cells[$JOB_COMPLETION_INDEX]}}"'],
        "env": [{"name": "OMP_NUM_THREADS", "value": str(what.threads)}],
        "resources": {"limits": room}, "volumeMounts": [{"name": "work", "mountPath": str(what.folder)}],
    }  # fmt: skip
    volume = {"name": "work", "persistentVolumeClaim": {"claimName": what.name}}
    return {
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": f"{what.name}-{role}"},
        "spec": {
            "completionMode": "Indexed", "completions": len(commands), "parallelism": len(commands),
            "backoffLimitPerIndex": 3, "suspend": suspend,
            "template": {"spec": {"restartPolicy": "Never", "containers": [container], "volumes": [volume]}},
        },
    }  # fmt: skip


__all__ = ["KINDS", "Jobs", "jobs_of", "text"]
