"""Words by beam search: against the sum over all paths, in `transcribe`, and in what is measured on test."""

from __future__ import annotations

import gzip
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from torch import Tensor

from xmodal_kd.cli.main import call
from xmodal_kd.modalities.speech.adapter import SpeechAdapter
from xmodal_kd.modalities.speech.data.features import Features
from xmodal_kd.modalities.speech.data.tokens import SPACE, Tokens
from xmodal_kd.modalities.speech.evaluate.ngram import Ngram
from xmodal_kd.modalities.speech.evaluate.word_beam import WordBeam
from xmodal_kd.modalities.speech.export.saved_folder import save_model
from xmodal_kd.modalities.speech.models import MODELS
from xmodal_kd.recipe.recipe import load
from xmodal_kd.run.roles import make_adapter
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams

pytest.importorskip("flashlight.lib.text.decoder", exc_type=ImportError)

ARPA = """
\\data\\
ngram 1=6
ngram 2=3
ngram 3=1

\\1-grams:
-1.0\t<s>\t-0.3
-0.9\t</s>
-0.7\tNO\t-0.2
-0.8\tON\t-0.1
-0.9\tZEBRA
-2.0\t<unk>

\\2-grams:
-0.2\t<s> NO\t-0.05
-0.5\tNO ON
-0.4\tON </s>

\\3-grams:
-0.1\t<s> NO ON

\\end\\
"""


@pytest.fixture(scope="session")
def arpa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"
    path.write_text(ARPA)
    return path


def test_a_word_is_looked_up_behind_ever_shorter_contexts(arpa: Path) -> None:
    """By hand from the file: the trigram; the bigram at the price of a back-off; the unigram at the price of two."""
    ngram = Ngram(arpa)
    assert ngram.order == 3 and ngram.words == ["NO", "ON", "ZEBRA"]
    no, p = ngram.score(ngram.start(), "NO")
    assert p == pytest.approx(-0.2 * math.log(10)) and no == ("<s>", "NO")
    on, p = ngram.score(no, "ON")
    assert p == pytest.approx(-0.1 * math.log(10)) and on == ("NO", "ON")
    assert ngram.end(on) == pytest.approx(-0.4 * math.log(10))  # NO ON </s> has no price, and ON </s> is there
    assert ngram.score(no, "ZEBRA")[1] == pytest.approx((-0.05 - 0.2 - 0.9) * math.log(10))
    assert ngram.score((), "nobody")[1] == pytest.approx(-2.0 * math.log(10))


def over_all_paths(
    log_p: Tensor, tokens: Tokens, beam: WordBeam, lm_weight: float, word_score: float
) -> dict[str, float]:
    """Every path, spelled out, whose words are all in the list; a gap behind the last frame costs nothing."""
    words = {tuple(tokens.encode(word)): word for word in beam.words}
    gap = tokens.symbols.index(SPACE) if tokens.kind == "characters" else None
    paths: dict[str, list[float]] = {}
    for path in itertools.product(range(len(tokens)), repeat=len(log_p)):
        said = [k for k, _ in itertools.groupby(path) if k]
        if gap is None:  # no symbol is longer than a word
            spelled = [(k,) for k in said]
        else:
            spelled = [tuple(part) for is_gap, part in itertools.groupby(said, lambda k: k == gap) if not is_gap]
        if all(one in words for one in spelled):
            text = " ".join(words[one] for one in spelled)
            paths.setdefault(text, []).append(sum(float(log_p[i, k]) for i, k in enumerate(path)))
    found = {}
    for text, each in paths.items():
        context, prior = beam.ngram.start() if beam.ngram else (), 0.0
        for word in text.split() if beam.ngram else ():
            context, p = beam.ngram.score(context, beam.words[word])  # type: ignore[union-attr]
            prior += p
        prior += beam.ngram.end(context) if beam.ngram else 0.0
        found[text] = float(np.logaddexp.reduce(each)) + lm_weight * prior + word_score * len(text.split())
    return found


@pytest.mark.parametrize("kind", ["characters", "words"])
@pytest.mark.parametrize("with_lm", [True, False])
def test_scores_are_sums_over_all_paths(arpa: Path, tmp_path: Path, kind: Any, with_lm: bool) -> None:
    """The beam holds everything that six frames can say, so nothing is pruned."""
    tokens = Tokens.build(kind, ["no on"])
    lexicon = tmp_path / "words.txt"
    lexicon.write_text("no\ton the right nothing is read\non\nnobody\n")
    beam = WordBeam(
        tokens, arpa if with_lm else None, None if with_lm else lexicon, size=200, lm_weight=0.7, word_score=0.3
    )
    assert list(beam.words) == ["no", "on"]  # zebra and nobody cannot be spelled
    torch.manual_seed(0)
    logits = 2 * torch.randn(2, 6, len(tokens))
    said = beam(logits, torch.tensor([6, 5]))
    for i, n in enumerate((6, 5)):
        log_p = logits[i, :n].log_softmax(dim=-1)
        expected = over_all_paths(log_p.double(), tokens, beam, 0.7 if with_lm else 0.0, 0.3)
        assert {one.text: one.score for one in said[i]} == pytest.approx(expected, abs=1e-4)
        assert said[i][0].text == max(expected, key=lambda text: expected[text])


# ---------------------------------------------------------------- as it is used


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    tokens = {"kind": "characters", "symbols": ["<blank>", "n", "o", SPACE]}
    model = MODELS["conv"](MODELS["conv"].Config(width=8, dilations=(1,)), mels=16, classes=4).eval()
    features = Features(sample_rate=8000, mels=16).model_dump()
    params = {"width": 8, "dilations": [1]}
    return save_model(tmp_path_factory.mktemp("student"), "conv", params, model, features, tokens)


def wave(folder: Path) -> Path:
    sf.write(folder / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(4000), 8000)
    return folder / "a.wav"


def test_transcribe_gives_hypotheses_of_the_list_alone(
    student: Path, arpa: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with gzip.open(tmp_path / "lm.arpa.gz", "wt") as file:
        file.write(ARPA)
    given = ["transcribe", str(student), str(wave(tmp_path)), "--json", "--nbest", "3"]
    assert call([*given, "--lm", str(tmp_path / "lm.arpa.gz"), "--word-score", "4"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["text"] == found["nbest"][0]["text"] and len(found["nbest"]) == 3
    assert set(found["text"].split()) <= {"no", "on"} and found["text"]
    assert [word["word"] for word in found["words"]] == found["text"].split()
    assert call([*given, "--beam", "8"]) == 0
    assert len(json.loads(capsys.readouterr().out)["nbest"]) == 3


@pytest.mark.parametrize(
    "more, said",
    [
        (["--nbest", "2"], "--nbest: hypotheses are given by a search, as JSON: add --json, and --beam N or --lm FILE"),
        (["--lm", "nowhere.arpa"], "nowhere.arpa: no such file: an ARPA file is expected"),
        (["--lm", "a.wav"], "a.wav: no ARPA file, which is text"),
        (["--lm", "text.txt"], "text.txt: no n-gram in it: an ARPA file is expected"),
        (["--lm", "bad.arpa"], "bad.arpa: line 3 is no 1-gram: a logarithm, 1 words, a back-off weight"),
        (["--lexicon", "text.txt"], "text.txt: the student can spell none of its words"),
    ],
)
def test_what_is_no_model_and_no_list_is_one_line(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    more: list[str], said: str,
) -> None:  # fmt: skip
    wave(tmp_path)
    (tmp_path / "text.txt").write_text("some words\n")
    (tmp_path / "bad.arpa").write_text("\\data\\\n\\1-grams:\nhalf no\n")
    monkeypatch.chdir(tmp_path)
    assert call(["transcribe", str(student), "a.wav", *more]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_test_is_measured_by_the_beam_too(arpa: Path, tmp_path: Path) -> None:
    """Greedy decides what is chosen; the beam's errors stand beside it, on test alone."""
    for split in ("train", "dev", "test"):
        wave(tmp_path)
        (tmp_path / f"{split}.wav").write_bytes((tmp_path / "a.wav").read_bytes())
        line = {"audio_filepath": f"{split}.wav", "text": "no on", "speaker": split}
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(line))
    sets = [
        f"data.path={tmp_path}", "data.features={sample_rate: 8000, mels: 16}", f"data.beam={{lm: {arpa}, size: 8}}",
        "student.params={width: 8, dilations: [1]}",
    ]  # fmt: skip
    adapter: Any = make_adapter(load("speech/kathleen", sets), Streams(1), 1)
    torch.manual_seed(0)
    model = adapter.build("student", "conv", {"width": 8, "dilations": [1]}).eval()
    assert not [key for key in adapter.evaluate("student", model, "dev").metrics if key.endswith("_beam")]
    found = adapter.evaluate("student", model, "test")
    assert 0 < found.metrics["wer_beam"] <= 1 and "cer_beam" in found.metrics
    assert next(iter(SpeechAdapter.files(adapter.config))).key == "data.beam.lm"
    with pytest.raises(UserError, match=r"data: beam: give lm or lexicon"):
        make_adapter(load("speech/kathleen", [*sets, "data.beam={size: 8}"]), Streams(1), 1)
