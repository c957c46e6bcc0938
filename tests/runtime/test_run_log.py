"""The run log: lines of JSON that a kill, a resume and a NaN leave readable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

from xmodal_kd.runtime.run_log import RunLog, read


def refuse(name: str) -> NoReturn:
    raise AssertionError(f"{name} is not JSON")


def test_append_and_read(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.append(1, {"kd": 0.5})
    log.append(2, {"kd": 0.25, "lr": 1e-3})
    assert read(log.path) == [{"step": 1, "kd": 0.5}, {"step": 2, "kd": 0.25, "lr": 1e-3}]


def test_rewind_drops_what_training_will_write_again(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "student")
    log.rewind(0)  # makes the folder of a new training
    for step in range(1, 6):
        log.append(step, {"kd": 1 / step})
    log.rewind(3)
    assert [entry["step"] for entry in read(log.path)] == [1, 2, 3]
    log.append(4, {"kd": 0.0})
    assert [entry["step"] for entry in read(log.path)] == [1, 2, 3, 4]


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.append(1, {"kd": 0.5})
    with log.path.open("a") as file:
        file.write('{"step": 2, "kd"')
    assert [entry["step"] for entry in read(log.path)] == [1]
    log.rewind(1)
    log.append(2, {"kd": 0.25})
    assert [entry["step"] for entry in read(log.path)] == [1, 2]


def test_no_log_is_an_empty_one(tmp_path: Path) -> None:
    assert read(tmp_path / "log.jsonl") == []


def test_nan_and_infinity_are_null(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.append(1, {"norm": float("inf"), "kd": float("nan"), "lr": 0.5})
    entry = json.loads(log.path.read_text(), parse_constant=refuse)
    assert entry == {"step": 1, "norm": None, "kd": None, "lr": 0.5}
