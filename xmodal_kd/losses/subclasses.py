"""Pseudo-subclasses of a teacher's embeddings: soft labels that still say something where there are two classes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Positive, loss

Rows = list[Float[Tensor, "n c"]]


@loss(
    "lelp", reduction="rows", family="logits", year=2024, needs="teacher_embedding statistics", confidence="B",
    paper="Loo et al.: Linear Projections of Teacher Embeddings for Few-Class Distillation",
    properties="widths_differ tied_widths",
)  # fmt: skip
class Lelp(nn.Module):
    """``-T^2 sum_ks q_ks log softmax(student/T)_ks`` over S pseudo-subclasses of each class, ``q_ks = p_t[k] r_ks``.

    Within class k, ``r_k = softmax(z_k/tau)`` and z are the coordinates of the teacher's embedding along the main
    directions of that class, in units of their deviation, after the part that the teacher's classifier sees is
    projected out. ``on`` is one signal of the student, its (K S) logits with a class's subclasses side by side, and two
    of the teacher: logits and embedding. The student's class scores are `class_scores`. For heads of few classes.
    Published with a weight of 1 and 4 to 10 subclasses.

    Args:
        subclasses: S.
        tau: temperature of the subclasses; `temperature` divides both sides' logits.
        statistics: file that `save_statistics` wrote; None where `fit` is called before training.
        head: ``student`` takes the student's rows as the (K S) logits, as in the paper; ``own`` puts a linear head
            of this loss before them, for a student whose last layer is to keep its K outputs (not the paper's).
    """

    null: Tensor
    mean: Tensor
    directions: Tensor
    scale: Tensor

    def __init__(
        self, student_width: list[int], teacher_width: list[int],
        *, subclasses: Annotated[int, Field(gt=0)] = 5, temperature: Positive = 1.0, tau: Positive = 1.0,
        statistics: Path | None = None, head: Literal["student", "own"] = "student",
    ):  # fmt: skip
        super().__init__()
        if len(student_width) != 1 or len(teacher_width) != 2:
            raise ValueError("lelp compares one signal of the student with two of the teacher: logits and embedding")
        classes, width = teacher_width
        outputs = classes * subclasses
        if head == "student" and student_width[0] != outputs:
            raise ValueError(
                f"the student has {student_width[0]} outputs, and {subclasses} subclasses of {classes} classes are "
                f"{outputs}: widen its head, or set head: own"
            )
        self.head = nn.Linear(student_width[0], outputs) if head == "own" else nn.Identity()
        self.widths = *student_width, *teacher_width
        self.temperature, self.tau, self._known = temperature, tau, False
        self.register_buffer("null", torch.zeros(width, width))
        self.register_buffer("mean", torch.zeros(classes, width))
        self.register_buffer("directions", torch.zeros(classes, width, subclasses))
        self.register_buffer("scale", torch.zeros(classes, subclasses))
        if statistics is not None:
            self._take(load_file(statistics))

    def fit(
        self, embeddings: Float[Tensor, "n d"], classes: Int[Tensor, " n"], classifier: Float[Tensor, "k d"],
        *, rotation: int | None = None,
    ) -> None:  # fmt: skip
        """Take the statistics of the teacher's embeddings of the training set: see `subclass_statistics`."""
        count = self.directions.shape[2]
        self._take(subclass_statistics(embeddings, classes, classifier, count, rotation=rotation))

    def _take(self, statistics: dict[str, Tensor]) -> None:
        for name in ("null", "mean", "directions", "scale"):
            own, given = getattr(self, name), statistics[name]
            if own.shape != given.shape:
                raise ValueError(f"statistics {name} of shape {tuple(given.shape)}, where {tuple(own.shape)} is needed")
            own.copy_(given)

    def forward(self, student: Rows, teacher: Rows) -> Float[Tensor, " n"]:
        (rows,), (logits, embedding) = student, teacher
        sides = (rows, logits, embedding)
        if [tuple(x.shape) for x in sides] != [(len(rows), width) for width in self.widths]:
            raise ValueError(
                f"student {tuple(rows.shape)} and teacher {tuple(logits.shape)}, {tuple(embedding.shape)} are not the "
                f"same rows of widths {', '.join(map(str, self.widths))}"
            )
        self._known = self._known or bool(self.scale.any())  # asked once: the answer waits for the device
        if not self._known:
            raise ValueError("lelp has no statistics of the teacher's embeddings yet: give a file, or call its fit")
        log_s = F.log_softmax(self.head(rows) / self.temperature, dim=-1)
        p_t = torch.softmax(logits / self.temperature, dim=-1)
        target = (p_t[:, :, None] * self._within(embedding)).flatten(1)
        values: Tensor = -(self.temperature**2) * (target * log_s).sum(dim=-1)
        return values

    def _within(self, embedding: Tensor) -> Float[Tensor, "n k s"]:
        """Subclass probabilities within each class; a direction along which a class does not vary says nothing."""
        along = torch.einsum("nd,kds->nks", embedding @ self.null, self.directions)
        along = along - torch.einsum("kd,kds->ks", self.mean, self.directions)
        spread = self.scale > 1e-12
        return torch.softmax(along * spread / torch.where(spread, self.scale, 1.0) / self.tau, dim=-1)


def class_scores(logits: Float[Tensor, "n ks"], classes: int) -> Float[Tensor, "n k"]:
    """Class scores of a student of `lelp`: log-sum-exp over each class's subclasses."""
    return torch.logsumexp(logits.unflatten(-1, (classes, -1)), dim=-1)


@torch.no_grad()
def subclass_statistics(
    embeddings: Float[Tensor, "n d"], classes: Int[Tensor, " n"], classifier: Float[Tensor, "k d"], subclasses: int,
    *, rotation: int | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """What `lelp` knows of the teacher's last embeddings over the training set, from one pass over it.

    Args:
        classes: of each embedding, by label or by the teacher's own choice.
        classifier: weight of the teacher's last linear layer, whose row space is projected out.
        rotation: seed of a random rotation of each class's directions within their span; None leaves them principal.

    Raises ``ValueError`` for a class with too few embeddings.
    """
    h, w = embeddings.double(), classifier.double()
    null = torch.eye(h.shape[1], dtype=h.dtype, device=h.device) - torch.linalg.pinv(w) @ w
    random = torch.Generator().manual_seed(rotation or 0)
    means, directions, scales = [], [], []
    for k in range(len(w)):
        own = h[classes == k] @ null
        if len(own) <= subclasses or h.shape[1] < subclasses:
            raise ValueError(
                f"class {k} has {len(own)} embeddings of width {h.shape[1]}: {subclasses} subclasses need more"
            )
        centred = own - own.mean(dim=0)
        v = torch.linalg.svd(centred, full_matrices=False).Vh[:subclasses].T
        v = v * torch.sign(v.gather(0, v.abs().argmax(dim=0, keepdim=True)))  # the same on every machine
        if rotation is not None:
            q = torch.linalg.qr(torch.randn(subclasses, subclasses, generator=random, dtype=h.dtype)).Q
            v = v @ q.to(v.device)
        means.append(own.mean(dim=0))
        directions.append(v)
        scales.append((centred @ v).square().mean(dim=0).sqrt())
    found = {
        "null": null,
        "mean": torch.stack(means),
        "directions": torch.stack(directions),
        "scale": torch.stack(scales),
    }
    return {name: value.float() for name, value in found.items()}


def save_statistics(statistics: dict[str, Tensor], path: Path) -> None:
    """Write what `subclass_statistics` found, for the recipe's ``statistics``."""
    save_file({name: value.contiguous() for name, value in statistics.items()}, path)
