"""Many runs: as a table, by a sentence that says which, and as a front of size against what is reached."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Browser
from made_up_report import content
from refusals import Capture, fails

from xmodal_kd import report
from xmodal_kd.cli.main import call
from xmodal_kd.report.pareto import Dot, front, front_plot
from xmodal_kd.report.runs import KEYS, as_csv, chosen, printable, rows
from xmodal_kd.report.where import where
from xmodal_kd.runtime import run_status
from xmodal_kd.runtime.errors import UserError

EVIL = "=1+1\n\x1b[2J"
ROWS: list[dict[str, Any]] = [
    {"run": "a", "wer": 0.05, "modality": "speech", "seed": 1},
    {"run": "b", "wer": 0.5, "modality": "speech", "seed": 2},
    {"run": "c d", "miou": 0.5, "modality": "points", "seed": 1, "wer": None},
]


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Three finished runs of several sizes, one that failed, one that was killed, and a folder of something else."""
    for name, parameters, wer in (("small", 10, 0.4), ("middle", 100, 0.5), ("deep/large", 1000, 0.1)):
        place = tmp_path / "runs" / name
        place.mkdir(parents=True)
        found = content(seed=parameters)
        found["roles"]["student"] |= {"parameters": parameters, "metrics": {"wer": wer, "ser": 2 * wer}}
        (place / "report.json").write_text(json.dumps(found))
        (place / "recipe.yaml").write_text("modality: speech\n")
    about = {"recipe": "speech/x", "modality": "speech", "method": "distil", "seed": 7, "metric": "wer",
             "lower_is_better": True}  # fmt: skip
    for name in ("broken", "gone"):
        run_status.began(tmp_path / "runs" / name, about, [("student", 9)])
    run_status.ended(tmp_path / "runs/broken", "failed", "the disk is \x1b[31mfull")
    (tmp_path / "runs/else").mkdir()
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("wer<0.1", "a"), ("wer <= 0.05", "a"), ("wer>0.1 and modality=speech", "b"), ("seed=1", "a,c d"),
        ("modality=points or wer<0.1", "a,c d"), ("seed=1 and modality=points or seed=2", "b,c d"),
        ("modality!=speech", "c d"), ("run='c d'", "c d"), ('run="a" OR run == b', "a,b"), ("wer!=0.5", "a"),
        ("miou>=0.5 AND wer<1", ""), ("seed=1.0", "a,c d"), ("modality=nothing", ""),
    ],
)  # fmt: skip
def test_a_sentence_says_which_rows_are_meant(text: str, meant: str) -> None:
    assert ",".join(row["run"] for row in chosen(ROWS, text, None)) == meant


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("wre<1", "unknown key 'wre' (nearest: wer); known: miou, modality, run, seed, wer"),
        ("", "missing or not whole"), ("wer", "missing or not whole"), ("wer<", "not whole"), ("<1", "not whole"),
        ("wer<1 modality=x", "'and' or 'or' is expected before 'modality'"), ("wer<1 and", "missing behind 'and'"),
        ("modality<speech", "only numbers have an order"), ("wer<1 'and' seed=1", "'and' or 'or' is expected"),
        ("run='a", "nothing known begins at"), ("wer<1 and or seed=1", "not whole"), ("__import__('os')", "not whole"),
    ],
)  # fmt: skip
def test_a_sentence_that_is_none_is_one_line(text: str, told: str) -> None:
    with pytest.raises(UserError) as refused:
        chosen(ROWS, text, None)
    assert told in str(refused.value) and "\n" not in str(refused.value)


def test_any_text_is_a_sentence_or_a_line() -> None:
    draw, words = random.Random(1), ("wer", "<", "=", "and", "or", "'", '"', "1", "x y", "(", "\n", "!=", "seed=1")
    for _ in range(2000):
        text = draw.choice(("", " ")).join(draw.choices(words, k=draw.randint(0, 7)))
        try:
            where(text, ["wer", "seed"])({"wer": 1.0, "seed": "x"})
        except UserError:
            continue


def test_rows_say_what_every_run_has_come_to(many: Path) -> None:
    found = {row["run"]: row for row in rows(many)}
    assert list(found) == ["broken", "deep/large", "gone", "middle", "small"]
    assert all(set(KEYS) <= row.keys() for row in found.values())
    assert (found["broken"]["state"], found["gone"]["state"]) == ("failed", "killed")
    large = found["deep/large"]
    assert (large["state"], large["value"], large["wer"], large["ser"], large["control"]) == (
        "finished",
        0.1,
        0.1,
        0.2,
        0.4,
    )
    assert large["gain"] == 0.2 and large["parameters"] == 1000 and large["latency_ms"] == 2.0
    assert large["minutes"] == pytest.approx(6 / 60) and large["steps"] == 20
    assert [row["run"] for row in chosen(rows(many), None, "wer", backwards=True)][:3] == [
        "middle",
        "small",
        "deep/large",
    ]


def test_a_report_that_is_none_is_a_row_with_its_reason(many: Path) -> None:
    wrong = {"small": {}, "middle": content(cost={"student": [1]}), "deep/large": content(scheme=EVIL, recipe=EVIL)}
    wrong["deep/large"]["roles"]["student"]["metrics"] |= {EVIL: 1.0, "wer": float("nan")}
    for name, found in wrong.items():
        (many / name / "report.json").write_text(json.dumps(found))
    small, middle, large = ({row["run"]: row for row in rows(many)}[name] for name in wrong)
    assert small["value"] is None and "not a run's report" in small["why"]
    assert middle["value"] is None and "cannot be shown" in middle["why"]
    assert EVIL not in large and large["value"] is None and "NaN" not in json.dumps(large)


def test_the_command_lists_them(many: Path, capfd: Capture) -> None:
    assert call(["runs", str(many)]) == 0
    text = capfd.readouterr().out
    assert "deep/large" in text and "wer 0.100" in text and "killed" in text and "\x1b[31m" not in text
    assert "broken failed: the disk is ?[31mfull" in text
    assert call(["runs", str(many), "--where", "wer<0.45", "--sort", "parameters", "--json"]) == 0
    assert [row["run"] for row in json.loads(capfd.readouterr().out)] == ["small", "deep/large"]
    assert call(["runs", str(many), "--csv", "--where", "state=failed"]) == 0
    [head, only] = csv.reader(io.StringIO(capfd.readouterr().out))
    assert head[: len(KEYS)] == list(KEYS) and only[:2] == ["broken", "failed"]
    assert "known: " in fails(capfd, 2, "runs", str(many), "--sort", "size")
    assert "choose one" in fails(capfd, 2, "runs", str(many), "--csv", "--json")
    assert "holds no run" in fails(capfd, 2, "runs", str(many / "else"))
    assert "no such folder" in fails(capfd, 2, "runs", str(many / "nowhere"))


def test_a_spreadsheet_computes_nothing_and_a_terminal_obeys_nothing() -> None:
    assert "'=1+1" in as_csv([{"run": "=1+1", "value": -0.5}]) and ",-0.5," in as_csv([{"run": "a", "value": -0.5}])
    assert printable("a\x1b[2J\x07ä") == "a?[2J?ä"


def test_the_front_holds_what_no_other_beats() -> None:
    draw = random.Random(3)
    for lower in (True, False):
        dots = [Dot(str(i), "student", draw.randint(1, 9), draw.randint(1, 9)) for i in range(40)]

        def beats(a: Dot, b: Dot, lower: bool = lower) -> bool:
            reaches = a.value <= b.value if lower else a.value >= b.value
            return a.cost <= b.cost and reaches and (a.cost, a.value) != (b.cost, b.value)

        wanted = {(dot.cost, dot.value) for dot in dots if not any(beats(other, dot) for other in dots)}
        assert {(dot.cost, dot.value) for dot in front(dots, lower)} == wanted
    assert front_plot([Dot("a", "student", 1, 1)], x="x", y="y", lower=True) == ""


#: Filters, and tells what a reader would see.
PROBE = """
(() => {
  const input = document.querySelector("#filter"), told = document.querySelector("output");
  const edge = () => document.querySelector("svg.front .edge").getAttribute("d");
  const ask = (text) => {
    input.value = text;
    input.dispatchEvent(new Event("input"));
    const rows = [...document.querySelectorAll("tr[data-run]")].filter((row) => !row.hidden);
    const dots = [...document.querySelectorAll("svg.front")][0].querySelectorAll("circle:not(.out)[data-role=student]");
    return [rows.map((row) => JSON.parse(row.dataset.run).run), dots.length, told.textContent];
  };
  const before = edge(), all = ask("run!=x"), same = edge();
  return { before, same, all, some: ask("wer<0.45 and seed>=10"), edge: edge(), either: ask("seed=100 or small"),
           wrong: ask("wre<1"), none: ask(""), wide: document.documentElement.scrollWidth - innerWidth };
})()
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
def test_a_browser_filters_the_index_and_draws_its_front_anew(many: Path, tmp_path: Path) -> None:
    made = report.write_index(many)
    with Browser(tmp_path / "browser") as browser:
        for width in (390, 1280):
            browser.open(made, width=width)
            found = browser.evaluate(PROBE)
            assert browser.complaints() == [] and found["wide"] <= 0
            assert sorted(found["all"][0]) == ["deep/large", "middle", "small"] and found["all"][1] == 3
            assert [float(v) for v in numbers(found["same"])] == pytest.approx(
                [float(v) for v in numbers(found["before"])]
            )
            assert found["some"] == [["deep/large", "small"], 2, "2 of 3 runs"]
            assert sorted(found["either"][0]) == ["middle", "small"] and found["edge"] != ""
            assert "unknown key wre; known: " in found["wrong"][2] and len(found["none"][0]) == 3


def numbers(path: str) -> list[float]:
    return [float(word) for word in re.findall(r"[\d.]+", path)]
