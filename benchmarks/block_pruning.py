"""Block pruning of a prompted latent model of digits (BK-SDM: Kim et al., 2023), and few steps after it.

    python benchmarks/block_pruning.py [--only-teacher]

The teacher is that of ``text_digits.py`` with a deeper network, three levels of two blocks. Students lack blocks,
start with its weights and learn of data, of what it says and of the end of each stage; their controls of data alone. A
tenth of the prompts is left empty, so that both are guided at the teacher's scale and sampled in its 50 evaluations.
The chain distils the pruned student itself by LCM to 4 evaluations, beside the whole teacher in as many. The price is
parameters times evaluations. Cells that the results hold already are not made again. Writes
``benchmarks/results/block_pruning.json`` and prints a table.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from cells import shown, t_interval
from text_digits import GUIDANCE, KEPT, NOISE_SEED, TEACHER_STEPS, Room, fitted, sampled
from text_digits_teacher import DEEP, STEPS
from torch import nn

from xmodal_kd.modalities.diffusion.models.blocks import KINDS, Blocks, start
from xmodal_kd.modalities.diffusion.models.denoiser import Denoiser, Sampling
from xmodal_kd.recipe.recipe import On, Term

HERE = Path(__file__).parent
DDIM, LCM_STEPS, UNPROMPTED, LR = Sampling("ddim", TEACHER_STEPS), 4, 0.1, 1e-3


def terms(blocks: Blocks) -> list[Term]:
    """Equally weighted, as the paper has them. Stages are those that the student has."""
    lost = int(blocks == "tiny")
    down = [(f"net.down_blocks.{i}", f"net.down_blocks.{i}") for i in range(3 - 2 * lost)]
    up = [(f"net.up_blocks.{i}", f"net.up_blocks.{i + lost}") for i in range(3 - lost)]
    if lost:  # its innermost stage does not halve the resolution at its end, as the teacher's of that place does
        down.append(("net.down_blocks.1.attentions.0.proj_out", "net.down_blocks.1.attentions.1.proj_out"))
    return [
        Term(loss="denoising", on="net", labels="target", name="task"),
        Term(loss="hint", on="net"),
        *(Term(loss="hint", on=On(student=mine, teacher=theirs), name=mine) for mine, theirs in (*down, *up)),
    ]


def pruned(room: Room, blocks: Blocks, steps: int, seed: int, *, taught: bool) -> tuple[Denoiser, float]:
    """A student, or its control, and the CPU seconds of its training."""
    adapter = room.adapter(seed)
    adapter.config = adapter.config.model_copy(update={"unprompted": UNPROMPTED})
    adapter.method = "distil"
    roles: dict[str, nn.Module] = {"teacher": sampled(copy.deepcopy(room.teacher), DDIM, 1.0)}
    adapter.teacher = teacher = cast(Denoiser, roles["teacher"])
    student = adapter.build("student", "like_teacher", {"blocks": blocks, "prediction": teacher.prediction})
    assert start(teacher.net, student.net) is not None
    roles["student"] = student
    wanted = terms(blocks) if taught else terms(blocks)[:1]
    return fitted(adapter, roles, "distil", {}, wanted, steps=steps, lr=LR, seed=seed)


def few_steps(room: Room, teacher: Denoiser, steps: int, seed: int) -> tuple[Denoiser, float]:
    """A guided teacher's student by LCM, of all weights."""
    adapter = room.adapter(seed)
    adapter.method = "lcm"
    adapter.teacher = sampled(copy.deepcopy(teacher), DDIM, GUIDANCE)
    roles: dict[str, nn.Module] = {"teacher": adapter.teacher, "student": adapter.build("student", "like_teacher", {})}
    alone = [Term(loss="denoising", on="prediction")]
    return fitted(adapter, roles, "lcm", {"steps": LCM_STEPS}, alone, steps=steps, lr=5e-4, seed=seed)


def cell(
    room: Room, name: str, seed: int | None, model: Denoiser, seconds: float = 0.0, **about: Any
) -> dict[str, Any]:
    parameters = sum(p.numel() for p in model.net.parameters())
    found = {
        "method": name, "seed": seed, "parameters": parameters, "nfe": model.nfe, "price": model.price,
        **room.measured(model), "cpu_seconds": round(seconds, 1), **about,
    }  # fmt: skip
    print(json.dumps(found), flush=True)
    return found


def seed_cells(room: Room, args: argparse.Namespace, seed: int, done: Sequence[str]) -> list[dict[str, Any]]:
    """Of one seed, what is not `done`."""
    found: list[dict[str, Any]] = []
    for blocks in args.blocks:
        for taught in (True, False):
            name = f"bk_sdm, {blocks}" if taught else f"control, {blocks}"
            chained = taught and blocks == args.chain and f"{name}, then lcm" not in done
            if name in done and not chained:
                continue
            student, seconds = pruned(room, blocks, args.steps, seed, taught=taught)
            if name not in done:
                guided = sampled(student, DDIM, GUIDANCE)
                found.append(cell(room, name, seed, guided, seconds, trained=args.steps))
            if chained:
                few, more = few_steps(room, student, args.steps, seed)
                found.append(cell(room, f"{name}, then lcm", seed, few, seconds + more, trained=2 * args.steps))
    if "lcm" not in done:
        few, seconds = few_steps(room, room.teacher, args.steps, seed)
        found.append(cell(room, "lcm", seed, few, seconds, trained=args.steps))
    return found


def table(cells: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| model | parameters | evaluations | price, millions | FD | label agreement |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for name in dict.fromkeys(one["method"] for one in cells):
        own = [one for one in cells if one["method"] == name]
        told = []
        for key, digits in (("fd_clf", 2), ("label_agreement", 3)):
            values = [one[key] for one in own]
            told.append(shown(t_interval(values), digits) if len(values) > 1 else f"{values[0]:.{digits}f}")
        first = own[0]
        price = f"{first['price'] / 1e6:.2f}"
        lines.append(f"| {name} | {first['parameters']:,} | {first['nfe']} | {price} | {' | '.join(told)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/block_pruning"))
    parser.add_argument("--blocks", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--chain", default="small", choices=KINDS, help="whose student is distilled to few steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "block_pruning.json")
    parser.add_argument("--only-teacher", action="store_true", help="make images and teacher, and stop")
    args = parser.parse_args()
    torch.set_num_threads(1)
    room = Room(args.folder, DEEP)
    if args.only_teacher:
        return
    cells: list[dict[str, Any]] = json.loads(args.results.read_text())["cells"] if args.results.exists() else []
    facts = {**room.judge.judge("test", torch.device("cpu")).facts(), "guidance": GUIDANCE, "teacher_steps": STEPS,
             "noise_seed": NOISE_SEED, "lr": LR, "unprompted": UNPROMPTED, "kept": KEPT}  # fmt: skip
    if not cells:
        cells.append(cell(room, "teacher", None, sampled(room.teacher, DDIM, GUIDANCE)))
    for seed in args.seeds:
        cells += seed_cells(room, args, seed, [one["method"] for one in cells if one["seed"] == seed])
        args.results.write_text(json.dumps({"facts": facts, "cells": cells}, indent=1) + "\n")
    print(table(cells))


if __name__ == "__main__":
    main()
