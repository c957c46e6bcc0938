"""What an hour of sound costs to transcribe, and ten minutes by a conformer, each in a process of its own, on one core.

    python benchmarks/long_audio.py --student RUN/student --teacher RUN/teacher --recordings FOLDER

The recordings are joined, with 0.3 s between two, again and again until the hour is full. Told are seconds of
processor time (others may use the machine) of the whole process, imports and all, the real-time factor by them, and
the peak of its memory. A conformer sees the whole utterance, so it hears ten minutes by overlapping windows; two
minutes stand beside what it says of them at once.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

GAP = 0.3
RESULTS = Path(__file__).parent / "results" / "long_audio.json"


def joined(recordings: Path, out: Path, minutes: float) -> None:
    """A WAV of so many minutes of the recordings of a folder, of one sample rate."""
    paths = sorted(path for path in recordings.rglob("*") if path.suffix in (".wav", ".flac"))
    rate = sf.info(paths[0]).samplerate
    with sf.SoundFile(out, "w", rate, 1, subtype="PCM_16") as file:
        for path in cycle(paths[:: max(1, len(paths) // 500)]):
            wave, found = sf.read(path, dtype="float32")
            assert found == rate
            file.write(np.concatenate([wave, np.zeros(round(GAP * rate), np.float32)]))
            if file.tell() >= 60 * minutes * rate:
                return


def used() -> dict[str, float]:
    told = resource.getrusage(resource.RUSAGE_SELF)
    return {"cpu_s": told.ru_utime + told.ru_stime, "peak_mib": told.ru_maxrss / 1024}


def measured(folder: Path, audio: Path, precision: Any, at_once: bool) -> dict[str, Any]:
    """In this process, which has done nothing else."""
    from xmodal_kd.modalities.speech.use import transcribe

    before = used()
    if at_once:
        transcribe.CHUNK = 3600.0
    said = transcribe.Recogniser(folder, precision).transcribe(audio)
    after = used()
    return {
        "seconds": said["duration"], "rtf": after["cpu_s"] / said["duration"], **after, "imports": before,
        "words": len(said["words"]), "text": said["text"],
    }  # fmt: skip


def alone(folder: Path, audio: Path, *options: str) -> dict[str, Any]:
    """By the program of the folder, in a process without PyTorch."""
    words = [sys.executable, str(folder / "transcribe.py"), str(audio), *options]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        text = process.stdout.read()
        _, status, told = os.wait4(process.pid, 0)
        process.returncode = status
    if status:
        raise SystemExit(f"{' '.join(words)} failed")
    seconds, cpu = sf.info(audio).duration, told.ru_utime + told.ru_stime
    return {
        "seconds": seconds, "rtf": cpu / seconds, "cpu_s": cpu, "peak_mib": told.ru_maxrss / 1024,
        "words": len(text.split()), "text": text.strip(),
    }  # fmt: skip


def child(folder: Path, audio: Path, *options: str) -> dict[str, Any]:
    words = [sys.executable, __file__, "--only", str(folder), str(audio), *options]
    return json.loads(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout)  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--recordings", type=Path)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--only", nargs=2, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--int8", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--at-once", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.only is not None:
        print(json.dumps(measured(*args.only, "int8" if args.int8 else "fp32", args.at_once)))
        return
    found: dict[str, Any] = json.loads(args.results.read_text()) if args.results.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        if args.student is not None:
            path = Path(folder) / "hour.wav"
            joined(args.recordings, path, args.minutes)
            for name, options in (("student", ()), ("student int8", ("--int8",))):
                found[name] = child(args.student, path, *options)
                found[f"{name}, transcribe.py"] = alone(args.student, path, *options)
                texts = [found[which].pop("text") for which in (name, f"{name}, transcribe.py")]
                found[f"{name}, transcribe.py"]["word_differences"] = differences(*texts)
            args.results.write_text(json.dumps(found, indent=1) + "\n")
        if args.teacher is not None:
            path, short = Path(folder) / "minutes.wav", Path(folder) / "short.wav"
            joined(args.recordings, path, args.minutes / 6)
            joined(args.recordings, short, args.minutes / 30)
            found["conformer"] = child(args.teacher, path)
            windows, whole = child(args.teacher, short), child(args.teacher, short, "--at-once")
            found["conformer, short"], found["conformer, short, at once"] = windows, whole
            windows["word_differences"] = differences(whole["text"], windows["text"])
            for one in found.values():
                one.pop("text", None)
            args.results.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


def differences(reference: str, said: str) -> int:
    """Substitutions, insertions and deletions of words."""
    import jiwer

    out = jiwer.process_words(reference, said)
    return int(out.substitutions + out.insertions + out.deletions)


if __name__ == "__main__":
    main()
