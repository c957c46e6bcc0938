"""Transcribe with the recogniser of this folder; numpy, onnxruntime and soundfile are all that it takes.

    python transcribe.py recording.wav others/*.flac
    python transcribe.py --int8 --times recording.wav             a line a word: its second, then the word
    arecord -f S16_LE -r 8000 -c 1 | python transcribe.py -       16-bit samples at its own rate, words as they are said

A pipe is heard as it comes where the folder has model.stream.onnx (data.streaming of the recipe), else at its end;
sound of another sample rate needs the package soxr.
"""

# This file is copied into folders of students, so it stands alone: it imports nothing of the project.
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import soundfile

Array = npt.NDArray[Any]
#: What the features of training were made with: the least energy, and the mean that stands before the first frame.
FLOOR, PRIOR, PRIOR_FRAMES = 1e-6, -5.0, 50
#: Seconds of a piece of a file, and of what comes through a pipe.
PIECE, HEARD = 10.0, 0.25
ENDLESS = 2**40
#: Frames of features that a model hears at once.
WINDOW = 3000
#: Of a transducer: the file that makes it one, and how many symbols a frame may have.
PREDICTOR, MOST = "predictor.onnx", 10


class Features:
    """Log-mel frames of a wave that arrives in pieces, less their mean."""

    def __init__(self, about: dict[str, Any]) -> None:
        self.rate, self.normalise = about["sample_rate"], about["normalise"]
        self.window, self.hop = (round(self.rate * about[f"{name}_ms"] / 1000) for name in ("window", "hop"))
        self.fft = 1 << (self.window - 1).bit_length()
        self.taper = np.hanning(self.window + 1)[:-1]
        corners = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + self.rate / 1400), about["mels"] + 2) / 2595) - 1)
        below, peak, above = corners[:-2], corners[1:-1], corners[2:]  # Hz, on HTK's mel scale
        hertz = np.linspace(0, self.rate / 2, self.fft // 2 + 1)[:, None]
        self.bank = np.maximum(0, np.minimum((hertz - below) / (peak - below), (above - hertz) / (above - peak)))
        self.held, self.total, self.count = np.zeros(0), np.full(about["mels"], PRIOR_FRAMES * PRIOR), PRIOR_FRAMES

    def __call__(self, wave: Array, *, last: bool = False) -> Array:
        """``(t, mels)``: the frames that a piece completes; a recording shorter than a window has one."""
        self.held = np.concatenate([self.held, wave])
        if last and self.count == PRIOR_FRAMES and len(self.held) < self.window:
            self.held = np.pad(self.held, (0, self.window - len(self.held)))
        if len(self.held) < self.window:
            return np.zeros((0, self.bank.shape[1]), np.float32)
        frames = np.lib.stride_tricks.sliding_window_view(self.held, self.window)[:: self.hop] * self.taper
        self.held = self.held[len(frames) * self.hop :]
        x = np.log(np.maximum(np.abs(np.fft.rfft(frames, self.fft)) ** 2 @ self.bank, FLOOR))
        total = self.total + x.cumsum(axis=0)
        count = self.count + 1 + np.arange(len(x))
        self.total, self.count = total[-1], self.count + len(x)
        found: Array = (x - total / count[:, None] if self.normalise == "running" else x).astype(np.float32)
        return found


class Whole:
    """A model of whole recordings; of one that looks only so far, in windows, which changes nothing.

    Args:
        field: frames of features before and after one that an answer hangs on; None: all.
    """

    def __init__(self, session: Any, features: Features, stride: int, field: list[int] | None) -> None:
        self.session, self.features, self.stride, self.field = session, features, stride, field

    def __call__(self, waves: Iterable[Array]) -> Iterator[Array]:
        parts = [self.features(wave) for wave in waves]
        x = np.concatenate([*parts, self.features(np.zeros(0), last=True)])
        x = x - x.mean(axis=0) if self.features.normalise == "utterance" and len(x) else x
        before, after = self.field or (0, 0)
        before += -before % self.stride
        size = WINDOW // self.stride * self.stride if self.field else max(1, len(x))
        for at in range(0, len(x), size):
            first, rows = max(0, at - before), -(-min(size, len(x) - at) // self.stride)
            given = x[first : at + size + after + self.stride]
            logits, _ = self.session.run(None, {"features": given[None], "lengths": np.array([len(given)])})
            yield logits[0, (at - first) // self.stride :][:rows]


class Stream:
    """A model with a state: every frame is computed once, in whichever pieces it comes."""

    def __init__(self, session: Any, features: Features, stride: int) -> None:
        self.session, self.features, self.stride = session, features, stride
        given = session.get_inputs()
        kinds = {"tensor(int64)": np.int64, "tensor(float)": np.float32}
        self.names = [one.name for one in given]
        self.state = [np.zeros((1, *one.shape[1:]), kinds[one.type]) for one in given[2:]]
        self.held, self.seen, self.delay = np.zeros((stride - 1, features.bank.shape[1]), np.float32), 0, 0

    def __call__(self, waves: Iterable[Array]) -> Iterator[Array]:
        for wave in waves:
            yield self._push(self.features(wave))
        yield self._push(self.features(np.zeros(0), last=True))
        if self.seen:
            more = np.zeros((self.delay * self.stride, self.held.shape[1]), np.float32)
            yield self._given(np.concatenate([self.held, more])[: len(more)], self.seen)

    def _push(self, x: Array) -> Array:
        self.seen += len(x)
        self.held = np.concatenate([self.held, x])
        whole = len(self.held) // self.stride * self.stride
        group, self.held = self.held[:whole], self.held[whole:]
        return self._given(group, ENDLESS)

    def _given(self, group: Array, length: int) -> Array:
        if not len(group):
            return np.zeros((0, 1), np.float32)  # no frame, of any number of classes
        given = dict(zip(self.names, [group[None], np.array([length]), *self.state], strict=True))
        logits, frames, *self.state = self.session.run(None, given)
        self.delay = max(self.delay, -int(frames[0, 0]))
        found: Array = logits[0, (frames[0] >= 0) & (frames[0] < -(-length // self.stride))]
        return found


def collapsed(logits: Iterable[Array]) -> Iterator[tuple[int, int]]:
    """Symbols and the frame of each, by the best of every frame: repeats are one, class 0 is none."""
    before, at = 0, 0
    for rows in logits:
        for best in rows.argmax(axis=1).tolist() if len(rows) else ():
            if best and best != before:
                yield best, at
            before, at = best, at + 1


class Transducer:
    """What goes along with the text: frames of the encoder in, symbols out, several in a frame if it says so."""

    def __init__(self, folder: Path) -> None:
        self.predictor, self.joint = opened(folder / PREDICTOR), opened(folder / "joint.onnx")
        state = self.predictor.get_inputs()[1]
        kind = np.int64 if state.type == "tensor(int64)" else np.float32
        self.known, self.state = self._next(0, np.zeros((1, *state.shape[1:]), kind))

    def __call__(self, states: Iterable[Array]) -> Iterator[tuple[int, int]]:
        at = 0
        for rows in states:
            for row in rows:
                for _ in range(MOST):
                    [logits] = self.joint.run(None, {"sound": row[None], "text": self.known})
                    if not (best := int(logits[0].argmax())):
                        break
                    yield best, at
                    self.known, self.state = self._next(best, self.state)
                at += 1

    def _next(self, symbol: int, state: Array) -> Any:
        return self.predictor.run(None, {"symbols": np.array([symbol]), "state": state})


def words(
    found: Iterable[tuple[int, int]], symbols: list[str], kind: str, seconds: float
) -> Iterator[tuple[float, str]]:
    """Words and when each begins, of symbols and their frames."""
    word, begun = "", 0.0
    gap = "▁" if kind == "bpe" else "|"
    for number, at in found:
        symbol = symbols[number]
        if word and (kind == "words" or symbol.startswith(gap)):
            yield begun, word
            word = ""
        begun = begun if word else at * seconds
        word += symbol if kind == "words" else symbol.replace(gap, "")
    if word:
        yield begun, word


def pieces(path: str, rate: int) -> Iterator[Array]:
    """Waves of one channel at `rate`, one behind the other."""
    if path == "-":
        while data := sys.stdin.buffer.read(2 * round(HEARD * rate)):
            yield np.frombuffer(data[: len(data) // 2 * 2], "<i2") / 2.0**15
        return
    with soundfile.SoundFile(path) as file:
        found, change = file.samplerate, None
        if found != rate:
            try:
                import soxr  # type: ignore[import-not-found]
            except ImportError:
                raise OSError(f"{found} Hz, and it hears {rate} Hz: pip install soxr, or resample it") from None
            change = soxr.ResampleStream(found, rate, 1)
        for block in file.blocks(round(PIECE * found), dtype="float32", always_2d=True):
            wave = block.mean(axis=1)
            yield wave if change is None else change.resample_chunk(wave)
        if change is not None:
            yield change.resample_chunk(np.zeros(0, np.float32), last=True)


@cache
def opened(path: Path) -> Any:
    """A model, loaded once for all recordings."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # of models as small as these more only cost
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def recogniser(folder: Path, card: dict[str, Any], *, int8: bool, live: bool) -> Whole | Stream:
    """What hears one recording: a new one for each."""
    end = ".int8.onnx" if int8 else ".onnx"
    streaming = live and (folder / f"model.stream{end}").is_file()
    name = f"model.stream{end}" if streaming else f"model{end}"
    if not (folder / name).is_file():
        sys.exit(f"{folder}: {name} is not here")
    session = opened(folder / name)
    features = Features(card["features"])
    if streaming:
        return Stream(session, features, card["stride"])
    return Whole(session, features, card["stride"], card["receptive_field"])


def main(folder: Path) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audio", nargs="+", help="files that libsndfile reads, or - for samples from standard input")
    parser.add_argument("--int8", action="store_true", help="the smaller model")
    parser.add_argument("--times", action="store_true", help="a line a word, its second before it")
    args = parser.parse_args()
    card, failed = json.loads((folder / "card.json").read_text(encoding="utf-8")), False
    about, tokens = card["features"], card["tokens"]
    seconds = card["stride"] * round(about["sample_rate"] * about["hop_ms"] / 1000) / about["sample_rate"]
    for path in args.audio:
        try:
            heard = recogniser(folder, card, int8=args.int8, live=path == "-")(pieces(path, about["sample_rate"]))
            spell = Transducer(folder) if (folder / PREDICTOR).is_file() else collapsed
            found = words(spell(heard), tokens["symbols"], tokens["kind"], seconds)
            start = "" if len(args.audio) == 1 else f"{path}: "
            if args.times:
                for second, word in found:
                    print(f"{start}{second:.2f} {word}", flush=True)
            elif path == "-":
                for _, word in found:
                    print(word, end=" ", flush=True)
                print()
            else:
                print(start + " ".join(word for _, word in found), flush=True)
        except (OSError, soundfile.LibsndfileError) as error:
            print(f"{path}: cannot be read ({error})", file=sys.stderr)
            failed = True
    sys.exit(int(failed))


if __name__ == "__main__":
    try:
        main(Path(__file__).resolve().parent)
    except KeyboardInterrupt:
        sys.exit(130)
