"""Encoders of waves as students: started from a folder, narrower, saved, loaded, heard again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from oracles import dphubert_by_another as oracle
from pretrained_small import write, write_encoder

from xmodal_kd.cli.main import call
from xmodal_kd.compress import gates
from xmodal_kd.modalities.speech.adapter import SpeechAdapter
from xmodal_kd.modalities.speech.data.features import Features
from xmodal_kd.modalities.speech.export.saved_folder import save_model
from xmodal_kd.modalities.speech.models.conv import ConvConfig, ConvCTC
from xmodal_kd.modalities.speech.models.encoder import EncoderConfig, EncoderForCTC
from xmodal_kd.modalities.speech.use.kinds import recogniser_of
from xmodal_kd.modalities.speech.use.transcribe import Recogniser
from xmodal_kd.modalities.speech.use.waves import WaveRecogniser
from xmodal_kd.recipe.recipe import load
from xmodal_kd.run.roles import make_adapter
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams

transformers = pytest.importorskip("transformers", exc_type=ImportError)

LAYERS = "[hubert.feature_projection.dropout, hubert.encoder.layers.0, hubert.encoder.layers.2]"
THEIRS = "[feature_projection.dropout, encoder.layers.0, encoder.layers.2]"


def built(config: EncoderConfig, classes: int = 5) -> EncoderForCTC:
    made = EncoderForCTC(config, mels=40, classes=classes)
    made.card = {"model": "encoder", "params": made.described()}
    return made


def encoder(folder: Path, name: str = "HubertModel", **changes: Any) -> EncoderForCTC:
    return built(EncoderConfig(folder=write_encoder(folder, name, **changes)))


@pytest.fixture(scope="session")
def hubert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("hubert"), "HubertModel")


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("recordings"), np.random.default_rng(0)
    for split, count in (("train", 4), ("dev", 2), ("test", 2)):
        lines = []
        for i in range(count):
            name = f"{split}{i}.wav"
            sf.write(folder / name, 0.1 * rng.standard_normal(int(16000 * (0.7 + 0.13 * i))), 16000)
            lines.append(json.dumps({"audio_filepath": name, "text": ["yes", "no"][i % 2], "speaker": f"s{i}"}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize(("name", "given", "released"), oracle.cases())
def test_expected_sizes_are_the_releases(
    name: str, given: dict[str, Any], released: dict[str, Any], tmp_path: Path
) -> None:
    """Of an encoder of the release's sizes, whose layers cannot go as a whole here; the head is not the release's."""
    config = transformers.HubertConfig(
        hidden_size=oracle.DIM, num_hidden_layers=2, num_attention_heads=oracle.HEADS,
        intermediate_size=oracle.INNER, conv_dim=[c for c, _, _ in oracle.CONV],
        conv_kernel=[k for _, k, _ in oracle.CONV], conv_stride=[s for _, _, s in oracle.CONV],
        conv_bias=given["bias"], feat_extract_norm=given["norm"], num_conv_pos_embeddings=oracle.POSK,
        num_conv_pos_embedding_groups=oracle.POSG,
    )  # fmt: skip
    model = built(EncoderConfig(encoder=config.to_diff_dict() | {"model_type": "hubert"}))
    shapes = {k: v.shape for k, v in model.named_parameters() if not k.startswith("lm_head")}
    assert sum(shape.numel() for shape in shapes.values()) == released["full"]
    logits = {f"channels.{i}": given["la"][f"conv{i}"] for i in range(2)}
    logits |= {f"heads.{i}": given["la"]["head"][i] for i in range(2)}
    logits |= {f"inner.{i}": given["la"]["inner"][i] for i in range(2)}
    left = {key: gates.chances(torch.tensor(value)).sum() for key, value in logits.items()}
    wanted = released["expected"]
    if given["layer_gates"]:  # as the oracle has it without them
        given = {**given, "layer_gates": False}
        wanted = oracle.oracle(given)["expected"]
    assert float(gates.expected(shapes, model.units(), left)) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning")
@pytest.mark.parametrize(("kind", "more"), [
    ("HubertModel", {}), ("WavLMModel", {"feat_extract_norm": "layer", "do_stable_layer_norm": True}),
    ("Wav2Vec2Model", {"feat_extract_norm": "layer", "do_stable_layer_norm": True}),
])  # fmt: skip
def test_closed_heads_and_inner_units_are_not_missed(kind: str, more: dict[str, Any], tmp_path: Path) -> None:
    """No norm reads them, so the smaller network says what the gated one says; so does it when it is built again."""
    model = encoder(tmp_path, kind, **more)
    whole = sum(p.numel() for p in model.parameters())
    made = gates.Gates(model, gates.units_of(model, ["heads.*", "inner.*"] if "WavLM" not in kind else ["inner.*"]))
    for logits in made.log_alpha:
        logits.data = 3 * torch.randn(len(logits), generator=torch.Generator().manual_seed(len(logits)))
    made.attach(model)
    waves = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model.eval()(waves).logits
        made.detach(model)
        left = gates.cut(model, made)
        torch.testing.assert_close(model(waves).logits, before, rtol=1e-4, atol=1e-5)
        assert sum(p.numel() for p in model.parameters()) < whole
        again = built(EncoderConfig.model_validate(json.loads(json.dumps(model.card["params"]))))
        assert model.card["params"]["left"] == left
        again.load_state_dict(model.state_dict())
        assert torch.equal(again.eval()(waves).logits, model(waves).logits)
    model.train()(waves).logits.sum().backward()


def test_channels_go_with_all_that_reads_them(hubert: Path) -> None:
    model = built(EncoderConfig(folder=hubert))
    made = gates.Gates(model, gates.units_of(model, ["channels.*"]))
    for i, logits in enumerate(made.log_alpha):
        logits.data = torch.where(torch.arange(len(logits)) < 3 + i % 3, 9.0, -9.0)
    assert gates.cut(model, made) == {f"channels.{i}": 3 + i % 3 for i in range(7)}
    layers: Any = model.base.feature_extractor.conv_layers
    assert [tuple(layer.conv.weight.shape[:2]) for layer in layers[:3]] == [(3, 1), (4, 3), (5, 4)]
    assert layers[0].layer_norm.num_groups == layers[0].layer_norm.num_channels == 3
    assert model.base.feature_projection.layer_norm.gain.shape == (3,)
    assert model(torch.randn(1, 4000)).logits.isfinite().all()


def test_the_streaming_student_loses_hidden_channels_and_nothing_else() -> None:
    torch.manual_seed(0)
    model = ConvCTC(ConvConfig(width=8, dilations=(1, 2)), mels=6, classes=4)
    model.card = {"model": "conv", "params": {"width": 8, "dilations": [1, 2]}}
    made = gates.Gates(model, gates.units_of(model, ["hidden.*"]))
    for at, logits in enumerate(made.log_alpha):
        logits.data = torch.where(torch.arange(16) % (2 + at) == 0, 4.0, -9.0)
    made.attach(model)
    x, lengths = torch.randn(2, 40, 6), torch.tensor([40, 31])
    with torch.no_grad():
        before = model.eval()(x, lengths)[0]
        made.detach(model)
        assert gates.cut(model, made) == {"hidden.0": 8, "hidden.1": 6}
        torch.testing.assert_close(model(x, lengths)[0], before, rtol=1e-5, atol=1e-6)
        again = ConvCTC(ConvConfig.model_validate(model.card["params"]), mels=6, classes=4).eval()
        again.load_state_dict(model.state_dict())
        assert torch.equal(again(x, lengths)[0], model(x, lengths)[0])


def test_it_starts_as_the_folder_and_writes_what_that_writes(recordings: Path, tmp_path: Path) -> None:
    folder = write(tmp_path, "layer")
    sets = [f"data.path={recordings}", "data.tokens=characters", f"teacher={{path: {folder}}}", "student.model=encoder",
            "student.params={}", "objective=[{loss: kd}]", "trackers=[]"]  # fmt: skip
    adapter: Any = make_adapter(load("speech/kathleen", sets), Streams(1), 2)
    student, teacher = adapter.build("student", "encoder", {}), adapter.load("teacher", folder)
    assert adapter.stride == 2  # 20 ms of features every 10
    source = adapter.data("dev")
    batch = source.collate([source.sample(i, 0) for i in range(2)])
    with torch.no_grad():
        mine, theirs = (
            adapter.signals(role, model.eval(), batch) for role, model in (("student", student), ("teacher", teacher))
        )
    torch.testing.assert_close(mine.rows("logits"), theirs.rows("logits"), rtol=1e-4, atol=1e-5)
    assert str(folder) not in json.dumps(student.card)


@pytest.mark.parametrize(("params", "said"), [
    ({}, "no teacher.path says which encoder it starts as"), ({"folder": "nowhere"}, "nowhere"),
])  # fmt: skip
def test_what_it_cannot_start_as_is_said(params: dict[str, Any], said: str, recordings: Path) -> None:
    recipe = load("speech/kathleen", [f"data.path={recordings}", "data.tokens=words"])
    adapter: Any = make_adapter(recipe, Streams(1), 2)
    with pytest.raises(UserError, match=said):
        adapter.build("student", "encoder", params)


def test_a_run_prunes_saves_and_transcribes(
    recordings: Path, hubert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    monkeypatch.setattr("xmodal_kd.run.runner.LATENCY", 0.01)
    sets = [
        f"data.path={recordings}", "data.tokens=words", f"teacher={{path: {hubert}}}", "student.model=encoder",
        "student.params={}", "train.batch_size=2", "train.steps=2", "train.eval_every=2", "trackers=[]",
        "compress={name: l0_prune, params: {sparsity: 0.5, steps: 4, gate_lr: 1.0}}",
        f"objective=[{{loss: ctc}}, {{loss: dphubert, on: {{student: {LAYERS}, teacher: {THEIRS}}}}}]",
    ]  # fmt: skip
    given = [word for one in sets for word in ("--set", one)]
    out = tmp_path / "run"
    assert call(["run", "speech/kathleen", *given, "--out", str(out), "--quiet"]) == 0
    report = read_json(out / "report.json")
    told = report["compressed"]["student"]["l0_prune"]
    assert report["roles"]["student"]["parameters"] == told["parameters"] < told["parameters_before"]
    assert report["roles"]["student"]["metrics"]["rtf"] > 0 and report["export"] == {}
    student = out / "student"
    assert recogniser_of(student) is WaveRecogniser
    capsys.readouterr()
    assert call(["transcribe", str(student), str(recordings / "test0.wav"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["duration"] == pytest.approx(0.7)
    with pytest.raises(UserError, match="it hears waves"):
        Recogniser(student)
    adapter: Any = make_adapter(load(str(out / "recipe.yaml"), []), Streams(1), 2)
    again: Any = SpeechAdapter.load(adapter, "student", student)
    assert sum(p.numel() for p in again.parameters()) == told["parameters"]


def test_long_recordings_are_heard_in_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing looks far, and waves are heard as they are, windows that overlap say what the whole says."""
    norms = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
    model = encoder(tmp_path / "folder", **norms)
    model.extractor["do_normalize"] = False
    model.card["params"] = model.described()
    for layer in model.base.encoder.layers:
        torch.nn.init.zeros_(layer.attention.out_proj.weight)
    features = Features(sample_rate=16000, mels=40)
    model.front_end(features)
    tokens = {"kind": "words", "symbols": ["<blank>", "a", "b", "c", "d"]}
    params, described = model.card["params"], features.model_dump(mode="json")
    folder = save_model(tmp_path / "student", "encoder", params, model, described, tokens)
    samples = 16000 * 5 + 77
    sf.write(tmp_path / "long.wav", 0.1 * np.random.default_rng(1).standard_normal(samples), 16000)
    heard = WaveRecogniser(folder)
    whole = torch.cat(list(heard.logits(tmp_path / "long.wav")))
    for name, seconds in (("CHUNK", 2.0), ("OVERLAP", 0.6)):
        monkeypatch.setattr(f"xmodal_kd.modalities.speech.use.waves.{name}", seconds)
    pieces = list(heard.logits(tmp_path / "long.wav"))
    assert len(pieces) == 3 and len(whole) == -(-samples // 320)
    torch.testing.assert_close(torch.cat(pieces), whole, rtol=1e-4, atol=1e-5)
