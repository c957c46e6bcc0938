"""One process: every exchange is the identity. Two: gradients add up, and what none uses is left alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ranks_worker
import torch
from torch import nn

from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.errors import RunError
from xmodal_kd.runtime.gradient_sum import GradientSum


def test_a_single_process_exchanges_nothing() -> None:
    ranks = Ranks()
    values, module = torch.randn(3, 2, requires_grad=True), nn.Linear(2, 2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert ranks.main and (ranks.world, ranks.rank) == (1, 0)
    assert ranks.sum(values) is values and ranks.gather_rows(values) is values, "with its graph"
    assert ranks.sum_number(7) == 7 and ranks.share(values) is values
    assert ranks.any(True) and not ranks.any(False)
    summing = ranks.summing(list(module.parameters()))
    with summing.during():
        module(torch.ones(1, 2)).sum().backward()
    grad = module.weight.grad.clone() if module.weight.grad is not None else None
    summing.finish()
    ranks.agree([module])
    ranks.barrier()
    assert grad is not None and module.weight.grad is not None and torch.equal(grad, module.weight.grad)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_buckets_are_filled_from_the_last_parameter_and_sent_in_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 bytes: two of 40, one of 240 alone, then the rest; the second waits for the first, in whatever order."""
    given = [nn.Parameter(torch.ones(n)) for n in (10, 10, 60, 10, 10)]
    sent: list[int] = []

    def reduced(flat: torch.Tensor, async_op: bool) -> Any:
        sent.append(len(flat))
        return SimpleNamespace(wait=lambda: flat.mul_(2))

    monkeypatch.setattr("torch.distributed.all_reduce", reduced)
    summing = GradientSum(given, size=100)
    with summing.during():
        (3 * given[2].sum() + given[0].sum()).backward()
        assert sent == [], "parameters of the first bucket are unused: nothing may overtake it"
    summing.finish()
    assert sent == [22, 61, 22], "and behind them a number a parameter"
    assert [None if p.grad is None else p.grad[0].item() for p in given] == [2, None, 6, None, None]
    summing, sent[:] = GradientSum(given, size=100), []
    with summing.during():
        torch.stack([p.sum() for p in given]).sum().backward()
        assert sent == [22, 61, 22], "all on their way before the backward pass is over"
        with pytest.raises(RunError, match="a gradient came twice in one backward pass"):
            given[0].sum().backward()


def test_a_parameter_that_no_rank_uses_is_left_alone(tmp_path: Path) -> None:
    """No gradient, so that what an optimizer remembers of earlier steps does not move it: the fixed parts of `ft`."""
    ranks = ranks_worker.two("steps", tmp_path)
    assert ranks[0].keys() == ranks[1].keys() == {"both", "both.grad", "one", "one.grad", "none"}
    for key, value in ranks[0].items():
        assert torch.equal(value, ranks[1][key]), key
    both, one, none = (ranks[0][name][0, 0].item() for name in ("both", "one", "none"))
    assert none == torch.tensor(0.9).item(), "one step of Adam from 1"
    assert both < 0.81 and one < 0.85, "two steps"
    torch.testing.assert_close(ranks[0]["one.grad"], torch.full((2, 3), 2 * 0.9), msg="of rank 0 alone")
    torch.testing.assert_close(ranks[0]["both.grad"], torch.full((2, 3), 6 * 0.9))
