"""Image networks of torchvision and timm without their classifier: maps of features by layer, weights of a file.

Nothing is fetched. A file is safetensors, or a checkpoint of torch of which only tensors are read.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from math import gcd
from pathlib import Path
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from xmodal_kd.runtime.binary_packages import load, loading
from xmodal_kd.runtime.checkpoint import read_tensors
from xmodal_kd.runtime.errors import UserError, nearest
from xmodal_kd.signals.capture import capture

Library = Literal["torchvision", "timm"]
#: What a network's layers are found on: sides that show which axis is which, and what fixed sizes need.
WIDE, SQUARE = (224, 448), (224, 224)
#: Tokens of no patch that a transformer may have before those of its patches.
MOST_OTHERS = 16
#: Ends of files of weights.
ENDS = (".safetensors", ".pth", ".pt", ".bin")
#: What torchvision calls a network's classifier.
HEADS = ("fc", "classifier", "head", "heads")
#: Layers that a message has room for.
SHOWN = 14


class Trunk(nn.Module):
    """A network by its name, without its classifier and what else comes after the last of its layers.

    Batch norms keep the statistics of the weights; where there are no weights, norms by groups of channels stand in
    their place. So a picture's features are the same alone and in a batch.

    Args:
        layers: modules whose maps it gives; None: of each resolution the last.
        groups: whether norms by groups stand in the place of batch norms.
        source: how the network is called in messages; by default its library and name.

    Raises:
        UserError: the library is missing, or has no such network, or the network has no such layer.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, library: Library, name: str, layers: Sequence[str] | None = None, *, groups: bool = True,
        colours: tuple[Any, Any] | None = None, source: str = "",
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder, usual, heads = _network(library, name)
        self.source = source or f"{library}'s {name}"
        for key, values in zip(("mean", "std"), colours or usual, strict=True):
            self.register_buffer(key, torch.tensor(values, dtype=torch.float32)[:, None, None])
        if groups:
            _by_groups(self.encoder)
        self.patch = patch_of(self.encoder)
        found = self._found()
        self.layers = tuple(layers) if layers is not None else tuple(_last_of_each(found))
        if unknown := [layer for layer in self.layers if layer not in found]:
            known = [*dict.fromkeys([*_last_of_each(found), *(path for path in found if path.count(".") < 2)])]
            listed = ", ".join(known[:SHOWN]) + (", ..." if len(known) > SHOWN else "")
            raise UserError(f"{self.source} has no layer {unknown[0]!r} that gives a map: it has {listed}")
        self.widths = [found[layer][0] for layer in self.layers]
        #: Pixels along the side of a cell of each map.
        self.strides = [round(self._size()[0] / found[layer][1]) for layer in self.layers]
        #: Modules of the network that are not here.
        self.left_out = (*heads, *_cut(self.encoder, self.layers, self._size()))

    def train(self, mode: bool = True) -> Trunk:
        super().train(mode)
        for module in self.encoder.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ i j"]]:
        """The maps of its layers, in their order, of photographs whose colours are 0 to 1."""
        with capture(self.encoder, self.layers) as taken:
            self.encoder((x - self.mean) / self.std)
        grid = (x.shape[2], x.shape[3])
        maps = [as_map(taken[layer][-1], grid, self.patch) for layer in self.layers]
        return [one for one in maps if one is not None]

    def fits(self, size: tuple[int, int]) -> None:
        """Raises `UserError` where photographs of this height and width are nothing for the network."""
        if self.patch is not None and any(side % self.patch for side in size):
            raise UserError(
                f"data.image: {list(size)} is no whole number of the encoder's patches of {self.patch} pixels: set it "
                f"to multiples of {self.patch}"
            )
        outline = _outline(self.encoder)
        if (told := _refused(outline, size)) is not None:
            way = f"set it to {list(SQUARE)}" if _refused(outline, SQUARE) is None else "set it to the size it asks for"
            raise UserError(f"data.image: {self.source} takes no picture of {list(size)} ({told}): {way}")

    def _found(self) -> dict[str, tuple[int, int]]:
        """By module that gives a map: its channels and the number of its rows, in the order in which they end."""
        outline, size = _outline(self.encoder), self._size()
        if (told := _refused(outline, size)) is not None:
            raise UserError(f"{self.source} cannot be looked through ({told}): choose another network")
        paths = [path for path, module in outline.named_modules() if path and not _pools(module)]
        found = {}
        for path, value in _seen(outline, size, paths):
            given = as_map(value, size, self.patch)
            if given is not None and len(given) == 1 and given.shape[2] > 1:
                found[path] = given.shape[1], given.shape[2]
        return found

    def _size(self) -> tuple[int, int]:
        return WIDE if _refused(_outline(self.encoder), WIDE) is None else SQUARE


def _outline(net: nn.Module) -> nn.Module:
    """The network without its numbers, which says sizes and computes nothing."""
    return copy.deepcopy(net).eval().to("meta")


def _refused(outline: nn.Module, size: tuple[int, int]) -> str | None:
    """Why a network takes no pictures of a size, None where it does."""
    try:
        _seen(outline, size, [])
    except (AssertionError, RuntimeError, ValueError) as error:
        return " ".join(str(error).split())[:120] or type(error).__name__
    return None


@torch.no_grad()
def _seen(outline: nn.Module, size: tuple[int, int], paths: Sequence[str]) -> list[tuple[str, Tensor]]:
    """What these modules give, in the order in which they end."""
    seen: list[tuple[str, Tensor]] = []

    def keep(path: str, module: nn.Module, given: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            seen.append((path, output))

    handles = [outline.get_submodule(path).register_forward_hook(partial(keep, path)) for path in paths]
    try:
        outline(torch.zeros(1, 3, *size, device="meta"))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _cut(net: nn.Module, layers: Sequence[str], size: tuple[int, int]) -> list[str]:
    """Take out of a network what begins after the last of these layers has ended; the paths of what is gone.

    Nothing is taken out of a network that does not run without.
    """
    outline, begun, ended = _outline(net), dict[str, int](), 0
    order: list[tuple[str, bool]] = []
    for path, module in outline.named_modules():
        if path:
            module.register_forward_pre_hook(partial(lambda path, *_: order.append((path, False)), path))
        if path in layers:
            module.register_forward_hook(partial(lambda path, *_: order.append((path, True)), path))
    _seen(outline, size, [])
    for at, (path, ends) in enumerate(order):
        if ends:
            ended = at
        else:
            begun.setdefault(path, at)
    empty = {path for path, module in net.named_modules() if isinstance(module, nn.Identity)}
    later = {path for path, at in begun.items() if at > ended and path not in empty}
    gone = {path: net.get_submodule(path) for path in later if not _inside(path, later)}
    for path in gone:
        _put(net, path, nn.Identity())
    if _refused(_outline(net), size) is None:
        return sorted(gone)
    for path, module in gone.items():
        _put(net, path, module)
    return []


def _inside(path: str, others: Collection[str]) -> bool:
    """Whether a module is part of one of the others."""
    parts = path.split(".")
    return any(".".join(parts[:n]) in others for n in range(1, len(parts)))


def _put(net: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(net.get_submodule(parent), name, module)


def as_map(value: Tensor, size: tuple[int, int], patch: int | None) -> Float[Tensor, "b c i j"] | None:
    """What a layer gives for pictures of `size`, as maps; None where it is none.

    Maps ``(b, c, h, w)`` stay; ``(b, h, w, c)`` are turned, where only so the sides are those of the picture; of tokens
    ``(b, t, c)`` those of patches are taken, row by row behind those of no patch.
    """
    if value.ndim == 4:
        turned = _of_picture(value.shape[1:3], size) and not _of_picture(value.shape[2:], size)
        return value.permute(0, 3, 1, 2) if turned else value
    if value.ndim == 3 and patch is not None:
        rows, columns = (side // patch for side in size)
        if 0 <= value.shape[1] - rows * columns <= MOST_OTHERS:
            return rearrange(value[:, -rows * columns :], "b (h w) c -> b c h w", h=rows)
    return None


def _of_picture(sides: Sequence[int], size: tuple[int, int]) -> bool:
    """Whether a map's sides are a picture's, divided by one number and rounded either way."""
    divided = ([(side // n, -(-side // n)) for side in size] for n in range(1, 65))
    return any(side in rows and other in columns for side, other in [tuple(sides)] for rows, columns in divided)


def patch_of(encoder: nn.Module) -> int | None:
    """Side of the patches that a transformer cuts a picture into, None of other networks."""
    first = next((module for module in encoder.modules() if isinstance(module, nn.Conv2d)), None)
    attends = any(isinstance(module, nn.LayerNorm) for module in encoder.modules())
    if first is None or not attends or first.kernel_size != first.stride or first.stride[0] < 8:
        return None
    return first.stride[0]


def _network(library: Library, name: str) -> tuple[nn.Module, tuple[Any, Any], tuple[str, ...]]:
    """The network without its classifier, mean and deviation of colours of its weights, names of the classifier."""
    if library == "timm":
        with loading("timm", "timm"):
            import timm
        known = timm.list_models()
        if name.partition(".")[0] not in known:
            raise UserError(f"timm has no network {name!r}{nearest(name, known)}")
        net = _timm(timm, name)
        about = net.pretrained_cfg
        heads = about.get("classifier") or ()
        return net, (about["mean"], about["std"]), (heads,) if isinstance(heads, str) else tuple(heads)
    models = load("torchvision.models", "points")
    known = models.list_models(module=models)
    if name not in known:
        raise UserError(f"torchvision has no network {name!r} that classifies{nearest(name, known)}")
    net = models.get_model(name, weights=None)
    head = next((one for one in HEADS if hasattr(net, one)), None)
    if head is not None:
        setattr(net, head, nn.Identity())
    told = models.get_model_weights(name).DEFAULT.transforms()
    return net, (told.mean, told.std), (head,) if head is not None else ()


def _timm(timm: Any, name: str) -> Any:
    """A network of timm that takes pictures of any size, where it has a way to."""
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True)
    except TypeError:
        return timm.create_model(name, pretrained=False, num_classes=0)


def _by_groups(net: nn.Module) -> None:
    """Norms by groups of channels in the place of batch norms; what timm does after one stays behind it."""
    for parent in list(net.modules()):
        for name, module in list(parent.named_children()):
            if not isinstance(module, _BatchNorm):
                continue
            norm: nn.Module = nn.GroupNorm(gcd(module.num_features, 8), module.num_features)
            after = [getattr(module, key) for key in ("drop", "act") if hasattr(module, key)]
            setattr(parent, name, nn.Sequential(norm, *after) if after else norm)


def _pools(module: nn.Module) -> bool:
    return isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d | nn.Flatten | nn.Identity)


def _last_of_each(found: Mapping[str, tuple[int, int]]) -> list[str]:
    """Of each resolution the module that ends last, of those that lie in the fewest others; the finest first."""
    last: dict[int, str] = {}
    for path, (_, rows) in found.items():
        if rows not in last or path.count(".") <= last[rows].count("."):
            last[rows] = path
    return [last[rows] for rows in sorted(last, reverse=True)]


# ---------------------------------------------------------------- weights


def load_trunk(trunk: Trunk, path: Path) -> None:
    """Give a trunk the weights of a file, or of the only such file of a folder.

    A prefix before all names (``module.``, ``module.encoder_q.``) is taken off; what is left out of the network is
    passed over.

    Raises:
        UserError: there is no such file, it is damaged, or its weights are another network's.
    """
    path = file_of(path)
    held, own = _held(path), trunk.encoder.state_dict()
    first = next(iter(own))
    prefix = next((key.removesuffix(first) for key in held if key == first or key.endswith(f".{first}")), "")
    held = {key.removeprefix(prefix): value for key, value in held.items() if key.startswith(prefix)}
    wanted = [key for key in own if not key.endswith("num_batches_tracked")]
    if lacking := [key for key in wanted if key not in held]:
        raise UserError(
            f"{path}: no weights of {trunk.source}: {len(lacking)} of {len(wanted)} are missing, first {lacking[0]!r}"
        )
    if odd := next((key for key in wanted if held[key].shape != own[key].shape), None):
        raise UserError(
            f"{path}: no weights of {trunk.source}: {odd!r} is {tuple(held[odd].shape)}, the network's "
            f"{tuple(own[odd].shape)}"
        )
    left = tuple(f"{path}." for path in trunk.left_out)
    if more := [key for key in held if key not in own and not key.startswith(left)]:
        raise UserError(
            f"{path}: no weights of {trunk.source}: it holds {len(more)} that the network lacks, first {more[0]!r}"
        )
    trunk.encoder.load_state_dict({key: held.get(key, value) for key, value in own.items()})


def file_of(path: Path) -> Path:
    """The file of weights that a path names. Raises `UserError` where there is none, or several in a folder."""
    if not path.is_dir():
        if path.is_file() and path.name.endswith(ENDS):
            return path
        what = "it is no file of weights" if path.exists() else "there is no such file"
        raise UserError(f"{path}: {what}: give one that ends in {', '.join(ENDS)}, or its folder")
    found = sorted(one for one in path.iterdir() if one.name.endswith(ENDS))
    if len(found) != 1:
        safe = [one for one in found if one.name.endswith(ENDS[0])]
        if len(safe) == 1:
            return safe[0]
        raise UserError(f"{path}: {len(found)} files of weights in it: name the one that is meant")
    return found[0]


def _held(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name."""
    if path.name.endswith(ENDS[0]):
        return read_tensors(path)
    try:
        held: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a file leads to that is none of torch's is not told
        said = next(iter(str(error).splitlines()), type(error).__name__)[:120]
        raise UserError(
            f"{path}: torch cannot read tensors alone from it ({said}): save its state_dict as safetensors"
        ) from error
    for key in ("state_dict", "model"):
        held = held[key] if isinstance(held, Mapping) and isinstance(held.get(key), Mapping) else held
    found = dict(_tensors(held))
    if not found:
        raise UserError(f"{path}: it holds no tensors by name: give a network's state_dict")
    return found


def _tensors(held: Any) -> Iterator[tuple[str, Tensor]]:
    for key, value in held.items() if isinstance(held, Mapping) else ():
        if isinstance(value, Tensor):
            yield str(key), value


__all__ = ["Library", "Trunk", "as_map", "file_of", "load_trunk", "patch_of"]
