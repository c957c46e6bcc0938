"""A run folder that came from others: what its files say is shown, never executed, and one bad run is one row."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_report import content

from xmodal_kd import report
from xmodal_kd.adapter import panels
from xmodal_kd.runtime.errors import UserError

EVIL = "\"><script>alert(1)</script><img src=x onerror='alert(1)'>"
DOT = panels.picture(panels.png(np.zeros((2, 2, 3), np.uint8)))
TONE = "data:audio/wav;base64," + base64.b64encode(panels.wav(np.zeros(8), 8000)).decode()


def evil_panels() -> list[dict[str, Any]]:
    """Every text of every kind says more than text."""
    packed = base64.b64encode(bytes(12)).decode()
    view = {"name": EVIL, "labels": packed, "errors": [1, 2]}
    trace = {"frame": 0.1, "height": [0.5], "marks": [[0, EVIL]]}
    return [
        {"kind": "clouds", "title": EVIL, "note": EVIL, "content": {
            "points": 2, "of": 3, "scale": 1.0, "xyz": packed, "views": [view], "reference": EVIL, "classes": [EVIL],
            "colours": [[1, 2, 3]]}},
        {"kind": "sequences", "title": EVIL, "content": {"items": [{
            "key": EVIL, "reference": EVIL, "said": {EVIL: EVIL}, "about": EVIL, "seconds": 1.0, "sound": TONE,
            "heat": DOT, "traces": {EVIL: trace}}]}},
        {"kind": "gallery", "title": EVIL, "content": {
            "columns": [EVIL], "rows": [{"name": EVIL, "cells": {EVIL: [DOT, EVIL]}}]}},
    ]  # fmt: skip


def evil_report() -> dict[str, Any]:
    """As `made_up_report.content`, with every text that a page shows made evil."""

    def spoil(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: spoil(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [spoil(one, key) for one in value]
        return EVIL + value if isinstance(value, str) and key not in ("name", "role") else value

    found = spoil(content())
    found["overrides"] = {EVIL: EVIL}
    found["facts"] = {EVIL: EVIL}
    found["data"] = {"train": {"left_out": 1, "left_out_examples": [{"key": EVIL, "reason": EVIL}]}}
    found["roles"]["student"]["metrics"] |= {EVIL: EVIL}
    found["roles"][EVIL] = found["roles"]["control"]
    found["pictures"] = {EVIL: "pictures/one.png"}
    found["changes"] = [EVIL]
    return found  # type: ignore[no-any-return]


def scripts(text: str) -> list[str]:
    return re.findall(r"<script[^>]*>", text)


def test_nothing_of_a_file_becomes_markup(tmp_path: Path) -> None:
    run = tmp_path / f"run{EVIL.replace('/', '')}"
    run.mkdir()
    (run / "panels.json").write_text(json.dumps({"panels": evil_panels()}))
    (run / "recipe.yaml").write_text(EVIL)
    (run / "report.json").write_text(json.dumps(evil_report()))
    report.rewrite(run)
    page, index = (run / "report.html").read_text(), report.write_index(tmp_path).read_text()
    for text in (page, index):
        assert scripts(text) == ["<script>"] or scripts(text) == ['<script type="application/json">', "<script>"]
        assert "alert(1)" in text and "<img src=x" not in text
        assert "onerror='" not in re.sub(r'<script type="application/json">[^<]*</script>', "", text)
        assert "style=" not in text
    assert "Not shown" not in index


def test_only_our_own_script_and_style_run(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(content()))
    report.rewrite(tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "unsafe-inline" not in text
    for tag in ("style", "script"):
        [inside] = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in text


@pytest.mark.parametrize("how", ["up", "absolute", "link", "no picture", "large", "pipe"])
def test_a_picture_is_one_of_the_folder(how: str, tmp_path: Path) -> None:
    run, secret = tmp_path / "run", tmp_path / "secret.png"
    run.mkdir()
    secret.write_bytes(panels.png(np.full((3, 3, 3), 77, np.uint8)))
    name = {"up": "../secret.png", "absolute": str(secret)}.get(how, "x.png")
    if how == "link":
        (run / name).symlink_to(secret)
    elif how == "no picture":
        (run / name).write_text("root:x:0:0")
    elif how == "large":
        data = bytearray(secret.read_bytes())
        data[16:24] = b"\x00\x0f\xff\xff" * 2
        (run / name).write_bytes(data)
    elif how == "pipe":
        os.mkfifo(run / name)
    (run / "report.json").write_text(json.dumps(content(pictures={"A picture": name})))
    report.rewrite(run)
    text = (run / "report.html").read_text()
    assert "base64," + base64.b64encode(secret.read_bytes()).decode()[:40] not in text and "root:x" not in text
    assert ("A picture" in (run / "report.md").read_text()) == (how not in ("up", "absolute"))


def wrong(*path: str, value: Any) -> dict[str, Any]:
    found = content()
    place: Any = found
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return found


MALFORMED: dict[str, Any] = {
    "no mapping": [1], "cut": None, "roles": wrong("roles", value=[]), "no student": wrong("roles", value={}),
    "metric": wrong("metric", value={"name": "cer", "lower_is_better": True}),
    "parameters": wrong("roles", "student", "parameters", value="many"),
    "interval": wrong("roles", "student", "metrics", "wer_interval", value="wide"),
    "latency": wrong("roles", "teacher", "latency", value=3), "gain": wrong("gain", value={"difference": "x"}),
    "cost": wrong("cost", value={"student": {"seconds": []}}), "seed": wrong("seed", value=[]),
    "deep": json.loads("[" * 500 + "]" * 500), "nan": wrong("gap_closed", value=float("nan")),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_run_is_a_row_and_a_line(name: str, tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    for run in (good, bad):
        run.mkdir()
        (run / "report.json").write_text(json.dumps(content()))
    text = json.dumps(content())[:300] if name == "cut" else json.dumps(MALFORMED[name])
    (bad / "report.json").write_text(text)
    with pytest.raises(UserError, match="bad") as refused:
        report.rewrite(bad)
    assert "\n" not in str(refused.value)
    index = report.write_index(tmp_path).read_text()
    assert 'href="good/report.html"' in index and 'href="bad/report.html"' not in index
    assert ("Not shown" in index) == (name not in ("no mapping", "deep")) or "nested too deeply" in index


@pytest.mark.parametrize(
    ("at", "value", "told"),
    [
        (("kind",), "frames", "kind 'frames'"),
        (("content", "xyz"), "%%%", "not base64"),
        (("content", "colours"), [["red", 0, 0]], "content|colours"),
        (("content", "views"), "all", "views"),
        (("content", "points"), 1e400, "points|finite|not JSON"),
    ],
)
def test_panels_are_held_to_their_kind(at: tuple[str, ...], value: Any, told: str, tmp_path: Path) -> None:
    [one, *_] = evil_panels()
    place = one
    for key in at[:-1]:
        place = place[key]
    place[at[-1]] = value
    (tmp_path / "panels.json").write_text(json.dumps({"panels": [one]}))
    with pytest.raises(UserError, match=told):
        panels.read(tmp_path)


@pytest.mark.parametrize("address", ["javascript:alert(1)", "https://example.org/x.png", "data:text/html,x", DOT[:40]])
def test_what_is_embedded_is_a_picture_or_sound(address: str, tmp_path: Path) -> None:
    *_, heard, shown = evil_panels()
    heard["content"]["items"][0]["sound"] = address
    shown["content"]["rows"][0]["cells"][EVIL][0] = address
    for one in (heard, shown):
        (tmp_path / "panels.json").write_text(json.dumps({"panels": [one]}))
        with pytest.raises(UserError, match=r"panels\.json"):
            panels.read(tmp_path)
