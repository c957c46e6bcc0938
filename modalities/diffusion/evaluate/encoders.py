"""Samples in the features of networks that people compare by: Inception's, DINOv2's and CLIP's.

Nothing is fetched: a recipe names the file or folder of each (``data.judges``). They measure test samples alone, beside
the classifier of `judge`, by which the best weights are still chosen.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from xmodal_kd.adapter.images.networks import PROCESSORS, Preparation, read_network
from xmodal_kd.runtime.checkpoint import read_object
from xmodal_kd.runtime.errors import UserError

from ..data.captions import captions_of
from ..data.config import DiffusionData
from ..data.source import load_split
from ..models.classifier import ImageSet, batches
from . import metrics

#: Images, and captions, that a network sees at once.
ROWS = 64
#: What features of a network are called in the names of measures; Inception's alone are those of the FID.
FRECHET = {"inception": "fid", "dinov2": "fd_dinov2"}
KERNEL = {"inception": "kid", "dinov2": "kid_dinov2"}
#: A saved state of torch-fidelity's Inception is a pickle of tensors, an exported one of NVIDIA's has code beside it.
CODE = "/code/"


class Prepared:
    """Images as a network of `transformers` wants them: of its size, in its colours.

    Raises:
        UserError: its folder does not say them.
    """

    def __init__(self, folder: Path) -> None:
        found = Preparation.of(folder)
        if found.path is None:
            raise UserError(
                f"{folder}: no {PROCESSORS[0]}, which says how images are prepared: save the processor there"
            )
        if found.side is None or found.mean is None or found.std is None:
            raise UserError(f"{found.path}: needs size (or crop_size), image_mean and image_std")
        self.size, self.mean, self.std = found.side, found.mean, found.std

    def __call__(self, images: Tensor, *, crop: bool) -> Tensor:
        """Of bytes ``(n, 3, h, w)``: the whole image at the network's size, or its middle where `crop`."""
        x, side = images.float(), self.size
        height, width = x.shape[2:]
        if crop:
            scale = side / min(height, width)
            height, width = max(side, round(height * scale)), max(side, round(width * scale))
        else:
            height = width = side
        if x.shape[2:] != (height, width):
            x = F.interpolate(x, size=(height, width), mode="bicubic", antialias=True).round().clamp(0, 255)
        top, left = (height - side) // 2, (width - side) // 2
        x = x[:, :, top : top + side, left : left + side] / 255
        mean, std = (x.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (x - mean) / std


def inception(path: Path) -> Callable[[Tensor], Tensor]:
    """Pooled features ``(n, 2048)`` of bytes ``(n, 3, h, w)`` by the Inception-v3 of the FID (Heusel et al., 2017).

    Args:
        path: NVIDIA's TorchScript file (``inception-2015-12-05.pt``), or the weights of torch-fidelity
            (``weights-inception-2015-12-05-6726825d.pth``), which torchmetrics has, too. Other weights, as
            torchvision's, have other features and give no FID.
    """
    if not path.is_file():
        raise UserError(
            f"data.judges.inception: {path}: no such file; it is inception-2015-12-05.pt, or the .pth of torch-fidelity"
        )
    try:
        names = zipfile.ZipFile(path).namelist()
    except zipfile.BadZipFile:
        names = []
    if any(CODE in name for name in names):
        return _scripted(path)
    return _of_fidelity(path)


def _scripted(path: Path) -> Callable[[Tensor], Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch wants exported programs; the file is of 2015's network
        network = torch.jit.load(path, map_location="cpu").eval()

    def features(images: Tensor) -> Tensor:
        network.to(images.device)
        found: Tensor = network(images, return_features=True)
        return found

    return features


def _of_fidelity(path: Path) -> Callable[[Tensor], Tensor]:
    try:
        torch.load(path, map_location="cpu", weights_only=True)  # tensors and nothing else
    except Exception as error:
        told = " ".join(str(error).split())[:120]
        raise UserError(f"data.judges.inception: {path}: neither TorchScript nor a state of tensors ({told})") from None
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise UserError(
            f"data.judges.inception: {path} is of torch-fidelity, which is not installed: pip install torch-fidelity"
        ) from None
    try:
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(path))
    except RuntimeError as error:
        told = " ".join(str(error).split())[:120]
        raise UserError(f"data.judges.inception: {path}: not the weights of the FID's Inception ({told})") from None

    def features(images: Tensor) -> Tensor:
        found: Tensor = network.to(images.device)(images)[0]
        return found

    return features


def dinov2(folder: Path) -> Callable[[Tensor], Tensor]:
    """The normalised class token ``(n, d)`` of bytes ``(n, 3, h, w)``, of whole images at the network's size: the
    features of FD_DINOv2 (Stein et al., 2023, whose network is the largest but one, ViT-L/14).
    """
    network, prepared = _read(folder, "dinov2"), Prepared(folder)

    def features(images: Tensor) -> Tensor:
        found: Tensor = network.to(images.device)(prepared(images, crop=False)).pooler_output
        return found

    return features


class Clip:
    """Images and captions in one space (Radford et al., 2021)."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self.network, self.prepared = _read(folder, "clip"), Prepared(folder)
        try:
            self.words = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:
            told = " ".join(str(error).split())[:120]
            raise UserError(
                f"data.judges.clip: {folder}: its tokenizer cannot be read ({told}): save it there"
            ) from None
        self.longest = int(self.network.config.text_config.max_position_embeddings)

    def score(self, images: Tensor, captions: Sequence[str]) -> float:
        """100 times the mean of ``max(cos, 0)`` of each image and its caption (Hessel et al., 2021, without its factor
        of 2.5, as torchmetrics has it). A caption is cut where the network's longest text ends."""
        self.network.to(images.device)
        seen = torch.cat([self._unit(self._images(part)) for part in images.split(ROWS)])
        distinct = list(dict.fromkeys(captions))
        said = torch.cat(
            [self._unit(self._texts(distinct[i : i + ROWS], images.device)) for i in range(0, len(distinct), ROWS)]
        )
        place = {caption: i for i, caption in enumerate(distinct)}
        cosines = (seen * said[[place[caption] for caption in captions]]).sum(1)
        return float(100 * cosines.clamp(min=0).mean())

    def _images(self, images: Tensor) -> Tensor:
        pooled = self.network.vision_model(self.prepared(images, crop=True)).pooler_output
        found: Tensor = self.network.visual_projection(pooled)
        return found

    def _texts(self, captions: list[str], device: torch.device) -> Tensor:
        given = self.words(captions, padding=True, truncation=True, max_length=self.longest, return_tensors="pt")
        pooled = self.network.text_model(**given.to(device)).pooler_output
        found: Tensor = self.network.text_projection(pooled)
        return found

    @staticmethod
    def _unit(x: Tensor) -> Tensor:
        return F.normalize(x.double(), dim=1).cpu()


def _read(folder: Path, kind: str) -> Any:
    """The network of a folder of `transformers`."""
    if not (folder / "config.json").is_file():
        raise UserError(f"data.judges.{kind}: {folder}: no config.json: a folder as transformers saves it")
    config = read_object(folder / "config.json")
    if kind not in (is_one := str(config.get("model_type"))):
        raise UserError(f"data.judges.{kind}: {folder} holds a model of type {is_one}")
    return read_network(folder, config, also="input_ids").eval().requires_grad_(False)


@dataclass(frozen=True)
class Reference:
    """Real images in the features of a network, and what measures need of them."""

    features: Tensor
    gaussian: metrics.Gaussian
    radii: tuple[Tensor, Tensor]


class Encoders:
    """The networks that a recipe names.

    Args:
        inception: see `inception`.
        dinov2: see `dinov2`.
        clip: folder of a CLIP with its tokenizer; used where samples have captions.
    """

    def __init__(self, inception_file: Path | None, dinov2_folder: Path | None, clip_folder: Path | None) -> None:
        self.calls: dict[str, Callable[[Tensor], Tensor]] = {}
        if inception_file is not None:
            self.calls["inception"] = inception(inception_file)
        if dinov2_folder is not None:
            self.calls["dinov2"] = dinov2(dinov2_folder)
        self.clip = None if clip_folder is None else Clip(clip_folder)
        #: By network, with the images that each is of: runs of one process may be of other data.
        self._references: dict[str, tuple[ImageSet, Reference]] = {}

    def measure(self, samples: Tensor, reference: ImageSet, captions: Sequence[str] | None = None) -> dict[str, float]:
        """Of samples ``(n, c, h, w)`` in [-1, 1] against real images.

        Returns:
            ``fid``, ``kid``, ``precision_inception`` and ``recall_inception``; ``fd_dinov2``, ``kid_dinov2`` and so
            on; ``clip_score``, as far as there are networks. Distances: less is better.
        """
        found: dict[str, float] = {}
        for name, call in self.calls.items():
            features, real = _features(call, samples), self._reference(name, reference, samples.device)
            shares = metrics.precision_recall_density_coverage(real.features, features, radii=real.radii)
            found[FRECHET[name]] = metrics.frechet(metrics.fit_gaussian(features), real.gaussian)
            found[KERNEL[name]] = metrics.kernel_distance(features, real.features)
            found |= {f"precision_{name}": shares.precision, f"recall_{name}": shares.recall}
        if self.clip is not None and captions is not None:
            with torch.no_grad():
                found["clip_score"] = self.clip.score(as_bytes(samples), captions)
        return found

    def _reference(self, name: str, images: ImageSet, device: torch.device) -> Reference:
        held = self._references.get(name)
        if held is not None and held[0] is images:
            return held[1]
        features = torch.cat([_features(self.calls[name], block.to(device)) for block in batches(images, ROWS)])
        precision, density = (metrics.neighbour_radii(features, k) for k in (metrics.PRECISION_K, metrics.DENSITY_K))
        made = Reference(features, metrics.fit_gaussian(features), (precision, density))
        self._references[name] = images, made
        return made


@torch.no_grad()
def _features(call: Callable[[Tensor], Tensor], samples: Tensor) -> Tensor:
    with torch.autocast(samples.device.type, enabled=False):
        return torch.cat([call(as_bytes(part)).double().cpu() for part in samples.split(ROWS)])


def as_bytes(samples: Tensor) -> Tensor:
    """Colours ``(n, 3, h, w)`` of 0 to 255, as they are saved, of samples in [-1, 1]; grey ones three times."""
    x = ((samples.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x


@lru_cache(maxsize=1)
def encoders(inception_file: Path | None, dinov2_folder: Path | None, clip_folder: Path | None) -> Encoders:
    """Read once in a process."""
    return Encoders(inception_file, dinov2_folder, clip_folder)


def seen_by_others(config: DiffusionData, split: str, samples: Tensor) -> dict[str, float]:
    """What the recipe's networks say of test samples, which were prompted by the captions of dev in turn."""
    judges = config.judges
    if split != "test" or not judges:
        return {}
    if samples.shape[1] not in (1, 3):
        raise UserError(
            f"data.judges: see grey or coloured images, and these have {samples.shape[1]} channels: leave it out"
        )
    said = None if judges.clip is None else [*islice(cycle(captions_of(config, "dev")), len(samples))]
    found = encoders(judges.inception, judges.dinov2, judges.clip)
    return found.measure(samples, load_split(config, split), said)


__all__ = ["Encoders", "Prepared", "as_bytes", "encoders", "seen_by_others"]
