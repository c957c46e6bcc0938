"""How long `check` takes on a manifest of many lines, the first time and again, in a process of its own.

    python benchmarks/check_lines.py [--lines 100000]

Every line is a file of its own name; a hundred WAV files of noise lie under all of them, by hard links. Told are
seconds of processor time (others may use the machine), of the clock, and the peak of the process's memory, with the
user's cache empty and as the first check left it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import soundfile as sf

RATE, FILES = 8000, 100
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "zero")
RESULTS = Path(__file__).parent / "results" / "check_lines.json"
RECIPE = [
    "data.sources=manifest", "data.compose=null", "data.train_speakers=[]", "data.dev_speakers=[]",
    "data.test_speakers=[]", "data.tokens=words", "trackers=[]",
]  # fmt: skip


def write(folder: Path, lines: int) -> None:
    rng, real = np.random.default_rng(0), folder / "real"
    real.mkdir()
    for i in range(FILES):
        sf.write(real / f"{i}.wav", 0.1 * rng.standard_normal(RATE * 2 + 80 * i), RATE)
    for split, count in (("train", lines), ("dev", 100), ("test", 100)):
        with (folder / f"{split}.jsonl").open("w") as file:
            for i in range(count):
                name = f"{split}/{i // 1000}/{i}.wav"
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.link(real / f"{i % FILES}.wav", folder / name)
                text = " ".join(WORDS[(i + 3 * k) % 10] for k in range(3))
                record = {"audio_filepath": name, "text": text, "duration": 2 + 0.01 * (i % FILES)}
                file.write(json.dumps({**record, "speaker": f"s{i % 97}"}) + "\n")


def checked(folder: Path, cache: Path) -> dict[str, float]:
    words = [sys.executable, "-m", "xmodal_kd", "check", "smoke/speech"]
    for change in (*RECIPE, f"data.path={folder}", f"out={folder / 'run'}"):
        words += ["--set", change]
    start = perf_counter()
    child = subprocess.Popen(words, env={**os.environ, "XDG_CACHE_HOME": str(cache)}, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    assert os.waitstatus_to_exitcode(status) in (0, 1)
    return {
        "cpu_s": used.ru_utime + used.ru_stime, "seconds": perf_counter() - start, "peak_mib": used.ru_maxrss / 1024,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        data, cache = Path(place) / "data", Path(place) / "cache"
        data.mkdir()
        write(data, args.lines)
        found: dict[str, Any] = {"lines": args.lines, "first": checked(data, cache), "again": checked(data, cache)}
    args.results.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
