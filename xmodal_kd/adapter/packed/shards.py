"""Which tar files a path means: a tar, a folder of them, or patterns as WebDataset's users write them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ...runtime.errors import UserError

#: What parts patterns, and what makes a path one.
BETWEEN, SIGNS = "::", re.compile(r"::|[*?\[{]")
#: Shards that one pattern may stand for.
MOST = 1_000_000
#: What a compressed shard is unpacked by, by the end of its name and by its first bytes.
UNPACK = {
    ".gz": "gunzip",
    ".tgz": "gunzip --suffix .tgz",
    ".zst": "zstd --decompress --rm",
    ".xz": "unxz",
    ".bz2": "bunzip2",
}
MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"\xfd7zXZ": ".xz", b"BZh": ".bz2"}
#: Names by which files and folders are told apart, by split.
NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"), "dev": ("val", "valid", "validation", "dev"), "test": ("test", "testing"),
}  # fmt: skip
#: The split that each means.
MEANT = {name: split for split, names in NAMES.items() for name in names}


def absolute(path: Path) -> Path:
    """A path, or each part of a pattern, from where this was called."""
    parts = str(path).split(BETWEEN) if is_pattern(path) else [str(path)]
    return Path(BETWEEN.join(str(Path.cwd() / Path(part).expanduser()) for part in parts))


def is_pattern(path: Path) -> bool:
    """Whether a path stands for several by signs, so that it need not be there itself."""
    return SIGNS.search(str(path)) is not None and not path.expanduser().exists()


def shards(path: Path, key: str = "data.path") -> list[Path]:
    """The tars that `path` means, each once: in natural order of their names within a folder or glob, as written else.

    ``{000..099}`` counts, ``{a,b}`` lists, ``*``, ``?`` and ``[..]`` are globs, ``::`` stands between patterns.

    Args:
        key: of the recipe, for messages.
    Raises:
        UserError: one is missing, compressed, or on another machine; a folder without any; no such file.
    """
    found: list[Path] = []
    for one in str(path).split(BETWEEN) if is_pattern(path) else [str(path)]:
        if re.match(r"(https?|s3|gs|hdfs|pipe|hf):", one):
            raise UserError(
                f"{key}: {one}: shards are read from files on this machine: fetch them, and name the folder"
            )
        found += [shard for written in _braces(one) for shard in _files(str(Path(written).expanduser()), key)]
    found = list(dict.fromkeys(found))
    for shard in found:
        if (ending := shard.suffix.lower()) in UNPACK:
            raise UserError(_compressed(shard, f"{UNPACK[ending]} {shard}"))
    return found


def by_split(found: Sequence[Path]) -> dict[str, list[Path]]:
    """Shards by the split that the beginning of their names says, or else that of their folder's."""
    parts: dict[str, list[Path]] = {}
    for shard in found:
        if (split := _split(shard.name) or _split(shard.parent.name)) is not None:
            parts.setdefault(split, []).append(shard)
    return parts


def split_patterns(folder: Path) -> tuple[Path, Path] | None:
    """Patterns of the shards to train on and to test on (or else of dev) in a folder of both; None for any other."""
    words = {word for name in folder.glob("*.tar") if (word := _word(name.name)) in MEANT}
    train, test = (
        next((w for s in splits for w in NAMES[s] if w in words), None) for splits in (["train"], ["test", "dev"])
    )
    return None if train is None or test is None else (folder / f"{train}*.tar", folder / f"{test}*.tar")


def _split(name: str) -> str | None:
    return MEANT.get(_word(name))


def _word(name: str) -> str:
    found = re.match("[a-z]*", name.lower())
    return found[0] if found else ""


def _files(written: str, key: str) -> Iterator[Path]:
    place = Path(written)
    if place.is_dir():
        below = [Path(folder) / name for folder, _, names in os.walk(place, followlinks=True) for name in names]
        tars = [file for file in below if re.search(r"\.tar$|\.tar\.\w+$|\.tgz$", file.name)]
        if not tars:
            raise UserError(f"{key}: {place} holds no shards (*.tar)")
        yield from _sorted(tars)
    elif place.exists():
        yield place
    elif not (globbed := _globbed(written)):
        raise UserError(f"{key}: {written} does not exist, of the shards that {key} names")
    else:
        yield from _sorted(globbed)


def _globbed(written: str) -> list[Path]:
    """What a glob finds, without its folders."""
    if not SIGNS.search(written):
        return []
    path = Path(written)
    root = Path(path.anchor)
    return [file for file in root.glob(str(path.relative_to(root))) if file.is_file()]


def natural(name: str) -> tuple[list[str | int], str]:
    """Numbers inside names by value: 9.png before 10.png."""
    return [
        int(part[:4000]) if part.isascii() and part.isdigit() else part for part in re.split("([0-9]+)", name)
    ], name


def _sorted(files: Iterable[Path]) -> list[Path]:
    return sorted(files, key=lambda file: natural(str(file)))


def _braces(written: str) -> list[str]:
    """Every name that a pattern with braces stands for, in the shell's order.

    >>> _braces("s-{08..10}.{a,b}")
    ['s-08.a', 's-08.b', 's-09.a', 's-09.b', 's-10.a', 's-10.b']
    """
    found = re.search(r"\{([^{}]*)\}", written)
    if found is None:
        return [written]
    span = re.fullmatch(r"([0-9]+)\.\.([0-9]+)", found[1])
    if span is None:
        middles: Sequence[str] = found[1].split(",")
    else:
        first, last = int(span[1]), int(span[2])
        if not 0 <= last - first < MOST:
            raise UserError(f"{written}: {{{found[1]}}} counts upwards, to {MOST:,} shards at most")
        width = len(span[1]) if span[1].startswith("0") or len(span[1]) == len(span[2]) else 0
        middles = [f"{number:0{width}d}" for number in range(first, last + 1)]
    head, tail = written[: found.start()], _braces(written[found.end() :])
    return [f"{head}{middle}{rest}" for middle in middles for rest in tail]


def check_plain(shard: Path) -> None:
    """Raises `UserError` for what is compressed though its name does not say so."""
    with shard.open("rb") as file:
        head = file.read(6)
    if (ending := next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None)) is not None:
        named = f"{shard}{ending}"
        raise UserError(_compressed(shard, f"mv {shard} {named} && {UNPACK[ending]} {named}"))


def _compressed(shard: Path, command: str) -> str:
    return f"{shard}: a compressed tar, in which no sample can be found by its place: unpack it: {command}"


__all__ = ["MEANT", "NAMES", "absolute", "by_split", "check_plain", "is_pattern", "natural", "shards", "split_patterns"]
