"""The utterances of a split before any audio is read: what each needs, how long it lasts, who wrote it down."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from xmodal_kd.adapter.listed import Skipped
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.progress import bar
from xmodal_kd.runtime.random_streams import Streams

from .audio import Wave, resample
from .compose import Composer
from .corpora import SpeechData, utterances
from .long import Long
from .manifests import Utterance
from .tokens import Writes

#: A header counts samples, a manifest rounds, usually to a millisecond.
ROUNDED = 1e-3
#: Headers from which on one may watch.
SHOW_PROGRESS = 5000


@dataclass(frozen=True, slots=True)
class Item:
    """An utterance before its audio is read. `seconds` are right to within `margin`; `wave()` renders it."""

    key: str
    text: str | None
    speaker: str
    seconds: float
    margin: float
    wave: Callable[[], Wave]
    #: The same at another rate, from the recording where there is one.
    wave_at: Callable[[int], Wave]
    intent: str | None = None


class Listing(Protocol):
    """The utterances of a split, by number: arrays, and one item when it is asked for."""

    @property
    def seconds(self) -> NDArray[np.float64]: ...
    @property
    def margins(self) -> NDArray[np.float64]: ...
    @property
    def written(self) -> NDArray[np.bool_]:
        """Which have a text."""
        ...

    def item(self, row: int) -> Item: ...

    def needed(self, tokens: Writes, split: str, *, unknown_left: bool) -> NDArray[np.uint32]:
        """Output frames that a CTC path of each text needs. Raises `UserError` that names what cannot be spelt."""
        ...

    def speakers(self, without: NDArray[np.int64]) -> list[str]:
        """Whoever speaks, sorted, in all utterances but some."""
        ...


def listing(data: SpeechData, split: str, streams: Streams, skipped: Skipped) -> Listing:
    """The utterances of a split as they are recorded, or as they are composed.

    Raises `UserError` as `utterances` does.
    """
    found, rate = utterances(data, split, skipped), data.features.sample_rate
    if data.compose is not None:
        return Held(_composed(Composer(data.compose, found, streams, split, rate)))
    if isinstance(found, Long):
        return Mapped(found, rate)
    return Held([_recorded(utterance, rate, utterance.seconds()) for utterance in found])


class Held:
    """All of them in memory."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items
        self.seconds = np.array([item.seconds for item in items])
        self.margins = np.array([item.margin for item in items])
        self.written = np.array([item.text is not None for item in items])

    def item(self, row: int) -> Item:
        return self.items[row]

    def needed(self, tokens: Writes, split: str, *, unknown_left: bool) -> NDArray[np.uint32]:
        return _needed(tokens, split, unknown_left, (item.text for item in self.items), lambda i: self.items[i].key)

    def speakers(self, without: NDArray[np.int64]) -> list[str]:
        left = set(without.tolist())
        return sorted({item.speaker for i, item in enumerate(self.items) if i not in left})


class Mapped:
    """Those of an index, read when they are asked for."""

    def __init__(self, found: Long, rate: int) -> None:
        self.found, self.rate = found, rate
        seconds = found.column("seconds")
        self._untold = np.flatnonzero(np.isnan(seconds))
        if len(self._untold):
            seconds = found.remembered("seconds", self._asked) if found.sealed else self._asked()
        self.seconds: NDArray[np.float64] = seconds

    def _asked(self) -> NDArray[np.float64]:
        """Seconds, of headers where nothing else says them."""
        seconds, count = np.array(self.found.column("seconds")), len(self._untold)
        with bar("reading headers", count, quiet=count < SHOW_PROGRESS) as shown:
            for done, row in enumerate(self._untold, 1):
                seconds[row] = self.found[int(row)].seconds()
                if done % 500 == 0:
                    shown.update(done, {})
        return seconds

    @cached_property
    def margins(self) -> NDArray[np.float64]:
        one = np.broadcast_to(np.float64(ROUNDED), len(self.found))
        if not len(self._untold):
            return one
        margins = one.copy()
        margins[self._untold] = 0.0
        return margins

    @property
    def written(self) -> NDArray[np.bool_]:
        return self.found.column("texted")

    def item(self, row: int) -> Item:
        return _recorded(self.found[row], self.rate, float(self.seconds[row]))

    def needed(self, tokens: Writes, split: str, *, unknown_left: bool) -> NDArray[np.uint32]:
        how = f"frames {blake2b(tokens.to_json().encode(), digest_size=12).hexdigest()} {unknown_left}"
        key: Callable[[int], str] = lambda row: self.found[row].key  # noqa: E731
        return self.found.remembered(
            how, lambda: _needed(tokens, split, unknown_left, self.found.texts(), key)
        )  # fmt: skip

    def speakers(self, without: NDArray[np.int64]) -> list[str]:
        return self.found.speakers(without)


def _needed(
    tokens: Writes, split: str, unknown_left: bool, texts: Iterable[str | None], key: Callable[[int], str]
) -> NDArray[np.uint32]:
    needed = array("I")
    for row, text in enumerate(texts):
        try:
            needed.append(tokens.min_frames(tokens.encode(text or "", unknown_left=unknown_left)))
        except UserError as error:
            raise UserError(f"{split} utterance {key(row)}: {error}") from error
    return np.array(needed, np.uint32)


def _recorded(utterance: Utterance, rate: int, seconds: float) -> Item:
    margin = 0.0 if utterance.duration is None else ROUNDED
    wave = partial(utterance.wave, rate)
    return Item(
        utterance.key, utterance.text, utterance.speaker, seconds, margin, wave, utterance.wave, utterance.intent
    )  # fmt: skip


def _composed(composer: Composer) -> list[Item]:
    items = []
    for i in range(len(composer)):
        made = composer.composition(i)
        wave = partial(composer.wave, i)
        at: Any = partial(_composed_at, composer, i)
        items.append(Item(made.key, made.text, made.speaker, composer.seconds(made), ROUNDED, wave, at))
    return items


def _composed_at(composer: Composer, index: int, rate: int) -> Wave:
    return resample(composer.wave(index), composer.sample_rate, rate)


__all__ = ["Item", "Listing", "listing"]
