"""What the machine does to a run is one line with advice; what is a mistake of ours stays visible."""

from __future__ import annotations

import errno

import pytest
import torch

from xmodal_kd.runtime.errors import RunError, UserError
from xmodal_kd.runtime.failures import explained


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (MemoryError(), RunError, "not enough memory (MemoryError): a smaller batch_size"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), RunError, "CUDA out of memory. Tried"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), RunError, "train.accumulate"),
        (RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed."), RunError, "fewer train.workers"),
        (RuntimeError("[../gloo/pair.cc] Connection closed by peer [::1]"), RunError, "another process of the run"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), UserError, "/x: Permission denied"),
        (OSError(errno.ENOSPC, "No space left", "/x"), UserError, "/x: No space left: free some space"),
        (OSError(errno.EXDEV, "Cross-device", "/x", None, "/y"), UserError, "/x and /y: Cross-device"),
        (OSError(errno.EMFILE, "Too many open files"), UserError, "a file: Too many open files: allow more"),
    ],
)
def test_the_machines_errors_are_told(error: BaseException, kind: type[Exception], told: str) -> None:
    found = explained(error)
    assert type(found) is kind and told in str(found) and "\n" not in str(found)


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("shape mismatch"), OSError("no number"), ValueError()])
def test_our_own_are_not_hidden(error: Exception) -> None:
    assert explained(error) is None
