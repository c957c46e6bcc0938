"""Feature fusion against somebody else's formulas: the fusion's answer from maps, and all parts of a step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import fusion_by_another as oracle
from scheme_runs import begun, content, engine
from torch import nn

from xmodal_kd.runtime.errors import UserError
from xmodal_kd.schemes.fusion import Fusion
from xmodal_kd.signals.signals import Layout, Signal


def filled(module: nn.Module) -> nn.Module:
    draw = torch.Generator().manual_seed(0)
    for value in [*module.parameters(), *module.buffers()]:
        value.data.copy_(torch.rand(value.shape, generator=draw, dtype=torch.float64) + 0.2)
    return module


def test_fusion_of_maps() -> None:
    """Of all positions of two items, with the statistics of evaluation."""
    draw = torch.Generator().manual_seed(1)
    maps = [torch.randn(2, 3, 4, 5, generator=draw, dtype=torch.float64) for _ in range(2)]
    module: Any = filled(Fusion(3, 2, 7, 2, "batch").double()).eval()
    layout = Layout.dense("pixel", 2, (4, 5))
    signals = [Signal(one.permute(0, 2, 3, 1).reshape(-1, 3), layout) for one in maps]
    state = {key: value.detach().numpy() for key, value in module.state_dict().items()}
    norms = [
        tuple(state[f"norms.{i}.{key}"] for key in ("weight", "bias", "running_mean", "running_var")) for i in (0, 1)
    ]
    expected = oracle.fusion_logits(
        [one.numpy() for one in maps], state["near.weight"][:, 0], norms[0], state["across.weight"], norms[1],
        state["head.weight"], state["head.bias"],
    )  # fmt: skip
    found = module(signals, Layout.samples(2)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_padding_changes_no_fusion() -> None:
    lengths, steps = torch.tensor([2, 4]), 4
    layout = Layout.padded("frame", lengths, steps)
    rows = torch.randn(8, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    module: Any = filled(Fusion(3, 1, 5, 1, "layer").double())
    found = [
        module([Signal(torch.where(layout.mask[:, None], rows, junk), layout)], layout) for junk in (0.0, torch.nan)
    ]
    torch.testing.assert_close(*found)
    assert found[0][layout.mask].abs().min() > 0 and not found[0][~layout.mask].any()


@pytest.mark.parametrize("shared", [[], ["body.0"]])
def test_ffl(shared: list[str], tmp_path: Path) -> None:
    made = content("ffl")
    made["data"] |= {"single": True, "double": True}
    made["scheme"]["params"] |= {"shared": shared}
    made["objective"][1]["params"] = {"temperature": 3.0}
    method, roles, batch, ctx = begun(tmp_path, made)
    with torch.no_grad():
        said = {role: method.forward_role(role, roles, batch) for role in method.learners}
        fused = method.targets(said)["student"].rows("logits").numpy()
    branches = [one.rows("logits").numpy() for one in said.values()]
    labels = batch["labels"].reshape(-1).numpy()
    for step in (0, 1, 3):
        ctx = replace(ctx, step=step)
        found = next(method.losses(batch, roles, ctx))[1].value()
        expected = oracle.total(branches, fused, labels, T=3.0, weight=method.ramp(ctx))
        np.testing.assert_allclose(found.item(), expected, rtol=1e-10)
    # what reaches the scores: targets are held
    heads = [roles[role].head.bias for role in method.learners] + [method.mixer.head.bias]
    slopes = torch.autograd.grad(found, heads)
    of_branches, of_fused = oracle.total_grads(branches, fused, labels, T=3.0, weight=method.ramp(ctx))
    for slope, rows in zip(slopes, [*of_branches, of_fused], strict=True):
        np.testing.assert_allclose(slope.numpy(), rows.sum(axis=0), rtol=1e-8, atol=1e-12)


def test_a_fusion_that_nothing_trains_is_refused(tmp_path: Path) -> None:
    made = content("ffl")
    made["objective"] = [{"loss": "kd"}]
    with pytest.raises(UserError, match="nothing can train their fusion"):
        engine(tmp_path, made)
