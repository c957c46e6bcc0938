"""Utterances on a run's page whose texts have no times: sound, spectrogram, what each role writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
from torch import nn

from xmodal_kd.adapter.adapter import Batch
from xmodal_kd.adapter.panels import Panel, sequence, sequences, wav

from ..data.source import Sample, SpeechSource
from .panels import GLIMPSED, LONGEST, SHOWN, heat


@dataclass(frozen=True)
class Written:
    """What the page is made from: a split, samples of sound a second, a role's texts, and how they are compared.

    ``write(role, model, batch)`` gives a text for each utterance, which stands beside its `reference`.
    """

    source: SpeechSource
    rate: int
    write: Callable[[str, nn.Module, Batch], list[str]]
    normalise: Callable[[str], str]
    reference: Callable[[Sample], str] = attrgetter("text")


def show(test: Written, models: Mapping[str, nn.Module]) -> Sequence[Panel]:
    """One panel of the first test utterances that are not too long. Each role hears them alone."""
    items = _items(test, models, SHOWN)
    note = f"The first {len(items)} test utterances, written greedily, beside their log-mel spectrograms."
    return [sequences("What each role writes", items, note=note)] if items else ()


def glimpse(dev: Written, role: str, model: nn.Module) -> Sequence[Panel]:
    """The first dev utterances that are not too long, as one role writes them now."""
    items = _items(dev, {role: model}, GLIMPSED)
    note = f"The first {len(items)} dev utterances, written at one evaluation after another: the number is the step."
    return [sequences("What is written while it learns", items, note=note)] if items else ()


def _items(split: Written, models: Mapping[str, nn.Module], most: int) -> list[dict[str, Any]]:
    chosen = np.flatnonzero(split.source.seconds <= LONGEST)[:most].tolist()
    return [_item(split, models, i) for i in chosen]


def _item(split: Written, models: Mapping[str, nn.Module], index: int) -> dict[str, Any]:
    item, sample = split.source.items[index], split.source.sample(index, 0)
    wave, batch = item.wave(), split.source.collate([sample])
    said = {role: split.normalise(split.write(role, model, batch)[0]) for role, model in models.items()}
    return sequence(
        item.key, split.reference(sample), said, about=item.speaker, seconds=len(wave) / split.rate,
        sound=wav(wave, split.rate), heat=heat(sample.clean),
    )  # fmt: skip


__all__ = ["Written", "glimpse", "show"]
