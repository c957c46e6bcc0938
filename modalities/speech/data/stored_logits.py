"""Logits of a recogniser that ran elsewhere, a file an utterance: ``docs/own_logits.md``.

Arrays come from ``.npz`` (nothing is unpickled) or ``.safetensors``; symbols from ``vocab.json`` beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError

from .symbols import Vocabulary

VOCABULARY, INDEX, ABOUT = "vocab.json", "index.json", "signals.json"
SUFFIXES = (".npz", ".safetensors")
#: By which name the array may go in its file, the first that is there.
NAMES = ("logits", "log_probs", "logprobs")
#: What the blank may be called where ``signals.json`` does not say.
BLANKS = ("<blank>", "<blk>", "<pad>", "[PAD]", "<eps>", "ε", "_")
#: Frame rates are guessed in steps of so many seconds, from so many utterances.
STEP, LOOKED_AT = Fraction(1, 400), 50
#: A guess further off than this share is none.
SURE = 0.015


def is_stored(folder: Path) -> bool:
    """Whether a folder may hold logits: a vocabulary and arrays, at any depth."""
    arrays = (path for path in folder.rglob("*") if path.suffix in SUFFIXES)
    return (folder / VOCABULARY).is_file() and next(arrays, None) is not None


class StoredLogits:
    """A folder of logits by utterance.

    Args:
        on_missing: ``error``, or ``skip``: an utterance without a file has no frames.
    Raises:
        UserError: the folder, its vocabulary or its blank is not there.
    """

    def __init__(self, folder: Path, on_missing: str) -> None:
        self.folder, self.on_missing = folder, on_missing
        if not folder.is_dir():
            raise UserError(f"teacher.signals: {folder}: no such folder")
        if not (folder / VOCABULARY).is_file():
            raise UserError(f"{folder}: no {VOCABULARY}: it says which column of the logits is which symbol")
        self.about: Mapping[str, Any] = read_json(folder / ABOUT) if (folder / ABOUT).is_file() else {}
        self.index: Mapping[str, str] = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
        self.vocabulary = self._vocabulary()

    def _vocabulary(self) -> Vocabulary:
        held = read_json(self.folder / VOCABULARY)
        named = dict(enumerate(held)) if isinstance(held, list) else {at: name for name, at in dict(held).items()}
        if not named or sorted(named) != list(range(len(named))):
            raise UserError(f"{self.folder / VOCABULARY}: a list of symbols, or a column for each, is expected")
        names = tuple(str(named[i]) for i in range(len(named)))
        wanted = [str(self.about["blank"])] if "blank" in self.about else BLANKS
        blank = next((names.index(name) for name in wanted if name in names), None)
        if blank is None:
            raise UserError(f'{self.folder}: which symbol is the blank? say {{"blank": SYMBOL}} in {ABOUT} beside it')
        special = {i for i, name in enumerate(names) if name in ("<s>", "</s>", "<unk>", "[UNK]") and i != blank}
        return Vocabulary(names, blank, frozenset(special))

    def frame(self, seconds: Mapping[str, float]) -> Fraction:
        """Seconds of a frame: as ``signals.json`` says, or the one that fits the utterances' durations.

        Args:
            seconds: duration by key.
        """
        if "frame_seconds" in self.about:
            return Fraction(str(self.about["frame_seconds"]))
        longest = sorted(seconds, key=lambda key: -seconds[key])
        known = list(islice((key for key in longest if self.path(key) is not None), LOOKED_AT))
        if not known:
            raise UserError(
                f"{self.folder}: holds logits of none of the {len(seconds)} training utterances, whose keys are as in "
                f"{next(iter(seconds), '')!r}: name each file KEY.npz or KEY.safetensors, or list them in {INDEX}"
            )
        # half a frame more: front ends drop the end of a recording that fills no window
        lasts = float(np.median([seconds[key] / (len(self[key]) + 0.5) for key in known]))
        guess = round(Fraction(lasts) / STEP) * STEP
        if guess <= 0 or abs(lasts / float(guess) - 1) > SURE:
            raise UserError(
                f'{self.folder}: say {{"frame_seconds": SECONDS}} in {ABOUT}: its frames last about {lasts:.4f} s, '
                "which the durations do not tell more exactly"
            )
        return guess

    def path(self, key: str) -> Path | None:
        """The file of an utterance, by the index, by its key, or by its key without the audio's suffix."""
        if key in self.index:
            return self.folder / self.index[key]
        plain = key if Path(key).suffix == "" else str(Path(key).with_suffix(""))
        names = [name + suffix for name in (key, plain) for suffix in SUFFIXES]
        return next((self.folder / name for name in names if (self.folder / name).is_file()), None)

    def __getitem__(self, key: str) -> Tensor:
        """``(frames, symbols)`` float32; no frames where nothing is stored and that is no error.

        Raises `UserError` that names the key, or the file and what is wrong with it.
        """
        if (path := self.path(key)) is None:
            if self.on_missing == "skip":
                return torch.zeros(0, len(self.vocabulary.names))
            raise UserError(f"{self.folder}: no logits of {key!r}: add its file, or say teacher.on_missing=skip")
        logits = _read(path)
        if logits.ndim != 2 or logits.shape[1] != len(self.vocabulary.names) or not len(logits):
            raise UserError(
                f"{path}: logits of shape {logits.shape}: (frames, {len(self.vocabulary.names)}) is expected, a column "
                f"a symbol of {VOCABULARY}"
            )
        if np.isnan(logits).any() or np.isposinf(logits).any():
            raise UserError(f"{path}: logits hold NaN or Inf")
        if logits.min() >= 0 and np.allclose(logits.sum(axis=1), 1, atol=1e-3):
            raise UserError(f"{path}: these are probabilities, not logits: store their logarithms")
        return torch.from_numpy(np.ascontiguousarray(logits, dtype=np.float32))


def _read(path: Path) -> np.ndarray:
    try:
        if path.suffix == ".npz":
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as held:
                return np.asarray(held[_name(path, held.files)])
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            found: np.ndarray = file.get_tensor(_name(path, list(file.keys()))).float().numpy()
            return found
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file makes its reader say
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())[:120]})") from error


def _name(path: Path, held: list[str]) -> str:
    found = next((name for name in NAMES if name in held), None)
    if found is None:
        raise UserError(f"{path}: no array called logits: it holds {', '.join(held) or 'nothing'}")
    return found
