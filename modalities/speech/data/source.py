"""Batches of features and targets: the `Source` of one split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from xmodal_kd.adapter.listed import Skipped
from xmodal_kd.adapter.long_lists import Batches, Made
from xmodal_kd.runtime.bounded_cache import BoundedCache
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams

from .audio import Wave, resample
from .augment import add_noise, change_speed, draw_speed, perturb, shift_pitch, spec_augment, warp_frequencies
from .corpora import SpeechData, build_tokens, utterances
from .features import Frontend
from .listing import Item, listing
from .recordings import Noises, Rooms
from .tokens import Writes

__all__ = ["Item", "Sample", "SpeechData", "SpeechSource", "build_tokens", "utterances"]

#: Bytes of features (of waves, where augmentation changes them) that one source keeps in memory; past that they are
#: computed anew. 1 GiB is 18 hours of 40 mels at 100 frames a second.
MEMORY = 1 << 30
#: Utterances that are looked at together.
AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Sample:
    """One utterance as a model hears it.

    Attributes:
        clean: ``(t, mels)`` features that share the tempo and gain of `features`, but none of its noise or masks.
        features: ``(t, mels)`` augmented features; the very tensor `clean` when nothing differs.
        target: symbol numbers.
    """

    index: int
    key: str
    text: str
    speaker: str
    clean: Tensor
    features: Tensor
    target: list[int]
    #: ``(samples,)`` as a role hears it that has a front end of its own: in the clean or the augmented view, as
    #: ``data.teacher_view`` says, without masks. None where no role asks for waves.
    wave: Tensor | None = None
    #: Symbol numbers by roles that write others.
    others: Mapping[str, list[int]] = field(default_factory=dict)


class Hears(Protocol):
    """How waves become features."""

    def __call__(self, wave: Tensor) -> Tensor:
        """``(samples,)`` float32 to ``(t, mels)`` float32."""
        ...

    def frames_of(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Frames of waves of so many samples."""
        ...


class SpeechSource:
    """The utterances of one split, as functions of (epoch, index).

    Training utterances that CTC could not align (too few frames for their text, at the highest speed that augmentation
    may draw) or that are longer than ``data.max_seconds`` are in `left_out` with the reason, and in no plan. Dev and
    test keep every utterance: a WER that skips the hard ones would flatter.

    Args:
        streams: of the run; order and augmentation are drawn from it.
        stride: frames to one output frame of the models, for what CTC can align.
        frontend: how waves become features; None: as ``data.features`` says.
    Raises:
        UserError: a text that `tokens` cannot spell (it names the utterance), a split that is or becomes empty, and
            whatever `utterances` finds wrong with the data.
    """

    def __init__(
        self, data: SpeechData, split: str, tokens: Writes, streams: Streams, batch_size: int, stride: int = 4,
        frontend: Hears | None = None,
    ) -> None:  # fmt: skip
        self.data, self.split, self.tokens, self.streams = data, split, tokens, streams
        self.batch_size, self.stride = batch_size, stride
        self.frontend = frontend or Frontend(data.features)
        augment, learns = data.augment, split == "train"
        self._noises = (
            Noises(augment.noise_path, "data.augment.noise_path") if learns and augment.noise_path is not None else None
        )
        self._rooms = (
            Rooms(augment.rooms_path, "data.augment.rooms_path") if learns and augment.rooms_path is not None else None
        )
        self.skipped = Skipped.of(data.skip)
        self._listed = listing(data, split, streams, self.skipped)
        needed = self._rows_needed()
        self._needed, self._lost = needed, self._unfit(needed)
        if len(self._lost) == len(needed):
            key, reason = self.left_out[0]
            raise UserError(f"data: every utterance of the {split} split is left out; the first, {key}: {reason}")
        kept = self._kept()
        self.items: Sequence[Item] = Made(self._listed.item, range(len(needed)) if kept is None else kept)
        #: Of each, as `Item.seconds`.
        self.seconds = self._listed.seconds if kept is None else self._listed.seconds[kept]
        self._memory: BoundedCache[Any] = BoundedCache(MEMORY)
        #: Hz of the waves that samples carry for roles with a front end of their own; None: they carry none.
        self.wave_rate: int | None = None

    def _rows_needed(self) -> NDArray[Any]:
        """Output frames that a CTC path of each text that is listed needs."""
        needed = self._listed.needed(self.tokens, self.split, unknown_left=self._unknown_left)
        if self.split != "train" and not needed.any():
            raise UserError(
                f"data: no utterance of the {self.split} split has a text that the student's symbols can write "
                f"({len(needed)} utterances): nothing can be measured there: give their transcripts, or texts of "
                "training that hold what they say"
            )
        return needed

    def carry_waves(self, rate: int) -> None:
        """From now on samples bring their wave, at `rate` Hz or whatever higher rate was asked for before."""
        if rate > (self.wave_rate or 0):
            self.wave_rate = rate
            self._memory = BoundedCache(MEMORY)

    def _unfit(self, needed: NDArray[Any]) -> NDArray[Any]:
        """Which of those that are listed training leaves out."""
        listed, found = self._listed, [np.empty(0, np.int64)]
        for start in range(0, len(needed) if self.split == "train" else 0, AT_ONCE):
            part = slice(start, start + AT_ONCE)
            seconds, frames = listed.seconds[part], self._frames(listed.seconds[part], listed.margins[part])
            short = needed[part] > -(-frames // self.stride)
            found.append(start + np.flatnonzero(short | (seconds > self.data.max_seconds)))
        return np.concatenate(found)

    def _kept(self) -> NDArray[np.int32] | None:
        """Which of those that are listed are left; None: all."""
        if not len(self._lost):
            return None
        stays = np.ones(len(self._needed), np.bool_)
        stays[self._lost] = False
        return np.flatnonzero(stays).astype(np.int32)

    def _frames(self, seconds: NDArray[Any], margins: NDArray[Any]) -> NDArray[Any]:
        """That a recording has at the highest speed."""
        shortest = (seconds - margins) / self.data.augment.fastest
        # 1e-6: seconds times rate gives back the samples, not one less by rounding
        samples = (shortest * self.data.features.sample_rate + 1e-6).astype(np.int64)
        return self.frontend.frames_of(samples)

    @property
    def _unknown_left(self) -> bool:
        return self.split != "train" and self.data.unknown == "keep"

    @property
    def left_out(self) -> Sequence[tuple[str, str]]:
        """What training leaves out, and why."""
        return [self._why(int(row)) for row in self._lost]

    def _why(self, row: int) -> tuple[str, str]:
        item, listed = self._listed.item(row), self._listed
        if item.seconds > self.data.max_seconds:
            return item.key, f"{item.seconds:.1f} s is longer than data.max_seconds ({self.data.max_seconds:g})"
        frames = int(self._frames(listed.seconds[row : row + 1], listed.margins[row : row + 1])[0])
        reason = self._unaligned(frames, int(self._needed[row]))
        assert reason is not None
        return item.key, reason

    def _unaligned(self, frames: int, needed: int) -> str | None:
        there = -(-frames // self.stride)
        return f"its text needs {needed} output frames, its audio gives {there}" if needed > there else None

    def __len__(self) -> int:
        return len(self.items)

    @property
    def labelled(self) -> Sequence[int]:
        """The utterances that somebody wrote down."""
        written = self._written if not len(self._lost) else np.delete(self._written, self._lost)
        return range(len(self)) if written.all() else np.flatnonzero(written).tolist()

    @property
    def _written(self) -> NDArray[np.bool_]:
        """Of those that are listed, which are."""
        return self._listed.written

    @cached_property
    def _by_length(self) -> NDArray[np.int32]:
        return np.argsort(self.seconds, kind="stable").astype(np.int32)

    def plan(self, epoch: int) -> Batches:
        """The batches of an epoch, every sample once. Training: similar durations together, in random order, all of
        `batch_size` but one that may be smaller, anywhere. Dev and test: by duration, the last may be smaller."""
        if self.split != "train":
            starts = np.arange(0, len(self), self.batch_size)
            return Batches(self._by_length, starts, np.minimum(self.batch_size, len(self) - starts))
        rng = self.streams.numpy("order", epoch)
        buckets = np.array_split(self._by_length, min(self.data.buckets, len(self)))
        order = np.concatenate([rng.permutation(bucket) for bucket in buckets])
        sizes = [self.batch_size] * (len(self) // self.batch_size)
        if rest := len(self) % self.batch_size:
            # Anywhere among the durations, so that no duration is always in the small batch.
            sizes.insert(int(rng.integers(len(sizes) + 1)), rest)
        starts, turn = np.cumsum([0, *sizes[:-1]]), rng.permutation(len(sizes))
        return Batches(order, starts[turn], np.array(sizes)[turn])

    def sample(self, index: int, epoch: int) -> Sample:
        """One utterance, augmented by the streams of (split, epoch, index) if this is the training split.

        Raises `UserError` that names a file which cannot be read, or is shorter than it was said to be.
        """
        return self.again(index, epoch, epoch)

    def again(self, index: int, epoch: int, view: int) -> Sample:
        """As `sample` at the speed and gain of `epoch`, so that frames stay where they are, with what `view` masks and
        adds of noise: the second view of CR-CTC (Yao et al., 2024), which warps time once for both."""
        item = self.items[index]
        text, target = self._said(item)
        if self.split != "train":
            clean = features = self._remembered(index)
            wave = self._wave(index)
        else:
            clean, features, wave = self._augmented(index, epoch, view)
            if reason := self._unaligned(len(clean), self.tokens.min_frames(target)):
                raise UserError(f"train utterance {item.key}: {reason}: is the duration in its manifest right?")
        return Sample(index, item.key, text, item.speaker, clean, features, target, wave)

    def _said(self, item: Item) -> tuple[str, list[int]]:
        """The text of an utterance in normal form, and its symbols."""
        target = self.tokens.encode(item.text or "", unknown_left=self._unknown_left)
        return self.tokens.normalise(item.text or ""), target

    def _augmented(self, index: int, epoch: int, view: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """The clean and the augmented view of a training utterance, and the wave that a front end of its own hears."""
        augment, path = self.data.augment, (self.split, view, index)
        if augment.waves:
            moved = self.streams.numpy("augment", self.split, epoch, index)
            noise = moved if view == epoch else self.streams.numpy("augment", *path)
            clean, features, wave = self._heard(index, moved, noise)
        else:
            clean = features = self._remembered(index)
            wave = self._wave(index)
        if augment.warp is not None:
            factor = self.streams.numpy("warp", *path).uniform(*augment.warp)
            features = warp_frequencies(features, factor, self.data.features.sample_rate)
        if augment.masks:
            features = spec_augment(features, augment, self.streams.numpy("specaugment", *path))
        return clean, features, wave

    def _heard(
        self, index: int, rng: np.random.Generator, noise: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Features of the perturbed wave, as it is and in its room and noise, and one of the two waves.

        Args:
            rng: of speed and gain.
        """
        augment = self.data.augment
        if augment.few_speeds and self.wave_rate is None:
            clean = self._at_speed(index, draw_speed(augment, rng))
            return clean, clean, None
        plain = noisy = perturb(self._recorded(index), augment, rng)
        if augment.pitch is not None:
            noisy = shift_pitch(noisy, noise.uniform(*augment.pitch), self._rate)
        if self._rooms is not None and noise.random() < augment.rooms_share:
            noisy = self._rooms.echo(noisy, self._rate, noise)
        if augment.noise_snr_db is not None:
            snr_db, colour = noise.uniform(*augment.noise_snr_db), augment.noise_colour
            if self._noises is not None:
                noisy = self._noises.add(noisy, self._rate, snr_db, noise)
            else:
                noisy = add_noise(noisy, snr_db, noise, colour=noise.uniform(*colour))
        clean = self._features(plain)
        features = clean if noisy is plain else self._features(noisy)
        if self.wave_rate is None:
            return clean, features, None
        heard = plain if self.data.teacher_view == "clean" else noisy
        return clean, features, torch.from_numpy(resample(heard, self._rate, self.wave_rate))

    def _at_speed(self, index: int, speed: float) -> Tensor:
        """Features of the wave at a speed, computed once."""
        make = lambda: self._features(change_speed(self._recorded(index), speed))  # noqa: E731
        return self._memory.get(("features", index, speed), make)  # type: ignore[no-any-return]

    @property
    def _rate(self) -> int:
        """Of waves before they become features: the highest that any role hears."""
        return max(self.data.features.sample_rate, self.wave_rate or 0)

    def _recorded(self, index: int) -> Wave:
        """The wave as it is, at `_rate`."""
        item, rate = self.items[index], self._rate
        make = item.wave if rate == self.data.features.sample_rate else partial(item.wave_at, rate)
        return self._memory.get(("wave", index), make)  # type: ignore[no-any-return]

    def _features(self, wave: Wave) -> Tensor:
        return self.frontend(torch.from_numpy(resample(wave, self._rate, self.data.features.sample_rate)))

    def _wave(self, index: int) -> Tensor | None:
        """The unperturbed wave, if samples carry any."""
        if self.wave_rate is None:
            return None
        return torch.from_numpy(resample(self._recorded(index), self._rate, self.wave_rate))

    def _remembered(self, index: int) -> Tensor:
        """Features of the wave as it is, computed once; the wave itself is kept only where samples carry it."""

        def compute() -> Tensor:
            if self.wave_rate is None:
                return self.frontend(torch.from_numpy(self.items[index].wave()))
            return self._features(self._recorded(index))

        return self._memory.get(("features", index), compute)  # type: ignore[no-any-return]

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """A batch of b utterances.

        ``ids`` (b,) int64, ``clean`` and ``features`` (b, T, mels) float32 padded with zeros, and one tensor where no
        sample's views differ; ``lengths`` (b,) int64 valid frames; ``targets`` (b, L) int64 padded with -1;
        ``target_lengths`` (b,) int64; ``keys``, ``texts`` (normalised), ``speakers`` lists of text. Where samples carry
        waves also ``waves`` (b, S) float32 padded with zeros, ``samples`` (b,) int64 and their ``wave_rate`` in Hz.
        """
        waves = [sample.wave for sample in samples if sample.wave is not None]
        clean = pad_sequence([sample.clean for sample in samples], batch_first=True)
        same = all(sample.features is sample.clean for sample in samples)
        targets = [torch.tensor(sample.target, dtype=torch.int64) for sample in samples]
        heard = {
            "waves": pad_sequence(waves, batch_first=True),
            "samples": torch.tensor([len(wave) for wave in waves]),
            "wave_rate": self.wave_rate,
        } if waves else {}  # fmt: skip
        return heard | {
            "ids": torch.tensor([sample.index for sample in samples]),
            "clean": clean,
            "features": clean if same else pad_sequence([sample.features for sample in samples], batch_first=True),
            "lengths": torch.tensor([len(sample.clean) for sample in samples]),
            "targets": pad_sequence(targets, batch_first=True, padding_value=-1),
            "target_lengths": torch.tensor([len(target) for target in targets]),
            "keys": [sample.key for sample in samples],
            "texts": [sample.text for sample in samples],
            "speakers": [sample.speaker for sample in samples],
        }

    def describe(self) -> dict[str, Any]:
        """Facts for the report; of what was left out, the number and the first 20."""
        return {
            "split": self.split,
            "utterances": len(self),
            "hours": float(self.seconds.sum()) / 3600,
            "speakers": self._listed.speakers(self._lost),
            "skipped": len(self.skipped.found),
            **({"untranscribed": silent} if (silent := len(self) - len(self.labelled)) else {}),
            "left_out": len(self._lost),
            "left_out_examples": [{"key": key, "reason": reason} for key, reason in map(self._why, self._lost[:20])],
        }
