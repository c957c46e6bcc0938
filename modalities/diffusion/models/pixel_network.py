"""Frozen networks of pixels whose layers a discriminator reads: one of a folder, or a small one of the training images.

A folder is as ``transformers`` saves it (DINOv2, ViT, ResNet, ...), or of torchvision: ``config.json`` with ``library:
torchvision`` and the network's name as ``architecture``, and its weights as safetensors beside it. Nothing is fetched.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kd.adapter.images.networks import CONFIG, MEAN, STD, Preparation, read_network
from xmodal_kd.runtime.binary_packages import loading
from xmodal_kd.runtime.checkpoint import load_weights, read_object, read_tensors
from xmodal_kd.runtime.errors import UserError, nearest
from xmodal_kd.signals.capture import capture, find_modules, only_call

from .classifier import Classifier, ClassifierRecipe, ImageSet, train_classifier

#: The name of the small network, and how it is made: of another seed and other widths than the judge's, in whose
#: features samples are measured.
CLASSIFIER = "classifier"
RECIPE = ClassifierRecipe(seed=20231128, width=48, widest=192, features=96, shift=0.0)
#: Layers of a transformer that are read unless the recipe names them, equally far apart (StyleGAN-T and ADD take five).
LAYERS = 5


class PixelNetwork(nn.Module):
    """What layers of a frozen network make of samples; it has no gradient of its own and is always in eval mode.

    Args:
        net: called with images, or with what `given` says beside them.
        at: its modules that are read.
        photographs: whether it sees colour photographs of one size; else it sees samples as they are.
        side: of the square that photographs are brought to; None: as large as they are.
        given: what else it is called with.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, net: nn.Module, at: Sequence[str], *, photographs: bool = True, side: int | None = None,
        mean: Sequence[float] = MEAN, std: Sequence[float] = STD, given: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.net, self.photographs, self.side, self.given = net.requires_grad_(False), photographs, side, given or {}
        self.at = list(dict.fromkeys(name for pattern in at for name in find_modules(net, pattern)))
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32)[:, None, None], persistent=False)
        self.net.zero_grad()  # of its own training
        self.train(False)

    def train(self, mode: bool = True) -> PixelNetwork:
        super().train(False)
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        """``(b, c, ...)`` of each layer, of samples ``(b, ...)``: images in [-1, 1], with a gradient by them.

        Raises:
            UserError: photographs that are neither grey nor in three colours.
        """
        with torch.autocast(x.device.type, enabled=False), capture(self.net, self.at) as taken:
            self.net(self.seen(x.float()), **self.given)
        found = [only_call(name, taken[name]) for name in self.at]
        return [value.transpose(1, 2) if self.photographs and value.ndim == 3 else value for value in found]  # tokens

    def seen(self, x: Tensor) -> Tensor:
        """Samples as the network wants them."""
        if not self.photographs:
            return x
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise UserError(
                f"method.params.network: samples of {tuple(x.shape[1:])} are no photographs, which it sees: take "
                f"{CLASSIFIER}"
            )
        if self.side is not None and x.shape[2:] != (self.side, self.side):
            x = F.interpolate(x, (self.side, self.side), mode="bicubic", antialias=True, align_corners=False)
        return (x.expand(-1, 3, -1, -1) / 2 + 0.5 - self.mean) / self.std


def trained(train: ImageSet, at: Sequence[str] | None, device: torch.device | str) -> PixelNetwork:
    """The classifier of the training images by `RECIPE`, whose activations are all read unless `at` names others."""
    net = train_classifier(train, device=device, recipe=RECIPE)
    usual = [name for name, module in net.named_modules() if isinstance(module, nn.SiLU)]
    return PixelNetwork(net, at or usual, photographs=False)


def untrained(shape: Sequence[int], classes: int) -> nn.Module:
    """Its modules, for whoever wants their names."""
    return Classifier(tuple(shape), classes, recipe=RECIPE)


def load_network(folder: Path, at: Sequence[str] | None) -> PixelNetwork:
    """The network of a folder, in float32 on the CPU.

    Raises:
        UserError: a library is missing or cannot load it, its weights are not whole, it is none of images, or nothing
            says which layers are to be read.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"method.params.network: {folder}: no folder of a network of transformers or torchvision ({CONFIG}): name "
            f"one, or {CLASSIFIER}"
        )
    config = read_object(folder / CONFIG)
    if "architecture" in config:
        net = _of_torchvision(folder, config)
        told = config.get("pretrained_cfg") or {}
        return PixelNetwork(net, at or _layers(net, folder), mean=told.get("mean", MEAN), std=told.get("std", STD))
    net, prepared = read_network(folder, config), Preparation.of(folder)
    own, given = config.get("image_size"), {}
    if "interpolate_pos_encoding" in inspect.signature(net.forward).parameters and prepared.side not in (None, own):
        given["interpolate_pos_encoding"] = True
    return PixelNetwork(
        net, at or _layers(net, folder), side=prepared.side or own, mean=prepared.mean or MEAN,
        std=prepared.std or STD, given=given,
    )  # fmt: skip


def _of_torchvision(folder: Path, config: Mapping[str, Any]) -> nn.Module:
    library, name = config.get("library", "timm"), str(config["architecture"])
    if library != "torchvision":
        raise UserError(
            f"{folder / CONFIG}: a network of {library}: networks of torchvision (library: torchvision) and folders of "
            "transformers are read here"
        )
    with loading("torchvision"):
        from torchvision import models
    if name not in (known := models.list_models()):
        raise UserError(f"{folder / CONFIG}: torchvision has no {name!r}{nearest(name, known)}")
    weights = sorted(folder.glob("*.safetensors"))
    if len(weights) != 1:
        raise UserError(f"{folder}: {len(weights)} files of safetensors in it: one is expected, of the weights")
    net: nn.Module = models.get_model(name, weights=None)
    load_weights(net, read_tensors(weights[0]), weights[0])
    return net


def _layers(net: nn.Module, folder: Path) -> list[str]:
    """`LAYERS` blocks of a transformer, equally far apart, the last among them."""
    lists = [(len(module), name) for name, module in net.named_modules() if isinstance(module, nn.ModuleList)]
    count, name = max(lists, default=(0, ""))
    if not count:
        inner = ", ".join(name for name, _ in net.named_children())
        raise UserError(
            f"method.params.at: {folder}: a {type(net).__name__} has no row of blocks: name those of its modules that "
            f"are to be read (it has {inner})"
        )
    apart = min(LAYERS, count)
    return [f"{name}.{(i + 1) * count // apart - 1}" for i in range(apart)]


__all__ = ["CLASSIFIER", "RECIPE", "PixelNetwork", "load_network", "trained", "untrained"]
