"""Folders, recipes and recordings that no student with a decoder can be made of."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from pretrained_small import write, write_whisper
from seq2seq_small import TEXTS, adapter_of, listed, record, sets

from xmodal_kd.cli.main import call
from xmodal_kd.modalities.speech.models.processor import Processor
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError

pytest.importorskip("transformers", exc_type=ImportError)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_whisper(tmp_path_factory.mktemp("teacher"), decoder_layers=4, chunk=3)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("recordings"))


def without(name: str) -> Any:
    def made(folder: Path) -> Path:
        write_whisper(folder, decoder_layers=4, chunk=3)
        for file in folder.glob(name):
            file.unlink()
        return folder

    return made


@pytest.mark.parametrize(
    "make, why",
    [
        (lambda folder: write(folder, "layer"), "no Whisper as transformers saves it: Wav2Vec2ForCTC"),
        (without("tokenizer*"), "no tokenizer"),
        (without("preprocessor*"), "no feature extractor"),
        (without("model*"), r"no model\.safetensors"),
        (lambda folder: write_whisper(folder, chunk=4), "hears features of frames 400"),
        (
            lambda folder: write_whisper(folder, chunk=3, max_target_positions=6),
            r"train utterance .*: its text needs \d+ positions of the decoder, which has 6 \(max_target_positions",
        ),
        (lambda folder: folder / "nowhere", "no such folder: a Whisper is a folder on this machine"),
    ],
)
def test_folders_that_cannot_teach(recordings: Path, teacher: Path, tmp_path: Path, make: Any, why: str) -> None:
    folder = make(tmp_path / "bad")
    adapter = adapter_of(recordings, folder, f"data.processor={teacher}")
    with pytest.raises(UserError, match=why):
        adapter.load("teacher", folder)


def test_a_processor_of_another_model(teacher: Path, tmp_path: Path) -> None:
    shutil.copytree(teacher, tmp_path, dirs_exist_ok=True)
    for key, value, why in (
        ("num_mel_bins", 80, "its model hears 300 frames of 80 mels, its processor gives 300 of 16"),
        ("vocab_size", 9, "its tokenizer has 31 tokens, its model writes 9"),
        ("decoder_start_token_id", 3, r"begins a text with token \[29\], its model with 3"),
    ):
        config = read_json(teacher / "config.json") | {key: value}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=why):
            Processor(tmp_path)


@pytest.mark.parametrize(
    "change, why",
    [
        ("data.tokens=characters", "tokens: it says nothing to task seq2seq"),
        ("data.streaming=true", "streaming: it says nothing to task seq2seq"),
        ("data.augment={warp: [0.9, 1.1]}", "augment.warp"),
        ("student={model: conv}", "set student.model to whisper"),
        ("data.language=de", "knows one language"),
        (
            "student.params={encoder_layers: 2, freeze_encoder: true}",
            "with other layers has to learn",
        ),
        ("labels=3", "a decoder is forced over the text of every utterance"),
        ("data.task=ctc", "writes by a decoder: set data.task to seq2seq|writes by a decoder, not by CTC frames"),
    ],
)
def test_recipes_that_cannot_run(
    recordings: Path, teacher: Path, tmp_path: Path, change: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = listed(sets(recordings, teacher, change))
    assert call(["run", "speech/whisper", "--out", str(tmp_path / "run"), "--device", "cpu", "--quiet", *given]) == 2
    assert re.search(why, " ".join(capsys.readouterr().err.split()))


def test_recordings_that_cannot_be_learnt_from(teacher: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("silent", "long")]
    for folder in folders:
        folder.mkdir()
    silent = record(folders[0], ["yes", None, *TEXTS[2:]])
    with pytest.raises(UserError, match=r"train1\.wav: it has no text, .*pseudolabel"):
        adapter_of(silent, teacher).data("train")
    long = record(folders[1], ["yes and no and yes", *TEXTS[1:]])
    with pytest.raises(UserError, match=r"train0\.wav: its text needs \d\d positions of the decoder, which has 12"):
        adapter_of(long, teacher).data("train")
    sf.write(long / "test1.wav", np.zeros(16000 * 4), 16000)
    with pytest.raises(UserError, match=r"test1\.wav: 4\.0 s, the model hears 3 s at once"):
        adapter_of(long, teacher).data("test")
    sf.write(long / "train5.wav", np.zeros(16000 * 4), 16000)
    (long / "train.jsonl").write_text((silent / "train.jsonl").read_text().replace('"s1"', '"s1", "text": "no"'))
    source = adapter_of(long, teacher).data("train")
    assert source.left_out == [("train5.wav", "4.0 s is longer than what is heard at once (3 s)")]
