"""Layer maps: the papers' examples, and what they promise for all depths."""

from __future__ import annotations

import pytest
from oracles import seq2seq
from oracles.transformer_losses import layer_pairs as oracle

from xmodal_kd.signals.layer_map import MAPS, layer_pairs


def test_the_papers_examples() -> None:
    """TinyBERT: g(m) = 3m. PKD: skip 2, 4, ..., 10 and last 7, ..., 11, to which `last` adds the final layer."""
    assert layer_pairs("uniform", 4, 12) == [(1, 3), (2, 6), (3, 9), (4, 12)]
    assert layer_pairs("skip", 6, 12) == [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10)]
    assert layer_pairs("last", 6, 12) == [(1, 7), (2, 8), (3, 9), (4, 10), (5, 11), (6, 12)]


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("depth", range(1, 13))
def test_layers_rise_and_stay_in_the_teacher(name: str, depth: int) -> None:
    for teacher in range(depth, 26):
        pairs = layer_pairs(name, depth, teacher)  # type: ignore[arg-type]
        if name == "spaced":
            assert [n - 1 for _, n in pairs] == seq2seq.layer_map(teacher, depth)
        else:
            assert pairs == oracle(name, depth, teacher)
        students, teachers = zip(*pairs, strict=True)
        assert students == tuple(range(1, len(pairs) + 1))
        assert len(pairs) == (max(depth - 1, 1) if name == "skip" else depth)
        assert list(teachers) == sorted(set(teachers)) and teachers[0] >= 1 and teachers[-1] <= teacher
        if name != "skip" or depth == 1:
            assert pairs[-1] == (depth, teacher)
        if name == "spaced" and depth > 1:
            assert pairs[0] == (1, 1)


@pytest.mark.parametrize("name", MAPS)
def test_a_student_as_deep_as_its_teacher_learns_layer_by_layer(name: str) -> None:
    assert all(m == n for m, n in layer_pairs(name, 7, 7))  # type: ignore[arg-type]


def test_refusals_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="'first' is none of last, uniform, skip"):
        layer_pairs("first", 2, 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="5 layers cannot be mapped onto a teacher of 4"):
        layer_pairs("uniform", 5, 4)
    with pytest.raises(ValueError, match="0 layers"):
        layer_pairs("last", 0, 4)
