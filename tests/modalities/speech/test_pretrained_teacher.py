"""Teachers as transformers saves them: what they hear, what they write, on whose frames, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from pretrained_small import vocabulary, write
from shared_data import shared

from xmodal_kd.cli.main import call
from xmodal_kd.modalities.speech.adapter import SpeechAdapter
from xmodal_kd.modalities.speech.data.symbols import Vocabulary, match
from xmodal_kd.modalities.speech.models.pretrained import load_pretrained
from xmodal_kd.modalities.speech.use.intents_sketch import classifier_in
from xmodal_kd.recipe.recipe import load
from xmodal_kd.run.roles import make_adapter
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.teacher_cache.content import Contents

transformers = pytest.importorskip("transformers", exc_type=ImportError)

KINDS = ("group", "layer", "bert")
Folders = dict[str, Path]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return {kind: write(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of several lengths as sentences in letters."""
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    texts = ["yes", "no way", "it's so", "a quiz", "yes no", "maybe"]
    for split, count in (("train", 6), ("dev", 2), ("test", 2)):
        lines = []
        for i in range(count):
            name, seconds = f"{split}{i}.wav", 1.0 + 0.13 * i
            sf.write(folder / name, 0.1 * rng.standard_normal(int(16000 * seconds)), 16000)
            lines.append(json.dumps({"audio_filepath": name, "text": texts[i], "speaker": f"s{i}"}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def sets(recordings: Path, folder: Path, *more: str) -> list[str]:
    return [
        f"data.path={recordings}", f"teacher={{path: {folder}}}", "student.params={width: 8, dilations: [1]}",
        "train.batch_size=3", "train.steps=2", "trackers=[]", *more,
    ]  # fmt: skip


def listed(given: Sequence[str]) -> list[str]:
    return [word for one in given for word in ("--set", one)]


def adapter_of(recordings: Path, folder: Path, *more: str) -> SpeechAdapter:
    made: Any = make_adapter(load("speech/kathleen", sets(recordings, folder, *more)), Streams(1), 3)
    made.build("student", "conv", {"width": 8, "dilations": [1]})
    return made  # type: ignore[no-any-return]


def batch_of(adapter: SpeechAdapter, split: str = "train") -> Any:
    source = adapter.data(split)
    return source.collate([source.sample(i, 0) for i in range(len(source))])


# ---------------------------------------------------------------- what it says


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_what_transformers_says_of_each_utterance_alone(recordings: Path, folders: Folders, kind: str) -> None:
    """Its own processor, its own model, one utterance at a time, symbols by name; whatever batch it comes in."""
    folder = folders[kind]
    adapter = adapter_of(recordings, folder)
    model: Any = adapter.load("teacher", folder)
    batch = batch_of(adapter, "dev")
    logits, lengths = adapter.recognised("teacher", model, batch)
    extractor = getattr(
        transformers, "SeamlessM4TFeatureExtractor" if kind == "bert" else "Wav2Vec2FeatureExtractor"
    ).from_pretrained(folder)
    order = [vocabulary()[{"<blank>": "<pad>"}.get(name, name.upper())] for name in adapter.tokens.symbols]
    for i, key in enumerate(batch["keys"]):
        wave, _ = sf.read(recordings / key, dtype="float32")
        with torch.no_grad():
            expected = model(**extractor(wave, sampling_rate=16000, return_tensors="pt")).logits[0]
        assert int(lengths[i]) == len(expected)
        torch.testing.assert_close(logits[i, : len(expected)], expected[:, order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_its_20_ms_meet_the_students_40_in_every_signal(recordings: Path, folders: Folders, kind: str) -> None:
    adapter = adapter_of(recordings, folders[kind])
    model = adapter.load("teacher", folders[kind])
    batch = batch_of(adapter)
    layer = "wav2vec2_bert.encoder.layers.0" if kind == "bert" else "wav2vec2.encoder.layers.0"
    said = adapter.signals("teacher", model, batch, [layer])
    student = adapter.signals("student", adapter.build("student", "conv", {"width": 8, "dilations": [1]}), batch)
    assert float(adapter._front_end("teacher", model).frame) == 0.02
    for name in ("logits", layer):
        assert said.layout(name).same_rows(student.layout("logits"))
        assert torch.equal(said.layout(name).mask, student.layout("logits").mask)
        assert torch.isfinite(said.rows(name)[said.layout(name).mask]).all()
    assert adapter.class_names("teacher") == adapter.class_names("student")


def test_a_click_has_a_frame(recordings: Path, folders: Folders, tmp_path: Path) -> None:
    """Shorter than what its convolutions see: silence follows, and nothing breaks."""
    found = load_pretrained(folders["group"])
    batch = {"waves": torch.ones(1, 16), "samples": torch.tensor([16]), "wave_rate": 16000}
    heard = found.front_end.hear(found.model, batch, "clean")
    assert heard.lengths.tolist() == [1] and torch.isfinite(heard.logits).all()


def test_it_hears_the_recording_where_the_student_hears_half_the_rate(recordings: Path, folders: Folders) -> None:
    """An 8 kHz student beside a 16 kHz teacher: the teacher's wave is the file's, not one that went through 8 kHz."""
    adapter = adapter_of(recordings, folders["group"], "data.features.sample_rate=8000")
    plain = adapter.data("dev").sample(0, 0)
    assert plain.wave is None
    adapter.load("teacher", folders["group"])
    sample = adapter.data("dev").sample(0, 0)
    wave, _ = sf.read(recordings / sample.key, dtype="float32")
    assert sample.wave is not None
    np.testing.assert_allclose(sample.wave.numpy(), wave, atol=1e-6)
    assert sample.clean.shape == plain.clean.shape
    assert float((sample.clean - plain.clean).abs().mean()) < 0.05


@pytest.mark.parametrize("view", ["clean", "shared"])
def test_speed_is_heard_by_both_and_noise_as_the_view_says(recordings: Path, folders: Folders, view: str) -> None:
    augment = "data.augment={speed: [0.8, 0.8], noise_snr_db: [0, 0], freq_masks: 0, time_masks: 0}"
    adapter = adapter_of(recordings, folders["group"], augment, f"data.teacher_view={view}")
    adapter.load("teacher", folders["group"])
    source = adapter.data("train")
    sample = source.sample(0, 0)
    assert sample.wave is not None and len(sample.wave) == round(16000 / 0.8)
    heard = source.frontend(sample.wave)
    torch.testing.assert_close(heard, sample.clean if view == "clean" else sample.features)
    assert not torch.equal(sample.clean, sample.features)


def test_what_a_cache_finds_it_by_is_the_wave(recordings: Path, folders: Folders) -> None:
    adapter, contents = adapter_of(recordings, folders["group"]), Contents()
    adapter.load("teacher", folders["group"])
    source = adapter.data("dev")
    first, second = (contents.digest(adapter.teacher_sees(source.sample(i, 0))) for i in (0, 1))
    assert first == contents.digest(adapter.teacher_sees(source.sample(0, 3))) != second


def test_the_memory_of_waves_and_features_is_bounded(
    recordings: Path, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xmodal_kd.modalities.speech.data.source.MEMORY", 100_000)
    adapter = adapter_of(recordings, folders["group"])
    adapter.load("teacher", folders["group"])
    batch_of(adapter)
    assert 0 < adapter.data("train")._memory.used <= 100_000


def test_a_saved_teacher_hears_its_own_features(recordings: Path, tmp_path: Path) -> None:
    """One of 20 mels at 8 kHz beside a student of 40 at 16 kHz, with its own hop of 12 ms: 48 on 40 ms."""
    own = "data.features={sample_rate: 8000, mels: 20, hop_ms: 12}"
    other = adapter_of(recordings, tmp_path, own)
    torch.manual_seed(0)
    model = other.build("teacher", "conv", {"width": 8, "dilations": [1]}).eval()
    other.save("teacher", model, tmp_path / "teacher")
    expected, _ = other.recognised("teacher", model, batch_of(other, "dev"))
    adapter = adapter_of(recordings, tmp_path)
    loaded = adapter.load("teacher", tmp_path / "teacher").eval()
    batch = batch_of(adapter, "dev")
    found, lengths = adapter.recognised("teacher", loaded, batch)
    for mine, theirs, n in zip(found, expected, lengths.tolist(), strict=True):
        torch.testing.assert_close(mine[:n], theirs[:n], rtol=1e-3, atol=1e-3)
    said = adapter.signals("teacher", loaded, batch)
    student = adapter.signals("student", adapter.build("student", "conv", {"width": 8, "dilations": [1]}), batch)
    assert said.layout("logits").same_rows(student.layout("logits"))
    with pytest.raises(UserError, match=r"its student hears features.sample_rate = 8000, the recipe says 16000"):
        adapter.load("student", tmp_path / "teacher")


# ---------------------------------------------------------------- symbols


def test_symbols_are_matched_by_name_whatever_their_case() -> None:
    theirs = Vocabulary(("A", "<pad>", "▁", "a", "’", "<s>", None, "é"), blank=1, special=frozenset({5}))
    found = match(("<blank>", "'", "a", "|"), theirs, "it")
    scores = torch.randn(3, 8)
    ours = found(scores)
    assert found.columns == (1, 4, 0, 2)
    torch.testing.assert_close(ours[:, 2].exp(), scores[:, [0, 3]].exp().sum(dim=1))
    torch.testing.assert_close(ours[:, [0, 1, 3]], scores[:, [1, 4, 2]])
    with pytest.raises(UserError, match=r"it: it cannot write 'b' 'c', which the training texts hold"):
        match(("<blank>", "a", "b", "c"), theirs, "it")
    assert match(("<blank>", "a", "b"), theirs, "it", partial=True)(scores)[:, 2].isneginf().all()
    with pytest.raises(UserError, match="fewer than two are the student's"):
        match(("<blank>", "yes", "no"), theirs, "it", partial=True)


def test_lint_lists_what_the_student_does_not_write(recordings: Path, folders: Folders) -> None:
    adapter = adapter_of(recordings, folders["group"])
    [(status, found, _)] = adapter.lint(folders["group"])
    assert status == "warn" and "'C'" in found and "<s>" not in found and "'A'" not in found


def test_lint_tells_of_two_blanks(recordings: Path, folders: Folders, tmp_path: Path) -> None:
    """Fine-tuned without pad_token_id: the loss took class 0 for the blank, the tokenizer decodes by another."""
    folder = Path(shutil.copytree(folders["group"], tmp_path / "teacher"))
    tokens = read_json(folder / "tokenizer_config.json")
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokens, "pad_token": "</s>"}))
    [(status, found, _), _] = adapter_of(recordings, folder).lint(folder)
    assert (status, found) == (
        "warn", "its model takes class 0 for the blank (pad_token_id), its tokenizer class 2",
    )  # fmt: skip


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "change, said",
    [
        ("head", "Wav2Vec2ForSequenceClassification is neither a CTC model .* nor an encoder of waves"),
        ("whisper", "writes by a decoder, not by CTC frames"),
        ("code", "asks for code of its own"),
        ("pickle", "pytorch_model.bin is pickled, which is not read"),
        ("weights", "no model.safetensors: save the model with save_pretrained"),
        ("processor", "no preprocessor_config.json says what it hears"),
        ("vocabulary", "no vocab.json: save its processor beside it"),
        ("lacking", "its weights lack 'lm_head.bias'"),
        ("config", "neither a saved recogniser .card.json. nor a CTC model as transformers saves it"),
    ],
)  # fmt: skip
def test_what_cannot_teach_is_one_line_with_the_next_step(
    recordings: Path, folders: Folders, tmp_path: Path, change: str, said: str
) -> None:
    folder = Path(shutil.copytree(folders["group"], tmp_path / "teacher"))
    config = read_json(folder / "config.json")
    match change:
        case "head":
            config["architectures"] = ["Wav2Vec2ForSequenceClassification"]
        case "whisper":
            config["architectures"] = ["WhisperForConditionalGeneration"]
        case "code":
            config["auto_map"] = {"AutoModelForCTC": "mine.Model"}
        case "pickle":
            (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        case "weights":
            (folder / "model.safetensors").unlink()
        case "processor":
            (folder / "preprocessor_config.json").unlink()
        case "vocabulary":
            (folder / "vocab.json").unlink()
        case "lacking":
            from safetensors.torch import load_file, save_file

            held = load_file(folder / "model.safetensors")
            kept = {name: one for name, one in held.items() if not name.startswith("lm_head")}
            save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    if change == "config":
        (folder / "config.json").unlink()
    with pytest.raises(UserError, match=said) as found:
        adapter_of(recordings, folder).load("teacher", folder)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_processor_saved_whole_hears_and_writes(folders: Folders, tmp_path: Path, kind: str) -> None:
    """Since transformers 5 one file says what it hears; a tokenizer beside it does not make it a reader of texts."""
    folder = Path(shutil.copytree(folders[kind], tmp_path / "teacher"))
    made = transformers.AutoProcessor.from_pretrained(folder)
    (folder / "preprocessor_config.json").unlink()
    assert classifier_in(folder) is None  # which then says what is lacking
    made.save_pretrained(folder)
    if (folder / "preprocessor_config.json").is_file():
        pytest.skip("a transformers that writes two files")
    assert classifier_in(folder) is None
    assert load_pretrained(folder).vocabulary == load_pretrained(folders[kind]).vocabulary


def test_a_name_on_the_hub_is_no_folder(recordings: Path, folders: Folders) -> None:
    with pytest.raises(UserError, match=r"no such folder: .* is a folder on this machine, nothing is fetched"):
        adapter_of(recordings, folders["group"]).load("teacher", Path("facebook/wav2vec2-base-960h"))


# ---------------------------------------------------------------- end to end


def test_a_run_from_such_a_folder(
    recordings: Path, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xmodal_kd.run.runner.LATENCY", 0.01)
    given = listed(sets(recordings, folders["group"]))
    out = tmp_path / "run"
    assert call(["run", "speech/kathleen", "--out", str(out), "--quiet", "--no-export", *given]) == 0
    report = read_json(out / "report.json")
    assert list(report["roles"]) == ["teacher", "control", "student"]
    assert (out / "student" / "model.safetensors").is_file()


@pytest.mark.parametrize("kind", ["w2v2", "hubert", "wavlm"])
def test_models_that_people_save(kind: str) -> None:
    """Of the cases beside the project, on real sentences."""
    folder = shared("../cases/speech") / kind
    adapter = adapter_of(shared("kathleen"), folder)
    model = adapter.load("teacher", folder)
    source = adapter.data("dev")
    batch = source.collate([source.sample(i, 0) for i in range(3)])
    said = adapter.signals("teacher", model, batch)
    mask = said.layout("logits").mask
    assert torch.isfinite(said.rows("logits")[mask]).all() and said.rows("logits").shape[1] == len(adapter.tokens)
