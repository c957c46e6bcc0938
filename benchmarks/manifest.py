"""How long a manifest of many lines takes to list, and the memory that it holds, each in a process of its own.

    python benchmarks/manifest.py [--lines 100000 1000000]
    python benchmarks/manifest.py --webdataset [200000]

The lines are made: a path, a text of some 60 characters, a duration, a speaker; dev and test have a hundred. Told of
each part are seconds of processor time (others may use the machine), of the clock, and what the process's memory, its
peak and its own share (without pages of mapped files, which all processes of a machine share) grew by: ``listed`` reads
the manifest into a list, as one below 8 MiB is; ``once`` makes the index, in the user's cache; ``start`` finds it, as
every process after that does. Of these two: the vocabulary and the training split as a source; what the dev and test
splits add; the plan of an epoch; the report's facts; a thousand samples' lines at random.

With ``--webdataset`` the same of samples in tars of 2,000, a recording of 0.1 s and its .json each, and of as many
pictures of 8x8 with their .cls; a thousand samples are then read whole.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

WORDS = tuple(f"{a}{b}" for a in ("ta", "not", "here", "we") for b in ("r", "ing", "s", "le", "ck", "on", "at"))

#: Samples of a tar.
SHARD = 2000


def write(folder: Path, lines: int) -> None:
    for split, count in (("train", lines), ("dev", 100), ("test", 100)):
        with (folder / f"{split}.jsonl").open("w") as file:
            for i in range(count):
                text = " ".join(WORDS[(i * 7 + k * k) % len(WORDS)] for k in range(14))
                seconds = round(2 + (i * 7919 % 10000) / 1000, 3)
                name = f"{split}/{i % 977:03d}/{i:08d}.flac"
                record = {"audio_filepath": name, "text": text, "duration": seconds, "speaker": f"s{i % 977}"}
                file.write(json.dumps(record) + "\n")


def pack(folder: Path, kind: str, samples: int) -> None:
    """Shards of samples that differ in nothing but their names and texts."""
    for split, count in (("train", samples), ("dev", 100), ("test", 100)):
        for start in range(0, count, SHARD):
            with tarfile.open(folder / f"{split}-{start // SHARD:06d}.tar", "w") as tar:
                for i in range(start, min(start + SHARD, count)):
                    for ending, content in sample(kind, i):
                        info = tarfile.TarInfo(f"{split}{i:08d}{ending}")
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))


def sample(kind: str, i: int) -> tuple[tuple[str, bytes], ...]:
    if kind == "images":
        return (".png", picture()), (".cls", str(i % 10).encode())
    said = {"text": WORDS[i % len(WORDS)][:2], "duration": 0.1, "speaker": f"s{i % 977}"}
    return (".wav", recording()), (".json", json.dumps(said).encode())


@cache
def recording() -> bytes:
    import numpy as np
    import soundfile as sf

    out = io.BytesIO()
    sf.write(out, np.random.default_rng(0).normal(0, 0.1, 1600), 16000, format="WAV")
    return out.getvalue()


@cache
def picture() -> bytes:
    import numpy as np
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)).save(out, "PNG")
    return out.getvalue()


def measured(folder: Path, what: str) -> dict[str, dict[str, float]]:
    """In this process, which has done nothing else.

    Args:
        what: ``manifest``, ``listed`` (one by the list), ``speech`` or ``images`` in shards.
    """
    from xmodal_kd.modalities.images.adapter import ImagesAdapter
    from xmodal_kd.modalities.images.data.source import ImagesData
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

    if what == "listed":
        part("read", lambda: read_manifest(folder / "train.jsonl"))
        return found
    if what == "images":
        pictures = ImagesData(sources="webdataset", path=folder)
        adapter = part("adapter", lambda: ImagesAdapter(pictures, Streams(1), 32))
    else:
        sources = ("manifest",) if what == "manifest" else ("webdataset",)
        data = SpeechData.model_validate({"sources": sources, "path": folder, "tokens": "characters", "buckets": 1})
        adapter = part("vocabulary", lambda: SpeechAdapter(data, Streams(1), 32))
    source = part("train split", lambda: adapter.data("train"))
    part("dev and test", lambda: (adapter.data("dev"), adapter.data("test")))
    plan = part("plan of an epoch", lambda: source.plan(0))
    part("facts", source.describe)
    if what == "manifest":
        part("a thousand lines", lambda: [source.items[i].key for batch in plan[:32] for i in batch])
    else:
        part(
            "a thousand samples",
            lambda: [len(source.collate([source.sample(i, 0) for i in batch])) for batch in plan[:32]],
        )
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
    parser.add_argument("--webdataset", type=int, nargs="*", help="samples in shards, in the place of lines")
    parser.add_argument("--only", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--what", default="manifest", help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "manifest.json")
    args = parser.parse_args()
    if args.only is not None:
        print(json.dumps(measured(args.only, args.what)))
        return
    found: dict[str, Any] = json.loads(args.results.read_text()) if args.results.is_file() else {}
    jobs = [("manifest", lines) for lines in args.lines]
    if args.webdataset is not None:
        jobs = [(kind, count) for count in args.webdataset or [200_000] for kind in ("speech", "images")]
    for kind, count in jobs:
        name = f"{count:,} lines" if kind == "manifest" else f"{count:,} samples of {kind} in shards"
        found[name] = of(kind, count)
        print(name, json.dumps(found[name]), flush=True)
        args.results.write_text(json.dumps(found, indent=1) + "\n")


def of(kind: str, count: int) -> dict[str, Any]:
    """All parts of one list or one set of shards, which is made for it."""
    mine: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "data"
        whole.mkdir()
        if kind == "manifest":
            write(whole, count)
        else:
            pack(whole, kind, count)
        mine["mib"] = sum(file.stat().st_size for file in whole.glob("train*")) / 2**20
        for name in ("listed", "once", "start") if kind == "manifest" else ("once", "start"):
            words = [sys.executable, __file__, "--only", str(whole), "--what", "listed" if name == "listed" else kind]
            env = {**os.environ, "XDG_CACHE_HOME": f"{folder}/cache"}
            done = subprocess.run(words, capture_output=True, text=True, check=True, env=env)
            mine[name] = json.loads(done.stdout)
        mine["index_mib"] = sum(file.stat().st_size for file in Path(folder, "cache").rglob("*.npy")) / 2**20
    return mine


if __name__ == "__main__":
    main()
