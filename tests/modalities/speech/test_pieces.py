"""Pieces of words: how texts are split, what a student keeps of them, and words out of what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch

from xmodal_kd.cli.main import call
from xmodal_kd.modalities.speech.data.pieces import trained
from xmodal_kd.modalities.speech.data.tokens import BLANK, Tokens
from xmodal_kd.modalities.speech.evaluate.word_beam import Speller
from xmodal_kd.modalities.speech.use.live import Live
from xmodal_kd.modalities.speech.use.transcribe import Recogniser
from xmodal_kd.recipe.recipe import load
from xmodal_kd.run.roles import make_adapter
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams

pytest.importorskip("sentencepiece", exc_type=ImportError)

TEXTS = ["one two three", "two ones", "three twos"]


def by_hand(text: str, merges: list[str]) -> list[str]:
    """Byte-pair encoding as Sennrich et al. (2016) have it: the earliest merge that is there, until there is none."""
    split = []
    for word in text.split():
        symbols = list("▁" + word)
        while pairs := [p for p in range(len(symbols) - 1) if symbols[p] + symbols[p + 1] in merges]:
            at = min(pairs, key=lambda p: merges.index(symbols[p] + symbols[p + 1]))
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        split += symbols
    return split


def test_texts_are_split_by_the_merges_in_their_order() -> None:
    tokens = Tokens.of_pieces(trained(TEXTS, 18))
    merges = [name for name in tokens.symbols[1:] if len(name) > 1]
    assert tokens.symbols[0] == BLANK and len(tokens) == 19 and merges
    for text in ("one two three", "ones threes", "tow hen"):
        assert [tokens.symbols[i] for i in tokens.encode(text)] == by_hand(text, merges)
        assert tokens.decode(tokens.encode(text)) == text
    with pytest.raises(UserError, match="unknown piece 'z' in 'zone'"):
        tokens.encode("zone")
    assert tokens.decode(tokens.encode("one z", unknown_left=True)) == "one"


def test_they_are_the_same_for_texts_in_any_order_and_come_back_from_a_card() -> None:
    tokens = Tokens.of_pieces(trained(TEXTS, 18))
    assert tokens == Tokens.of_pieces(trained(TEXTS[::-1], 18)) == Tokens.from_json(tokens.to_json())


@pytest.mark.parametrize(
    "size, said",
    [
        (4, "data.bpe.size: 4 pieces are fewer than the characters of the texts: at least 9"),
        (900, "data.bpe.size: 900 pieces are more than the training texts have: at most"),
    ],
)
def test_sizes_that_the_texts_do_not_have(size: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        trained(TEXTS, size)


def test_a_beam_spells_words_in_pieces() -> None:
    """`on` begins `one` and `ones`: it counts when another word begins, or at the end."""
    tokens = Tokens.of_pieces(trained([*TEXTS, "on"], 18))
    words = {word: word for word in ("on", "one", "ones", "two")}
    speller = Speller(tokens, words, None, 1.0, 1.0)
    for text, expected in (("on two", 2.0), ("ones one", 2.0), ("two on", 2.0), ("two tw", -1e4), ("twos", -1e4)):
        state, total = speller.start(), 0.0
        for symbol in tokens.encode(text):
            state, added = speller.step(state, symbol)
            total += added
        total += speller.end(state)
        assert total == pytest.approx(expected) if expected > 0 else total < -5e3


# ---------------------------------------------------------------- as it is used


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("recordings"), np.random.default_rng(0)
    for split in ("train", "dev", "test"):
        lines = []
        for i, text in enumerate(TEXTS):
            sf.write(folder / f"{split}{i}.wav", 0.1 * rng.standard_normal(16000), 16000)
            lines.append(json.dumps({"audio_filepath": f"{split}{i}.wav", "text": text, "speaker": split}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def sets(recordings: Path, *more: str) -> list[str]:
    return [
        f"data.path={recordings}", "data.tokens=bpe", "data.bpe={size: 18}", "objective=[{loss: ctc}]", "teacher=null",
        "control=false", "student.params={width: 8, dilations: [1]}", "train.batch_size=3", "train.steps=2",
        "trackers=[]", *more,
    ]  # fmt: skip


@pytest.mark.full
def test_a_run_its_export_and_a_second_student_of_its_pieces(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("xmodal_kd.run.runner.LATENCY", 0.01)
    given = [word for one in sets(recordings) for word in ("--set", one)]
    out = tmp_path / "run"
    assert call(["run", "speech/kathleen", "--out", str(out), "--quiet", "--device", "cpu", *given]) == 0
    recogniser = Recogniser(out / "student")
    assert recogniser.tokens == Tokens.of_pieces(trained(TEXTS, 18)) and (out / "student/model.int8.onnx").is_file()
    capsys.readouterr()
    assert call(["transcribe", str(out / "student"), str(recordings / "test0.wav")]) == 0
    made: Any = make_adapter(
        load("speech/kathleen", sets(recordings, f"data.bpe={{model: {out}/student}}")), Streams(1), 1
    )
    assert made.tokens == recogniser.tokens
    made.load("teacher", out / "student")
    (tmp_path / "own.model").write_bytes(trained(TEXTS, 16))
    other: Any = make_adapter(
        load("speech/kathleen", sets(recordings, f"data.bpe={{model: {tmp_path}/own.model}}")), Streams(1), 1
    )
    assert len(other.tokens) == 17
    with pytest.raises(UserError, match="writes another vocabulary than the training texts"):
        other.load("teacher", out / "student")


def test_words_end_where_a_piece_begins_another(recordings: Path, tmp_path: Path) -> None:
    """Both for a file and for what comes in chunks."""
    adapter: Any = make_adapter(load("speech/kathleen", sets(recordings)), Streams(1), 1)
    torch.manual_seed(0)
    model = adapter.build("student", "conv", {"width": 8, "dilations": [1]}).eval()
    adapter.save("student", model, tmp_path / "student")
    recogniser = Recogniser(tmp_path / "student")
    ids = recogniser.tokens.encode("ones two tow")
    placed = recogniser._words([(k, 2 * i, 2 * i + 1) for i, k in enumerate(ids)])
    assert [word["word"] for word in placed] == ["ones", "two", "tow"]
    live, said = Live(recogniser), []
    frames = [k for k in ids for _ in (0, 1)]
    logits = torch.full((len(frames), len(recogniser.tokens)), -9.0)
    logits[torch.arange(len(frames)), torch.tensor(frames)] = 9.0
    said += [word["word"] for word in live._spoken(logits)]
    assert said == ["ones", "two"]  # the third may go on
    assert said + [word["word"] for word in (*live._said(0, 0.0), *live._word())] == ["ones", "two", "tow"]


@pytest.mark.parametrize(
    "more, said",
    [
        ("data.symbols=a.txt", "symbols: a list says nothing of how words are split: give bpe.model instead"),
        ("data.bpe={model: nowhere.model}", "data.bpe.model: nowhere.model: no such file, nor a saved recogniser"),
        ("data.bpe={size: 999}", "data.bpe.size: 999 pieces are more than the training texts have: at most"),
    ],
)
def test_what_does_not_fit_is_one_line(recordings: Path, more: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_adapter(load("speech/kathleen", sets(recordings, more)), Streams(1), 1)


def test_what_is_no_model(recordings: Path, tmp_path: Path) -> None:
    (tmp_path / "x.model").write_bytes(b"no model at all")
    with pytest.raises(UserError, match=r"x\.model is no SentencePiece model"):
        make_adapter(
            load("speech/kathleen", sets(recordings, f"data.bpe={{model: {tmp_path}/x.model}}")), Streams(1), 1
        )
