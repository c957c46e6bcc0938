"""Spoken digits made by espeak-ng, in the layout of the Free Spoken Digit Dataset.

    python assets/make_digits.py [FOLDER]        (default: assets/digits; espeak-ng must be on the path)

Six voices that differ in accent, timbre and pitch stand for six speakers; takes differ in tempo and pitch. Same
espeak-ng, same files.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile as sf

from xmodal_kd.modalities.speech.data import audio
from xmodal_kd.modalities.speech.data.manifests import DIGITS

RATE = 8000
#: Name: espeak-ng voice, pitch (0-99), words a minute.
VOICES = {
    "anna": ("en-us+f2", 60, 155),
    "brian": ("en-gb+m3", 35, 150),
    "carla": ("en-029+f4", 50, 165),
    "duncan": ("en-gb-scotland+m1", 45, 145),
    "edith": ("en-gb-x-rp+f3", 70, 140),
    "frank": ("en-us+m7", 25, 170),
}
#: Added to a voice's pitch and times its tempo, one pair a take.
TAKES = ((0, 1.0), (-8, 1.1), (8, 0.9), (4, 1.2), (-4, 0.85))


def say(word: str, voice: str, pitch: int, tempo: int) -> audio.Wave:
    """`word` at `RATE` Hz, trimmed, with a peak of 0.7."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "word.wav"
        command = ["espeak-ng", "-v", voice, "-p", str(pitch), "-s", str(tempo), "-w", str(path), word]
        subprocess.run(command, check=True)
        wave = audio.resample(*audio.read(path), RATE)
    wave = trim(wave)
    return wave * np.float32(0.7 / np.abs(wave).max())


def trim(wave: audio.Wave, threshold_db: float = -40.0, margin: float = 0.01) -> audio.Wave:
    """`wave` without its silent ends, but for `margin` seconds."""
    loud = np.flatnonzero(np.abs(wave) > np.abs(wave).max() * 10 ** (threshold_db / 20))
    edge = round(margin * RATE)
    return wave[max(0, loud[0] - edge) : loud[-1] + edge]


def main(folder: Path) -> None:
    recordings = folder / "recordings"
    recordings.mkdir(parents=True, exist_ok=True)
    for name, (voice, pitch, tempo) in VOICES.items():
        for digit, word in enumerate(DIGITS):
            for take, (higher, faster) in enumerate(TAKES):
                wave = say(word, voice, pitch + higher, round(tempo * faster))
                sf.write(recordings / f"{digit}_{name}_{take}.wav", wave, RATE, subtype="PCM_16")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "digits")
