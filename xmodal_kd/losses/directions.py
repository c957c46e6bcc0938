"""Directions of feature vectors: length set to 1, or only the angle compared."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..signals.layer_map import LayerMap, layer_pairs
from .base import loss, same_shape
from .guards import LEAST, direction


def _apart(student: Tensor, teacher: Tensor, least: float = LEAST) -> Tensor:
    """``(n,)`` squared distance of the rows' directions."""
    same_shape(student, teacher)
    return (direction(student, least=least) - direction(teacher, least=least)).square().sum(dim=-1)


@loss(
    "pkd", reduction="rows", family="transformers", year=2019, needs="features", confidence="B",
    paper="Sun et al.: Patient Knowledge Distillation for BERT Model Compression",
    properties="zero_at_teacher scale_invariant",
)  # fmt: skip
def pkd(
    student: list[Float[Tensor, "n c"]], teacher: list[Float[Tensor, "n c"]], *, layers: LayerMap = "skip"
) -> Float[Tensor, " n"]:
    """``sum |h_s/|h_s| - h_t/|h_t||^2`` over pairs of layers, each summed over channels.

    ``on`` names the layers of both sides in order: hidden states, of which the paper takes the [CLS] token, one an
    item; all tokens serve as well. Equal widths, for any transformer. Published with a weight of 10 to 1000 beside `kd`
    at temperatures of 5 to 20.

    Args:
        layers: which student layer learns from which teacher layer, see `xmodal_kd.signals.layer_map`. The paper found
            ``skip`` better than ``last``.
    """
    pairs = layer_pairs(layers, len(student), len(teacher))
    return torch.stack([_apart(student[m - 1], teacher[n - 1]) for m, n in pairs]).sum(dim=0)


@loss(
    "distilbert", reduction="rows", family="transformers", year=2019, needs="features", confidence="B",
    paper="Sanh et al.: DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter",
    properties="zero_at_teacher scale_invariant",
)  # fmt: skip
def distilbert(student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """``1 - cos(h_s, h_t)`` of each row of the last hidden states: the cosine part of the paper's triple loss.

    The other two are terms of their own: `kd` at temperature 2 with weight 5, and the cross-entropy of masked tokens
    with weight 2, beside this one with weight 1. A row of zeros has cosine 0.
    """
    same_shape(student, teacher)
    return 1 - (direction(student) * direction(teacher)).sum(dim=-1)


@loss(
    "jacobian", reduction="rows", family="attention", year=2018, needs="input_gradients", confidence="B",
    paper="Srinivas, Fleuret: Knowledge Transfer with Jacobian Matching", properties="zero_at_teacher scale_invariant",
)  # fmt: skip
def jacobian(student: Float[Tensor, "b d"], teacher: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
    """``|g_s/|g_s| - g_t/|g_t||^2`` of each item's input gradient, summed over the input.

    Rows are the flattened gradients of the label's logit at the item's input: see `input_gradients` below, whose
    results an adapter gives as a signal of either role. The logits are matched by a term of its own (`logit_mse`);
    matching logits on inputs with Gaussian noise is the paper's cheap equivalent. Published with a weight of 20.
    A network that is sure of its answer has input gradients of any smallness, so directions are told down to 1e-12.
    """
    return _apart(student, teacher, least=1e-12)


def input_gradients(
    scores: Float[Tensor, "b k"], inputs: Tensor, labels: Int[Tensor, " b"], *, graph: bool
) -> Float[Tensor, "b d"]:
    """Gradient of each item's label score at its input ``(b, ...)``, flattened: the rows that `jacobian` compares.

    Args:
        inputs: what the network saw, with ``requires_grad`` set before it was run.
        graph: build the gradient's own graph (the student's, for the second backward pass), or not (the teacher's).
    """
    if not inputs.requires_grad:
        raise ValueError("input gradients need inputs.requires_grad_() before the network runs")
    chosen = scores.gather(1, labels[:, None]).sum()
    return torch.autograd.grad(chosen, inputs, create_graph=graph, retain_graph=True)[0].flatten(1)
