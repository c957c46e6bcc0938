"""Log-mel pictures of spoken digits, for a diffusion run on something that is not an image.

    python benchmarks/mels.py --data recordings --out mels.npz
    xmodal-kd run diffusion/mels --set data.path=mels.npz

Each recording of the Free Spoken Digit Dataset's layout (``{digit}_{speaker}_{take}.wav``) becomes an array
``(1, 16, 16)``: 16 mels by 16 frames of 60 ms, centred, padded with silence or cut; log energies between silence and
the 99.9th percentile are mapped to [-1, 1]. The digit is the label.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import soundfile
import torch

from xmodal_kd.modalities.speech.data.features import FLOOR, Features, Frontend

SIDE = 16
CONFIG = Features(sample_rate=8000, mels=SIDE, window_ms=64, hop_ms=60, normalise="none")


def patch(path: Path, frontend: Frontend) -> np.ndarray:
    """``(mels, frames)`` of one recording."""
    wave, rate = soundfile.read(path, dtype="float32")
    if rate != CONFIG.sample_rate:
        raise SystemExit(f"{path}: {rate} Hz, expected {CONFIG.sample_rate}")
    found = frontend(torch.from_numpy(wave)).numpy().T[:, :SIDE]
    missing = SIDE - found.shape[1]
    sides = (missing // 2, missing - missing // 2)
    return np.pad(found, ((0, 0), sides), constant_values=np.log(FLOOR))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the recordings")
    parser.add_argument("--out", type=Path, default=Path("mels.npz"))
    args = parser.parse_args()
    paths = sorted(args.data.rglob("*_*_*.wav"))
    if not paths:
        raise SystemExit(f"{args.data}: no {{digit}}_{{speaker}}_{{take}}.wav at any depth")
    frontend = Frontend(CONFIG)
    logs = np.stack([patch(path, frontend) for path in paths])
    low, high = np.log(FLOOR), np.percentile(logs, 99.9)
    x = np.clip(2 * (logs - low) / (high - low) - 1, -1, 1)[:, None].astype(np.float32)
    labels = np.array([int(path.name.split("_")[0]) for path in paths])
    np.savez(args.out, x=x, labels=labels)
    print(f"{args.out}: {len(x)} arrays of {x.shape[1:]}, mean {x.mean():.2f}, std {x.std():.2f}")


if __name__ == "__main__":
    main()
