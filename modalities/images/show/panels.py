"""Test images on a run's page, beside what each role makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from xmodal_kd.adapter.panels import BARS, HIGH, Panel, bars, gallery, png

from ..data.source import ImagesSource

#: Images shown, half of them the test split's first, half those that the student is surest of and wrong.
SHOWN = 12
#: Dev images shown at each evaluation.
GLIMPSED = 6
#: Test images among which the student's errors are looked for.
SEARCHED = 512
#: The least side of a picture in pixels: smaller ones are enlarged by a whole number.
LEAST = HIGH


@torch.no_grad()
def show(source: ImagesSource, models: Mapping[str, nn.Module], classes: Sequence[str]) -> Sequence[Panel]:
    """One gallery: an image a row, a role a column with its answer and a bar for each class."""
    count = min(len(source), SEARCHED)
    batch = source.collate([source.sample(i, 0) for i in range(count)])
    labels = batch["labels"]
    said = {role: _probabilities(model, batch["x"]) for role, model in models.items()}
    rows = []
    for i in _chosen(said["student"], labels):
        cells = {"image": (png(pixels(batch["x"][i])), "")}
        for role, probabilities in said.items():
            answer = int(probabilities[i].argmax())
            caption = f"{classes[answer]} {100 * float(probabilities[i, answer]):.0f} %"
            cells[role] = (png(bars(probabilities[i].numpy(), int(labels[i]))), caption)
        rows.append((f"{batch['keys'][i]}: {classes[int(labels[i])]}", cells))
    note = (
        f"The first test images, then those that the student is surest of and wrong, among the first {count}. A bar "
        f"for each class{f' of the first {BARS}' if len(classes) > BARS else ''}: green is the label's, red an answer "
        "that is wrong."
    )
    return [gallery("What each role sees", ["image", *models], rows, note=note)]


@torch.no_grad()
def glimpse(source: ImagesSource, role: str, model: nn.Module) -> Sequence[Panel]:
    """The first dev images, each beside what one role makes of it now, below each other in one picture."""
    batch = source.collate([source.sample(i, 0) for i in range(min(len(source), GLIMPSED))])
    labels, said = batch["labels"].tolist(), _probabilities(model, batch["x"])
    lines = [
        np.pad(
            np.hstack([_thumbnail(pixels(x)), bars(p.numpy(), label)]), ((0, 4), (0, 0), (0, 0)), constant_values=250
        )
        for x, p, label in zip(batch["x"], said, labels, strict=True)
    ]
    right = int((said.argmax(dim=1) == batch["labels"]).sum())
    cell = (png(np.vstack(lines)), f"{right} of {len(labels)} right")
    note = (
        f"The first {len(labels)} dev images at one evaluation after another: the number is the step. Beside each a "
        "bar for each class: green is the label's, red an answer that is wrong."
    )
    return [gallery("What is seen while it learns", [role], [("now", {role: cell})], note=note)]


def _thumbnail(picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "side side 3"]:
    """A picture as high and wide as the bars, by nearest neighbour."""
    rows, columns = (np.arange(LEAST) * side // LEAST for side in picture.shape[:2])
    small: np.ndarray = picture[rows][:, columns]
    return small


def _chosen(probabilities: Tensor, labels: Tensor) -> list[int]:
    first = list(range(min(SHOWN // 2, len(labels))))
    confidence, answer = probabilities.max(dim=1)
    wrong = (answer != labels).nonzero().flatten()
    surest = wrong[confidence[wrong].argsort(descending=True, stable=True)].tolist()
    return first + [i for i in surest if i not in first][: SHOWN - len(first)]


def _probabilities(model: nn.Module, x: Tensor) -> Tensor:
    device = next(model.parameters()).device
    return torch.cat([torch.softmax(model(part.to(device)).float(), dim=1).cpu() for part in x.split(64)])


def pixels(image: Float[Tensor, "c h w"], least: int = LEAST) -> UInt8[np.ndarray, "h w 3"]:
    """An image in [-1, 1] in colour, enlarged by nearest neighbour so that pixels stay pixels, to `least` a side."""
    bright = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    times = -(-least // min(bright.shape[:2]))
    return np.broadcast_to(bright, (*bright.shape[:2], 3)).repeat(times, axis=0).repeat(times, axis=1)


__all__ = ["bars", "glimpse", "pixels", "show"]
