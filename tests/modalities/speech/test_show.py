"""Utterances on a run's page."""

from __future__ import annotations

import base64
import io
import wave
from pathlib import Path

import pytest
import torch

from xmodal_kd.modalities.speech.adapter import SpeechAdapter
from xmodal_kd.modalities.speech.data.corpora import SpeechData
from xmodal_kd.modalities.speech.show.panels import SHOWN
from xmodal_kd.runtime.random_streams import Streams


def test_what_is_shown_is_what_is_heard_and_said(digits: Path, tmp_path: Path) -> None:
    speakers = {"train_speakers": ["anna"], "dev_speakers": ["duncan"], "test_speakers": ["edith"]}
    data = SpeechData.model_validate({
        "sources": "fsdd", "path": digits, "features": {"sample_rate": 8000, "mels": 20}, **speakers,
        "compose": {"utterances": {"train": 4, "dev": 2, "test": 8}, "clips": [2, 3]},
    })  # fmt: skip
    adapter = SpeechAdapter(data, Streams(1), 4)
    torch.manual_seed(0)
    models = {role: adapter.build(role, "conv", {"width": 8}).eval() for role in ("teacher", "student")}
    with torch.no_grad():
        [panel] = adapter.show(models, tmp_path)
        said = {e["key"]: e["hypothesis"] for e in adapter.evaluate("student", models["student"], "test").examples}
        [glimpse] = adapter.glimpse("student", models["student"])
    assert [item["key"] for item in glimpse.content["items"]] == [item.key for item in adapter.data("dev").items[:3]]
    assert all(set(item["said"]) == set(item["traces"]) == {"student"} for item in glimpse.content["items"])
    items = panel.content["items"]
    source = adapter.data("test")
    assert [item["key"] for item in items[:3]] == [item.key for item in source.items[:3]]
    assert len({item["key"] for item in items}) == len(items) == SHOWN
    for item in items:
        at = next(i for i, one in enumerate(source.items) if one.key == item["key"])
        sound = base64.b64decode(item["sound"].partition(",")[2])
        with wave.open(io.BytesIO(sound)) as file:
            assert file.getframerate() == 8000 and file.getnframes() == len(source.items[at].wave())
        assert item["seconds"] == pytest.approx(source.items[at].seconds, abs=0.01)
        assert set(item["said"]) == set(item["traces"]) == set(models)
        assert said.get(item["key"], item["said"]["student"]) == item["said"]["student"]
        for role, trace in item["traces"].items():
            assert all(0 <= p <= 1 for p in trace["height"]) and len(trace["height"]) == pytest.approx(
                item["seconds"] / trace["frame"], abs=0.01
            )
            assert " ".join(text for _, text in trace["marks"]) == item["said"][role]
