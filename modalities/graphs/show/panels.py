"""Test nodes on a run's page: what lies around each, and what each role makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from xmodal_kd.adapter.adapter import Batch
from xmodal_kd.adapter.panels import BARS, Panel, bars, gallery, png

from ..data.source import GraphsSource

#: Nodes shown, half of them the split's first, half those that the student is surest of and wrong.
SHOWN = 12
#: Nodes among which those are looked for.
SEARCHED = 512

Answer = Callable[[str, nn.Module, Batch], Tensor]


@torch.no_grad()
def show(
    source: GraphsSource, models: Mapping[str, nn.Module], classes: Sequence[str], answer: Answer
) -> Sequence[Panel]:
    """One gallery: a node a row, the classes around it, and a role a column with its answer and a bar for each class.

    Args:
        answer: scores of a role on a batch.
    """
    batch = source.collate([source.sample(i, 0) for i in range(min(len(source), SEARCHED))])
    labels, said = batch["labels"].tolist(), {}
    for role, model in models.items():
        device = next(model.parameters()).device
        moved = {key: value.to(device) for key, value in batch.items() if isinstance(value, Tensor)}
        said[role] = torch.softmax(answer(role, model, moved).float(), dim=1).cpu().numpy()
    rows = []
    for i in _chosen(said["student"], np.array(labels)):
        shares, degree = source.classes_around(i)
        cells = {"neighbours": (png(bars(shares, labels[i])), f"{degree} neighbours")}
        for role, probabilities in said.items():
            best = int(probabilities[i].argmax())
            told = f"{classes[best]} {100 * float(probabilities[i, best]):.0f} %"
            cells[role] = (png(bars(probabilities[i], labels[i])), told)
        rows.append((f"{batch['keys'][i]}: {classes[labels[i]]}", cells))
    note = (
        f"The first test nodes, then those that the student is surest of and wrong, among the first {len(labels)}. A "
        f"bar for each class{f' of the first {BARS}' if len(classes) > BARS else ''}: green is the label's, red an "
        "answer that is wrong; of the neighbours the share of each class."
    )
    return [gallery("What each role makes of a node", ["neighbours", *models], rows, note=note)]


def _chosen(probabilities: np.ndarray, labels: np.ndarray) -> list[int]:
    first = list(range(min(SHOWN // 2, len(labels))))
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    surest = wrong[(-probabilities[wrong].max(axis=1)).argsort(kind="stable")].tolist()
    return first + [i for i in surest if i not in first][: SHOWN - len(first)]


__all__ = ["show"]
