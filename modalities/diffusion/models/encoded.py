"""Latents of images and embeddings of captions, computed once by a pipeline's parts and kept on disk.

A file is named after what decides its content: the bytes of the images or captions, and of the encoder. Whoever needs
the same finds it, in the same run or another; it is written part by part and read through a memory map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xmodal_kd.adapter.images.later import content_of
from xmodal_kd.adapter.images.read import Images
from xmodal_kd.runtime import leftovers
from xmodal_kd.runtime.checkpoint import disk_errors
from xmodal_kd.runtime.progress import bar

from ..data.condition import Prompts, Text, each, moved
from ..data.source import Encoded
from .parts import Parts

#: Images, and captions, that are read at once.
IMAGES, CAPTIONS = 64, 256


def encoded(
    parts: Parts, images: Images, captions: Sequence[str] | None, folder: Path, *, flip: bool = False
) -> Encoded:  # fmt: skip
    """The latents of `images`, mirrored ones beside them if asked for, and what `captions` say of them.

    Args:
        folder: where files are kept.
    """
    versions = (False, True) if flip else (False,)
    latents = tuple(_latents(parts, images, folder, mirrored) for mirrored in versions)
    if captions is None:
        return Encoded(latents)
    distinct = list(dict.fromkeys(captions))
    place = {text: i for i, text in enumerate(distinct)}
    index = np.array([place[text] for text in captions])
    return Encoded(latents, _texts(parts, distinct, folder), index, lambda: parts.nothing)


def _latents(parts: Parts, images: Images, folder: Path, mirrored: bool) -> np.ndarray:
    def pieces() -> Iterator[Tensor]:
        for start in range(0, len(images), IMAGES):
            x = images.tensor(range(start, min(start + IMAGES, len(images)))).to(_device())
            yield parts.encode(x.flip(-1) if mirrored else x).cpu()

    key = _key(b"mirrored" if mirrored else b"", parts.digest(parts.family.codec), content_of(images.x))
    return _kept(folder / f"latents-{key}.npy", len(images), pieces, "latents")


def _texts(parts: Parts, captions: Sequence[str], folder: Path) -> tuple[np.ndarray, ...]:
    key = _key(
        parts.digest(*parts.family.text, *parts.family.more),
        b"".join(part.numpy().tobytes() for part in parts.sizes(1)),
        "\n".join(parts.instruction).encode(),
        *(part for text in captions for part in (text.encode(), b"\0")),
    )
    count = len(each(parts.nothing))

    def pieces(which: int) -> Iterator[Tensor]:
        for start in range(0, len(captions), CAPTIONS):
            yield each(parts.prompts(captions[start : start + CAPTIONS], _device()))[which].cpu()

    return tuple(
        _kept(folder / f"prompts-{key}-{which}.npy", len(captions), lambda which=which: pieces(which), "captions")  # type: ignore[misc]
        for which in range(count)
    )


def _kept(path: Path, count: int, pieces: Callable[[], Iterator[Tensor]], what: str) -> np.ndarray:
    """The rows of a file, which is written first where it is not there."""
    if not path.is_file():
        temporary, made, done = leftovers.temporary(path), None, 0
        with disk_errors(path), bar(f"encoding {what}", count, quiet=count <= IMAGES) as shown:
            path.parent.mkdir(parents=True, exist_ok=True)
            for piece in pieces():
                if made is None:
                    shape = (count, *piece.shape[1:])
                    made = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
                made[done : done + len(piece)] = piece.float().numpy()
                done += len(piece)
                shown.update(done, {})
            assert made is not None
            made.flush()
            del made
            temporary.replace(path)
    found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return found


def text_of(found: Encoded, index: Any) -> Text:
    """What the captions of samples `index` say."""
    return Text(*found.said(index))


def prompts_of(found: Encoded) -> Prompts:
    """The captions of a split, by the numbers of its samples."""
    assert found.index is not None
    return len(found.index), lambda which: moved(text_of(found, which.cpu().numpy()), which.device)


def _key(*parts: bytes | memoryview) -> str:
    hasher = blake2b(digest_size=12)
    for part in parts:
        hasher.update(part)
    return hasher.hexdigest()


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


__all__ = ["encoded", "prompts_of", "text_of"]
