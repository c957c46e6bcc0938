"""One process: every exchange is the identity."""

from __future__ import annotations

import torch
from torch import nn

from xmodal_kd.ranks import Ranks


def test_a_single_process_exchanges_nothing() -> None:
    ranks = Ranks()
    values, module = torch.randn(3, 2, requires_grad=True), nn.Linear(2, 2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert ranks.main and (ranks.world, ranks.rank) == (1, 0)
    assert ranks.sum(values) is values and ranks.gather_rows(values) is values, "with its graph"
    assert ranks.sum_number(7) == 7 and ranks.share(values) is values
    assert ranks.any(True) and not ranks.any(False)
    module(torch.ones(1, 2)).sum().backward()
    grad = module.weight.grad.clone() if module.weight.grad is not None else None
    ranks.sum_gradients(module.parameters())
    ranks.agree([module])
    ranks.barrier()
    assert grad is not None and module.weight.grad is not None and torch.equal(grad, module.weight.grad)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
