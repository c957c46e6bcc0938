"""The classifier in whose features samples are judged: small, trained on the train split by one committed recipe. By
another recipe a discriminator has one of its own (`pixel_network`).

Its features are no Inception features, and distances in them are named ``fd_clf`` and ``kid_clf``, never FID and KID.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kd.adapter.images.later import Later, content_of
from xmodal_kd.runtime.checkpoint import digest, load_weights, read_json, read_tensors, write_json, write_tensors
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams


@dataclass(frozen=True)
class ClassifierRecipe:
    """Everything that decides the weights besides the data. Raise `version` with any change of the code below."""

    version: int = 1
    seed: int = 20210407
    width: int = 32
    widest: int = 128
    groups: int = 8
    features: int = 64
    dropout: float = 0.2
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    epochs: int = 40
    fewest_steps: int = 100
    most_steps: int = 2000
    shift: float = 0.125
    """Random shifts of images, as a share of their side."""
    clusters: int = 16
    """Classes where the data have no labels."""
    components: int = 64
    """Principal components in which wider data are clustered."""

    def steps(self, samples: int) -> int:
        return min(max(math.ceil(self.epochs * samples / self.batch), self.fewest_steps), self.most_steps)

    @property
    def hash(self) -> str:
        return _hash(json.dumps(asdict(self), sort_keys=True).encode())


RECIPE = ClassifierRecipe()
DATA_LABELS, PIXEL_CLUSTERS = "labels of the data", "k-means of pixels"
#: Samples embedded at once.
EMBED = 500


class ImageSet(Protocol):
    """What is needed of `images.Images`."""

    @property
    def x(self) -> np.ndarray | Later: ...
    @property
    def labels(self) -> np.ndarray | None: ...
    @property
    def class_names(self) -> tuple[str, ...] | None: ...
    def tensor(self, indexes: Any) -> Tensor: ...


class Classifier(nn.Module):
    """Convolutions for ``(c, h, w)`` and ``(c, l)``, a perceptron for any other shape.

    Args:
        shape: of one sample.
        centres: ``(classes, d)`` flattened cluster centres where the classes are `PIXEL_CLUSTERS`; None: true labels.
    """

    centres: Tensor | None
    scale: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        centres: Tensor | None = None,
        recipe: ClassifierRecipe | None = None,
    ) -> None:
        super().__init__()
        self.shape, self.classes, self.recipe = shape, classes, recipe or RECIPE
        self.register_buffer("centres", centres)
        self.register_buffer("scale", torch.ones(()))
        body, width = _body(shape, self.recipe)
        self.body = nn.Sequential(*body, nn.Flatten(), nn.Linear(width, self.recipe.features), nn.SiLU())
        self.dropout = nn.Dropout(self.recipe.dropout)
        self.head = nn.Linear(self.recipe.features, classes)

    @property
    def labels_kind(self) -> str:
        return DATA_LABELS if self.centres is None else PIXEL_CLUSTERS

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Penultimate features ``(b, 64)`` and logits ``(b, classes)`` of ``(b, *shape)``.

        Features are scaled to a mean square of 1 over the train split: how large a network makes them is an accident,
        and the polynomial kernel is meant for values of order 1.
        """
        features = self.body(x)
        return features * self.scale, self.head(self.dropout(features))

    def targets(self, images: ImageSet) -> Tensor:
        """Class ``(n,)`` int64 of every sample: its label, or its nearest cluster centre."""
        if self.centres is None:
            if images.labels is None:
                raise UserError("the data to evaluate on have no labels, but the training data have")
            return torch.from_numpy(np.asarray(images.labels, dtype=np.int64))
        centres = self.centres.cpu()
        return torch.cat([torch.cdist(x.flatten(1), centres).argmin(1) for x in batches(images)])


def _body(shape: tuple[int, ...], recipe: ClassifierRecipe) -> tuple[list[nn.Module], int]:
    """Layers, and the width of their flattened output: down to 16 or less in one stride, then halved to 4 or less."""
    if len(shape) not in (2, 3):
        wide = recipe.widest
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs in (math.prod(shape), wide):
            layers += [nn.Linear(inputs, wide), nn.LayerNorm(wide), nn.SiLU()]
        return layers, wide
    channels, sides = shape[0], shape[1:]
    convolution: type[nn.Conv1d] | type[nn.Conv2d] = nn.Conv1d if len(sides) == 1 else nn.Conv2d

    def block(inputs: int, outputs: int, kernel: tuple[int, ...], stride: tuple[int, ...]) -> list[nn.Module]:
        # a kernel of each axis's own, which the declared types of both classes do not share
        conv = convolution(inputs, outputs, kernel, stride, padding=1)  # type: ignore[arg-type]
        return [conv, nn.GroupNorm(recipe.groups, outputs), nn.SiLU()]

    strides = tuple(max(1, side // 16) for side in sides)
    width, three = recipe.width, (3,) * len(sides)
    layers = block(channels, width, tuple(s + 2 for s in strides), strides)
    sides = tuple(side // stride for side, stride in zip(sides, strides, strict=True))
    while max(sides) > 4:
        halve = tuple(2 if side > 4 else 1 for side in sides)
        wider = min(2 * width, recipe.widest)
        layers += block(width, wider, three, halve)
        width, sides = wider, tuple(-(-side // s) for side, s in zip(sides, halve, strict=True))
    layers += block(width, width, three, (1,) * len(sides))
    return layers, width * math.prod(sides)


def train_classifier(
    train: ImageSet, *, device: torch.device | str = "cpu", cache: Path | None = None,
    recipe: ClassifierRecipe | None = None,
) -> Classifier:  # fmt: skip
    """The classifier of `train` by `recipe`, or `RECIPE`, in eval mode on `device`.

    The same weights for the same data, kind of device, torch version and number of threads, whatever the run's seed;
    the caller's random state is left as it was.

    Args:
        cache: folder in which it is kept under the hashes of recipe and data, so that a resumed run finds the very
            classifier it began with. A file that is missing or damaged means training again.
    """
    recipe = recipe or RECIPE
    files = None if cache is None else cache / f"classifier-{recipe.hash[:12]}-{_data_hash(train)[:12]}"
    if files is not None and (found := _cached(train, files, recipe)) is not None:
        return found.to(device)
    streams = Streams(recipe.seed)
    centres = _cluster(train, recipe) if train.labels is None else None
    with torch.inference_mode(False), torch.enable_grad(), streams.forked("classifier"):
        model = _build(train, centres, recipe)
        _fit(model.to(device), train, streams, torch.device(device))
    if files is not None:
        write_tensors(files.with_suffix(".safetensors"), model.state_dict())
        write_json(files.with_suffix(".json"), {"recipe": asdict(recipe), "weights": weight_hash(model)})
    return model


def weight_hash(model: Classifier) -> str:
    return digest(model.state_dict().items())


def batches(images: ImageSet, size: int = EMBED) -> Iterator[Tensor]:
    """All of `images` as float32 tensors of at most `size` samples."""
    for start in range(0, len(images.x), size):
        yield images.tensor(np.arange(start, min(start + size, len(images.x))))


@torch.no_grad()
def embed(model: Classifier, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features ``(n, 64)`` float64 and predicted class ``(n,)`` of ``(n, *shape)``, on the CPU."""
    device = next(model.parameters()).device
    with torch.autocast(device.type, enabled=False):
        found = [model(block.to(device, torch.float32)) for block in x.split(EMBED)]
    features, logits = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    return features.to(torch.float64), logits.argmax(1)


def _build(train: ImageSet, centres: Tensor | None, recipe: ClassifierRecipe) -> Classifier:
    """Raises `UserError` for labels that are not numbers of the class names."""
    if train.labels is None:
        assert centres is not None
        classes = len(centres)
    else:
        low, high = int(np.min(train.labels)), int(np.max(train.labels))
        classes = len(train.class_names) if train.class_names else high + 1
        if low < 0 or high >= classes:
            raise UserError(f"labels run from {low} to {high}, but there are {classes} classes, counted from 0")
    return Classifier(tuple(train.x.shape[1:]), classes, centres, recipe)


def _fit(model: Classifier, train: ImageSet, streams: Streams, device: torch.device) -> None:
    """AdamW with a one-cycle learning rate, shuffled full batches."""
    targets, recipe = model.targets(train).to(device), model.recipe
    steps, batch = recipe.steps(len(targets)), min(recipe.batch, len(targets))
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps)
    rng, order = streams.numpy("order"), np.empty(0, dtype=np.int64)
    model.train()
    with (
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        torch.autocast(device.type, enabled=False),
    ):
        for _ in range(steps):
            if len(order) < batch:
                order = rng.permutation(len(targets))
            index, order = order[:batch], order[batch:]
            _, logits = model(_shifted(train.tensor(index).to(device), rng, recipe.shift))
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(logits, targets[torch.from_numpy(index).to(device)]).backward()
            optimizer.step()
            schedule.step()
        model.eval()
        features = torch.cat([embed(model, x)[0] for x in batches(train)])
        model.scale.fill_(float(features.square().mean().rsqrt()))


def _shifted(x: Tensor, rng: np.random.Generator, share: float) -> Tensor:
    """Images of one batch moved together by a random whole number of pixels, the edge repeated. Others unchanged."""
    if x.ndim != 4:
        return x
    reach = [int(side * share) for side in x.shape[2:]]
    down, right = (int(rng.integers(0, 2 * r + 1)) for r in reach)
    padded = F.pad(x, (reach[1], reach[1], reach[0], reach[0]), mode="replicate")
    return padded[:, :, down : down + x.shape[2], right : right + x.shape[3]]


def _cluster(train: ImageSet, recipe: ClassifierRecipe) -> Tensor:
    """Centres ``(clusters, d)`` of k-means of the flattened data, found in principal components where d is large."""
    x = torch.cat([block.flatten(1) for block in batches(train)]).numpy()
    clusters = min(recipe.clusters, len(np.unique(x, axis=0)))
    narrow, seed = x, recipe.seed
    with threadpool_limits(limits=1):  # sums over threads come in any order
        if min(x.shape) > recipe.components:
            narrow = PCA(recipe.components, svd_solver="randomized", random_state=seed).fit_transform(x)
        found = KMeans(clusters, n_init=4, random_state=seed).fit(narrow).labels_
    return torch.from_numpy(np.stack([x[found == c].mean(0) for c in range(clusters)]))


def _cached(train: ImageSet, files: Path, recipe: ClassifierRecipe) -> Classifier | None:
    try:
        tensors, facts = read_tensors(files.with_suffix(".safetensors")), read_json(files.with_suffix(".json"))
        if digest(tensors.items()) != facts["weights"]:
            return None
    except UserError:
        return None
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are overwritten
        model = _build(train, tensors.get("centres"), recipe)
    load_weights(model, tensors, files)
    return model.eval()


def _data_hash(train: ImageSet) -> str:
    labels = b"none" if train.labels is None else np.asarray(train.labels, dtype=np.int64).tobytes()
    kind = f"{train.x.shape} {train.x.dtype} {len(train.class_names or ())}".encode()
    return _hash(kind, content_of(train.x), labels)


def _hash(*parts: bytes | memoryview) -> str:
    hasher = hashlib.blake2b(digest_size=16)
    for part in parts:
        hasher.update(part)
    return hasher.hexdigest()
