"""HKD against the release's values: the loss, its gradients, the graph's neighbours, and what banks become."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from oracles import hkd_by_another as oracle
from torch import Tensor

from xmodal_kd.losses import LOSSES
from xmodal_kd.losses.holistic import Holistic, near


def _filled(x: Any, p: Any, rows: int, samples: int) -> tuple[Any, Tensor]:
    """The loss with the oracle's weights, each row of which has negatives of its own; and the student's features."""
    own = x["neg"].reshape(-1)
    call: Any = LOSSES["hkd"].make([4, 5], [4, 6], samples=samples, negatives=len(own), width=3, released=True).double()
    weights = {path: torch.from_numpy(p[name]) for name, path in oracle.WEIGHTS.items()}
    banks = {"bank_s": torch.from_numpy(x["mem_s"]), "bank_t": torch.from_numpy(x["mem_t"])}
    call.load_state_dict(call.state_dict() | weights | banks)
    others = torch.arange(len(own)) // x["neg"].shape[1] != torch.arange(rows)[:, None]
    call.drawn = lambda: torch.from_numpy(own)
    call._nce = lambda anchor, positive, far, _: Holistic._nce(call, anchor, positive, far, others)
    return call, torch.from_numpy(x["f_s"]).requires_grad_()


@pytest.mark.parametrize("case", oracle.RELEASED, ids=lambda case: f"seed {case[0]}")
def test_it_is_the_releases(case: Any) -> None:
    seed, rows, samples, expected, gradient, of_graph = case
    x, p = oracle.inputs(seed, rows, samples)
    assert oracle.loss(x, p, x["neg"]) == pytest.approx(expected, rel=1e-10)
    call, features = _filled(x, p, rows, samples)
    scores = [torch.from_numpy(x[name]) for name in ("l_s", "l_t")]
    item, ids = torch.arange(rows), torch.from_numpy(x["idx"])
    given = [scores[0], features], [scores[1], torch.from_numpy(x["f_t"])], [item, item], ids
    value = call(*given, torch.zeros(rows, dtype=torch.long))
    assert value.item() == pytest.approx(expected, rel=1e-10)
    value.backward()
    np.testing.assert_allclose(features.grad[0].numpy(), gradient, rtol=1e-9)
    if of_graph is not None:
        np.testing.assert_allclose(call.graph_s.weight.grad[0].numpy(), of_graph, rtol=1e-9)
        assert sorted(near(scores[0], 8)[0].tolist()) == sorted(oracle.neighbours(x["l_s"], 8)[0])
    e = oracle.unit(p["Es"] @ x["f_s"][0] + p["bs"])
    kept = oracle.unit(0.9 * x["mem_s"][x["idx"][0]] + 0.1 * e)
    np.testing.assert_allclose(call.bank_s[x["idx"][0]].numpy(), kept, rtol=1e-12)


def test_one_signal_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[logits, embedding\]"):
        LOSSES["hkd"].make([5], [6])
