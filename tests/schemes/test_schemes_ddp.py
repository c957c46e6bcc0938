"""Two processes on the CPU train what one does, by a scheme of each kind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import scheme_runs
import torch
from processes import HERE, ROOT, environment, port
from safetensors.torch import load_file

#: Peers in turn, branches that share modules, exits, pairs, two views with a loss over the batch, followers of the
#: student; teachers weighed by row and by batch, orders of samples, a loss a teacher, exemplars beside new samples.
EXAMPLES = (
    "dml", "okddip branches", "byot", "cs_kd", "ddgsd", "ema_teacher", "ps_kd", "ca_mkd", "ae_kd", "you", "uhc", "pdr",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schemes")
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port()), "WORLD_SIZE": "2"}
    running = [
        subprocess.Popen(
            [sys.executable, str(HERE / "scheme_runs.py"), str(folder / "two"), *EXAMPLES],
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **address), cwd=ROOT,
        )
        for rank in range(2)
    ]  # fmt: skip
    scheme_runs.main(folder / "one", EXAMPLES)
    assert [process.wait(timeout=300) for process in running] == [0, 0]
    return folder


@pytest.mark.parametrize("example", EXAMPLES)
def test_two_processes_train_what_one_does(trained: Path, example: str) -> None:
    one = load_file(trained / "one" / example / "rank0.safetensors")
    ranks = [load_file(trained / "two" / example / f"rank{rank}.safetensors") for rank in range(2)]
    assert len(one) > 6
    for key, value in one.items():
        assert torch.equal(ranks[0][key], ranks[1][key]), key
        torch.testing.assert_close(ranks[0][key], value, rtol=1e-6, atol=1e-8, msg=key)
