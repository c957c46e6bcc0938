"""torchaudio's bundles as teachers: tiny ones in the places of published ones, whose weights lie in torch's cache."""

from __future__ import annotations

import json
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from safetensors.torch import save_file
from torchaudio import pipelines
from torchaudio.models import wav2vec2_model
from torchaudio.pipelines._wav2vec2 import utils

from xmodal_kd.modalities.speech.adapter import SpeechAdapter
from xmodal_kd.modalities.speech.data.corpora import SpeechData
from xmodal_kd.modalities.speech.models.bundle import load_bundle
from xmodal_kd.modalities.speech.use.heard import heard
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams

LETTERS = ("|", "A", "B", "C")
PARAMS = {
    "extractor_mode": "group_norm", "extractor_conv_layer_config": [(8, 10, 5), (8, 8, 8), (8, 8, 8)],
    "extractor_conv_bias": False, "encoder_embed_dim": 8, "encoder_projection_dropout": 0.0,
    "encoder_pos_conv_kernel": 4,
    "encoder_pos_conv_groups": 2, "encoder_num_layers": 3, "encoder_num_heads": 2, "encoder_attention_dropout": 0.0,
    "encoder_ff_interm_features": 16, "encoder_ff_interm_dropout": 0.0, "encoder_dropout": 0.0,
    "encoder_layer_norm_first": False,
    "encoder_layer_drop": 0.0,
}  # fmt: skip


@pytest.fixture
def bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TINY, LOUD (which normalises waves) and HEADLESS, and the folder of a teacher."""
    hub = tmp_path / "hub/checkpoints"
    hub.mkdir(parents=True)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    for seed, (name, normalise, head) in enumerate((("TINY", False, 5), ("LOUD", True, 5), ("HEADLESS", False, None))):
        torch.manual_seed(seed)
        params = {**PARAMS, "aux_num_out": head}
        state = {name: 3 * value for name, value in wav2vec2_model(**params).state_dict().items()}
        told = {
            "_path": f"{name.lower()}.pth", "_params": params, "_sample_rate": 16000, "_normalize_waveform": normalise,
            "_model_type": "Wav2Vec2",
        }  # fmt: skip
        made: Any = pipelines.Wav2Vec2Bundle(**told)
        if head is not None:
            made = pipelines.Wav2Vec2ASRBundle(**told, _labels=LETTERS, _remove_aux_axis=())
        torch.save(state, hub / told["_path"])
        monkeypatch.setattr(pipelines, name, made, raising=False)
    return tmp_path / "teacher"


def teacher(folder: Path, **about: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "bundle.json").write_text(json.dumps(about))
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> SpeechAdapter:
    rng, data = np.random.default_rng(0), tmp_path / "data"
    data.mkdir()
    for split, texts in (("train", ["ab c", "b", "cab"]), ("dev", ["a c"]), ("test", ["b"])):
        lines = []
        for i, text in enumerate(texts):
            sf.write(data / f"{split}{i}.wav", 0.1 * rng.standard_normal(9000 + 777 * i) + 0.05, 16000)
            lines.append(json.dumps({"audio_filepath": f"{split}{i}.wav", "text": text}))
        (data / f"{split}.jsonl").write_text("\n".join(lines))
    made = SpeechAdapter(
        SpeechData.model_validate({"sources": "manifest", "path": data, "tokens": "characters"}), Streams(1), 3
    )
    made.build("student", "conv", {"width": 8, "dilations": [1]})
    return made


def batch_of(adapter: SpeechAdapter) -> Any:
    source = adapter.data("train")
    return source.collate([source.sample(i, 0) for i in range(3)])


@pytest.mark.parametrize("name", ["TINY", "LOUD"])
def test_it_says_of_each_utterance_what_the_bundle_says(bundles: Path, adapter: SpeechAdapter, name: str) -> None:
    folder = teacher(bundles, bundle=name)
    model = adapter.load("teacher", folder)
    batch = batch_of(adapter)
    logits, lengths = adapter.recognised("teacher", model, batch)
    theirs = getattr(pipelines, name).get_model()
    order = [0 if symbol == "<blank>" else 1 + LETTERS.index(symbol.upper()) for symbol in adapter.tokens.symbols]
    for i, key in enumerate(batch["keys"]):
        wave, _ = sf.read(adapter.config.path / key, dtype="float32")
        with torch.no_grad():
            expected = theirs(torch.from_numpy(wave)[None])[0][0]
        assert int(lengths[i]) == len(expected) > 20
        torch.testing.assert_close(logits[i, : len(expected)], expected[:, order], rtol=1e-4, atol=1e-5)
    said = adapter.signals("teacher", model, batch, ["encoder.transformer.layers.1"])
    assert said.layout("logits").same_rows(said.layout("encoder.transformer.layers.1"))
    assert not any(p.requires_grad for p in model.parameters())
    assert list(adapter.lint(folder)) == []


def test_one_without_a_head_teaches_by_its_layers(bundles: Path, adapter: SpeechAdapter) -> None:
    folder = teacher(bundles, bundle="HEADLESS")
    model = adapter.load("teacher", folder)
    batch = batch_of(adapter)
    said = adapter.signals("teacher", model, batch, ["encoder.transformer.layers.2"])
    rows, layout = said["encoder.transformer.layers.2"]
    assert "logits" not in said and rows[layout.mask].std() > 0
    assert adapter.evaluate("teacher", model, "dev").metrics == {"wer": None}
    told = heard(folder)
    assert told.vocabulary is None and told.layers == tuple(f"encoder.transformer.layers.{i}" for i in range(3))


def test_weights_of_ones_own_in_the_folder(bundles: Path) -> None:
    folder = teacher(bundles, bundle="LOUD", weights="mine.safetensors")
    torch.manual_seed(9)
    mine = wav2vec2_model(**PARAMS, aux_num_out=5)
    save_file(mine.state_dict(), folder / "mine.safetensors")
    found = load_bundle(folder).model
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in mine.state_dict().items())
    told = heard(folder)
    assert (told.rate, told.kind, told.frame) == (16000, "characters", load_bundle(folder).front_end.frame)
    save_file({"aux.weight": torch.zeros(1)}, folder / "mine.safetensors")
    with pytest.raises(UserError, match=r"mine\.safetensors: lacks"):
        load_bundle(folder)


def test_what_is_not_there_is_one_line(bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no Wav2Vec2 bundle 'WAV2VEC_ASR_BASE_960H' \(nearest: WAV2VEC2_ASR_BASE_960"):
        load_bundle(teacher(bundles, bundle="WAV2VEC_ASR_BASE_960H"))
    with pytest.raises(UserError, match=r"bundle\.json: weights"):
        load_bundle(teacher(bundles, bundle="TINY", weights="mine.pth"))

    def unreachable(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(utils, "load_state_dict_from_url", unreachable)
    with pytest.raises(UserError) as error:
        load_bundle(teacher(bundles, bundle="TINY"))
    told = str(error.value)
    assert "\n" not in told and "weights of TINY (tiny.pth) cannot be had (<urlopen error no route to host>)" in told
    assert f"{torch.hub.get_dir()}/checkpoints" in told


class Acts:
    """A pickle that makes a folder when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.mark,)


def test_a_pickle_that_is_no_weights_is_not_run(bundles: Path, tmp_path: Path) -> None:
    torch.save({"aux.weight": Acts(tmp_path / "mark")}, Path(torch.hub.get_dir()) / "checkpoints/tiny.pth")
    with pytest.raises(UserError, match="cannot be had"):
        load_bundle(teacher(bundles, bundle="TINY"))
    assert not (tmp_path / "mark").exists()
