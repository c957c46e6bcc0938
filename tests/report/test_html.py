"""The page of a run: what it says, that it needs nothing from outside, and that a browser draws it."""

from __future__ import annotations

import base64
import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from made_up_report import content, run_folder

from xmodal_kd import report
from xmodal_kd.adapter import panels
from xmodal_kd.report.align import align, columns
from xmodal_kd.report.plots import Axis, Line, line_plot, number, ticks
from xmodal_kd.report.prose import block, sections
from xmodal_kd.runtime.errors import UserError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with logs, a picture and a panel of each kind."""
    return run_folder(tmp_path / "runs" / "tiny")


def test_the_page_holds_what_the_run_folder_holds(run: Path) -> None:
    text = (run / "report.html").read_text()
    for said in ("speech/tiny", "67 %", "0.1500 – 0.2500", "A picture", "modality: speech # &lt;/pre&gt;", "torch 2",
                 "wer on dev", ">ctc<", "Points", "Heard", "Samples", "u&lt;1&gt;", "train.steps=20"):  # fmt: skip
        assert said in text, said
    assert "Gone" not in text and 'alt="Twice"' not in text
    assert "wer_interval_over" not in text


def test_every_page_says_what_share_of_a_step_waited_for_data(run: Path) -> None:
    for page in ("report.md", "report.html"):
        text = (run / page).read_text()
        assert "waited for data" in text and text.count("12.5 %") == 2, "of student and control"


def test_nothing_is_loaded_from_anywhere(run: Path) -> None:
    text = (run / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert sources and all(s.startswith(("data:", "#")) for s in sources)
    assert "default-src 'none'" in text and "http-equiv" in text and "url(" not in text and "@import" not in text


def test_a_report_of_the_first_version_still_becomes_a_page(tmp_path: Path) -> None:
    old = {key: value for key, value in content().items() if key not in report.OLDER}
    (tmp_path / "report.json").write_text(json.dumps(old))
    report.write(tmp_path, report.load(tmp_path))
    assert "wer on test" in (tmp_path / "report.html").read_text()


def test_index_compares_runs_and_links_their_pages(run: Path) -> None:
    other = run.parent / "deeper" / "second"
    other.mkdir(parents=True)
    (other / "report.json").write_text(json.dumps(content(seed=4, gain=None, gap_closed=None)))
    (run.parent / "deeper" / "report.json").write_text("{}")  # of something else
    made = report.write_index(run.parent)
    text = made.read_text()
    assert 'href="tiny/report.html"' in text and 'href="deeper/second/report.html"' in text
    assert (other / "report.html").is_file() and "2 finished runs" in text and "+0.200 (+0.100 to +0.300)" in text


def test_index_of_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished run"):
        report.write_index(tmp_path)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("a b c", [("a", "a"), ("b", "b"), ("c", "c")]),
        ("a c", [("a", "a"), ("b", None), ("c", "c")]),
        ("a x b c", [("a", "a"), (None, "x"), ("b", "b"), ("c", "c")]),
        ("a x c", [("a", "a"), ("b", "x"), ("c", "c")]),
        ("", [("a", None), ("b", None), ("c", None)]),
    ],
)
def test_alignment(said: str, expected: list[tuple[str | None, str | None]]) -> None:
    assert align(["a", "b", "c"], said.split()) == expected


def test_several_texts_share_the_columns_of_their_reference() -> None:
    found = columns(["a", "b"], {"teacher": ["a", "b"], "student": ["x", "a", "c", "d"]})
    for role, words in (("teacher", ["a", "b"]), ("student", ["x", "a", "c", "d"])):
        assert [said[role] for _, said in found if said[role] is not None] == words
    assert [wanted for wanted, _ in found if wanted is not None] == ["a", "b"]


def test_markdown_becomes_html_and_nothing_in_it_is_taken_for_a_tag() -> None:
    found = sections(
        "# T\n\nfirst **bold**\n\n## A\n\n| k | n |\n| --- | --- |\n| a\\|<b> | 1.5 |\n\n![x](y)\n\n- `c`\n"
    )
    assert found[""] == ["<p>first <strong>bold</strong></p>"]
    table, bullets = found["A"]
    assert (
        "a|&lt;b&gt;" in table
        and '<td class="figure">1.5</td>' in table
        and bullets == "<ul><li><code>c</code></li></ul>"
    )
    assert block("a_b * c") == "<p>a_b * c</p>"


def test_ticks_are_round_and_inside() -> None:
    assert ticks(Axis(0.0, 1.0, False, 0, 1)) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(Axis(0.02, 30.0, True, 0, 1)) == pytest.approx([0.1, 1, 10])
    assert [number(v) for v in (0, 0.25, 12_000, 3e-5)] == ["0", "0.25", "12k", "3.0e-5"]


def test_plot_leaves_out_what_is_not_finite_and_is_nothing_without_points() -> None:
    assert line_plot([Line("a", "student", [(1, float("nan"))])], x="step", y="loss") == ""
    assert "NaN" not in line_plot([Line("a", "student", [(1, float("nan")), (2, 1.0)])], x="step", y="loss").replace(
        "aria", ""
    )


def test_png_is_read_back_as_it_was() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    data = panels.png(pixels)
    assert struct.unpack(">II", data[16:24]) == (7, 5)
    length = struct.unpack(">I", data[33:37])[0]
    rows = np.frombuffer(zlib.decompress(data[41 : 41 + length]), np.uint8).reshape(5, 22)
    assert (rows[:, 0] == 0).all() and (rows[:, 1:].reshape(5, 7, 3) == pixels).all()


def test_cloud_keeps_its_points_and_counts_all_errors() -> None:
    rng = np.random.default_rng(0)
    xyz, labels = rng.normal(size=(400, 3)) * 30, rng.integers(0, 4, 400)
    sparse = np.where(np.arange(400) % 4 == 0, (labels + 1) % 4, -1)
    panel = panels.clouds("p", xyz, {"labels": labels, "student": sparse}, classes="abcd", colours=[(0, 0, 0)] * 4,
                          reference="labels", most=150)  # fmt: skip
    found = panel.content
    assert found["points"] == 150 and found["of"] == 400 and found["views"][1]["errors"] == [100, 100]
    kept = np.frombuffer(base64.b64decode(found["views"][1]["labels"]), np.uint8)
    assert (kept != panels.UNSEEN).sum() == 100  # what all label goes first
    back = np.frombuffer(base64.b64decode(found["xyz"]), "<i2").reshape(-1, 3) * found["scale"]
    assert np.abs(back[:, None] - xyz[None]).max(axis=2).min(axis=1).max() < found["scale"]


#: Waits for what loads late, then tells what a reader would see.
PROBE = """
(async () => {
  const until = async (ready) => {
    for (let i = 0; i < 400 && !ready(); i++) await new Promise((go) => setTimeout(go, 50));
  };
  const sounds = [...document.querySelectorAll("audio")], images = [...document.querySelectorAll("img")];
  for (const sound of sounds) { sound.preload = "metadata"; sound.load(); }
  const pixels = (c) => c.getContext("2d").getImageData(0, 0, c.width, c.height).data.buffer;
  const painted = () => [...document.querySelectorAll("canvas")].map((c) => new Set(new Uint32Array(pixels(c))).size);
  const drawn = () => new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)));
  const loaded = () => sounds.every((s) => s.readyState > 0) && images.every((i) => i.complete);
  await until(() => loaded() && painted().every((n) => n > 1));
  const before = painted();
  document.querySelector("[data-mode=errors]").click();
  await drawn();
  const after = painted();
  document.getElementById("theme").click();
  await drawn();
  return {
    before, after, dark: document.documentElement.dataset.theme,
    plots: [...document.querySelectorAll("svg.plot")].map((s) => s.getBoundingClientRect().height),
    audio: sounds.map((s) => s.duration), images: images.map((i) => i.naturalWidth),
    wide: document.documentElement.scrollWidth - innerWidth,
  };
})()
"""


def seen(page: Path, width: int, scratch: Path) -> tuple[dict[str, Any], list[str]]:
    """What `PROBE` tells of a page, and what the browser complained of."""
    with Browser(scratch) as browser:
        browser.open(page, width=width)
        return browser.evaluate(PROBE), browser.complaints()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_draws_the_page_without_an_error(run: Path, tmp_path: Path, width: int) -> None:
    try:
        found, complaints = seen(run / "report.html", width, tmp_path / "first")
    except TimeoutError:  # a machine whose cores are all taken: once more
        found, complaints = seen(run / "report.html", width, tmp_path / "second")
    # Chromium remarks on how this test reads canvases back; the page itself never does
    assert [line for line in complaints if "willReadFrequently" not in line] == []
    assert found["before"][0] >= 4 and found["before"][1] >= 3  # the paper and the classes
    assert found["after"] == [2, 3]  # labels are all right; of the student some are not
    assert len([height for height in found["plots"] if height > 100]) >= 4  # those folded away have none
    assert found["audio"] == [pytest.approx(1.0, abs=0.05)]
    assert found["images"] and min(found["images"]) > 0
    assert found["wide"] <= 0 and found["dark"] == "dark"
