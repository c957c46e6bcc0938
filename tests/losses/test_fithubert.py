"""FitHuBERT's loss is a term `hint` for each block: in value and gradient what its release computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from oracles import fithubert_by_another as oracle

from xmodal_kd.losses.features import hint


@pytest.mark.parametrize(("name", "given", "released"), oracle.cases())
def test_hints_of_all_blocks_are_the_releases_loss(name: str, given: dict[str, Any], released: dict[str, Any]) -> None:
    order = [*given["order"], len(given["h"]) - 1]
    heads = [given[key] for key in ("h", "Wu", "bu", "Wl", "bl")]
    preds = [oracle.hint_head(*(part[layer] for part in heads)) for layer in order]
    steps = preds[0].shape[1]
    targets = [given["teacher"][layer][:, :steps] for layer in order]
    mine = [torch.tensor(one.reshape(-1, 4), requires_grad=True) for one in preds]
    weights = [0.1] * (len(order) - 1) + [1.0]
    rows = [hint(s, torch.tensor(t.reshape(-1, 4))).mean() for s, t in zip(mine, targets, strict=True)]
    total = torch.stack([w * value for w, value in zip(weights, rows, strict=True)]).sum()
    assert float(total.detach()) == pytest.approx(released["total"], rel=1e-9)
    assert oracle.hint_loss(preds, targets)[0] == pytest.approx(released["total"], rel=1e-9)
    total.backward()
    for weight, s, t in zip(weights, mine, targets, strict=True):
        slope = 2 * weight * (s.detach().numpy() - t.reshape(-1, 4)) / t.size
        np.testing.assert_allclose(s.grad, slope, rtol=1e-9)
