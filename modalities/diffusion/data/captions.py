"""What each image of a folder shows, in words: ``metadata.jsonl``, or a text file beside every image."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from xmodal_kd.adapter.images.read import Images
from xmodal_kd.adapter.images.splits import settled
from xmodal_kd.adapter.packed.packing import KINDS as PACKED
from xmodal_kd.runtime.bounded_files import read_bytes
from xmodal_kd.runtime.errors import UserError

from .config import DiffusionData
from .source import DECISIVE, load_split

METADATA, SUFFIX = "metadata.jsonl", ".txt"
#: Keys of a caption in a line of it, as the first of them that it has.
KEYS = ("text", "caption", "prompt")
#: Bytes of all captions, and of one.
MOST, MOST_ONE = 1 << 30, 1 << 16
NAMED = 5


def captions_of(config: DiffusionData, split: str) -> tuple[str, ...]:
    """The captions of a split's images, in their order; read once in a process.

    Raises:
        UserError: an image without one, and lines that are none.
    """
    return _captions(settled(config, (*DECISIVE, "captions")), split)


@lru_cache(maxsize=8)
def _captions(config: DiffusionData, split: str) -> tuple[str, ...]:
    images = load_split(config, split)
    if images.texts is not None or config.sources in PACKED:
        return tuple(_beside_images(config, images))
    own = split == "test" and config.test_path is not None
    root = config.test_path if own else config.path
    assert root is not None
    return tuple(read_captions(root.expanduser(), images.keys))


def _beside_images(config: DiffusionData, images: Images) -> Iterator[str]:
    for key, text in zip(images.keys, images.texts or [""] * len(images), strict=True):
        if not text.strip():
            raise UserError(
                f"{config.path}: sample {key!r} has no caption: a {SUFFIX} beside it, or {KEYS[0]!r} in its .json, or "
                "leave it out (data.skip)"
            )
        yield text.strip()


def read_captions(root: Path, names: Sequence[str]) -> list[str]:
    """The captions of images, named by their paths below `root`.

    Raises:
        UserError: as `captions_of`.
    """
    listed = root / METADATA
    found = _listed(listed) if listed.is_file() else _beside(root, names)
    missing = [name for name in names if not found.get(name, "").strip()]
    if missing:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        where = f"{listed} has no" if listed.is_file() else f"{root} has no {METADATA}, and no {SUFFIX} file with a"
        raise UserError(
            f"{where} caption for {', '.join(missing[:NAMED])}{more}: give every image one, or leave those images out "
            "(data.skip)"
        )
    return [found[name].strip() for name in names]


def has_captions(root: Path) -> bool:
    """Whether a folder says anything about its images."""
    return (root / METADATA).is_file() or (root.is_dir() and next(root.rglob(f"*{SUFFIX}"), None) is not None)


def _listed(path: Path) -> dict[str, str]:
    found = {}
    for number, line in enumerate(read_bytes(path, MOST).removeprefix(BOM_UTF8).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: not a line of JSON ({' '.join(str(error).split())})") from error
        name = content.get("file_name") if isinstance(content, dict) else None
        if not isinstance(name, str):
            raise UserError(f"{path}:{number}: has no file_name: an object with file_name and text is expected")
        said = next((content[key] for key in KEYS if isinstance(content.get(key), str)), None)
        if said is None:
            raise UserError(f"{path}:{number}: {name} has no text: name its caption by one of {', '.join(KEYS)}")
        found[name.replace("\\", "/").removeprefix("./")] = said
    return found


def _beside(root: Path, names: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in names:
        path = (root / name).with_suffix(SUFFIX)
        if path.is_file():
            try:
                found[name] = read_bytes(path, MOST_ONE).decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}: a caption in UTF-8 is expected ({error.reason})") from error
    return found


__all__ = ["METADATA", "SUFFIX", "captions_of", "has_captions", "read_captions"]
