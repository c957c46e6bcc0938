"""How long a manifest of many lines takes to list, and the memory that it holds, each in a process of its own.

    python benchmarks/manifest.py [--lines 100000 1000000]

The lines are made: a path, a text of some 60 characters, a duration, a speaker; dev and test have a hundred. Told of
each part are seconds of processor time (others may use the machine), of the clock, and what the process's peak memory
grew by: reading the manifest; the vocabulary and the training split as a source; what the dev and test splits add; the
plan of an epoch.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

WORDS = tuple(f"{a}{b}" for a in ("ta", "not", "here", "we") for b in ("r", "ing", "s", "le", "ck", "on", "at"))


def write(folder: Path, lines: int) -> None:
    for split, count in (("train", lines), ("dev", 100), ("test", 100)):
        with (folder / f"{split}.jsonl").open("w") as file:
            for i in range(count):
                text = " ".join(WORDS[(i * 7 + k * k) % len(WORDS)] for k in range(14))
                seconds = round(2 + (i * 7919 % 10000) / 1000, 3)
                name = f"{split}/{i % 977:03d}/{i:08d}.flac"
                record = {"audio_filepath": name, "text": text, "duration": seconds, "speaker": f"s{i % 977}"}
                file.write(json.dumps(record) + "\n")


def measured(folder: Path) -> dict[str, dict[str, float]]:
    """In this process, which has done nothing else."""
    from xmodal_kd.modalities.speech.adapter import SpeechAdapter
    from xmodal_kd.modalities.speech.data.corpora import SpeechData
    from xmodal_kd.modalities.speech.data.manifests import read_manifest
    from xmodal_kd.runtime.random_streams import Streams

    found: dict[str, dict[str, float]] = {}

    def part(name: str, do: Callable[[], Any]) -> Any:
        before, cpu, start = peak(), process_time(), perf_counter()
        made = do()
        found[name] = {
            "cpu_s": process_time() - cpu, "seconds": perf_counter() - start, "peak_mib": (peak() - before) / 2**20,
        }  # fmt: skip
        return made

    data = SpeechData(sources=("manifest",), path=folder, tokens="characters")
    if folder.name == "read":
        part("read", lambda: read_manifest(folder / "train.jsonl"))
        return found
    adapter = part("vocabulary", lambda: SpeechAdapter(data, Streams(1), 32))
    source = part("train split", lambda: adapter.data("train"))
    part("dev and test", lambda: (adapter.data("dev"), adapter.data("test")))
    plan = part("plan of an epoch", lambda: source.plan(0))
    assert sum(map(len, plan)) == len(source)
    return found


def peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--only", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "manifest.json")
    args = parser.parse_args()
    if args.only is not None:
        print(json.dumps(measured(args.only)))
        return
    found: dict[str, Any] = {}
    for lines in args.lines:
        with tempfile.TemporaryDirectory() as folder:
            whole, alone = Path(folder) / "whole", Path(folder) / "read"
            whole.mkdir()
            write(whole, lines)
            alone.symlink_to(whole)
            found[f"{lines:,} lines"] = {"mib": (whole / "train.jsonl").stat().st_size / 2**20}
            for one in (alone, whole):
                done = subprocess.run(
                    [sys.executable, __file__, "--only", str(one)], capture_output=True, text=True, check=True
                )
                found[f"{lines:,} lines"] |= json.loads(done.stdout)
        print(json.dumps(found[f"{lines:,} lines"]), flush=True)
        args.results.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
