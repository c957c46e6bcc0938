"""Recipes to start from: each modality brings one that loads, is explained, and passes ``check``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile as sf

from xmodal_kd.adapter.adapter import adapter_class
from xmodal_kd.cli.commands import starting
from xmodal_kd.cli.drafts import template
from xmodal_kd.cli.main import call
from xmodal_kd.recipe.recipe import load
from xmodal_kd.run.resolved_recipe import resolved
from xmodal_kd.runtime.discovery import modality_names, shipped

ROOT = Path(__file__).parents[2]
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.mark.parametrize("name", modality_names())
def test_it_is_complete_and_explained(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    assert call(["new", name, str(path)]) == 0
    assert f"check {path}" in capfd.readouterr().out
    loaded = load(str(path))
    assert loaded.recipe.modality == name and resolved(loaded)["data"]
    adapter = adapter_class(name)
    assert loaded.recipe.teacher is not None and loaded.recipe.teacher.model is not None
    for role in (loaded.recipe.teacher, loaded.recipe.student):
        adapter.models[str(role.model)].Config.model_validate(role.params)
    text = path.read_text()
    assert text.count("#") > 20 and "THIS_FILE" not in text and f"check {path}" in text
    assert max(map(len, text.splitlines())) <= 120 + len(str(path))


def test_what_it_suggests_in_comments_reads_as_well(tmp_path: Path) -> None:
    """Of every template the settings that are commented out, but for those that take another's place."""
    for name in modality_names():
        lines = [
            line.replace("# - {", "- {").replace("# precision", "precision") for line in template(name).split("\n")
        ]
        (tmp_path / f"{name}.yaml").write_text("\n".join(lines).replace("# early_stop", "early_stop"))
        recipe = load(str(tmp_path / f"{name}.yaml")).recipe
        assert recipe.train.precision == "bf16" and len(recipe.objective) >= (1 if name == "diffusion" else 3)


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(["new", "speech"]) == 0 and (tmp_path / "speech.yaml").is_file()
    capfd.readouterr()
    assert call(["new", "speech"]) == 2 and "speech.yaml is there already" in capfd.readouterr().err
    assert call(["new", "speach"]) == 2 and "nearest: speech" in capfd.readouterr().err
    assert call(["new", "points", "no/such/folder/x.yaml"]) == 2 and "cannot be written" in capfd.readouterr().err
    assert call(["new", "points", "-"]) == 0 and capfd.readouterr().out == template("points")


def test_check_passes_on_recordings_of_ones_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recordings = sorted((ROOT / "assets/digits/recordings").glob("*.wav"))[:60]
    for at, split in enumerate(("train", "dev", "test")):
        lines = [
            {"audio_filepath": str(path), "text": WORDS[int(path.name[0])], "duration": sf.info(path).duration}
            for path in recordings[at::3]
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert call(["new", "speech", str(tmp_path / "mine.yaml")]) == 0
    sets = [f"data.path={tmp_path}", "data.features.sample_rate=8000", "teacher.params.layers=1"]
    command = ["check", str(tmp_path / "mine.yaml"), "--json", *(x for s in sets for x in ("--set", s))]
    capfd.readouterr()
    assert call(command) == 0
    findings = json.loads(capfd.readouterr().out)
    assert len(findings) > 5 and not [f for f in findings if f["status"] == "fail"]


def test_tab_completes_names() -> None:
    assert starting(shipped)("smoke/sp") == ["smoke/speech", "smoke/speech_losses"]
    assert starting(modality_names)("") == modality_names()
