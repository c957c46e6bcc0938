"""A report as a run writes it, of made-up numbers."""

from __future__ import annotations

from typing import Any

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
