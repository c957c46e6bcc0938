"""Transcripts of a part of the utterances, through a whole run."""

from __future__ import annotations

from pathlib import Path

import pytest

from xmodal_kd.check import check
from xmodal_kd.cli.main import call
from xmodal_kd.recipe.recipe import load
from xmodal_kd.runtime.checkpoint import read_json

SMALL = (
    "data.compose.utterances={train: 24, dev: 4, test: 4}", "labels=25%", "trackers=[]",
    "teacher.params={width: 8}", "teacher.train.steps=3", "teacher.train.batch_size=8",
    "student.params={width: 8, dilations: [1]}", "train.steps=3", "train.batch_size=6",
)  # fmt: skip


@pytest.mark.full
def test_a_run_with_a_quarter_of_the_transcripts(digits: Path, tmp_path: Path) -> None:
    sets = [word for one in (*SMALL, f"data.path={digits}") for word in ("--set", one)]
    assert call(["run", "smoke/speech", "--out", str(tmp_path / "run"), "--quiet", "--no-export", *sets]) == 0
    report = read_json(tmp_path / "run" / "report.json")
    assert {role: (one["labelled"], one["unlabelled"]) for role, one in report["labels"].items()} == {
        "control": (6, False), "self_training": (6, True), "student": (6, True),
    }  # fmt: skip
    assert report["self_training"] == {"terms": ["ctc", "kd"]}
    assert {role: report["cost"][role]["samples"] for role in report["labels"]} == dict.fromkeys(report["labels"], 18)


def test_check_counts_no_utterance_without_a_transcript_as_one_that_ctc_cannot_score(digits: Path) -> None:
    found = check(load("smoke/speech", [*SMALL, f"data.path={digits}"]), "cpu")
    assert [(one.check, one.found) for one in found if one.status == "fail"] == []
    [counts] = [one for one in found if one.check == "counts"]
    assert counts.status == "pass" and 3 <= int(counts.found.split(",")[0].split()[1]) < 6
