"""Word errors by hand, and their interval."""

from __future__ import annotations

import numpy as np
import pytest

from xmodal_kd.adapter.adapter import Score
from xmodal_kd.modalities.speech.evaluate.score import interval, score


def test_errors_by_hand() -> None:
    found = score(
        ["one two three", "four", "", "five six"],
        ["one too three", "four nine", "eight", "five"],
        ["a", "b", "c", "d"],
        ["x", "x", "y", "y"],
    )
    m = found.metrics
    assert (m["substitutions"], m["insertions"], m["deletions"], m["words"]) == (1, 2, 1, 6)
    assert m["wer"] == pytest.approx(4 / 6) and m["ser"] == 1.0
    assert m["wer_by_speaker"] == {"x": 2 / 4, "y": 2 / 2}
    assert [(s.item, s.group, s.errors, s.units) for s in found.scores] == [
        ("a", "x", 1, 3), ("b", "x", 1, 1), ("c", "y", 1, 0), ("d", "y", 1, 2),
    ]  # fmt: skip


def test_characters() -> None:
    assert score(["abc"], ["abd"], ["k"], ["s"]).metrics["cer"] == pytest.approx(1 / 3)


def test_space_is_not_an_error() -> None:
    assert score([" one  two "], ["one two"], ["k"], ["s"]).metrics["wer"] == 0


def test_an_empty_reference_and_hypothesis_agree() -> None:
    m = score(["", "one"], [" ", ""], ["a", "b"], ["s", "s"]).metrics
    assert (m["wer"], m["ser"], m["deletions"]) == (1.0, 0.5, 1)


def test_nothing_to_score() -> None:
    m = score([], [], [], []).metrics
    assert (m["wer"], m["ser"], m["words"], m["wer_interval"]) == (0.0, 0.0, 0, [0.0, 0.0])


def test_the_worst_come_first() -> None:
    found = score(["a b", "a b c", "a"] * 30, ["a x", "", "a"] * 30, [f"k{i:02}" for i in range(90)], ["s"] * 90)
    assert len(found.examples) == 50
    assert found.examples[0] == {"key": "k01", "reference": "a b c", "hypothesis": ""}
    assert found.examples[30]["hypothesis"] == "a x"


@pytest.mark.parametrize(("speakers", "over"), [(4, "utterances"), (5, "speakers")])
def test_what_is_resampled(speakers: int, over: str) -> None:
    names = [f"s{i % speakers}" for i in range(20)]
    m = score(["a b"] * 20, ["a x", "a b"] * 10, [str(i) for i in range(20)], names).metrics
    assert m["wer_interval_over"] == over
    low, high = m["wer_interval"]
    assert low <= m["wer"] <= high


def test_the_interval_covers_and_repeats() -> None:
    rng = np.random.default_rng(0)
    scores = [Score(str(i), str(i), float(e), 10.0) for i, e in enumerate(rng.binomial(10, 0.3, size=400))]
    low, high = interval(scores)
    spread = 1.96 * np.std([s.errors / 10 for s in scores]) / 20
    mean = sum(s.errors for s in scores) / 4000
    assert (low, high) == (pytest.approx(mean - spread, abs=0.004), pytest.approx(mean + spread, abs=0.004))
    assert interval(scores) == [low, high]


def test_speakers_who_differ_widen_the_interval() -> None:
    scores = [Score(str(i), f"s{i % 5}", float(i % 5 == 0), 1.0) for i in range(500)]
    by_speaker, by_utterance = interval(scores, "speakers"), interval(scores, "utterances")
    assert by_speaker[1] - by_speaker[0] > 4 * (by_utterance[1] - by_utterance[0])


def test_characters_may_be_what_counts():
    found = score(["one two"] * 6, ["one twx"] * 6, list("abcdef"), list("abcdef"), "cer")
    assert [(s.errors, s.units) for s in found.scores] == [(1.0, 7.0)] * 6
    assert found.metrics["cer"] == pytest.approx(1 / 7) and found.metrics["wer"] == 0.5
    assert found.metrics["cer_interval"] == pytest.approx([1 / 7, 1 / 7]) and "wer_interval" not in found.metrics
