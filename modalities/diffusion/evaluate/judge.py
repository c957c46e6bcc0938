"""The judge: one classifier and one reference set, the same for teacher, control and every student."""

from __future__ import annotations

import statistics
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xmodal_kd.runtime.errors import RunError, UserError
from xmodal_kd.runtime.random_streams import Streams

from ..data.config import DiffusionData
from ..data.source import Images, load_split
from ..models.classifier import DATA_LABELS, RECIPE, Classifier, ImageSet, batches, embed, train_classifier, weight_hash
from . import metrics

#: Seed of the train images that give the floor; not the run's.
FLOOR_SEED = 0
#: Training images compared with at once: 48 MiB at 32x32 RGB.
TRAIN_BLOCK = 4096


class Judge:
    """Measures sets of `samples` samples against `reference`; made once per process and split.

    Args:
        train: what the generator and the classifier learn from.
        reference: real data that neither has seen (dev or test), all of which is used.
        samples: how many samples every measured set must hold, because most of the measures depend on it.
        device: where the classifier runs and pixels are compared.
        cache: see `train_classifier`.
        classifier: one that is there already, as of another split's judge.

    Raises:
        UserError: fewer than 6 samples, train or reference images, or half of `reference` are copies of train images.
    """

    def __init__(
        self,
        train: ImageSet,
        reference: ImageSet,
        *,
        samples: int,
        device: torch.device | str = "cpu",
        cache: Path | None = None,
        classifier: Classifier | None = None,
    ) -> None:
        for what, count in (("samples", samples), ("train", len(train.x)), ("reference", len(reference.x))):
            if count <= metrics.DENSITY_K:
                raise UserError(f"evaluation: {count} {what} are too few, give at least {metrics.DENSITY_K + 1}")
        if train.x.shape[1:] != reference.x.shape[1:]:
            shapes = f"{tuple(reference.x.shape[1:])}, train images {tuple(train.x.shape[1:])}"
            raise UserError(f"evaluation: reference images are {shapes}")
        self.train, self.samples, self.device = train, samples, torch.device(device)
        self.classifier = classifier or train_classifier(train, device=device, cache=cache)
        self._pixels = torch.cat(list(batches(reference))).flatten(1)
        self._features, predicted = embed(self.classifier, self._pixels.unflatten(1, self.classifier.shape))
        self._accuracy = float((predicted == self.classifier.targets(reference)).double().mean())
        self._gaussian = metrics.fit_gaussian(self._features)
        self._radii = (
            metrics.neighbour_radii(self._features, metrics.PRECISION_K),
            metrics.neighbour_radii(self._features, metrics.DENSITY_K),
        )
        self._unseen = self._to_train(self._pixels)
        if statistics.median_low(self._unseen.tolist()) == 0:
            raise UserError("evaluation: at least half of the reference images are exact copies of train images")
        self._floor, self._floor_count = self._measure_floor()

    def measure(self, samples: Tensor, labels: Tensor | None = None) -> dict[str, float]:
        """Every measure of one set.

        Args:
            samples: ``(samples, *shape)`` in the data's range; clamp them first if what is shown is clamped.
            labels: ``(samples,)`` the classes asked for, if any.

        Returns:
            ``fd_clf``, ``kid_clf`` (both: less is better, 0 is the same distribution), ``precision``, ``recall``,
            ``density``, ``coverage``, ``sliced_wasserstein`` (of pixels), ``nearest_train`` (see
            `metrics.nearest_ratio`) and, with `labels`, ``label_agreement`` (share that the classifier sees as asked).

        Raises:
            ValueError: another number or shape of samples, or labels where the classifier knows clusters only.
            RunError: samples that are not finite.
        """
        if len(samples) != self.samples:
            raise ValueError(f"this judge compares sets of {self.samples} samples, got {len(samples)}")
        if tuple(samples.shape[1:]) != self.classifier.shape:
            raise ValueError(f"samples are {tuple(samples.shape[1:])}, the data {self.classifier.shape}")
        if broken := int((~samples.flatten(1).isfinite().all(1)).sum()):
            raise RunError(f"{broken} of {len(samples)} samples hold NaN or infinity: the sampler has diverged")
        features, predicted = embed(self.classifier, samples)
        pixels = samples.detach().flatten(1).cpu()
        found = self._compare(features, pixels)
        found["nearest_train"] = metrics.nearest_ratio(self._to_train(pixels), self._unseen)
        if labels is not None:
            found["label_agreement"] = self._agreement(predicted, labels)
        return found

    def facts(self) -> dict[str, Any]:
        """What the measures rest on, as JSON: the classifier, the counts, and the floor.

        ``floor`` is what ``floor_samples`` train images, drawn by a fixed seed, score against the same reference: real
        data of the same distribution. ``accuracy`` is on the reference; with clusters for labels, the share that lands
        in the cluster of its nearest centre.
        """
        return {
            "features": f"penultimate layer of the classifier, {RECIPE.features} dimensions",
            "accuracy": self._accuracy,
            "labels": self.classifier.labels_kind,
            "classes": self.classifier.classes,
            "weights": weight_hash(self.classifier),
            "recipe": RECIPE.hash,
            "steps": RECIPE.steps(len(self.train.x)),
            "train": len(self.train.x),
            "reference": len(self._pixels),
            "samples": self.samples,
            "floor_samples": self._floor_count,
            "floor": self._floor,
        }

    def _compare(self, features: Tensor, pixels: Tensor) -> dict[str, float]:
        shares = metrics.precision_recall_density_coverage(self._features, features, radii=self._radii)
        return {
            "fd_clf": metrics.frechet(metrics.fit_gaussian(features), self._gaussian),
            "kid_clf": metrics.kernel_distance(features, self._features),
            "precision": shares.precision,
            "recall": shares.recall,
            "density": shares.density,
            "coverage": shares.coverage,
            "sliced_wasserstein": metrics.sliced_wasserstein(pixels, self._pixels),
        }

    def _measure_floor(self) -> tuple[dict[str, float], int]:
        """`nearest_train` is left out, which is 0 for train images."""
        count = min(self.samples, len(self.train.x))
        chosen = Streams(FLOOR_SEED).numpy("floor").permutation(len(self.train.x))[:count]
        x = torch.cat([self.train.tensor(part) for part in np.array_split(chosen, -(-count // TRAIN_BLOCK))])
        return self._compare(embed(self.classifier, x)[0], x.flatten(1)), count

    def _to_train(self, pixels: Tensor) -> Tensor:
        blocks = (block.flatten(1) for block in batches(self.train, TRAIN_BLOCK))
        return metrics.nearest_distances(pixels.to(self.device), blocks).cpu()

    def _agreement(self, predicted: Tensor, labels: Tensor) -> float:
        if self.classifier.labels_kind != DATA_LABELS:
            raise ValueError("the training data have no labels: agreement with labels cannot be measured")
        if labels.shape != predicted.shape:
            raise ValueError(f"{len(predicted)} samples need as many labels, got {tuple(labels.shape)}")
        return float((predicted == labels.cpu()).double().mean())


def judge_of(config: DiffusionData, split: str, device: torch.device) -> Judge:
    """Of samples against the images of `split`."""
    train, reference = load_split(config, "train"), load_split(config, split)
    classifier = _classifier(train, str(device))
    return Judge(train, reference, samples=config.samples, device=device, classifier=classifier)


@lru_cache(maxsize=4)
def _classifier(train: Images, device: str) -> Classifier:
    """One for all splits, and for all runs of a process: `load_split` gives the same images again."""
    return train_classifier(train, device=device)
