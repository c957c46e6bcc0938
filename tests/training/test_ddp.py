"""Two processes on the CPU train the student that one trains at the same global batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ddp_worker
import pytest
import torch
from launch import ranks
from processes import ROOT, environment
from safetensors.torch import load_file
from toy import RECIPE

from xmodal_kd.recipe.balance_spec import Balance
from xmodal_kd.runtime.checkpoint import read_json


@pytest.mark.parametrize(("accumulate", "labels", "balance"), [
    (1, "all", "fixed"), (2, "all", "fixed"), (2, "scarce", "fixed"), (2, "all", "uncertainty"), (2, "all", "gradnorm"),
])  # fmt: skip
def test_two_processes_train_what_one_does(tmp_path: Path, accumulate: int, labels: str, balance: Any) -> None:
    """Terms over rows (also weighted), items (ragged, some not counted) and the whole batch, a projector, an average,
    evaluation, samples without labels."""
    together = tmp_path / "two"
    how = (accumulate, labels == "scarce", Balance(name=balance))
    with ranks(ddp_worker.main, together, *how):
        ddp_worker.main(tmp_path / "one", *how)
    one = load_file(tmp_path / "one" / "rank0.safetensors")
    two = [load_file(together / f"rank{rank}.safetensors") for rank in range(2)]
    atol = 1e-5 if balance == "gradnorm" else 1e-6  # its weights follow ratios of gradient norms: rounding grows
    for key, value in one.items():
        assert torch.equal(two[0][key], two[1][key]), key
        torch.testing.assert_close(two[0][key], value, rtol=1e-5, atol=atol)
    logs = [(folder / "log.jsonl").read_text().splitlines() for folder in (tmp_path / "one", together)]
    assert json.loads(logs[1][0]) == pytest.approx(json.loads(logs[0][0]), rel=1e-4)


def test_launched_from_the_command_line(tmp_path: Path) -> None:
    """By torchrun, whose store binds a port of its own: `accelerate launch --cpu` starts several processes only where
    MPI is installed."""
    recipe, out = tmp_path / "toy.yaml", tmp_path / "run"
    recipe.write_text(RECIPE.replace("steps: 8", "steps: 4"))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run = ["-m", "xmodal_kd", "run", str(recipe), "--out", str(out), "--allow-import", "toy", "--json", "--quiet"]
    done = subprocess.run(
        [sys.executable, *launch, *run],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = read_json(out / "report.json")
    assert json.loads(done.stdout) == report  # printed once
    assert report["processes"] == 2
    assert report["cost"]["student"]["samples"] == 24
