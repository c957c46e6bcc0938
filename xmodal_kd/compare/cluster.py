"""Cells on a Ray cluster: each an actor that holds one process of ``xmodal-kd run``, where Ray finds room for it.

The nodes have this package installed, and see recipe, data and the comparison's folder at the same paths: a shared
disk, as a run over several nodes needs it, too. `RAY_ADDRESS` names the cluster; without it Ray starts one
on this machine.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic, sleep
from typing import IO, Any

from ..runtime.child import python, with_package
from ..runtime.errors import UserError
from .cells import LOST, Process

#: Seconds for which a cell waits for a process of it that a lost actor left behind, and Ray's attempts to start here,
#: for each of which it gives its own processes 30 s, which a busy machine exceeds.
PATIENCE, ATTEMPTS = 600.0, 4
#: Bytes of Ray's own memory where it is started here: cells send one another nothing.
STORE = 80 << 20
#: What of a cell's environment is the pool's, and not its node's.
ENVIRONMENT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Remote:
    """On the node: a process that inherits a lock, so that one which outlives its driver is not started twice.

    Args:
        patience: seconds for which it waits for such a one to end.
    """

    def __init__(
        self, arguments: Sequence[str], log: str, env: Mapping[str, str], folder: str, patience: float = 0.0
    ) -> None:
        self.child: subprocess.Popen[bytes] | None = None
        held = os.open(f"{log}.held", os.O_CREAT | os.O_RDWR, 0o644)
        with Path(log).open("ab") as out:
            if not _locked(held, patience):
                out.write(b"error: a process that an earlier comparison left behind still runs this cell\n")
                return
            self.child = subprocess.Popen(
                python("-m", "xmodal_kd", *arguments), stdin=subprocess.DEVNULL, stdout=out,
                stderr=subprocess.STDOUT, env=with_package({**os.environ, **env}), cwd=folder, pass_fds=(held,),
            )  # fmt: skip
        os.close(held)

    def poll(self) -> int | None:
        return LOST if self.child is None else self.child.poll()

    def tell(self, number: int) -> None:
        if self.child is not None:
            self.child.send_signal(number)


def _locked(file: int, patience: float) -> bool:
    end = monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if monotonic() > end:
                return False
            sleep(min(1.0, patience))


class Actor:
    """Here: what became of it, without ever waiting for the cluster."""

    def __init__(self, ray: Any, handle: Any, log: Path) -> None:
        self.ray, self.handle, self.log = ray, handle, log
        self.asked, self.begun = handle.poll.remote(), False

    def poll(self) -> int | None:
        if not self.ray.wait([self.asked], timeout=0)[0]:
            return None
        self.begun = True
        try:
            status: int | None = self.ray.get(self.asked)
        except self.ray.exceptions.RayError as error:
            status = LOST
            with self.log.open("a") as log:
                log.write(f"error: Ray lost this cell ({' '.join(str(error).split())[:200]})\n")
        if status is None:
            self.asked = self.handle.poll.remote()
        else:
            self.ray.kill(self.handle)  # frees its place
        return status

    def send_signal(self, number: int) -> None:
        if self.begun:
            self.handle.tell.remote(number)
        else:  # still waits for its place
            self.ray.kill(self.handle)


class Cluster:
    """Launches cells: as many processors as the recipe has threads, and a GPU where the cluster has some."""

    def __init__(self, device: str) -> None:
        self.ray = _connected()
        there = self.ray.cluster_resources()
        self.gpus = 1 if device == "cuda" or (device == "auto" and there.get("GPU")) else 0
        self.actor = self.ray.remote(Remote)

    def __call__(self, arguments: Sequence[str], log: IO[bytes], env: Mapping[str, str], lock: int) -> Process:
        """The lock stays with this process, which holds it until the cell has ended."""
        path, own = Path(log.name).absolute(), {name: env[name] for name in ENVIRONMENT}
        room = self.actor.options(num_cpus=int(own["OMP_NUM_THREADS"]), num_gpus=self.gpus)
        return Actor(self.ray, room.remote(list(arguments), str(path), own, str(Path.cwd()), PATIENCE), path)


def _connected() -> Any:
    try:
        import ray
    except ModuleNotFoundError:
        raise UserError("--launcher ray needs ray: pip install 'xmodal-kd[ray]'") from None
    own = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False, "object_store_memory": STORE}
    attempt = 0
    while not ray.is_initialized():
        attempt += 1
        try:
            ray.init(log_to_driver=False, logging_level="ERROR", **own)
        except Exception as error:  # its own have no common base
            ray.shutdown()
            if attempt == ATTEMPTS or "timed out during startup" not in str(error):
                raise UserError(f"--launcher ray: Ray did not start ({' '.join(str(error).split())[:200]})") from error
    return ray


__all__ = ["Actor", "Cluster", "Remote"]
