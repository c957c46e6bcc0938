"""Transducers: their nodes, what they write, what is exported of them, and a run of them that is killed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import killed_runs
import numpy as np
import pytest
import soundfile as sf
import torch
from oracles import transducer as oracle
from refusals import fails
from seq2seq_small import listed
from torch import Tensor
from transducer_small import adapter_of, batch_of, sets

from xmodal_kd.cli.main import call
from xmodal_kd.modalities.speech.evaluate.transducer import MOST, Greedy, TorchParts, beam, greedy
from xmodal_kd.modalities.speech.export.saved_folder import PROGRAM, load_model, save_model, write_program
from xmodal_kd.modalities.speech.export.transducer import OnnxParts, export_text
from xmodal_kd.modalities.speech.models import MODELS
from xmodal_kd.modalities.speech.models.streaming import Steps
from xmodal_kd.modalities.speech.models.transducer import Transducer
from xmodal_kd.modalities.speech.use.live import Live
from xmodal_kd.modalities.speech.use.transducer import TransducerRecogniser
from xmodal_kd.runtime.checkpoint import read_json, read_tensors
from xmodal_kd.runtime.errors import UserError

KINDS = ["stateless", "gru"]
MELS, CLASSES = 6, 5


def model_of(predictor: str = "stateless", name: str = "conv_transducer", sharp: float = 4.0) -> Transducer:
    """An untrained one that says something."""
    torch.manual_seed(2)
    own = {"width": 8, "dilations": (1, 2)} if name.startswith("conv") else {"width": 8, "layers": 1, "heads": 2}
    kind = MODELS[name]
    model = kind(kind.Config(**own, predictor=predictor, context=3, embedding=6, joint=7), mels=MELS, classes=CLASSES)
    with torch.no_grad():
        model.joint.out.weight.mul_(sharp)
        model.joint.out.bias[0] += sharp / 4
    return model.eval()  # type: ignore[no-any-return]


def sounds(*lengths: int) -> tuple[Tensor, Tensor]:
    """Features with NaN behind each one's end."""
    rng = torch.Generator().manual_seed(1)
    features = 2 * torch.randn(len(lengths), max(lengths), MELS, generator=rng)
    for row, length in zip(features, lengths, strict=True):
        row[length:] = torch.nan
    return features, torch.tensor(lengths)


# ---------------------------------------------------------------- nodes


@pytest.mark.parametrize("name", ["conv_transducer", "conformer_transducer"])
@pytest.mark.parametrize("predictor", KINDS)
def test_a_node_joins_its_frame_and_what_of_the_text_is_written(predictor: str, name: str) -> None:
    """By steps of the predictor, each utterance alone: neither padding nor another utterance is in it."""
    model, (features, lengths) = model_of(predictor, name), sounds(20, 9, 13)
    targets, counts = torch.tensor([[1, 2, 2], [4, -1, -1], [-1, -1, -1]]), torch.tensor([3, 1, 0])
    with torch.no_grad():
        found = model(features, lengths, targets, counts)
        parts, at = TorchParts(model), 0
        assert found.frames.tolist() == [5, 3, 4]
        for i, (length, count) in enumerate(zip(lengths.tolist(), counts.tolist(), strict=True)):
            states, frames = model(features[i : i + 1, :length], lengths[i : i + 1])
            text, state = [0, *targets[i, :count].tolist()], parts.start(1)
            known = []
            for symbol in text:
                one, state = parts.predict(torch.tensor([symbol]), state)
                known.append(one)
            for t in range(int(frames)):
                for u, one in enumerate(known):
                    torch.testing.assert_close(found.logits[at], parts.join(states[:, t], one)[0])
                    assert (int(found.item[at]), int(found.labels[at])) == (i, [*text[1:], 0][u])
                    at += 1
    assert at == len(found.logits)


def test_rows_are_nodes_frames_and_positions(digits: Path) -> None:
    """Of a batch of several lengths: every signal that terms may name, and features where they belong."""
    adapter = adapter_of(digits)
    batch, student = batch_of(adapter), adapter.build("student", "conv_transducer", {"width": 8, "dilations": [1, 2]})
    said = adapter.signals("student", student, batch, ["encoder.blocks.1", "encoder.subsample", "predictor"])
    frames, symbols = (batch["lengths"] + 3) // 4, batch["target_lengths"]
    rows, layout = said["logits"]
    assert rows.shape == (int((frames * (symbols + 1)).sum()), len(adapter.tokens)) and layout.full
    assert said.layout("labels") is layout and torch.bincount(layout.item).tolist() == (frames * (symbols + 1)).tolist()
    for i, text in enumerate(batch["texts"]):
        mine = said.rows("labels")[layout.item == i]
        assert mine.tolist() == [*adapter.tokens.encode(text), 0] * int(frames[i])
    for name in ("encoder.blocks.1", "encoder.subsample"):
        assert said.layout(name).kind == "frame" and int(said.layout(name).mask.sum()) == int(frames.sum())
    assert (
        said.layout("predictor").kind == "token" and int(said.layout("predictor").mask.sum()) == int(symbols.sum()) + 4
    )
    for name, why in (
        ("joint", "its rows are nodes of the lattice"),
        ("encoder.subsample.convolutions.0", "channels before time"),
        ("predictor.embedding", "a feature here is"),
    ):
        with pytest.raises(UserError, match=why):
            adapter.signals("student", student, batch, [name])


# ---------------------------------------------------------------- what they write


def plainly(model: Transducer, states: Tensor) -> list[tuple[int, int]]:
    """Greedy decoding of one utterance by the whole text so far, symbols and their frames."""
    said: list[tuple[int, int]] = []
    for t, state in enumerate(states):
        for _ in range(MOST):
            text = torch.tensor([[0, *(symbol for symbol, _ in said)]])
            known, _ = model.predictor(text, model.predictor.start(1))
            best = int(model.joint(state, known[0, -1]).argmax())
            if not best:
                break
            said.append((best, t))
    return said


@pytest.mark.parametrize("predictor", KINDS)
def test_greedy_writes_the_best_symbol_of_each_node(predictor: str) -> None:
    """Side by side with others, alone, and where frames come in pieces."""
    model, (features, lengths) = model_of(predictor), sounds(28, 13, 19)
    parts = TorchParts(model)
    with torch.no_grad():
        states, frames = model(features, lengths)
        expected = [plainly(model, row[:count]) for row, count in zip(states, frames.tolist(), strict=True)]
    assert sum(map(len, expected)) > 5 and greedy(parts, states, frames) == [[s for s, _ in one] for one in expected]
    search = Greedy(parts, 1)
    said = [one for piece in states[0].split(4) for one in search.push(piece[None])[0]]
    assert [(one.symbol, one.frame) for one in said] == expected[0] and all(0 < one.probability <= 1 for one in said)


def test_a_bad_model_does_not_write_for_ever() -> None:
    model = model_of()
    with torch.no_grad():
        model.joint.out.bias[0] = -1e4
    states, frames = model(*sounds(8, 4))
    assert [len(ids) for ids in greedy(TorchParts(model), states, frames)] == [2 * MOST, MOST]


@pytest.mark.parametrize("predictor", KINDS)
@pytest.mark.parametrize("frames", [1, 3])
def test_a_beams_scores_are_of_ways_through_the_lattice(predictor: str, frames: int) -> None:
    """At most what all ways of the text sum to; of one frame there is one way, and it is that."""
    model = model_of(predictor, sharp=1.5)
    states, lengths = model(*sounds(4 * frames))
    found = beam(TorchParts(model), states[0], 60)
    assert len(found) == CLASSES - 1
    for ids, score in found:
        text, count = torch.tensor([ids], dtype=torch.int64), torch.tensor([len(ids)])
        with torch.no_grad():
            lattice = model.lattice(states, lengths, text, count)
        whole = -oracle.rnnt_loss(lattice.logits.reshape(frames, len(ids) + 1, CLASSES).numpy(), ids)
        assert score <= whole + 1e-4 and (frames > 1 or score == pytest.approx(whole, abs=1e-4))
    ranked = [score / (len(ids) + 2) for ids, score in found]  # torchaudio counts the blank before, and one
    assert ranked == sorted(ranked, reverse=True)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("predictor", [pytest.param("stateless", marks=pytest.mark.full), "gru"])
def test_onnx_graphs_write_what_torch_writes(tmp_path: Path, predictor: str) -> None:
    model, (features, lengths) = model_of(predictor), sounds(60, 33)
    export_text(model, tmp_path)
    parts = OnnxParts(tmp_path)
    with torch.no_grad():
        states, frames = model(features, lengths)
    assert greedy(parts, states, frames) == greedy(TorchParts(model), states, frames)
    mine, theirs = beam(parts, states[0], 4), beam(TorchParts(model), states[0], 4)
    assert [ids for ids, _ in mine] == [ids for ids, _ in theirs]


# ---------------------------------------------------------------- a run


#: Of nodes, collapsed and whole, and of the encoders' frames.
OBJECTIVE = "[{loss: rnnt}, {loss: rnnt_kd}, {loss: kd}, {loss: hint, on: encoder.blocks.1}]"


def arguments(out: Path, digits: Path, *more: str) -> list[str]:
    given = listed(sets(digits, "train.checkpoint_every=2", f"objective={OBJECTIVE}", *more))
    return ["run", "smoke/rnnt", "--out", str(out), "--device", "cpu", "--quiet", *given]


@pytest.fixture(scope="module")
def finished(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert call(arguments(out, digits, "data.beam={size: 3}", "data.streaming=true")) == 0
    return out


def test_a_run_measures_and_exports(finished: Path) -> None:
    report = read_json(finished / "report.json")
    for role in ("teacher", "control", "student"):
        assert {"wer", "cer", "ser", "rtf", "wer_beam", "cer_beam"} <= set(report["roles"][role]["metrics"])
    with (finished / "checkpoints/student/log.jsonl").open() as log:
        assert {"rnnt", "rnnt_kd", "kd", "hint"} <= set(json.loads(log.readline()))
    exported = report["export"]
    for name in ("model.onnx", "model.stream.onnx"):
        assert exported[name]["metrics"]["wer"] == report["roles"]["student"]["metrics"]["wer"]
    parts = {"model.int8.onnx", "model.stream.int8.onnx", "predictor.onnx", "joint.onnx", "int8_against_fp32"}
    assert parts <= set(exported)
    card = (finished / "student/README.md").read_text()
    assert (
        "predictor.onnx" in card
        and "a multiple of 4 frames at a time" in card
        and (finished / "student" / PROGRAM).is_file()
    )


def talking(folder: Path, finished: Path) -> Path:
    """The student with a joint that says something after four steps: sharp, and of what differs between frames."""
    model, card = load_model(finished / "student", "transducer")
    assert isinstance(model, Transducer)
    rng, out = torch.Generator().manual_seed(0), model.joint.out
    with torch.no_grad():
        states, _ = model(3 * torch.randn(1, 400, 40, generator=rng), torch.tensor([400]))
        known, _ = model.predictor.step(torch.tensor([0]), model.predictor.start(1))
        out.weight.copy_(4 * torch.randn(out.weight.shape, generator=rng))
        out.bias.copy_(-(torch.tanh(states[0] + known).mean(dim=0) @ out.weight.T))
        out.bias[0] += 2
    save_model(folder, card.model, card.params, model, card.features, card.tokens)
    return folder


def test_transcribe_writes_files_and_pipes(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whole and in pieces; a text and its words agree, and ONNX Runtime's is torch's."""
    file = tmp_path / "a.wav"
    wave = 0.2 * np.random.default_rng(0).standard_normal(16000).astype(np.float32) * (np.arange(16000) // 2500 % 2)
    sf.write(file, wave, 8000, subtype="FLOAT")
    for backend in ("onnx", "torch"):
        assert TransducerRecogniser(finished / "student", backend=backend).transcribe(file)["duration"] == 2.0  # type: ignore[arg-type]
    folder = talking(tmp_path / "student", finished)
    by_torch = TransducerRecogniser(folder)
    found = by_torch.transcribe(file)
    assert found["text"] == " ".join(word["word"] for word in found["words"]) != ""
    for word in found["words"]:
        assert 0 <= word["start"] < word["end"] <= 2.0 and 0 < word["confidence"] <= 1
    live = Live(by_torch)
    heard = [word for piece in np.array_split(wave.astype(np.float32), 7) for word in live.push(piece)]
    heard += live.finish()
    assert [word["word"] for word in heard] == found["text"].split()
    for word, placed in zip(heard, found["words"], strict=True):
        assert word["confidence"] == pytest.approx(placed["confidence"], abs=2e-3)
    assert call(["transcribe", str(folder), str(file), "--json", "--beam", "2", "--nbest", "2"]) == 0
    assert len(json.loads(capsys.readouterr().out)["nbest"]) == 2
    assert call(["transcribe", str(folder), str(file), "--lexicon", str(file)]) == 2
    assert "beam is over symbols" in capsys.readouterr().err


def test_files_of_onnx_hear_a_pipe_and_need_no_torch(finished: Path, tmp_path: Path) -> None:
    """The encoder with its state and what goes along with the text write what the whole writes, here and alone."""
    folder, file = talking(tmp_path / "student", finished), tmp_path / "a.wav"
    for name in ("model.onnx", "model.stream.onnx"):  # its encoder is that of the run
        shutil.copy(finished / "student" / name, folder)
    export_text(cast(Transducer, load_model(folder, "transducer")[0]), folder)
    write_program(folder)
    pcm = (3000 * np.random.default_rng(0).standard_normal(16000) * (np.arange(16000) // 2500 % 2)).astype(np.int16)
    sf.write(file, pcm, 8000)
    exported = TransducerRecogniser(folder, backend="onnx")
    expected = exported.transcribe(file)["text"].split()
    assert (
        len(expected) > 2 and TransducerRecogniser(folder, backend="torch").transcribe(file)["text"].split() == expected
    )
    assert isinstance(exported.stream(), Steps)
    live = Live(exported)
    heard = [word for piece in np.array_split((pcm / 2**15).astype(np.float32), 7) for word in live.push(piece)]
    assert [word["word"] for word in [*heard, *live.finish()]] == expected
    command = [sys.executable, "-I", str(folder / PROGRAM)]
    alone = subprocess.run([*command, str(file)], capture_output=True, text=True, check=True)
    assert alone.stdout.split() == expected
    piped = subprocess.run([*command, "--times", "-"], input=pcm.tobytes(), capture_output=True, check=True)
    times, words = zip(*(line.split() for line in piped.stdout.decode().splitlines()), strict=True)
    assert list(words) == expected and sorted(map(float, times)) == list(map(float, times))


@pytest.mark.full
def test_a_killed_run_goes_on_to_the_same_student(finished: Path, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    given = [*arguments(out, digits), "--no-export"]
    assert killed_runs.run(given, killed_runs.kill_with, out / "checkpoints" / "student") < 0
    assert not (out / "report.json").exists()
    assert call([*given, "--resume"]) == 0
    for role in ("teacher", "control", "student"):
        one, other = (folder / role / "model.safetensors" for folder in (out, finished))
        assert one.read_bytes() == other.read_bytes(), role


def test_a_cached_teacher_teaches_the_same(finished: Path, digits: Path, tmp_path: Path) -> None:
    given = arguments(
        tmp_path / "run", digits, "cache={}", "control=false", f"teacher={{path: {finished / 'teacher'}}}"
    )
    assert call([*given, "--no-export"]) == 0
    one, other = (read_tensors(folder / "student/model.safetensors") for folder in (tmp_path / "run", finished))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=2e-3)


def test_a_teacher_may_hear_other_mels(finished: Path, digits: Path) -> None:
    """From the wave, on the same frames; what moves them is refused."""
    adapter = adapter_of(digits, "data.features={sample_rate: 8000, mels: 20}")
    student = adapter.build("student", "conv_transducer", {"width": 8})
    teacher = adapter.load("teacher", finished / "teacher").eval()
    batch = batch_of(adapter)
    assert "waves" in batch
    mine, theirs = adapter.signals("student", student, batch), adapter.signals("teacher", teacher, batch)
    assert mine.layout("logits").same_rows(theirs.layout("logits"))
    plain = adapter_of(digits)
    expected = plain.signals("teacher", plain.load("teacher", finished / "teacher").eval(), batch_of(plain))
    torch.testing.assert_close(theirs.rows("logits"), expected.rows("logits"))


# ---------------------------------------------------------------- refusals


def test_what_is_no_transducers_teacher_is_refused(finished: Path, digits: Path, tmp_path: Path) -> None:
    folder = finished / "teacher"
    for more, why in (
        ("data.features={sample_rate: 8000, mels: 40, hop_ms: 15}", "features.hop_ms = 10.0, the recipe says 15.0"),
        ("data.tokens=characters", "writes another vocabulary"),
    ):
        with pytest.raises(UserError, match=why):
            adapter_of(digits, more).load("teacher", folder)
    adapter = adapter_of(digits)
    with pytest.raises(UserError, match="a transducer's teacher is a transducer"):
        adapter.load("teacher", tmp_path)
    with pytest.raises(UserError, match=r"is no transducer: set student\.model to conv_transducer"):
        adapter.build("student", "conv", {})


@pytest.mark.parametrize(
    "more, why",
    [
        (["labels=6"], "lattice lies along the text of every utterance"),
        (
            ["data.streaming=true", "student={model: conformer_transducer}"],
            "data.streaming: 'conformer_transducer' cannot hear chunks: set student.model to conv_transducer",
        ),
        (["data.beam={lexicon: words.txt}"], "a transducer's beam is over symbols"),
        (["data.task=ctc"], "model 'conv_transducer' is a transducer: set data.task to transducer"),
    ],
)
def test_recipes_that_no_transducer_learns_by(
    digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], more: Sequence[str], why: str
) -> None:
    given = ["run", "smoke/rnnt", "--out", str(tmp_path / "run"), "--quiet", *listed(sets(digits, *more))]
    assert re.search(re.escape(why), fails(capfd, 2, *given))


def test_other_tasks_name_the_task(finished: Path, digits: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from xmodal_kd.modalities.speech.use.transcribe import Recogniser

    with pytest.raises(
        UserError, match=r"a recogniser of task transducer, ctc is asked for: set data\.task to transducer"
    ):
        Recogniser(finished / "student")
