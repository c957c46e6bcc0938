"""Audio that nobody wrote down: who learns from it, and who does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from xmodal_kd.cli.main import call
from xmodal_kd.recipe.recipe import load
from xmodal_kd.run.roles import labelled_by, make_adapter
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training segments of one file, of which three have a text."""
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    sf.write(folder / "long.flac", 0.1 * rng.standard_normal(16000 * 8), 16000)
    lines = [{"audio_filepath": "long.flac", "offset": i, "duration": 1.0} for i in range(8)]
    for i in (1, 4, 6):
        lines[i]["text"] = ("yes no", "no yes")[i % 2]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for split in ("dev", "test"):
        sf.write(folder / f"{split}.wav", 0.1 * rng.standard_normal(16000), 16000)
        (folder / f"{split}.jsonl").write_text(json.dumps({"audio_filepath": f"{split}.wav", "text": "yes no"}))
    return folder


def sets(recordings: Path, *more: str) -> list[str]:
    tiny = "{width: 8, dilations: [1]}"
    return [
        f"data.path={recordings}", f"teacher={{model: conv, params: {tiny}, train: {{steps: 2, batch_size: 2}}}}",
        f"student.params={tiny}", "train.batch_size=4", "train.steps=3", "trackers=[]", "self_training=false", *more,
    ]  # fmt: skip


def test_a_source_says_what_is_transcribed(recordings: Path) -> None:
    loaded = load("speech/kathleen", sets(recordings))
    adapter: Any = make_adapter(loaded, Streams(1))
    source = adapter.data("train")
    assert len(source) == 8 and [source.items[i].text for i in source.labelled] == ["no yes", "yes no", "yes no"]
    assert source.describe()["untranscribed"] == 5
    assert list(labelled_by(source, loaded.recipe, "student")) == source.labelled
    silent = next(i for i in range(8) if i not in source.labelled)
    assert source.sample(silent, 0).target == [] and len(source.sample(silent, 0).clean) > 80


def test_a_run_learns_from_it_what_needs_no_transcript(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xmodal_kd.run.runner.LATENCY", 0.01)
    objective = "objective=[{loss: ctc}, {loss: kd}, {loss: nbest_kd}, {loss: ctc_occupancy}]"
    given = [word for one in sets(recordings, objective) for word in ("--set", one)]
    out = tmp_path / "run"
    assert call(["run", "speech/kathleen", "--out", str(out), "--quiet", "--no-export", *given]) == 0
    report = read_json(out / "report.json")
    assert {role: (one["labelled"], one["unlabelled"]) for role, one in report["labels"].items()} == {
        "teacher": (3, False), "control": (3, False), "student": (3, True),
    }  # fmt: skip


def test_no_transcript_at_all_is_refused(recordings: Path, tmp_path: Path) -> None:
    folder = tmp_path / "none"
    folder.mkdir()
    for name in ("dev.jsonl", "test.jsonl"):
        (folder / name).write_text((recordings / name).read_text())
    line = {"audio_filepath": str(recordings / "long.flac"), "offset": 0, "duration": 1.0}
    (folder / "train.jsonl").write_text(json.dumps(line))
    with pytest.raises(UserError, match="no training recording has a text: some are needed"):
        make_adapter(load("speech/kathleen", sets(folder)), Streams(1))


SYMBOLS = {
    "lines.txt": "<blk>\nNO\nyes\n",
    "tokens.txt": "yes 2\n<blk> 0\nno 1\n<unk> 3\n",
    "vocab.json": '{"[PAD]": 0, "no": 2, "YES": 5}',
    "list.json": '["no", "yes"]',
}


@pytest.mark.parametrize("name", SYMBOLS)
def test_symbols_may_be_given(recordings: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(SYMBOLS[name])
    given = load("speech/kathleen", sets(recordings, "data.tokens=words", f"data.symbols={tmp_path / name}"))
    assert make_adapter(given, Streams(1)).tokens.symbols == ("<blank>", "no", "yes")


def test_characters_are_given_with_their_gap(recordings: Path, tmp_path: Path) -> None:
    (tmp_path / "letters.json").write_text('["<pad>", "|", "E", "N", "O", "S", "Y"]')
    more = ("data.tokens=characters", f"data.symbols={tmp_path / 'letters.json'}")
    tokens = make_adapter(load("speech/kathleen", sets(recordings, *more)), Streams(1)).tokens
    assert tokens.symbols == ("<blank>", "|", "e", "n", "o", "s", "y") and tokens.decode([6, 2, 5, 1, 3, 4]) == "yes no"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "holds no symbols"),
        ("yes\nno\nYES\n", "holds 'yes' twice"),
        ("yes no\nmaybe\n", "'yes no' is no symbol: one a line"),
        ("no\n", "unknown word 'yes' in .*: no training text, or data.symbols, has it"),
        (None, "symbols.txt is missing"),
    ],
)
def test_symbols_that_cannot_be(recordings: Path, tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "symbols.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=words) as error:
        more = ("data.tokens=words", f"data.symbols={path}")
        adapter: Any = make_adapter(load("speech/kathleen", sets(recordings, *more)), Streams(1))
        adapter.data("dev").sample(0, 0)
    assert "\n" not in str(error.value)


def test_a_student_of_given_symbols_needs_no_transcript(tmp_path: Path, recordings: Path) -> None:
    """Of the training recordings; what it is measured on has some."""
    lines = [json.loads(line) for line in (recordings / "train.jsonl").read_text().splitlines()]
    for name in ("dev.jsonl", "test.jsonl"):
        (tmp_path / name).write_text((recordings / name).read_text())
    silent = [{**{k: v for k, v in line.items() if k != "text"}, "audio_filepath": "l.flac"} for line in lines]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, silent)))
    for name in ("dev.wav", "test.wav"):
        (tmp_path / name).symlink_to(recordings / name)
    (tmp_path / "l.flac").symlink_to(recordings / "long.flac")
    (tmp_path / "symbols.txt").write_text("no\nyes\n")
    more = ("data.tokens=words", f"data.symbols={tmp_path / 'symbols.txt'}")
    adapter: Any = make_adapter(load("speech/kathleen", sets(tmp_path, *more)), Streams(1))
    source = adapter.data("train")
    assert len(source) == 8 and source.labelled == []
