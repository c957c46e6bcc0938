"""What the READMEs promise: their Python runs, their commands and recipes exist."""

from __future__ import annotations

import re
import shlex
import warnings
from pathlib import Path

import pytest
import typer

from xmodal_kd.adapter.adapter import adapter_class
from xmodal_kd.cli.main import app, call
from xmodal_kd.recipe import recipe

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "docs/own_models.md",
    ROOT / "docs/own_data.md",
    ROOT / "assets/README.md",
    ROOT / "recipes/README.md",
    *sorted(ROOT.glob("modalities/*/README.md")),
]
SHELL = [
    pytest.param(line, id=line[:70])
    for line in dict.fromkeys(
        line.partition("#")[0].strip()
        for page in PAGES
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
        for line in block.splitlines()
    )
    if line
]
TEXT = "\n".join(page.read_text() for page in PAGES)


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
def test_python_examples_run(code: str) -> None:
    guests = [
        name
        for name in ("transformers", "lightning", "pointcept", "pcdet")
        if re.search(rf"^(from|import) {name}\b", code, re.M)
    ]
    with warnings.catch_warnings():
        if guests:
            warnings.simplefilter("ignore")  # theirs of each other
        for name in guests:
            pytest.importorskip(name, reason=f"of use to those who have {name}, which nothing here needs")
        exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("line", SHELL)
def test_shell_commands_are_understood(line: str) -> None:
    """Each line of a ``sh`` block: the target, or the command, its options, recipe and keys are there."""
    words = shlex.split(line.rpartition(" | ")[2].partition(" > ")[0])  # of a pipe, what comes last
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[0].endswith("xmodal-kd") or "xmodal_kd" in words:
        at = words.index("xmodal_kd") if "xmodal_kd" in words else 0
        command, *arguments = words[at + 1 :]
        found = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
        parsed = found.make_context(command, arguments).params
        if "recipe" in parsed and not parsed["recipe"].endswith(".yaml"):
            loaded = recipe.load(parsed["recipe"], parsed["set_"] or ())
            loaded.validate(adapter_class(loaded.recipe.modality).Data, loaded.recipe.data, ("data",))
    else:
        assert words[0] in ("pip", "python", "git", "cd"), line
        assert words[0] != "python" or (ROOT / words[1]).is_file()


def test_commands_that_need_no_data_of_yours_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of "A recipe of your own", on the digits in assets; the quickstart has tests of its own."""
    monkeypatch.chdir(tmp_path)
    assert all(
        f"xmodal-kd {words}" in TEXT for words in ("new speech mine.yaml", "schema >", "diff runs/fsdd runs/mine")
    )
    assert call(["new", "speech", "mine.yaml"]) == 0
    assert call(["schema"]) == 0
    splits = ("train", "dev", "test")
    speakers = [
        f"data.{split}_speakers=[{name}]" for split, name in zip(splits, ("anna", "brian", "carla"), strict=True)
    ]
    sets = ["data.sources=fsdd", f"data.path={ROOT / 'assets/digits'}", *speakers, "train.steps=1", "teacher=null",
            "objective=[{loss: ctc}]", "data.features.sample_rate=8000", "data.tokens=words"]  # fmt: skip
    options = [part for setting in sets for part in ("--set", setting)]
    assert call(["run", "mine.yaml", *options, "--out", "runs/mine", "--quiet"]) == 0
    assert call(["diff", "runs/mine", "runs/mine"]) == 0
    assert call(["transcribe", "runs/mine/student", str(ROOT / "assets/digits/recordings/3_edith_0.wav")]) == 0


@pytest.mark.parametrize("command", sorted(set(re.findall(r"xmodal-kd ([a-z]+)", TEXT))))
def test_commands_exist_and_have_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call([command, "--help"]) == 0
    assert command in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(set(re.findall(r"(?:run|check) ([a-z]+/\w+)", TEXT))))
def test_recipes_named_exist(name: str) -> None:
    assert recipe.find(name).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
