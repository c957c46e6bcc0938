"""Made inputs on a run's page, beside what the teacher takes them for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ..adapter.adapter import Adapter, Input
from ..adapter.panels import Panel, gallery, png
from ..runtime.bounded_files import inside
from ..runtime.checkpoint import read_tensors, write_tensors

FILE = "made_inputs.safetensors"
#: Pictures in a row, rows, and the least side of a picture in pixels.
ACROSS, ROWS, LEAST = 6, 12, 64


def write(folder: Path, inputs: Tensor) -> None:
    """Into the student's folder."""
    write_tensors(folder / FILE, {"inputs": inputs.float()})


@torch.no_grad()
def panel(adapter: Adapter, asked: Input, models: Mapping[str, nn.Module], folder: Path) -> Sequence[Panel]:
    """A gallery of what was made: by the teacher's class where an input has one, else as it comes."""
    if inside(folder, FILE) is None or "teacher" not in models:
        return ()
    x = read_tensors(folder / FILE)["inputs"]
    like = next(p for p in models["teacher"].parameters() if p.is_floating_point())
    said = {role: adapter.signals(role, models[role], adapter.given(x.to(like))) for role in ("teacher", "student")}
    rows = said["teacher"].rows("logits").cpu()
    columns = [str(i + 1) for i in range(ACROSS)]
    if len(rows) != len(x):
        some = [(png(pixels(one, asked)), "") for one in x[: ACROSS * 2]]
        lines = [("", dict(zip(columns, some[at : at + ACROSS], strict=False))) for at in range(0, len(some), ACROSS)]
    else:
        student = said["student"].rows("logits").cpu().argmax(dim=1)
        lines = _by_class(adapter.class_names("teacher"), x, asked, rows.softmax(dim=1), student)
    note = (
        "What the student learned from in the place of data: inputs as they were made when its training was over. "
        "In percent what the teacher gives its class; the student's answer stands beside it where it is another."
    )
    return [gallery("Made inputs", columns, lines, note=note)]


def _by_class(
    names: Sequence[str], x: Tensor, asked: Input, sure: Tensor, student: Tensor
) -> list[tuple[str, dict[str, tuple[bytes, str]]]]:
    answers, lines = sure.argmax(dim=1), []
    for k in torch.bincount(answers, minlength=len(names)).argsort(descending=True, stable=True).tolist()[:ROWS]:
        cells = {}
        for place, i in enumerate((answers == k).nonzero().flatten().tolist()[:ACROSS]):
            other = "" if int(student[i]) == k else f", student {names[int(student[i])]}"
            cells[str(place + 1)] = (png(pixels(x[i], asked)), f"{100 * float(sure[i, k]):.0f} %{other}")
        if cells:
            lines.append((names[k], cells))
    return sorted(lines, key=lambda line: list(names).index(line[0]))


def pixels(x: Float[Tensor, "c h w"], asked: Input) -> UInt8[np.ndarray, "height width 3"]:
    """Three channels as colours, else the first one in grey; small maps enlarged by a whole number."""
    map_ = x if len(x) == 3 else x[:1].expand(3, -1, -1)
    share = ((map_ - asked.low) / (asked.high - asked.low)).clamp(0, 1)
    picture: np.ndarray = (255 * share).round().byte().permute(1, 2, 0).cpu().numpy()
    times = max(1, -(-LEAST // min(picture.shape[:2])))
    return picture.repeat(times, axis=0).repeat(times, axis=1)


__all__ = ["FILE", "panel", "pixels", "write"]
