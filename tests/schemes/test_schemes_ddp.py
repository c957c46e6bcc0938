"""Two processes on the CPU train what one does, by a scheme of each kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import scheme_runs
import torch
from launch import ranks
from safetensors.torch import load_file

#: Peers in turn, branches that share modules, exits, pairs, two views with a loss over the batch, followers of the
#: student; teachers weighed by row and by batch, orders of samples, a loss a teacher, exemplars beside new samples; two
#: turns that share an optimizer step; layers that flow into the student's; frames in
#: order, some of them taught; a stage that reaches a part of the student.
EXAMPLES = (
    "dml", "okddip branches", "byot", "cs_kd", "ddgsd", "ema_teacher", "ps_kd", "ca_mkd", "ae_kd", "you", "uhc", "pdr",
    "dot", "knowledge_flow", "ktg", "tkd", "two_stage",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schemes")
    with ranks(scheme_runs.main, folder / "two", EXAMPLES):
        scheme_runs.main(folder / "one", EXAMPLES)
    return folder


@pytest.mark.parametrize("example", EXAMPLES)
def test_two_processes_train_what_one_does(trained: Path, example: str) -> None:
    one = load_file(trained / "one" / example / "rank0.safetensors")
    two = [load_file(trained / "two" / example / f"rank{rank}.safetensors") for rank in range(2)]
    assert len(one) > 6
    for key, value in one.items():
        assert torch.equal(two[0][key], two[1][key]), key
        torch.testing.assert_close(two[0][key], value, rtol=1e-6, atol=1e-8, msg=key)
