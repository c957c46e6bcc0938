"""Networks of images as ``transformers`` saves them, whatever reads them, and how they want images prepared.

Nothing is fetched, no code of a folder is run, and only safetensors are read.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...runtime.checkpoint import read_object
from ...runtime.errors import UserError

CONFIG = "config.json"
#: Where `transformers` keeps how images are prepared, in its releases.
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
#: Mean and standard deviation of the colours of ImageNet, which most networks were trained with.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preparation:
    """How a network sees images, as far as its folder says it.

    Attributes:
        path: of the file that says it; None: there is none.
        side: of the square that is cut out, else that images are brought to.
        mean: of the colours.
        std: their standard deviation.
    """

    path: Path | None = None
    side: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @classmethod
    def of(cls, folder: Path) -> Preparation:
        """Raises `UserError` for what is no number where one belongs."""
        path = next((folder / name for name in PROCESSORS if (folder / name).is_file()), None)
        if path is None:
            return cls()
        found = read_object(path)
        found = found.get("image_processor", found)
        try:
            colours = [None if found.get(key) is None else tuple(map(float, found[key])) for key in _COLOURS]
            return cls(path, _side(found.get("crop_size")) or _side(found.get("size")), *colours)
        except (TypeError, ValueError, AttributeError):
            raise UserError(f"{path}: size (or crop_size), image_mean and image_std must be numbers") from None


_COLOURS = ("image_mean", "image_std")


def _side(said: Any) -> int | None:
    """Of a number, or of ``height`` or ``shortest_edge``."""
    said = (said.get("height") or said.get("shortest_edge")) if isinstance(said, Mapping) else said
    return None if said is None else int(said)


def read_network(folder: Path, config: Mapping[str, Any], *, also: str = "pixel_values") -> nn.Module:
    """A network of images, or of what its class calls `also`, as `transformers` saves it, whole and in float32.

    Args:
        config: what its ``config.json`` holds.

    Raises:
        UserError: a library is missing or cannot load it, it wants code of its own, sees something else, or its weights
            are not whole.
    """
    if "auto_map" in config:
        raise UserError(f"{folder}: it asks for code of its own (auto_map), which is not run: use a built-in model")
    try:
        auto = import_module("transformers").AutoModel  # the core names no heavy package where it is imported
    except ImportError as error:
        raise UserError(f"{folder}: a model of transformers: pip install transformers") from error
    try:
        with silent("transformers"):
            net, found = auto.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True,
                dtype=torch.float32,
            )  # fmt: skip
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise UserError(f"{folder}: transformers cannot load it ({' '.join(str(error).split())[:200]})") from error
    if net.main_input_name not in ("pixel_values", also):
        raise UserError(
            f"{folder}: a {type(net).__name__} sees {net.main_input_name}, no images: name a network of images"
        )
    lacking = sorted(name for name in found["missing_keys"] if "pooler" not in name)
    if lacking := [*lacking, *(str(one) for one in found["mismatched_keys"])]:
        raise UserError(f"{folder}: its weights lack {lacking[0]!r} ({len(lacking)} in all): it is no trained network")
    made: nn.Module = net
    return made


@contextmanager
def silent(*libraries: str) -> Iterator[None]:
    """Neither warnings of what is well known nor bars of what takes a second, of ``diffusers`` or ``transformers``."""
    loggings: Sequence[Any] = [import_module(f"{library}.utils.logging") for library in libraries]
    levels = [logging.get_verbosity() for logging in loggings]
    for logging in loggings:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logging, level in zip(loggings, levels, strict=True):
            logging.set_verbosity(level)
            logging.enable_progress_bar()


__all__ = ["CONFIG", "MEAN", "PROCESSORS", "STD", "Preparation", "read_network", "silent"]
