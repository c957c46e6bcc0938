"""Codes of the teacher's rows as classes: a student that need not have its width, nor its scale, predicts them."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from .base import loss
from .connectors import built_for

Count = Annotated[int, Field(ge=1)]
#: What a batch's rows weigh against those of the batch before it, and rows below which a centre is begun anew.
DECAY, DEAD = 0.95, 0.1


@loss(
    "mvq", reduction="batch", family="features", year=2022, needs="features", confidence="B",
    properties="widths_differ",
    paper="Yang et al.: Predicting Multi-Codebook Vector Quantization Indexes for Knowledge Distillation",
)  # fmt: skip
class Mvq(nn.Module):
    """``-mean_rows sum_k log softmax(W_k s + b_k)[i_k(t)]``: the student predicts the codes of the teacher's row.

    A row is quantised as the sum of one centre of each codebook (direct sum, section 2.1), whose numbers i_k are
    chosen one after the other and then again with the others held, so that the squared error falls. The linear heads
    are dropped with the objective; published with a weight of 0.1 beside a transducer's loss, on a layer in the middle.

    The paper trains codebooks by gradients before the student. Here they are found by k-means on the teacher's rows of
    the training's first batches, at whose beginning they are rows and what is left of rows; then they stay.

    Args:
        codebooks: how many; the paper's bytes a frame, 4 to 32.
        size: centres of each, 256 in the paper.
        refine: rounds in which every code is chosen again.
        rows: of the teacher, by which codebooks are fitted while training goes on.
    """

    centres: Tensor
    held: Tensor
    seen: Tensor

    def __init__(
        self, student_width: int, teacher_width: int,
        *, codebooks: Count = 8, size: Annotated[int, Field(ge=2)] = 256, refine: Annotated[int, Field(ge=0)] = 2,
        rows: Count = 200_000,
    ):  # fmt: skip
        super().__init__()
        self.widths, self.refine, self.rows = (student_width, teacher_width), refine, rows
        self.heads = nn.Linear(student_width, codebooks * size)
        self.register_buffer("centres", torch.zeros(codebooks, size, teacher_width))
        self.register_buffer("held", torch.zeros(codebooks, size))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        built_for(student, teacher, *self.widths)
        if not len(student):
            return 0.0 * student.sum()
        fitting = self.training and torch.is_grad_enabled() and self.seen < self.rows
        if fitting and self.seen == 0:
            self._begin(teacher)
        codes = self.codes(teacher)
        said = F.log_softmax(self.heads(student).unflatten(1, self.held.shape), dim=2)
        value = -said.gather(2, codes[:, :, None]).sum(dim=(1, 2)).mean()
        if fitting:
            self._fit(teacher, codes)
        return value

    @torch.no_grad()
    def codes(self, rows: Float[Tensor, "n d"]) -> Int[Tensor, "n k"]:
        """The number of each codebook's centre."""
        centres = self.centres.to(rows)
        books, size, _ = centres.shape
        flat = centres.flatten(0, 1)
        products = (flat @ flat.T).unflatten(1, (books, size)).unflatten(0, (books, size))  # k s k s
        # half the squared error, but for what all choices share; what the other codes add is in `others`
        alone = 0.5 * flat.square().sum(dim=1).reshape(books, size) - (rows @ flat.T).unflatten(1, (books, size))
        others, found = torch.zeros_like(alone), rows.new_zeros(len(rows), books, dtype=torch.int64)
        for turn in range(1 + self.refine):
            for k in range(books):
                if turn:
                    others -= _added(products, k, found[:, k])
                found[:, k] = (alone[:, k] + others[:, k]).argmin(dim=1)
                others += _added(products, k, found[:, k])
        return found

    def decode(self, codes: Int[Tensor, "n k"]) -> Float[Tensor, "n d"]:
        """The sum of their centres."""
        return torch.stack([book[at] for book, at in zip(self.centres, codes.T, strict=True)]).sum(dim=0)

    @torch.no_grad()
    def _begin(self, rows: Tensor) -> None:
        """Each codebook begins with what those before it leave of some rows, not those of another codebook."""
        books, size, _ = self.centres.shape
        rest = rows.clone()
        for k in range(books):
            at = (torch.arange(size, device=rows.device) * books + k) * len(rows) // (size * books)
            chosen = rest[at]
            nearest = torch.cdist(rest, chosen).argmin(dim=1)
            self.centres[k] = chosen.to(self.centres)
            rest = rest - chosen[nearest]

    @torch.no_grad()
    def _fit(self, rows: Tensor, codes: Tensor) -> None:
        """A step of k-means: a centre moves to the mean of what the other codebooks leave to it."""
        rows = rows.to(self.centres)
        made = self.decode(codes)
        for book, held, at in zip(self.centres, self.held, codes.T, strict=True):
            wanted = rows - made + book[at]
            count = torch.bincount(at, minlength=len(book)).to(held)
            total = torch.zeros_like(book).index_add_(0, at, wanted)
            before, now = DECAY * held, DECAY * held + count
            moved = (before[:, None] * book + total) / now.clamp(min=1e-12)[:, None]
            made -= book[at]
            book.copy_(torch.where(count[:, None] > 0, moved, book))
            held.copy_(now)
            made += book[at]
            unused = (held < DEAD).nonzero()[:, 0]
            worst = (rows - made).square().sum(dim=1).argsort(descending=True, stable=True)[: len(unused)]
            book[unused[: len(worst)]] = wanted[worst]
            held[unused[: len(worst)]] = 1.0
        self.seen += len(rows)


def _added(products: Tensor, k: int, codes: Int[Tensor, " n"]) -> Float[Tensor, "n k s"]:
    """Products of all centres with each row's centre of codebook `k`."""
    return products[:, :, k].movedim(2, 0)[codes]
