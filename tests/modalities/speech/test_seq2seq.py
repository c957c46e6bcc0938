"""Students with a decoder: what their rows are, what they start as, what is saved of them, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import killed_runs
import numpy as np
import pytest
import soundfile as sf
import torch
from oracles import seq2seq as oracle
from pretrained_small import write_whisper
from seq2seq_small import TEXTS, adapter_of, listed, record, sets

from xmodal_kd.adapter.sketch import SIZES, Given
from xmodal_kd.cli.main import call
from xmodal_kd.compress import origins
from xmodal_kd.modalities.speech.models.processor import MelFrames, Processor, padded
from xmodal_kd.modalities.speech.models.seq2seq import Encoders, encoder_of, shifted
from xmodal_kd.modalities.speech.models.whisper import greedy
from xmodal_kd.modalities.speech.tasks.seq2seq import Seq2SeqAdapter
from xmodal_kd.modalities.speech.use.decoder import DecoderRecogniser, pieces
from xmodal_kd.modalities.speech.use.pseudolabel import Filter
from xmodal_kd.modalities.speech.use.sketch import sketch
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term, load
from xmodal_kd.runtime.checkpoint import read_json, read_tensors
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams

transformers = pytest.importorskip("transformers", exc_type=ImportError)

LAYER = "model.decoder.layers.1"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_whisper(tmp_path_factory.mktemp("teacher"), decoder_layers=4, chunk=3)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("recordings"))


def batch_of(adapter: Seq2SeqAdapter, split: str = "train") -> Any:
    source = adapter.data(split)
    return source.collate([source.sample(i, 0) for i in range(len(source))])


# ---------------------------------------------------------------- rows


def test_rows_are_what_transformers_says_of_each_utterance_alone(recordings: Path, teacher: Path) -> None:
    """Its own processor and model, forced over what the release's collator makes of its own tokenizer's ids."""
    adapter = adapter_of(recordings, teacher)
    model: Any = adapter.load("teacher", teacher)
    batch = batch_of(adapter)
    said = adapter.signals("teacher", model, batch, [LAYER, "model.encoder.layers.0"])
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(teacher)
    tokenizer = transformers.AutoTokenizer.from_pretrained(teacher)
    rows, layout = said["logits"]
    assert layout.kind == "token" and said.layout("labels") is layout and said.layout(LAYER) is layout
    assert said.layout("model.encoder.layers.0").kind == "frame"
    for i, key in enumerate(batch["keys"]):
        wave, _ = sf.read(recordings / key, dtype="float32")
        heard = extractor(wave, sampling_rate=16000, return_tensors="pt").input_features
        ids = np.array([tokenizer(" " + batch["texts"][i]).input_ids])
        given, labels = oracle.mask_labels(ids, np.ones_like(ids), tokenizer.prefix_tokens[0])
        with torch.no_grad():
            out = model(input_features=heard, decoder_input_ids=torch.tensor(given), output_hidden_states=True)
        mine = layout.mask & (layout.item == i)
        assert said.rows("labels")[mine].tolist() == labels[0].tolist()
        torch.testing.assert_close(rows[mine], out.logits[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(said.rows(LAYER)[mine], out.decoder_hidden_states[2][0], rtol=1e-4, atol=1e-5)
    assert adapter.class_names("student") == tuple(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))


def test_padding_is_masked_where_the_collator_masks_it(recordings: Path, teacher: Path) -> None:
    """A batch's targets and what the decoder is given, of texts of several lengths at once."""
    adapter = adapter_of(recordings, teacher)
    batch, made = batch_of(adapter), adapter.processor
    rows = [[*made.prefix, *adapter.tokens.encode(text)[len(made.prefix) - 1 :]] for text in batch["texts"]]
    longest = max(map(len, rows))
    ids = np.array([[*row, *[made.end] * (longest - len(row))] for row in rows])
    there = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    given, labels = oracle.mask_labels(ids, there, made.start)
    assert np.array_equal(np.where(labels < 0, -1, labels), batch["targets"].numpy())
    assert np.array_equal(shifted(batch["targets"], made.start, made.end).numpy(), given)


def test_the_recipes_objective_is_distil_whispers(recordings: Path, teacher: Path) -> None:
    """Cross entropy and KL over all tokens of the batch, by the weights of the paper."""
    adapter = adapter_of(recordings, teacher)
    batch = batch_of(adapter)
    torch.manual_seed(1)
    student, model = adapter.build("student", "whisper", {"decoder_layers": 2}), adapter.load("teacher", teacher)
    mine, theirs = adapter.signals("student", student, batch), adapter.signals("teacher", model, batch)
    objective = Objective(load("speech/whisper", sets(recordings, teacher)).recipe.objective, steps=2)
    objective.build(mine, theirs, Streams(1))
    shape = (*batch["targets"].shape, adapter.processor.classes)
    logits = [one.rows("logits").detach().double().reshape(shape).numpy() for one in (mine, theirs)]
    expected = oracle.distil_whisper(*logits, batch["targets"].numpy(), w_ce=1.0, w_kl=0.8, T=2.0)
    assert objective(mine, theirs, step=0).value().item() == pytest.approx(expected, rel=1e-5)


def test_last_states_are_what_the_heads_read(recordings: Path, teacher: Path) -> None:
    """As `dskd` takes them; the shared table of the student's tokens learns by its own scores."""
    adapter = adapter_of(recordings, teacher)
    batch, last = batch_of(adapter), "model.decoder.layer_norm"
    torch.manual_seed(1)
    roles = {"student": adapter.build("student", "whisper", {"decoder_layers": 2})}
    roles["teacher"] = adapter.load("teacher", teacher).requires_grad_(False)
    said = {role: adapter.signals(role, model, batch, [last]) for role, model in roles.items()}
    for role, signals in said.items():
        signals.model = roles[role]
        mask, head = signals.layout(last).mask, roles[role].get_submodule("proj_out")
        torch.testing.assert_close(head(signals.rows(last)[mask]), signals.rows("logits")[mask])
    term = Term(loss="dskd", on=("logits", last), head="proj_out")
    objective = Objective([term]).build(said["student"], said["teacher"], Streams(1))
    objective(said["student"], said["teacher"]).value().backward()
    weight: Any = roles["student"].get_submodule("proj_out").weight
    assert weight.grad is not None and bool(weight.grad.any())
    assert all(parameter.grad is not None for parameter in objective.parameters())


def test_features_are_whispers_without_the_silence_that_it_pads_with(teacher: Path) -> None:
    made = Processor(teacher)
    waves = [0.1 * torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (400, 16000, 47999, 60000)]
    heard = [MelFrames(made)(wave) for wave in waves]
    assert [len(one) for one in heard][:2] < [10, 110] and len(heard[-1]) == made.frames
    batch = torch.nn.utils.rnn.pad_sequence(heard, batch_first=True, padding_value=torch.nan)
    whole = padded(batch, torch.tensor([len(one) for one in heard]), torch.stack([x[-1] for x in heard]), made.frames)
    for wave, mine in zip(waves, whole, strict=True):
        theirs = made.extractor(wave.numpy(), sampling_rate=16000, return_tensors="pt").input_features[0]
        assert torch.equal(mine, theirs)


# ---------------------------------------------------------------- the student


def test_it_starts_as_the_teachers_layers_that_are_furthest_apart(recordings: Path, teacher: Path) -> None:
    adapter = adapter_of(recordings, teacher)
    student, model = adapter.build("student", "whisper", {"decoder_layers": 2}), adapter.load("teacher", teacher)
    found = origins.names(student, model, "spaced")
    origins.copy(student, model, {mine: origins.Origin(theirs) for mine, theirs in found.items()})
    mine, theirs = student.state_dict(), model.state_dict()
    for i, layer in enumerate(oracle.layer_map(4, 2)):
        name = "model.decoder.layers.{}.fc1.weight"
        assert torch.equal(mine[name.format(i)], theirs[name.format(layer)])
    rest = [name for name in mine if "decoder.layers" not in name]
    assert all(torch.equal(mine[name], theirs[name]) for name in rest) and len(rest) > 10


def test_a_frozen_encoder_runs_once_for_both(recordings: Path, teacher: Path) -> None:
    """It does not where it learns, has other weights, hears other features, or where somebody looks inside."""
    adapter = adapter_of(recordings, teacher, "data.augment={freq_masks: 2}")
    model = adapter.load("teacher", teacher).requires_grad_(False)
    student = adapter.build("student", "whisper", {"decoder_layers": 2, "freeze_encoder": True})
    encoder_of(student).load_state_dict(encoder_of(model).state_dict())
    clean, masked = batch_of(adapter, "dev"), batch_of(adapter)
    calls = list[str]()
    for role, one in (("teacher", model), ("student", student)):
        encoder_of(one).register_forward_hook(lambda *_, role=role: calls.append(role))

    def heard(batch: Any, features: Sequence[str] = ()) -> list[str]:
        calls.clear()
        adapter._encoders = Encoders()
        adapter.signals("teacher", model, batch)
        adapter.signals("student", student.train(), batch, features)
        return list(calls)

    assert heard(clean) == ["teacher"] and not encoder_of(student).training
    assert heard(masked) == ["teacher", "student"]
    assert heard(clean, ["model.encoder.layers.0"]) == ["teacher", "student"]
    with torch.no_grad():
        encoder_of(student).conv1.weight.add_(1)  # type: ignore[union-attr,operator]
    assert heard(clean) == ["teacher", "student"]
    encoder_of(student).load_state_dict(encoder_of(model).state_dict())
    assert heard(clean) == ["teacher"]
    student.requires_grad_(True)
    assert heard(clean) == ["teacher", "student"] and encoder_of(student).training


def test_many_languages_are_told_by_what_stands_before_a_text(recordings: Path, tmp_path: Path) -> None:
    folder = write_whisper(tmp_path / "many", decoder_layers=4, chunk=3, many=True)
    with pytest.raises(UserError, match=r"data\.language: .*knows many languages.*name it"):
        _ = adapter_of(recordings, folder).processor
    with pytest.raises(UserError, match=r"data\.language: .*does not know 'fr', but de, en"):
        _ = adapter_of(recordings, folder, "data.language=fr").processor
    assert adapter_of(recordings, folder, "data.language=german").processor.prefix[1] == 31
    adapter = adapter_of(recordings, folder, "data.language=de")
    made = adapter.processor
    begun = ["<|startoftranscript|>", "<|de|>", "<|transcribe|>", "<|notimestamps|>"]
    assert made.tokenizer.convert_ids_to_tokens(made.prefix) == begun
    student: Any = adapter.build("student", "whisper", {}).eval()
    adapter.save("student", student, tmp_path / "student")
    saved = transformers.GenerationConfig.from_pretrained(tmp_path / "student")
    assert (saved.language, saved.task, saved.no_timestamps_token_id) == ("de", "transcribe", made.prefix[-1])
    batch = batch_of(adapter, "dev")
    ours = greedy(student, made, adapter._heard(batch, "clean"))
    loaded = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "student").eval()
    theirs = loaded.generate(adapter._heard(batch, "clean"), num_beams=1, do_sample=False).tolist()
    assert [made.decode(ids) for ids in ours] == [made.decode(ids) for ids in theirs]


def test_new_makes_a_recipe_of_such_a_folder(recordings: Path, tmp_path: Path) -> None:
    folder = write_whisper(tmp_path / "many", decoder_layers=4, chunk=3, many=True)
    made = sketch(Given(folder, recordings, SIZES["large"]))
    assert made.sections["data"]["task"].value == "seq2seq" and made.sections["data"]["language"].value == "en"
    assert made.sections["student"]["params"].value == {"decoder_layers": 2, "freeze_encoder": True}
    assert "data.language: en is a guess" in made.notes[0]
    (tmp_path / "silent").mkdir()
    [problem] = sketch(Given(folder, record(tmp_path / "silent", ["yes", None, *TEXTS[2:]]), SIZES["small"])).problems
    assert "1 of 6 training recordings have no text" in problem and "--as-written" in problem


# ---------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def finished(recordings: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert call(arguments(out, recordings, teacher)) == 0
    return out


def arguments(out: Path, recordings: Path, teacher: Path, *more: str) -> list[str]:
    given = listed(sets(recordings, teacher, "train.steps=4", "train.checkpoint_every=2"))
    return ["run", "speech/whisper", "--out", str(out), "--device", "cpu", "--quiet", *given, *more]


def test_the_saved_student_loads_by_transformers_alone_and_writes_the_same(
    finished: Path, recordings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, folder = read_json(finished / "report.json"), finished / "student"
    exported = report["export"]["model.safetensors"]
    assert (exported["reloaded"], exported["other_texts"]) == (2, 0) and "note" not in exported
    assert report["roles"]["student"]["parameters"] == report["roles"]["control"]["parameters"]
    model = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(folder).eval()
    made = transformers.AutoProcessor.from_pretrained(folder)
    assert model.config.decoder_layers == 2
    file = recordings / "test0.wav"
    heard = made(sf.read(file, dtype="float32")[0], sampling_rate=16000, return_tensors="pt").input_features
    theirs = made.batch_decode(model.generate(heard, num_beams=1, do_sample=False), skip_special_tokens=True)[0].strip()
    assert DecoderRecogniser(folder).transcribe(file)["text"] == theirs != ""
    assert call(["transcribe", str(folder), str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == theirs
    assert call(["transcribe", str(folder), str(file), "--beam", "4"]) == 2
    assert "writes by a decoder" in capsys.readouterr().err
    assert "transformers" in (folder / "README.md").read_text()


@pytest.mark.full
def test_a_killed_run_goes_on_to_the_same_student(
    finished: Path, recordings: Path, teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    given = arguments(out, recordings, teacher)
    assert killed_runs.run(given, killed_runs.kill_with, out / "checkpoints" / "student") < 0
    assert not (out / "report.json").exists()
    assert call([*given, "--resume"]) == 0
    for role in ("control", "student"):
        one, other = (folder / role / "model.safetensors" for folder in (out, finished))
        assert one.read_bytes() == other.read_bytes(), role


def test_a_cached_teacher_teaches_the_same(finished: Path, recordings: Path, teacher: Path, tmp_path: Path) -> None:
    """It is asked once an utterance, by what it hears and the text that it is forced over."""
    given = arguments(tmp_path / "run", recordings, teacher, "--set", "cache={}")
    assert call([*given, "--set", "control=false"]) == 0
    one, other = (read_tensors(folder / "student/model.safetensors") for folder in (tmp_path / "run", finished))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=2e-3)
    facts = read_json(tmp_path / "run/report.json")["cost"]["student"]["cache"]
    assert facts["computed"] == 6 and max(facts["loss_error"].values()) < 1e-2


def test_a_long_recording_is_cut_where_it_is_quiet() -> None:
    wave = np.ones(2500, np.float32)
    wave[850:950] = 0
    found = list(pieces([wave[:700], wave[700:]], 1000, 1000))
    assert len(found[0]) in range(850, 950)
    assert np.array_equal(np.concatenate(found), wave) and max(map(len, found)) <= 1000


def test_the_filter_of_texts_is_the_releases_but_at_its_threshold() -> None:
    """The release drops a text whose WER is exactly the threshold, and one without a small letter; here both stay."""
    ten = "a b c d e f g h i j"
    for text in (ten, ten.replace("j", "z"), ten.replace("i j", "z z"), "a b", f"{ten} k"):
        kept = Filter(max_wer=0.1).against(text, 0.0, ten, None) is None
        assert kept == oracle.keep_by_wer(ten, text, 10.0 + 1e-9)
