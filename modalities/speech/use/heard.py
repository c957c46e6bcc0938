"""What a teacher's folder says: saved here, a CTC model or encoder of transformers, or logits of one elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from xmodal_kd.adapter.saved_model import CARD, folder_of
from xmodal_kd.models.onnx_teacher import ABOUT, is_onnx
from xmodal_kd.teacher_cache.folder import CLASSES, is_signals

from ..data.corpora import SPLITS
from ..data.features import Features
from ..data.found import Recordings
from ..data.stored_logits import StoredLogits
from ..data.symbols import Vocabulary
from ..data.tokens import BLANK, SPACE, Kind
from ..export.saved_folder import load_card
from ..models.bundle import ABOUT as BUNDLE
from ..models.bundle import described_bundle, is_bundle
from ..models.onnx_teacher import OnnxAnswers
from ..models.pretrained import CONFIG, Described, check_folder, described, is_pretrained


@dataclass(frozen=True)
class Heard:
    """A teacher by its files.

    Attributes:
        rate: Hz; None of stored logits, which hear nothing.
        frame: seconds of a frame of its answer, if the files say so.
        vocabulary: what it writes; None of an encoder without a head.
        kind: what its symbols are.
        features: its own, of a recogniser that was saved here.
        where: the file that says so.
        stored: its logits, where it ran elsewhere.
        lacking: recordings of which it has none: of training; of dev and test.
        layers: of an encoder without a head: those that a student may predict.
    """

    folder: Path
    rate: int | None
    frame: Fraction | None
    vocabulary: Vocabulary | None
    kind: Kind | None
    features: Features | None
    where: Path
    stored: StoredLogits | None = None
    lacking: tuple[int, int] = (0, 0)
    layers: tuple[str, ...] = ()

    @property
    def who(self) -> str:
        return f"{self.folder}: its {'teacher' if self.stored is None else 'logits'}"

    @property
    def told(self) -> str:
        """What it is, for a comment and for whoever brings no data."""
        if self.rate is None:
            return f"its logits are of {self.kind}, by recording"
        writes = "has no head: its layers teach" if self.vocabulary is None else f"writes {self.kind}"
        return f"the teacher hears {self.rate:,} Hz and {writes}"

    def beside(self, found: Recordings) -> Heard:
        """With what only the recordings tell of stored logits: how long a frame is, and how many have none.

        Raises `UserError` where no training recording has any, or durations do not tell the frame.
        """
        if self.stored is None:
            return self
        frame = self.stored.frame({one.key: one.seconds() for one in found.parts["train"]})
        lacking = [sum(self.stored.stored.path(one.key) is None for one in found.parts[split]) for split in SPLITS]
        return replace(self, frame=frame, lacking=(lacking[0], sum(lacking[1:])))


def heard(folder: Path) -> Heard:
    """What a teacher's folder says of it. Raises `UserError` for what is no folder of any kind that teaches."""
    if (folder / CARD).is_file():
        card = load_card(folder)
        features = Features.model_validate(card.features)
        vocabulary = Vocabulary(tuple(card.tokens["symbols"]), blank=0)
        frame = Fraction(card.stride * features.hop, features.sample_rate)
        return Heard(folder, card.sample_rate, frame, vocabulary, card.tokens["kind"], features, folder / CARD)
    if is_signals(folder) and (folder / CLASSES).is_file() and not is_pretrained(folder):
        stored = StoredLogits(folder, "error")
        words = _kind(stored.vocabulary)
        return Heard(folder, None, None, stored.vocabulary, words, None, folder / CLASSES, stored)
    if is_onnx(folder):
        found = OnnxAnswers(folder)
        where = folder_of(folder) / ABOUT
        return Heard(folder, found.rate, found.frame, found.vocabulary, _kind(found.vocabulary), None, where)
    if is_bundle(folder):
        return _of_files(folder, described_bundle(folder), folder / BUNDLE, "encoder.transformer.layers")
    check_folder(folder)
    told = described(folder)
    return _of_files(folder, told, folder / (CONFIG if told.vocabulary is None else CLASSES), "encoder.layers")


def _of_files(folder: Path, told: Described, where: Path, layers: str) -> Heard:
    """A model of waves by what its files say; of an encoder without a head the layers at its thirds teach."""
    if told.vocabulary is None:
        thirds = sorted({max(0, (third * told.layers) // 3 - 1) for third in (1, 2, 3)})
        paths = tuple(f"{layers}.{i}" for i in thirds)
        return Heard(folder, told.rate, told.frame, None, None, None, where, layers=paths)
    return Heard(folder, told.rate, told.frame, told.vocabulary, _kind(told.vocabulary), None, where)


def _kind(vocabulary: Vocabulary) -> Kind:
    """Characters, where most symbols have one."""
    names = [vocabulary.known_as(i) for i in range(len(vocabulary.names))]
    letters = [name for name in names if name not in (None, BLANK, SPACE)]
    return "characters" if sum(len(name or "") == 1 for name in letters) * 2 > len(letters) else "words"


__all__ = ["Heard", "heard"]
