"""What it costs one core to make a training sample of speech: reading 12 s of FLAC, and 80 mels of it.

    python benchmarks/audio.py

Of noise, which FLAC compresses least; in milliseconds of processor time, as others may use the machine.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import soundfile as sf
import torch

from xmodal_kd.modalities.speech.data import audio
from xmodal_kd.modalities.speech.data.features import Features, Frontend
from xmodal_kd.runtime.device import versions

RATE, SECONDS, RUNS = 16_000, 12, 20


def cost(do: Callable[[], Any]) -> float:
    do()
    start = process_time()
    for _ in range(RUNS):
        do()
    return 1e3 * (process_time() - start) / RUNS


def main() -> None:
    torch.set_num_threads(1)
    frontend = Frontend(Features(sample_rate=RATE, mels=80))
    noise = 0.1 * np.random.default_rng(0).standard_normal(RATE * SECONDS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "noise.flac"
        sf.write(path, noise, RATE)
        wave = torch.as_tensor(audio.read(path)[0])
        found = {
            "seconds_of_audio": SECONDS, "read_ms": cost(lambda: audio.read(path)),
            "features_ms": cost(lambda: frontend(wave)), "versions": versions(),
        }  # fmt: skip
    out = Path(__file__).parent / "results" / "audio.json"
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
