"""Cards of saved models: what they say, and that licences are handed down."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy import RECIPE

from xmodal_kd.adapter.saved_model import About, Card, read_card
from xmodal_kd.cli.main import call
from xmodal_kd.report import model_cards as cards
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError

QUIET = ("--allow-import", "toy", "--quiet", "--json")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished toy run."""
    folder = tmp_path_factory.mktemp("cards")
    (folder / "toy.yaml").write_text(RECIPE)
    assert call(["run", str(folder / "toy.yaml"), "--out", str(folder / "run"), *QUIET]) == 0
    return folder / "run"


def test_the_students_card_says_what_the_report_says(run: Path) -> None:
    text, report = (run / "student" / cards.README).read_text(), read_json(run / "report.json")
    error = report["roles"]["student"]["metrics"]["error"]
    assert f"{error:.4f}" in text and "| control |" in text and "| teacher |" in text
    assert "of the distance from control to teacher" in text or "Gap closed: not stated" in text
    assert "toy`" in text and f"- **seed**: {report['seed']}" in text and report["versions"]["torch"] in text
    assert "not stated (`data.license` in the recipe)" in text and "names none" in text
    card = read_json(run / "student" / "card.json")
    assert card["metrics"]["error"] == error and card["license"] == [] and card["model"] == "mlp"


def test_the_teachers_card_stands_when_it_is_trained(run: Path) -> None:
    text = (run / "teacher" / cards.README).read_text()
    assert "This is the teacher." in text and "| student |" not in text and "inherited" not in text
    metrics = read_json(run / "report.json")["roles"]["teacher"]["metrics"]
    assert read_json(run / "teacher" / "card.json")["metrics"] == {"error": metrics["error"]}


def test_licences_are_handed_down(run: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    (teacher / cards.README).write_text("---\nlicense: [cc-by-sa-4.0, mit]\n---\n\n# A teacher\n")
    content = read_json(run / "report.json")
    data = {"sources": ["toy", "more"], "license": "mit"}
    cards.write(tmp_path, "student", About("A student", "What.", "Use."), content, data, [teacher])
    assert cards.licences(tmp_path) == ["mit", "cc-by-sa-4.0"]
    text = (tmp_path / cards.README).read_text()
    assert "- inherited from its teacher: cc-by-sa-4.0, mit" in text and "- of the data it learned from: mit" in text
    assert "# A student\n\nWhat.\n\n## How to use it\n\nUse." in text and "toy, more" in text
    cards.write(tmp_path, "teacher", About("A teacher"), content, {"license": "mit"}, [teacher])
    assert cards.licences(tmp_path) == ["mit"] and "How to use it" not in (tmp_path / cards.README).read_text()


def test_the_students_card_says_what_each_exported_file_reaches(run: Path, tmp_path: Path) -> None:
    content = read_json(run / "report.json")
    (name,) = content["export"]
    assert "## Its files\n\n| file | size | error (test) |" in (text := (run / "student" / cards.README).read_text())
    assert f"| {name} | " in text and "## Its files" not in (run / "teacher" / cards.README).read_text()
    content["export"] = {
        "model.onnx": {"bytes": 2048, "metrics": {"error": 0.25}},
        "model.int8.onnx": {"bytes": 1024, "metrics": {"error": 0.5}, "note": "more errors"},
        "int8_against_fp32": {"agreement": 0.5},
    }
    cards.write(tmp_path, "student", About("A student"), content, {}, [])
    text = (tmp_path / cards.README).read_text()
    assert "| model.onnx | 2.0 KiB | 0.2500 |" in text and "| model.int8.onnx | 1.0 KiB | 0.5000 |" in text
    assert "\n\nmodel.int8.onnx: more errors\n\n" in text and "agreement" not in text
    cards.write(tmp_path, "teacher", About("A teacher"), content, {}, [])
    assert "## Its files" not in (tmp_path / cards.README).read_text()


@pytest.mark.parametrize("text", ["", "# No front matter", "---\nlicense:\n---\n"])
def test_a_card_without_front_matter_names_no_licence(tmp_path: Path, text: str) -> None:
    (tmp_path / cards.README).write_text(text)
    assert cards.licences(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [("---\n: [\n---\n", "is not YAML"), ("---\n- a list\n---\n", "no mapping"), ("---\nlicense: mit\n", "has no end")],
)
def test_front_matter_that_cannot_be_read_is_refused(tmp_path: Path, text: str, said: str) -> None:
    """A licence in it would be lost without a word."""
    (tmp_path / cards.README).write_text(text)
    with pytest.raises(UserError, match=rf"README\.md.*{said}.*mend it"):
        cards.licences(tmp_path)


def test_a_saved_model_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder: a saved thing is a folder with card"):
        read_card(tmp_path / "nowhere", Card, "thing")
    with pytest.raises(UserError, match="not a saved thing: it has no card"):
        read_card(tmp_path, Card, "thing")
    (tmp_path / "student").mkdir()
    (tmp_path / "state.json").touch()
    with pytest.raises(UserError, match=rf"a run, and no saved thing: give its student: {tmp_path}/student"):
        read_card(tmp_path, Card, "thing")
    (tmp_path / "card.json").write_text('{"format": 2, "modality": "a", "model": "b", "params": {}}')
    with pytest.raises(UserError, match="format: Input should be less than or equal to 1"):
        read_card(tmp_path, Card, "thing")
