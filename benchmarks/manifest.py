"""How long a manifest of many lines takes to list, and the memory that it holds, each in a process of its own.

    python benchmarks/manifest.py [--lines 100000 1000000]

The lines are made: a path, a text of some 60 characters, a duration, a speaker; dev and test have a hundred. Told of
each part are seconds of processor time (others may use the machine), of the clock, and what the process's memory, its
peak and its own share (without pages of mapped files, which all processes of a machine share) grew by: ``listed`` reads
the manifest into a list, as one below 8 MiB is; ``once`` makes the index, in the user's cache; ``start`` finds it, as
every process after that does. Of these two: the vocabulary and the training split as a source; what the dev and test
splits add; the plan of an epoch; the report's facts; a thousand samples' lines at random.
"""

from __future__ import annotations

import argparse
import json
import os
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


def measured(folder: Path, listed: bool) -> dict[str, dict[str, float]]:
    """In this process, which has done nothing else."""
    from xmodal_kd.modalities.speech.adapter import SpeechAdapter
    from xmodal_kd.modalities.speech.data.corpora import SpeechData
    from xmodal_kd.modalities.speech.data.manifests import read_manifest
    from xmodal_kd.runtime.random_streams import Streams

    found: dict[str, dict[str, float]] = {}
    first, begun, start = held(), process_time(), perf_counter()

    def part(name: str, do: Callable[[], Any]) -> Any:
        before, cpu, clock = held(), process_time(), perf_counter()
        made = do()
        grown = {key: (value - before[key]) / 2**20 for key, value in held().items()}
        found[name] = {"cpu_s": process_time() - cpu, "seconds": perf_counter() - clock, **grown}
        return made

    data = SpeechData(sources=("manifest",), path=folder, tokens="characters")
    if listed:
        part("read", lambda: read_manifest(folder / "train.jsonl"))
        return found
    adapter = part("vocabulary", lambda: SpeechAdapter(data, Streams(1), 32))
    source = part("train split", lambda: adapter.data("train"))
    part("dev and test", lambda: (adapter.data("dev"), adapter.data("test")))
    plan = part("plan of an epoch", lambda: source.plan(0))
    part("facts", source.describe)
    part("a thousand lines", lambda: [source.items[i].key for batch in plan[:32] for i in batch])
    assert sum(map(len, plan)) == len(source)
    grown = {key: (value - first[key]) / 2**20 for key, value in held().items()}
    found["all"] = {"cpu_s": process_time() - begun, "seconds": perf_counter() - start, **grown}
    return found


def held() -> dict[str, int]:
    """Bytes of this process: at most so far, now, and of these its own."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now = {name: 1024 * int(status[key].split()[0]) for name, key in (("mib", "VmRSS"), ("own_mib", "RssAnon"))}
    return {"peak_mib": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, **now}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--only", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--listed", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "manifest.json")
    args = parser.parse_args()
    if args.only is not None:
        print(json.dumps(measured(args.only, args.listed)))
        return
    found: dict[str, Any] = {}
    for lines in args.lines:
        with tempfile.TemporaryDirectory() as folder:
            whole, mine = Path(folder) / "data", found.setdefault(f"{lines:,} lines", {})
            whole.mkdir()
            write(whole, lines)
            mine["mib"] = (whole / "train.jsonl").stat().st_size / 2**20
            for name in ("listed", "once", "start"):
                words = [sys.executable, __file__, "--only", str(whole), *(["--listed"] if name == "listed" else [])]
                env = {**os.environ, "XDG_CACHE_HOME": f"{folder}/cache"}
                done = subprocess.run(words, capture_output=True, text=True, check=True, env=env)
                mine[name] = json.loads(done.stdout)
            mine["index_mib"] = sum(file.stat().st_size for file in Path(folder, "cache").rglob("*.npy")) / 2**20
        print(json.dumps(found[f"{lines:,} lines"]), flush=True)
        args.results.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
