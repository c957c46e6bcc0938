"""A rank of `test_several_machines`, which works in a folder of its own as on a machine of its own."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from killed_runs import kill_with

from xmodal_kd.runtime import common_folder
from xmodal_kd.runtime.common_folder import everywhere, raise_first, sharers
from xmodal_kd.runtime.distributed import ProcessRanks
from xmodal_kd.runtime.errors import UserError


def place(folder: Path, apart: bool = True) -> Path:
    here = folder / (f"node{os.environ['RANK']}" if apart else "node")
    here.mkdir(parents=True, exist_ok=True)
    return here


def run(folder: Path, arguments: list[str], apart: bool, checkpoint: str | None) -> None:
    """The command line; rank 0 dies at the first write to its disk behind `checkpoint`."""
    os.chdir(place(folder, apart))
    if checkpoint is not None and os.environ["RANK"] == "0":
        kill_with(Path(checkpoint))
    from xmodal_kd.cli.main import call

    os._exit(call(arguments))


def exchange(folder: Path) -> None:
    """What is sent and found, rank by rank."""
    torch.distributed.init_process_group("gloo")
    common_folder.BLOCK = 1000
    ranks, here = ProcessRanks(torch.device("cpu")), place(folder)
    common = place(folder, apart=False)
    assert sharers(here / "mine", ranks) == [ranks.rank] and sharers(common, ranks) == [0, 1]
    given = {
        "a": torch.arange(6.0).reshape(2, 3).bfloat16(), "b": torch.tensor(True), "c": torch.empty(0, 4),
        "d": torch.arange(12).reshape(3, 4).T,
    }  # fmt: skip
    found = ranks.share_tensors(given if ranks.main else None)
    assert all(one.dtype == given[name].dtype and one.equal(given[name]) for name, one in found.items())
    assert not [*(here / "mine").iterdir(), *common.iterdir()]
    assert found.keys() == given.keys() and ranks.gather(ranks.rank * 3) == [0, 3]
    if ranks.main:
        (here / "saved" / "deep").mkdir(parents=True)
        (here / "saved" / "card.json").write_text("{}")
        (here / "saved" / "deep" / "empty").touch()
        (here / "saved" / "weights").write_bytes(os.urandom(2500))
    for name in ("saved", "../node0/saved"):  # apart, and for all
        with everywhere(here / name, ranks) as there:
            assert (there == here / name) == (ranks.main or ".." in name)
            for file in ("card.json", "deep/empty", "weights"):
                assert (there / file).read_bytes() == (folder / "node0" / "saved" / file).read_bytes()
    assert there.exists() and sorted(here.iterdir()) == sorted([here / "mine", *([here / "saved"] * ranks.main)])
    try:
        raise_first(ranks, UserError("of the second") if ranks.rank else None)
    except UserError as error:
        assert str(error) == "of the second"
    else:
        raise AssertionError
    torch.distributed.destroy_process_group()
