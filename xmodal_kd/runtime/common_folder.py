"""A folder as the processes of a run see it, which on several machines may be several folders of one name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import torch

from .checkpoint import disk_errors
from .distributed import Ranks
from .errors import UserError
from .saved_steps import file_digest

#: Bytes that are sent at once.
BLOCK = 1 << 26

#: Name, bytes and digest of each file of a folder.
Listing = Sequence[tuple[str, int, str]]


def sharers(folder: Path, ranks: Ranks) -> list[int]:
    """The ranks, this one among them, for which `folder` is the same one. It is made where it is not there.

    All ranks must ask. Raises `UserError` where one cannot write there.
    """
    if ranks.world == 1:
        return [0]
    asked: str = ranks.share(uuid4().hex)
    mine = folder / f".here-{asked}-{ranks.rank}"
    fault: UserError | None = None
    try:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            mine.touch()
    except UserError as error:
        fault = error
    raise_first(ranks, fault)
    found = sorted(int(path.name.rpartition("-")[2]) for path in folder.glob(f".here-{asked}-*"))
    ranks.barrier()
    mine.unlink(missing_ok=True)
    return found


def raise_first(ranks: Ranks, fault: UserError | None) -> None:
    """Raises the first fault of any rank on all of them, so that none waits for one that is gone."""
    if (first := next(filter(None, ranks.gather(fault)), None)) is not None:
        raise first


@contextmanager
def everywhere(folder: Path, ranks: Ranks) -> Iterator[Path]:
    """The main process's `folder` on all ranks: itself where it is there, else a copy that is gone with the block.

    All ranks must ask. Raises `UserError` where it cannot be read, or a copy not be written.
    """
    if ranks.world == 1:
        yield folder
        return
    listed: Listing | UserError = []
    if ranks.main:
        try:
            listed = _listed(folder)
        except UserError as error:
            listed = error
    listed = ranks.share(listed)
    if isinstance(listed, UserError):
        raise listed
    same = ranks.main or _same(folder, listed)
    if not ranks.any(not same):
        yield folder
        return
    with TemporaryDirectory(prefix="xmodal-kd-") as copy:
        fault: UserError | None = None
        for name, size, _ in listed:
            try:
                _sent(folder / name, None if same else Path(copy) / name, size, ranks)
            except UserError as error:
                fault = fault or error
        raise_first(ranks, fault)
        yield folder if same else Path(copy)


def _listed(folder: Path) -> Listing:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path.relative_to(folder).as_posix(), path.stat().st_size, file_digest(path)) for path in files]


def _same(folder: Path, listed: Listing) -> bool:
    try:
        return all(
            (folder / name).stat().st_size == size and file_digest(folder / name) == known
            for name, size, known in listed
        )
    except (OSError, UserError):
        return False


def _sent(source: Path, target: Path | None, size: int, ranks: Ranks) -> None:
    """A file of the main process, to `target` where there is one. All ranks take part to its end, whatever befalls."""
    fault: UserError | None = None
    for start in range(0, max(size, 1), BLOCK):
        part = None
        if ranks.main:
            with source.open("rb") as file:
                file.seek(start)
                part = {"part": torch.frombuffer(bytearray(file.read(BLOCK) or b"\0"), dtype=torch.uint8)}
        content = ranks.share_tensors(part)["part"]
        if target is None or fault is not None:
            continue
        try:
            with disk_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("ab") as out:
                    out.write(content.numpy().tobytes()[: size - start])
        except UserError as error:
            fault = error
    if fault is not None:
        raise fault


__all__ = ["everywhere", "raise_first", "sharers"]
