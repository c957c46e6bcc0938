"""Utterances on a run's page: sound, spectrogram, what each role hears and when."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xmodal_kd.adapter.adapter import Batch
from xmodal_kd.adapter.panels import Panel, Trace, sequence, sequences, wav

from ..data.source import SpeechSource
from ..data.tokens import Tokens
from ..evaluate.decode import greedy, spikes
from ..evaluate.score import score

#: Utterances shown, half of them the test split's first, half those with the student's most errors among `SEARCHED`.
SHOWN, SEARCHED = 6, 48
#: Utterances that are shown while a role learns.
GLIMPSED = 3
#: Seconds of the longest utterance shown: a page holds the sound of all.
LONGEST = 16.0


@dataclass(frozen=True)
class Shown:
    """What the page is made from: a split, its symbols, samples of sound a second, and a role's answers.

    ``recognised(role, model, batch)`` gives logits ``(b, t, classes)`` and lengths ``(b,)``.
    """

    source: SpeechSource
    tokens: Tokens
    rate: int
    recognised: Callable[[str, nn.Module, Batch], tuple[Tensor, Tensor]]


def show(test: Shown, models: Mapping[str, nn.Module]) -> Sequence[Panel]:
    """One panel of test utterances. Each role hears them alone, so that no padding moves a spike."""
    short = np.flatnonzero(test.source.seconds <= LONGEST)[:SEARCHED].tolist()
    errors = {i: _errors(test, "student", models["student"], i) for i in short}
    first = short[: SHOWN // 2]
    worst = sorted((i for i in short if i not in first), key=lambda i: -errors[i])[: SHOWN - len(first)]
    items = [_item(test, models, i) for i in (*first, *worst)]
    if not items:
        return ()
    note = (
        f"The first {len(first)} test utterances, then the {len(worst)} with the student's most errors among the first "
        f"{len(short)}. Greedy decoding. Over time: the log-mel spectrogram, and each role's probability that a frame "
        "is no blank, with the symbol where it is first said. A click on the spectrogram moves the sound."
    )
    return [sequences("What each role hears", items, note=note)]


def glimpse(dev: Shown, role: str, model: nn.Module) -> Sequence[Panel]:
    """The first dev utterances that are not too long, as one role hears them now."""
    short = np.flatnonzero(dev.source.seconds <= LONGEST)[:GLIMPSED].tolist()
    items = [_item(dev, {role: model}, i) for i in short]
    note = (
        f"The first {len(items)} dev utterances, heard at one evaluation after another: the number is the step. Greedy "
        "decoding. Over time: the log-mel spectrogram, and the probability that a frame is no blank."
    )
    return [sequences("What is heard while it learns", items, note=note)] if items else ()


def _logits(test: Shown, role: str, model: nn.Module, index: int) -> tuple[Tensor, Tensor]:
    """``(1, t, classes)`` and ``(1,)`` frames of one test utterance, at the role's own rate."""
    logits, lengths = test.recognised(role, model, test.source.collate([test.source.sample(index, 0)]))
    return logits.float().cpu(), lengths.cpu()


def _errors(test: Shown, role: str, model: nn.Module, index: int) -> float:
    said = test.tokens.decode(greedy(*_logits(test, role, model, index))[0])
    [found] = score([test.source.sample(index, 0).text], [said], ["it"], ["anyone"]).scores
    return found.errors / max(found.units, 1.0)


def _item(test: Shown, models: Mapping[str, nn.Module], index: int) -> dict[str, Any]:
    source, rate = test.source, test.rate
    item, sample = source.items[index], source.sample(index, 0)
    wave = item.wave()
    seconds, said, traces = len(wave) / rate, {}, {}
    for role, model in models.items():
        logits, lengths = _logits(test, role, model, index)
        logits = logits[0, : int(lengths[0])]
        if not len(logits):  # stored logits, and none of this utterance
            said[role] = ""
            continue
        said[role] = test.tokens.decode(greedy(logits[None], lengths)[0])
        spoken = 1 - torch.softmax(logits, dim=-1)[:, 0]
        marks = [(start, test.tokens.decode([token]).strip() or "␣") for token, start, _ in spikes(logits)]
        traces[role] = Trace(seconds / len(logits), [round(p, 3) for p in spoken.tolist()], marks)
    return sequence(
        item.key, sample.text, said, about=item.speaker, seconds=seconds, sound=wav(wave, rate),
        heat=heat(sample.clean), traces=traces,
    )  # fmt: skip


def heat(features: Tensor) -> np.ndarray:
    """``(mels, t)`` uint8, low frequencies below; the quietest and loudest 2 % are cut."""
    values = features.numpy().T[::-1]
    low, high = np.quantile(values, (0.02, 0.98))
    scaled: np.ndarray = (255 * np.clip((values - low) / max(high - low, 1e-6), 0, 1)).astype(np.uint8)
    return scaled


__all__ = ["glimpse", "show"]
