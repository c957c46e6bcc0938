"""What the READMEs promise: their Python runs, their commands and recipes exist."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

from xmodal_kd import recipe
from xmodal_kd.cli import call

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "docs/own_models.md",
    ROOT / "recipes/README.md",
    *sorted(ROOT.glob("modalities/*/README.md")),
]
TEXT = "\n".join(page.read_text() for page in PAGES)


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
def test_python_examples_run(code: str) -> None:
    guests = [name for name in ("transformers", "lightning") if re.search(rf"^(from|import) {name}\b", code, re.M)]
    with warnings.catch_warnings():
        if guests:
            warnings.simplefilter("ignore")  # theirs of each other
        for name in guests:
            pytest.importorskip(name, reason=f"of use to those who have {name}, which nothing here needs")
        exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("command", sorted(set(re.findall(r"xmodal-kd ([a-z]+)", TEXT))))
def test_commands_exist_and_have_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call([command, "--help"]) == 0
    assert command in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(set(re.findall(r"(?:run|check) ([a-z]+/[a-z]+)", TEXT))))
def test_recipes_named_exist(name: str) -> None:
    assert recipe.find(name).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
