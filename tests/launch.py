"""Other processes for tests: forked from a server that has imported torch. Ranks meet at a port held for them."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed import TCPStore

#: Forks without the seconds that importing torch takes. All tests share it: the server starts once a test process.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "toy", "xmodal_kd.run.runner", "xmodal_kd.cli.main", "xmodal_kd.teacher_cache.session",
        "torch.utils.tensorboard", "torch._dynamo",  # the latter is imported by the first optimizer
    ]
)  # fmt: skip
#: Seconds that ranks may take on a machine whose cores others use.
PATIENCE = 300.0


@contextmanager
def meeting(world: int = 2) -> Iterator[list[dict[str, str]]]:
    """The environments of `world` ranks, within the block.

    The store is this process's, as under torchrun it is the agent's: its port is its own from the moment it is chosen,
    where a port that was free when it was looked up may be another's before rank 0 listens at it.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    yield [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]
    del store


@contextmanager
def ranks(function: Callable[..., Any], *args: Any) -> Iterator[None]:
    """``function(*args)`` in two processes while the block runs; at its end both must have ended well."""
    with meeting() as environments:
        running = [FORKS.Process(target=as_rank, args=(environment, function, args)) for environment in environments]
        for process in running:
            process.start()
        try:
            yield
            for process in running:
                process.join(PATIENCE)
            assert [process.exitcode for process in running] == [0, 0]
        finally:
            for process in running:
                process.kill()


def told(arguments: list[str]) -> None:
    """The command line, for `ranks`."""
    from xmodal_kd.cli.main import call

    assert call(arguments) == 0


def as_rank(environment: dict[str, str], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    function(*args)
