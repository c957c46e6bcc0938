"""Errors of the machine that can come from anywhere, in one line that says what to do."""

from __future__ import annotations

import errno

from .binary_packages import beneath
from .errors import RunError, UserError

#: What torch says where memory is short, a worker of a loader died, or another process of the run did.
_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
_WORKER = ("DataLoader worker",)
_RANK = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "Socket Timeout",
         "NCCL", "Gloo", "gloo")  # fmt: skip


def explained(error: BaseException) -> UserError | RunError | None:
    """What to say of an error that is the machine's, the disk's, another process's or a package's that does not fit it.

    None for all others.
    """
    if line := beneath(error):
        return UserError(line)
    import torch  # after what would say that it cannot be loaded

    text = " ".join(str(error).split())
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or _says(error, _MEMORY):
        what = f"not enough memory ({text[:120] or type(error).__name__})"
        return RunError(f"{what}: a smaller batch_size or model, or more train.accumulate, takes less; then --resume")
    if _says(error, _WORKER):
        advice = "it was killed, or found no memory: fewer train.workers; then --resume"
        return RunError(f"a worker that reads data died ({text[:120]}): {advice}")
    if _says(error, _RANK):
        return RunError(f"another process of the run is gone ({text[:120]}): --resume goes on from the last checkpoint")
    if isinstance(error, OSError) and error.errno is not None:
        return _of_file(error)
    return None


def _says(error: BaseException, words: tuple[str, ...]) -> bool:
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _of_file(error: OSError) -> UserError:
    """A file that cannot be opened, read or written, by its name where the system tells it."""
    named = [str(name)[:300] for name in (error.filename, error.filename2) if name is not None]
    what = f"{' and '.join(named) or 'a file'}: {error.strerror or type(error).__name__}"
    if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        return UserError(f"{what}: free some space, and call it again (a run with --resume)")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return UserError(f"{what}: allow more open files (ulimit -n), then --resume")
    return UserError(what)


__all__ = ["explained"]
