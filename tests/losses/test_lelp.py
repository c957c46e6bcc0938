"""LELP: linear projections of the teacher's features as subclasses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from learned_small import made, randn
from torch import Tensor

from xmodal_kd.losses.subclasses import class_scores, save_statistics, subclass_statistics

# ---------------------------------------------------------------- lelp


def planted(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings (200, 6) of two classes by the first channel, and two subclasses of each by the third or fourth."""
    classes, sub = (torch.arange(200) // 100), torch.arange(200) % 2
    h = 0.05 * randn(200, 6, seed=seed)
    h[:, 0] += 4.0 * classes
    h[torch.arange(200), 2 + classes] += 2.0 * sub - 1
    classifier = torch.zeros(2, 6, dtype=torch.float64)
    classifier[1, 0], classifier[0, 0] = 1, -1
    return h, classes, sub, classifier


def test_lelp_finds_planted_subclasses_outside_the_classifiers_view() -> None:
    h, classes, sub, classifier = planted()
    found = subclass_statistics(h, classes, classifier, 2)
    assert found["null"].double() @ classifier.T == pytest.approx(0, abs=1e-6)
    assert found["directions"][0, :, 0].abs().argmax() == 2 and found["directions"][1, :, 0].abs().argmax() == 3
    lelp = made("lelp", [4], [2, 6], subclasses=2)
    with pytest.raises(ValueError, match="no statistics"):
        lelp([randn(200, 4)], [randn(200, 2), h])
    lelp.fit(h, classes, classifier)
    within = lelp._within(h)
    torch.testing.assert_close(within.sum(-1), torch.ones(200, 2, dtype=torch.float64))
    own = within[torch.arange(200), classes, 0]  # the second direction is noise of the same deviation
    for k in (0, 1):
        high, low = (own[(classes == k) & (sub == i)] for i in (1, 0))
        assert high.mean() - low.mean() > 0.3


def test_lelp_is_least_where_the_student_says_the_targets_and_its_class_scores_are_then_the_teachers() -> None:
    h, classes, _, classifier = planted()
    teacher = 2 * randn(200, 2, seed=4)
    lelp = made("lelp", [6], [2, 6], subclasses=3, tau=2.0)
    lelp.fit(h, classes, classifier, rotation=7)
    q = torch.softmax(teacher, -1)[:, :, None] * lelp._within(h)
    student = q.flatten(1).log().requires_grad_()
    values = lelp([student], [teacher, h])
    torch.testing.assert_close(values, -(q * q.log()).sum((1, 2)))
    assert torch.autograd.grad(values.sum(), student)[0].abs().max() < 1e-12
    torch.testing.assert_close(torch.softmax(class_scores(student, 2), -1), torch.softmax(teacher, -1))


def test_lelp_statistics_by_file_and_their_refusals(tmp_path: Path) -> None:
    h, classes, _, classifier = planted()
    found = subclass_statistics(h, classes, classifier, 2)
    save_statistics(found, tmp_path / "lelp.safetensors")
    lelp = made("lelp", [4], [2, 6], subclasses=2, statistics=tmp_path / "lelp.safetensors")
    fitted = made("lelp", [4], [2, 6], subclasses=2)
    fitted.fit(h, classes, classifier)
    inputs = [randn(200, 4)], [randn(200, 2, seed=1), h]
    assert torch.equal(lelp(*inputs), fitted(*inputs))
    own = made("lelp", [5], [2, 6], subclasses=2, head="own", statistics=tmp_path / "lelp.safetensors")
    assert own([randn(200, 5)], inputs[1]).isfinite().all()
    with pytest.raises(ValueError, match=r"statistics mean of shape \(2, 6\), where \(3, 6\) is needed"):
        made("lelp", [6], [3, 6], subclasses=2, statistics=tmp_path / "lelp.safetensors")
    with pytest.raises(ValueError, match="class 1 has 2 embeddings of width 6: 2 subclasses need more"):
        subclass_statistics(h[:102], classes[:102], classifier, 2)
