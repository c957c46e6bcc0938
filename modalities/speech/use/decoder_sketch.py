"""A recipe for a Whisper's folder and a folder of recordings: a smaller Whisper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xmodal_kd.adapter.sketch import Given, Looking, Noted
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError

from ..data.found import Recordings
from ..models.processor import GENERATION, checked_config

BATCH = 16
#: Of the teacher's layers that write, how many stay, from small to large; two at least.
SHARES = (1 / 16, 1 / 4, 1 / 2)


def decoder_sections(given: Given, teacher: Path, found: Recordings, looking: Looking) -> dict[str, Any]:
    """The parts of a recipe. Raises `UserError` for what is no Whisper, and for recordings without texts."""
    config = checked_config(teacher)
    if given.like is not None:
        raise UserError("--like: a student of a Whisper is that Whisper with fewer layers: leave it out")
    samples, texts = len(found.parts["train"]), len(found.texts("train"))
    if texts < samples:
        raise UserError(
            f"{samples - texts} of {samples} training recordings have no text, over which a decoder is forced: "
            f"xmodal-kd pseudolabel {teacher} {given.data} --out FOLDER --as-written writes the teacher's"
        )
    there, batch = int(config["decoder_layers"]), min(BATCH, samples)
    layers = min(there, max(2, round(there * SHARES[given.size.at])))
    data: dict[str, Any] = {
        "task": Noted("seq2seq", f"the teacher writes by a decoder ({teacher / 'config.json'})"), **found.section
    }  # fmt: skip
    if _knows_many(teacher):
        data["language"] = Noted("en", "the teacher knows many languages: say which is spoken")
        looking.notes.append("data.language: en is a guess: the teacher knows many languages, say which is spoken")
    looking.notes.append(
        "texts are learnt as they are written; where the teacher writes case and punctuation and they do not, let it "
        f"write them: xmodal-kd pseudolabel {teacher} {given.data} --out FOLDER --replace --as-written"
    )
    return {
        "data": data,
        "teacher": {"path": Noted(str(teacher), f"as given by --teacher: {there} layers write")},
        "student": {
            "model": "whisper",
            "params": Noted(
                {"decoder_layers": layers, "freeze_encoder": True},
                f"--{given.size.name}: {layers} of {there} layers write; the encoder is the teacher's, and runs once",
            ),
        },
        "compress": Noted(
            {"name": "layer_copy", "params": {"layers": "spaced"}}, "starts as the teacher's first, last, and between"
        ),
        "objective": [
            Noted({"loss": "ce"}, "the texts; also trains the control"),
            Noted(
                {"loss": "kd", "weight": 0.8, "params": {"temperature": 2.0}},
                "the teacher's answer at every token, by Distil-Whisper's weights",
            ),
        ],
        "train": {
            "steps": Noted(given.size.steps(samples, batch), given.size.why(samples, batch)),
            "batch_size": Noted(batch, "what an optimizer step sees; accumulate: 2 computes it in halves"),
            "optimizer": {"lr": 1e-4, "weight_decay": 0.01},
            "schedule": {"kind": "cosine", "warmup": 0.05},
        },
    }


def _knows_many(teacher: Path) -> bool:
    found = read_json(teacher / GENERATION) if (teacher / GENERATION).is_file() else {}
    return isinstance(found, dict) and bool(found.get("is_multilingual")) and not found.get("language")


__all__ = ["decoder_sections"]
