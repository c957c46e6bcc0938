"""docs/methods.md says what the registries, the recipes and the results say."""

from __future__ import annotations

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from xmodal_kd.report.statistics import Interval

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def methods() -> ModuleType:
    found = spec_from_file_location("docs_methods", ROOT / "docs/methods.py")
    assert found is not None and found.loader is not None
    module = module_from_spec(found)
    before = list(sys.path)
    found.loader.exec_module(module)
    sys.path[:] = before
    return module


def test_the_page_is_what_it_is_made_of(methods: ModuleType) -> None:
    """Every registered loss and method has its place, or `page` says which has none."""
    assert methods.PAGE.read_text() == methods.page(), "stale: python docs/methods.py"


def test_what_is_not_built_is_marked_so(methods: ModuleType) -> None:
    lines = {line.split(" | ")[0].strip("| "): line for line in methods.PAGE.read_text().splitlines()}
    assert "| not built |" in lines["WCoRD"] and "| partly |" in lines["OFA-KD"] and "| built |" in lines["DKD"]
    assert "| experimental |" in lines["DMKD"]
    assert "| another world |" in lines["PromptKD"] and methods.state({"world": "radar", "here": "kd"}) == "built"
    assert methods.state({"part": True}) == "not built" and methods.state({"how": "by hand", "part": True}) == "partly"


def test_facts_stand_where_a_loss_is_named_first(methods: ModuleType) -> None:
    table = [{"family": "any", "methods": [{"name": "A", "here": "kd hint"}, {"name": "B", "here": "kd"}]}]
    assert methods.homes(table) == {"kd": "A", "hint": "A"}


def test_a_name_that_is_not_registered_is_refused(
    methods: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "methods.yaml"
    table.write_text(methods.TABLE.read_text().replace("here: dkd}", "here: dkdd}"))
    monkeypatch.setattr(methods, "TABLE", table)
    with pytest.raises(SystemExit, match=r"methods\.yaml names what is not registered: dkdd"):
        methods.page()
    table.write_text(methods.TABLE.read_text().replace(", here: dkdd}", "}"))
    with pytest.raises(SystemExit, match=r"has no method for what is registered: dkd"):
        methods.page()


def test_a_comparison_among_the_results_says_what_its_arms_did(
    methods: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("fsdd", "samplers"):
        (tmp_path / f"{name}.json").write_text((methods.RESULTS / f"{name}.json").read_text())
    entry = {"arm": "hint", "difference": {"mean": -0.02, "low": -0.03, "high": -0.01}, "verdict": "better"}
    result = {
        "recipe": "recipes/points/scarce.yaml", "modality": "points", "metric": {"name": "miou_error"},
        "arms": [{"name": "hint"}], "against_control": [entry],
    }  # fmt: skip
    (tmp_path / "compare.json").write_text(json.dumps(result))
    monkeypatch.setattr(methods, "RESULTS", tmp_path)
    assert methods.measured()["hint"] == ["scarce: miou_error -0.0200 [-0.0300, -0.0100], better"]
    assert "points" in methods.ran()["hint"]


def test_intervals_are_those_of_the_results_page(methods: ModuleType) -> None:
    """What is computed from the cells is what recipes/RESULTS.md says."""
    spoken, results = methods.measured()["kd"][0], (ROOT / "recipes/RESULTS.md").read_text()
    for text in ("5.9 [2.9, 8.9]", "1.3 [0.3, 2.3]"):
        assert text in spoken and text in results
    assert methods.bracketed(Interval(0.5, None, None), 1) == "0.5"


def test_a_stale_page_is_told_and_mended(
    methods: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(methods, "PAGE", tmp_path / "methods.md")
    monkeypatch.setattr(sys, "argv", ["methods.py", "--check"])
    assert methods.main() == 1 and not methods.PAGE.exists()
    monkeypatch.setattr(sys, "argv", ["methods.py"])
    assert methods.main() == 0 and capsys.readouterr().out == "methods.md: written\n"
    monkeypatch.setattr(sys, "argv", ["methods.py", "--check"])
    assert methods.main() == 0
