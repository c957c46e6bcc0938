"""The CTC loss against the enumeration of all paths, and posteriors across frame rates."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from xmodal_kd.losses.base import LOSSES
from xmodal_kd.modalities.speech.losses.ctc import ctc
from xmodal_kd.modalities.speech.losses.frame_alignment import fit_frames, pool_posteriors
from xmodal_kd.runtime.errors import UserError


def collapse(path: tuple[int, ...], blank: int) -> list[int]:
    return [k for k, _ in itertools.groupby(path) if k != blank]


def brute_force(logits: Tensor, target: list[int], blank: int = 0) -> float:
    """-log of the sum over all paths that collapse to `target`."""
    p = logits.double().softmax(dim=-1).tolist()
    paths = itertools.product(range(logits.shape[-1]), repeat=len(p))
    total = sum(
        math.prod(row[k] for row, k in zip(p, path, strict=True)) for path in paths if collapse(path, blank) == target
    )
    return -math.log(total) if total else math.inf


def rows(frames: list[int], targets: list[list[int]], classes: int = 4) -> tuple[Tensor, Tensor, int, Tensor, Tensor]:
    torch.manual_seed(0)
    item = torch.arange(len(frames)).repeat_interleave(torch.tensor(frames))
    labels = torch.tensor([k for target in targets for k in target], dtype=torch.int64)
    label_item = torch.arange(len(targets)).repeat_interleave(torch.tensor([len(t) for t in targets]))
    return torch.randn(len(item), classes, dtype=torch.float64) * 2, item, len(frames), labels, label_item


@pytest.mark.parametrize("blank", [0, 3])
def test_ctc_is_the_sum_over_all_paths(blank: int) -> None:
    a, b = [k for k in range(4) if k != blank][:2]
    frames, targets = [5, 3, 4, 2, 5], [[a, b], [a, a], [], [b], [a, b, a]]
    args = rows(frames, targets)
    values, counted = ctc(*args, blank=blank)
    expected = [
        brute_force(logits, target, blank) / max(len(target), 1)
        for logits, target in zip(args[0].split(frames), targets, strict=True)
    ]
    assert counted.all() and values.dtype == torch.float64
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64))


def test_what_cannot_be_aligned_is_not_counted() -> None:
    student, *rest = rows([2, 2, 1, 0, 0, 3], [[1, 1], [1, 2, 3], [1], [1], [], [1, 1]])
    student.requires_grad_()
    values, counted = ctc(student, *rest)
    assert counted.tolist() == [False, False, True, False, False, True]
    assert values[~counted].abs().sum() == 0 and torch.isfinite(values).all()
    values.sum().backward()
    assert torch.isfinite(student.grad).all() and student.grad[:4].abs().sum() == 0


def test_ctc_gradient() -> None:
    student, *rest = rows([4, 3], [[1, 1], [2]])
    assert torch.autograd.gradcheck(lambda s: ctc(s, *rest)[0], student.requires_grad_())


def test_half_precision_is_computed_in_float32() -> None:
    student, *rest = rows([4, 3], [[1, 1], [2]])
    values, _ = ctc(student.bfloat16(), *rest)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, ctc(student.bfloat16().float(), *rest)[0])


def test_a_nan_is_not_hidden() -> None:
    student, *rest = rows([4, 3], [[1, 1], [2]])
    student[0] = float("nan")
    assert ctc(student, *rest)[0].isnan().tolist() == [True, False]


def test_no_rows_at_all() -> None:
    values, counted = ctc(*rows([0, 0], [[1], []]))
    assert values.tolist() == [0, 0] and not counted.any()


@pytest.mark.parametrize("label", [0, 4, -1])
def test_labels_that_are_no_classes(label: int) -> None:
    with pytest.raises(ValueError, match="blank 0"):
        ctc(*rows([4], [[label]]))


def test_ctc_is_registered() -> None:
    spec = LOSSES["ctc"]
    assert spec.reduction == "items" and spec.needs == {"logits", "labels"} and not spec.needs_teacher
    assert spec.params().model_dump() == {"blank": 0}


def peaky(*tokens: int, classes: int = 4) -> Tensor:
    """Logits that say one token a frame, almost surely."""
    return 8.0 * torch.nn.functional.one_hot(torch.tensor(tokens), classes).float()


def test_pooling_by_hand() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.2, 0.5, 0.3]])
    pooled, lengths = pool_posteriors(p.log()[None], torch.tensor([3]), 2)
    expected = torch.tensor([[0.1, 0.3, 0.6], [0.2, 0.5, 0.3]])
    torch.testing.assert_close(pooled.exp()[0], expected)
    assert lengths.tolist() == [2]


def test_pooling_keeps_spikes_where_a_mean_would_say_blank() -> None:
    logits = peaky(0, 1, 0, 0, 0, 0, 0, 2, 0, 0)[None]
    pooled, _ = pool_posteriors(logits, torch.tensor([10]), 3)
    assert pooled.argmax(dim=-1).tolist() == [[1, 0, 2, 0]]
    assert pooled.exp()[0, 0, 1] > 0.99
    assert logits.softmax(-1)[0, :3].mean(0).argmax() == 0


@pytest.mark.parametrize("factor", [1, 2, 3, 5])
def test_pooling_does_not_see_padding(factor: int) -> None:
    logits = torch.randn(3, 11, 4)
    lengths = torch.tensor([11, 7, 1])
    noisy = logits.masked_fill(torch.arange(11)[None, :, None] >= lengths[:, None, None], float("nan"))
    pooled, counts = pool_posteriors(noisy, lengths, factor)
    assert torch.isfinite(pooled).all() and pooled.shape[1] == -(-11 // factor)
    torch.testing.assert_close(pooled.exp().sum(-1), torch.ones(pooled.shape[:2]))
    for i, length in enumerate(lengths.tolist()):
        alone, (count,) = pool_posteriors(logits[i : i + 1, :length], lengths[i : i + 1], factor)
        assert count == counts[i]
        torch.testing.assert_close(pooled[i, :count], alone[0])


def test_the_gradient_of_pooling_does_not_see_padding() -> None:
    logits = torch.randn(2, 7, 4)
    logits[1, 4:] = float("nan")
    logits.requires_grad_()
    pooled, _ = pool_posteriors(logits, torch.tensor([7, 4]), 3)
    pooled.square().sum().backward()
    assert torch.isfinite(logits.grad).all() and logits.grad[1, 4:].abs().sum() == 0


def test_pooling_by_one_is_log_softmax() -> None:
    logits = torch.randn(2, 5, 4)
    torch.testing.assert_close(pool_posteriors(logits, torch.tensor([5, 5]), 1)[0], logits.log_softmax(-1))


def test_lengths_that_nearly_match_are_made_to() -> None:
    values = torch.randn(2, 10, 3)
    cut = fit_frames(values, torch.tensor([10, 6]), torch.tensor([8, 6]))
    longer = fit_frames(values, torch.tensor([10, 6]), torch.tensor([12, 5]))
    assert torch.equal(cut, values[:, :8])
    assert torch.equal(longer, torch.cat([values, values[:, -1:], values[:, -1:]], dim=1))


def test_lengths_of_different_rates_are_refused() -> None:
    with pytest.raises(UserError, match="10 frames where 13"):
        fit_frames(torch.zeros(1, 10, 3), torch.tensor([10]), torch.tensor([13]))
