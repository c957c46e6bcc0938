"""Soft labels without a teacher, made of what a network says at its end and in its middle."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from .base import item_mean, loss
from .connectors import over_ranks

Weight = Annotated[float, Field(ge=0)]
#: What divisions by what the label leaves are held off 0 by, as in the release.
ADDED = 1e-6


@loss(
    "uskd", reduction="rows", family="self", year=2023, needs="logits features",
    paper="Yang et al.: From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized "
    "Loss and Customized Soft Labels",
    properties="batch_statistics labelled_lists held_weight",
)  # fmt: skip
class Uskd(nn.Module):
    """``-alpha P log p[y] - beta sum_{k != y} Z log q[k] + mu CE(weak, smoothed label)``, without a teacher.

    P, at the label, is ``p[y]^2 + 1 - mean p[y]^2``: more where the network is sure already. Z, beside it, is Zipf's
    law, ``1 / rank``, over the classes' ranks by what the network and a weak linear head on its middle say together; q
    is the softmax beside the label. Both are constants. The weak head learns from the label smoothed by 0.1, and
    reaches the trunk below it. ``on`` lists the student's logits and a feature from its middle, whose rows are averaged
    over the item where they are not those of the logits. Takes the place of the cross-entropy, whose own part it has;
    the defaults are those of ImageNet, CIFAR-100 has 0.1 for all three with a weight of 1 beside it. Needs 3 classes.

    Args:
        ranks: add the network's own part as ``log p / (1 - log p[y])``, which the release does, or ``p / (1 - p[y])``,
            which the weak head's part has.
    """

    def __init__(
        self, student_width: list[int], teacher_width: list[int],
        *, alpha: Weight = 1.0, beta: Weight = 0.1, mu: Weight = 0.005, ranks: Literal["log", "probability"] = "log",
    ):  # fmt: skip
        super().__init__()
        if len(student_width) != 2 or student_width[0] < 3:
            raise ValueError(
                f"uskd asks for the student's logits of at least 3 classes and a feature of its middle, got signals of "
                f"widths {student_width}"
            )
        self.alpha, self.beta, self.mu, self.ranks = alpha, beta, mu, ranks
        self.head = nn.Linear(student_width[1], student_width[0])

    def forward(
        self, student: list[Float[Tensor, "n _"]], item: list[Int[Tensor, " n"]], items: int, labels: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        logits, middle = student
        if labels.shape != logits.shape[:1]:
            raise ValueError(f"labels {tuple(labels.shape)} are not one a row of the student {tuple(logits.shape)}")
        if not torch.equal(item[0], item[1]):
            middle = item_mean(middle, item[1], items)[item[0]]
        weak, at = self.head(middle), labels[:, None]
        log_p = F.log_softmax(logits, dim=-1)
        values = -self.alpha * self._sureness(log_p, at) * log_p.gather(1, at).squeeze(1)
        values = values - self.beta * self._beside(logits, log_p, weak, at)
        return values + self.mu * F.cross_entropy(weak, labels, reduction="none", label_smoothing=0.1)

    @torch.no_grad()
    def _sureness(self, log_p: Tensor, at: Tensor) -> Tensor:
        """P ``(n,)``, whose mean over all ranks' rows is 1."""
        squared = log_p.gather(1, at).squeeze(1).exp().square()
        number = over_ranks(squared.new_tensor(float(len(squared)))).clamp(min=1)
        return squared + 1 - over_ranks(squared.sum()) / number

    def _beside(self, logits: Tensor, log_p: Tensor, weak: Tensor, at: Tensor) -> Tensor:
        """``sum_{k != y} Z log q[k]``."""
        with torch.no_grad():
            own, w = (log_p if self.ranks == "log" else log_p.exp()), torch.softmax(weak, dim=-1)
            order = sum(x / (1 - x.gather(1, at) + ADDED) for x in (w, own))
            assert isinstance(order, Tensor)
            place = order.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
            zipf = (1 / (1 + place).to(logits)).scatter(1, at, 0.0)
            zipf = zipf / zipf.sum(dim=-1, keepdim=True)
        log_q = F.log_softmax(logits.scatter(1, at, -torch.inf), dim=-1).scatter(1, at, 0.0)
        return (zipf * log_q).sum(dim=-1)
