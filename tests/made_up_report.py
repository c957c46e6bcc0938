"""A report and a run folder as a run writes them, of made-up numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_kd import report
from xmodal_kd.adapter import panels
from xmodal_kd.adapter.panels import Panel

ROLES = {"teacher": 0.1, "control": 0.4, "student": 0.2}


def content(**changes: Any) -> dict[str, Any]:
    """`changes` replace what it says."""
    roles = {
        role: {
            "parameters": 100 if role == "teacher" else 10, "flops_per_sample": 1e6, "examples": [
                {"key": "u<1>", "reference": "one two three", "hypothesis": "one three four"}
            ],
            "latency": {"median_ms": 2.0, "p95_ms": 3.0, "threads": 1},
            "metrics": {"wer": wer, "wer_interval": [wer - 0.05, wer + 0.05], "wer_interval_over": "items", "ser": wer},
            "dev_metrics": {"wer": wer},
        }
        for role, wer in ROLES.items()
    }  # fmt: skip
    training = {"steps": 20, "samples": 80, "seconds": 3.0, "flops_per_step": 1e6, "milliseconds": {"step": 4.0},
                "waited_for_data": 0.125,
                "dev": [{"step": 10, "wer": 0.5}, {"step": 20, "wer": 0.2}]}  # fmt: skip
    return {
        "schema": 1, "recipe": "/somewhere/recipes/speech/tiny.yaml", "overrides": {"train.steps": 20},
        "modality": "speech", "method": "distil", "seed": 3, "versions": {"torch": "2"}, "device": "cpu",
        "device_name": "x", "threads": 1, "processes": 1, "metric": {"name": "wer", "lower_is_better": True},
        "roles": roles, "control": {"terms": ["ctc"]}, "labels": {}, "facts": {"floor": {"wer": 0.05}},
        "curve": [{"role": r, "nfe": n, "metrics": {"wer": w / n}} for r, w in ROLES.items() for n in (1, 2, 4)],
        "pictures": {"A picture": "pictures/one.png", "Gone": "pictures/gone.png", "Twice": "pictures/one.png"},
        "gap_closed": 2 / 3, "reason": None, "gain": {"difference": 0.2, "interval": [0.1, 0.3]}, "data": {},
        "cost": {"control": training, "student": training, "peak_memory_bytes": 2**20}, "export": {},
    } | changes  # fmt: skip


def shown() -> tuple[list[Panel], bytes]:
    """A panel of each kind, and the picture that is in one of them."""
    rng = np.random.default_rng(0)
    dot = panels.png(rng.integers(0, 256, (8, 12, 3), dtype=np.uint8))
    xyz = rng.normal(size=(500, 3)) * 10
    labels = rng.integers(0, 3, 500)
    said = {"labels": labels, "student": np.where(labels == 2, 1, labels)}
    trace = panels.Trace(0.04, [0.1, 0.9, 0.2], [(1, "one")])
    tone = np.sin(np.arange(8000) / 20)
    item = panels.sequence(
        "u1", "one two", {"teacher": "one two", "student": "one </script>"}, seconds=1.0, sound=panels.wav(tone, 8000),
        heat=rng.integers(0, 256, (4, 10), dtype=np.uint8), traces={"student": trace},
    )  # fmt: skip
    colours = [(9, 9, 9), (0, 99, 200), (200, 0, 0)]
    return [
        panels.clouds("Points", xyz, said, classes=["a", "b", "c"], colours=colours, reference="labels"),
        panels.sequences("Heard", [item]),
        panels.gallery("Samples", ["teacher", "student"], [("1 step", {"student": (dot, "one")})], replaces=["Twice"]),
    ], dot  # fmt: skip


def run_folder(folder: Path) -> Path:
    """A finished run with logs, a picture and a panel of each kind."""
    (folder / "pictures").mkdir(parents=True)
    found, dot = shown()
    (folder / "pictures" / "one.png").write_bytes(dot)
    (folder / "recipe.yaml").write_text("modality: speech # </pre><b>\n")
    for role in ("control", "student"):
        (folder / "checkpoints" / role).mkdir(parents=True)
        lines = [{"step": s, "ctc": 30.0 / s, "lr/student": 0.1} for s in range(1, 21)]
        (folder / "checkpoints" / role / "log.jsonl").write_text("".join(json.dumps(e) + "\n" for e in lines))
    panels.write(folder, found)
    report.write(folder, content())
    return folder
