"""Losses between self-attention layers: their maps are computed again from queries, keys and values.

Fused attention shows no maps. The rows of q, k and v ``(n, heads * d_k)`` are an item's tokens, heads one after
another; attention runs among the valid tokens of one item, so padding never needs a mask of its own.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple, TypeVar

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..signals.layer_map import LayerMap, layer_pairs
from .base import item_mean, loss, same_rows, same_shape

T = TypeVar("T")
Heads = Annotated[int, Field(gt=0)]
Rows = list[Float[Tensor, "n c"]]


class _Tokens(NamedTuple):
    """Items' tokens side by side: ``(b, L, ...)`` with L the longest item's."""

    place: Int[Tensor, " n"]
    valid: Bool[Tensor, "b L"]

    @classmethod
    def of(cls, item: Tensor, items: int) -> _Tokens:
        count = torch.bincount(item, minlength=items)
        order = torch.argsort(item, stable=True)
        start = count.cumsum(0) - count
        position = torch.empty_like(item)
        position[order] = torch.arange(len(item), device=item.device) - start[item[order]]
        longest = int(count.max()) if items else 0
        return cls(item * longest + position, torch.arange(longest, device=item.device) < count[:, None])

    def heads(self, rows: Tensor, heads: int) -> Float[Tensor, "b h L d"]:
        """Rows by item and head, 0 in the padding."""
        b, longest = self.valid.shape
        laid = rows.new_zeros(b * longest, rows.shape[1]).index_copy(0, self.place, rows)
        return rearrange(laid, "(b l) (h d) -> b h l d", b=b, h=heads)

    def log_relation(self, a: Tensor, b: Tensor) -> Float[Tensor, "b h L L"]:
        """``log softmax(a b' / sqrt(d))`` over the item's tokens; the padding holds finite numbers."""
        scores = a @ b.transpose(-1, -2) / a.shape[-1] ** 0.5
        absent = ~(self.valid | ~self.valid.any(dim=1, keepdim=True))  # an item without tokens masks none
        return F.log_softmax(scores.masked_fill(absent[:, None, None], -torch.inf), dim=-1).clamp(min=-1e30)

    def divergence(self, teacher: Tensor, student: Tensor) -> Float[Tensor, " b"]:
        """``KL(teacher || student)`` of log-relations, a mean over heads and the item's queries."""
        both = self.valid[:, None, :, None] & self.valid[:, None, None]
        terms = (teacher.exp() * (teacher - student)).masked_fill(~both, 0.0)
        return self.mean(terms.sum(dim=-1).mean(dim=1).sum(dim=-1))

    def mean(self, summed: Float[Tensor, " b"], power: int = 1) -> Float[Tensor, " b"]:
        """A sum over an item's tokens (their pairs: `power` 2) over their number."""
        return summed / self.valid.sum(dim=1).clamp(min=1) ** power

    @property
    def counted(self) -> Tensor:
        return self.valid.any(dim=1)


def _fit(heads: int, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> None:
    """Refuse signals of a layer that are not the same tokens, or not `heads` heads, or queries and keys that differ."""
    for s, t in zip(student, teacher, strict=True):
        same_rows(s, t)
        if len(s) != len(student[0]) or s.shape[1] % heads or t.shape[1] % heads:
            raise ValueError(
                f"student {tuple(s.shape)} and teacher {tuple(t.shape)} are not the same tokens in {heads} heads of "
                "equal width"
            )
    (q_s, k_s), (q_t, k_t) = student[:2], teacher[:2]
    if q_s.shape != k_s.shape or q_t.shape != k_t.shape:
        raise ValueError(
            f"keys of student {tuple(k_s.shape)} and teacher {tuple(k_t.shape)} do not fit queries of student "
            f"{tuple(q_s.shape)} and teacher {tuple(q_t.shape)}"
        )


def _three(student: Rows, teacher: Rows, heads: int) -> None:
    if len(student) != 3 or len(teacher) != 3:
        raise ValueError(
            f"{len(student)} and {len(teacher)} signals, where each side gives three: queries, keys, values"
        )
    _fit(heads, tuple(student), tuple(teacher))


def _relations(student: Rows, teacher: Rows, tokens: _Tokens, heads: int, pairs: tuple[tuple[int, int], ...]) -> Tensor:
    """``(b,)`` divergences of the relations between the signals numbered in `pairs`, added up."""
    total = student[0].new_zeros(len(tokens.valid))
    for i, j in pairs:
        theirs, mine = (tokens.log_relation(*(tokens.heads(x[k], heads) for k in (i, j))) for x in (teacher, student))
        total = total + tokens.divergence(theirs, mine)
    return total


@loss(
    "minilm", reduction="items", family="transformers", year=2020, needs="qkv", confidence="B",
    paper="Wang et al.: MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Transformers",
    properties="zero_at_teacher widths_differ",
)  # fmt: skip
def minilm(
    student: Rows, teacher: Rows, item: list[Int[Tensor, " n"]], items: int, *, heads: Heads = 12
) -> tuple[Float[Tensor, " b"], Tensor]:
    """``KL(A_t || A_s) + KL(R_t || R_s)``, ``A = softmax(q k' / sqrt(d_k))`` and ``R = softmax(v v' / sqrt(d_k))``.

    Each a mean over heads and the item's tokens. ``on`` names queries, keys and values of the last layer of either
    side; the heads are equal in number, their width d_k need not be. For any transformer: of text, frames, points or
    latents. Published as the whole loss.
    """
    _three(student, teacher, heads)
    tokens = _Tokens.of(item[0], items)
    return _relations(student, teacher, tokens, heads, ((0, 1), (2, 2))), tokens.counted


@loss(
    "minilmv2", reduction="items", family="transformers", year=2021, needs="qkv", confidence="B",
    paper="Wang et al.: MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Transformers",
    properties="zero_at_teacher widths_differ",
)  # fmt: skip
def minilmv2(
    student: Rows, teacher: Rows, item: list[Int[Tensor, " n"]], items: int, *, heads: Heads = 48
) -> tuple[Float[Tensor, " b"], Tensor]:
    """``sum KL(R_t || R_s)`` with ``R = softmax(x x' / sqrt(d))`` for x the queries, the keys and the values.

    Each a mean over relation heads and the item's tokens. All channels are split anew into `heads` relation heads (48
    for a base model, 64 for a large one), so neither widths nor the networks' own heads need agree; the teacher's layer
    is the last or one of its upper middle (21 of 24). Published as the whole loss.
    """
    _three(student, teacher, heads)
    tokens = _Tokens.of(item[0], items)
    return _relations(student, teacher, tokens, heads, ((0, 0), (1, 1), (2, 2))), tokens.counted


def _layers(signals: list[T], embeddings: int) -> tuple[list[T], list[T], list[T]]:
    """Hidden states, queries and keys of a list that holds them, or their widths, behind the embeddings."""
    depth, over = divmod(len(signals) - embeddings, 3)
    if depth < 1 or over:
        before = "the embeddings, then " if embeddings else ""
        raise ValueError(
            f"{len(signals)} signals are not {before}hidden states, queries and keys of as many layers each"
        )
    rest = signals[embeddings:]
    return rest[:depth], rest[depth : 2 * depth], rest[2 * depth :]


@loss(
    "mobilebert", reduction="items", family="transformers", year=2020, needs="hidden qk", confidence="B",
    paper="Sun et al.: MobileBERT: a Compact Task-Agnostic BERT for Resource-Limited Devices",
    properties="zero_at_teacher",
)  # fmt: skip
def mobilebert(
    student: Rows, teacher: Rows, item: list[Int[Tensor, " n"]], items: int,
    *, heads: Heads = 4, layers: LayerMap = "uniform",
) -> tuple[Float[Tensor, " b"], Tensor]:  # fmt: skip
    """``sum_layers mean (h_t - h_s)^2 + KL(A_t || A_s)``: feature maps and attention of an item, layer by layer.

    The first is a mean over tokens and channels, the second over heads and tokens. ``on`` lists the hidden states of
    all layers, then their queries, then their keys. The paper's student is as deep as its teacher, and its bottlenecks
    make hidden states as wide: equal widths. It trains one layer after another, which is terms with schedules of their
    own.
    """
    (h_s, q_s, k_s), (h_t, q_t, k_t) = _layers(student, 0), _layers(teacher, 0)
    tokens = _Tokens.of(item[0], items)
    total = h_s[0].new_zeros(items)
    for m, n in ((m - 1, n - 1) for m, n in layer_pairs(layers, len(h_s), len(h_t))):
        same_shape(h_s[m], h_t[n])
        _fit(heads, (q_s[m], k_s[m]), (q_t[n], k_t[n]))
        total = total + item_mean((h_t[n] - h_s[m]).square().mean(dim=-1), item[0], items)
        theirs, mine = (
            tokens.log_relation(tokens.heads(q, heads), tokens.heads(k, heads))
            for q, k in ((q_t[n], k_t[n]), (q_s[m], k_s[m]))
        )
        total = total + tokens.divergence(theirs, mine)
    return total, tokens.counted


@loss(
    "tinybert", reduction="items", family="transformers", year=2020, needs="embeddings hidden qk",
    paper="Jiao et al.: TinyBERT: Distilling BERT for Natural Language Understanding",
    properties="widths_differ tied_widths",
)  # fmt: skip
class Tinybert(nn.Module):
    """``mean (E_s W_e - E_t)^2 + sum_layers [mean (S_s - S_t)^2 + mean (H_s W_h - H_t)^2]``.

    E are the embeddings, H the hidden states and S the attention scores before the softmax, ``q k' / sqrt(d_k)``; means
    are over an item's tokens and channels, for scores over heads and pairs of tokens. ``on`` lists E, the H of all
    layers, their queries, their keys. One W_h serves all layers; the heads are equal in number. Published with a weight
    of 1, first alone, then before the soft cross-entropy of the logits. The release sets scores of -100 and less to 0,
    which are those of padding: here only valid tokens are compared.
    """

    def __init__(
        self, student_width: list[int], teacher_width: list[int], *, heads: Heads = 12, layers: LayerMap = "uniform"
    ):
        super().__init__()
        for side in (student_width, teacher_width):
            if len(set(_layers(side, 1)[0])) > 1:
                raise ValueError(f"one map serves the hidden states of all layers, whose widths differ: {side}")
        self.heads, self.layers = heads, layers
        self.embed = nn.Linear(student_width[0], teacher_width[0])
        self.hidden = nn.Linear(student_width[1], teacher_width[1])

    def forward(
        self, student: Rows, teacher: Rows, item: list[Int[Tensor, " n"]], items: int
    ) -> tuple[Float[Tensor, " b"], Tensor]:
        (h_s, q_s, k_s), (h_t, q_t, k_t) = _layers(student, 1), _layers(teacher, 1)
        tokens = _Tokens.of(item[0], items)
        total = self._apart(self.embed(student[0]), teacher[0], item[0], items)
        for m, n in ((m - 1, n - 1) for m, n in layer_pairs(self.layers, len(h_s), len(h_t))):
            same_rows(h_s[m], h_t[n])
            total = total + self._apart(self.hidden(h_s[m]), h_t[n], item[0], items)
            _fit(self.heads, (q_s[m], k_s[m]), (q_t[n], k_t[n]))
            laid = [tokens.heads(x, self.heads) for x in (q_s[m], k_s[m], q_t[n], k_t[n])]
            total = total + tokens.mean(_score_gap(*laid), power=2)
        return total, tokens.counted

    @staticmethod
    def _apart(student: Tensor, teacher: Tensor, item: Tensor, items: int) -> Tensor:
        same_shape(student, teacher)
        return item_mean((student - teacher).square().mean(dim=-1), item, items)


def _score_gap(q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor) -> Float[Tensor, " b"]:
    """``sum_ij (q_s_i . k_s_j / sqrt(d_s) - q_t_i . k_t_j / sqrt(d_t))^2``, a mean over heads; padding adds nothing.

    It is ``|Q K'|_F^2`` of both sides' queries and keys joined, hence ``<Q'Q, K'K>``: the (L x L) scores of long items
    are never made.
    """
    q = torch.cat([q_s / q_s.shape[-1] ** 0.5, -q_t / q_t.shape[-1] ** 0.5], dim=-1)
    k = torch.cat([k_s, k_t], dim=-1)
    if q.shape[-2] <= q.shape[-1]:
        return (q @ k.transpose(-1, -2)).square().sum(dim=(-1, -2)).mean(dim=1)
    return ((q.transpose(-1, -2) @ q) * (k.transpose(-1, -2) @ k)).sum(dim=(-1, -2)).mean(dim=1)
