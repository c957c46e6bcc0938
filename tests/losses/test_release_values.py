"""Oracles against what the papers' own releases say of the same rows, run once in float64 and written down here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from oracles import recent_logit_losses as recent
from oracles.logit_losses import kd
from oracles.maths import Array

#: Five rows of seven logits, that any machine makes the same; student, teacher, labels.
_COUNT = np.arange(35, dtype=np.float64).reshape(5, 7)
STUDENT: Array = 3 * np.sin(1 + 1.7 * _COUNT)
TEACHER: Array = 4 * np.sin(2 + 2.3 * _COUNT)
LABELS = np.array([0, 3, 6, 3, 1])


def cells(logits: Array) -> Array:
    """Three cells an item: the item itself, one that is turned round by a class, one at half the size."""
    return np.stack([logits, np.roll(logits, 1, axis=1), logits / 2], axis=1)


#: Arguments beside the logits of both.
Given = dict[str, Any]
#: (oracle, its logits, hyper-parameters, mean over the rows), of the repository and commit above it.
RELEASED: list[tuple[Callable[..., Any], tuple[Array, ...], Given, float]] = [
    # github.com/gizi1/NormKD, 279371b
    (kd, (STUDENT, TEACHER), {"per_sample": True, "temperature": 1.0}, 4.875085724379311),
    (kd, (STUDENT, TEACHER), {"per_sample": True, "temperature": 2.0}, 6.595053598640829),
    # github.com/yzd-v/cls_KD, 1e5d48f; the weak head is handed the teacher's logits and the identity
    (recent.nkd, (STUDENT, TEACHER, LABELS), {}, 3.5593716651825775),
    (recent.nkd, (STUDENT, TEACHER, LABELS), {"temperature": 3.0, "gamma": 3.5}, 60.556172679284586),
    (recent.uskd, (STUDENT, TEACHER, LABELS), {}, 4.428018072000449),
    (recent.uskd, (STUDENT, TEACHER, LABELS), {"alpha": 0.1, "beta": 0.1, "mu": 0.1}, 1.0630398448094391),
    # github.com/zkxufo/TTM, fe457b3
    (recent.ttm, (STUDENT, TEACHER), {"temperature": 1.0}, 1.1175262602774365),
    (recent.ttm, (STUDENT, TEACHER), {"temperature": 4.0}, 1.4521397147408937),
    (recent.wttm, (STUDENT, TEACHER), {"temperature": 4.0}, 4.394420410054642),
    # github.com/forjiuzhou/Spherical-Knowledge-Distillation, 1c73fc0
    (recent.spherical_kd, (STUDENT, TEACHER), {"temperature": 1.0}, 1.4653494383055974),
    (recent.spherical_kd, (STUDENT, TEACHER), {"temperature": 4.0}, 5.6373481141319175),
    # github.com/ghwang-s/abkd, df81318, standard_classification
    (recent.abkd, (STUDENT, TEACHER), {}, 1.3073794947312662),
    (recent.abkd, (STUDENT, TEACHER), {"alpha": 0.8, "beta": 0.3, "temperature": 4.0}, 0.2329097719593579),
    (recent.abkd, (STUDENT, TEACHER), {"alpha": 0.2, "beta": 0.7}, 2.448240217908313),
    (recent.abkd, (STUDENT, TEACHER), {"alpha": 0.0, "beta": 0.0, "temperature": 2.0}, 11.616095092893449),
    (recent.abkd, (STUDENT, TEACHER), {"alpha": 0.0, "beta": 1.0}, 3.17318601679665),
    (recent.abkd, (STUDENT, TEACHER), {"alpha": 1.0, "beta": 0.0}, 1.1175262602774367),
    (recent.abkd, (STUDENT, TEACHER), {"alpha": 1.0, "beta": -1.0}, 44.398554473224024),
    # github.com/jiequancui/DKL, c5e8ad2, DKLv1
    (recent.ikl, (STUDENT, TEACHER), {}, 52.1207242547681),
    (
        recent.ikl,
        (STUDENT, TEACHER),
        {"alpha": 0.5, "beta": 2.0, "temperature": 1.0, "weight_temperature": 1.0},
        2.064988899840486,
    ),
    # github.com/lan-long/NTCE-KD, 0842747
    (recent.ntce, (STUDENT, TEACHER, LABELS), {}, 4.556149781975511),
    (
        recent.ntce,
        (STUDENT, TEACHER, LABELS),
        {"temperature": 1.0, "factors": (2.0, 1.5, 1.0, 0.5, 0.0)},
        1.385171137077854,
    ),
    # github.com/shicaiwei123/SDD-CVPR2024, e412036; right, right, right, wrong and wrong as a whole
    (recent.sdd, (cells(STUDENT), cells(TEACHER), np.array([0, 1, 5, 3, 3])), {}, 4.4629311035537365),
    (recent.sdd, (cells(STUDENT), cells(TEACHER), np.array([0, 1, 5, 3, 3])), {"temperature": 1.0}, 1.2045566075357579),
    # github.com/jongwooko/distillm-2, fe4cf9b; three tokens of the teacher's answer, two of the student's
    (recent.distillm2, (STUDENT[:3], TEACHER[:3], STUDENT[3:], TEACHER[3:]), {}, 1.7418055896311566),
    (recent.distillm2, (STUDENT[:3], TEACHER[:3], STUDENT[3:], TEACHER[3:]), {"beta": 0.0}, 2 * 0.7463865122030585),
    (recent.distillm2, (STUDENT[:3], TEACHER[:3], STUDENT[3:], TEACHER[3:]), {"beta": 2.0}, 2 * 0.995419077428098),
]


@pytest.mark.parametrize(("oracle", "logits", "params", "expected"), RELEASED)
def test_oracle_says_what_the_release_says(
    oracle: Callable[..., Any], logits: tuple[Array, ...], params: Given, expected: float
) -> None:
    assert np.mean(oracle(*logits, **params)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("alpha", "beta", "release"), [(0.0, 0.5, 4.853491303341698), (0.5, 0.0, 2.4707884553660917)])
def test_the_release_of_abkd_divides_once_where_the_limit_divides_twice(
    alpha: float, beta: float, release: float
) -> None:
    """ghwang-s/abkd, df81318: continuous in neither parameter at 0, unless the other is 1."""
    assert np.mean(recent.abkd(STUDENT, TEACHER, alpha=alpha, beta=beta)) == pytest.approx(release / 0.5, rel=1e-12)
