"""Chains: who teaches whom in a dense one, and what generations answer together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles.logit_losses import ce, kd
from scheme_runs import begun, content, engine, loaded
from torch import Tensor, nn

from xmodal_kd.run.roles import make_adapter, role_plans
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.schemes.chains import ensemble


def test_everyone_before_teaches(tmp_path: Path) -> None:
    recipe = loaded(tmp_path, content("dgkd"))
    planned = {one.role: one.teachers for one in role_plans(recipe, make_adapter(recipe, Streams(3)))}
    assert planned["assistant-1"] == ("teacher",) and planned["assistant-2"] == ("teacher", "assistant-1")
    assert planned["student"] == ("teacher", "assistant-1", "assistant-2")


@pytest.mark.parametrize("drop", [0, 1, 9])
def test_dgkd(tmp_path: Path, drop: int) -> None:
    """CE and the sum of kd from those who stay, over all; at least one stays."""
    made = content("dgkd")
    made["data"] |= {"single": True, "double": True}
    made["scheme"]["params"] |= {"drop": drop}
    method, roles, batch, ctx = begun(tmp_path, made)
    labels = batch["labels"].reshape(-1).numpy()

    def rows(role: str) -> Any:
        with torch.no_grad():
            return method.forward_role(role, roles, batch).rows("logits").numpy()

    student, stayed = rows("student"), set()
    for step in range(12):
        ctx = replace(ctx, step=step)
        kept = method.kept(ctx)
        assert len(kept) == max(1, 3 - drop) and kept == method.kept(replace(ctx, micro=5))
        stayed.add(kept)
        expected = ce(student, labels).mean()
        expected += sum(kd(student, rows(role), temperature=2.0).mean() for role in kept) / 3
        found = method.loss("student", roles, batch, ctx).value().item()
        np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert len(stayed) == (1 if drop == 0 else 3)


def test_features_of_several_sizes_are_refused(tmp_path: Path) -> None:
    made = content("dgkd")
    made["objective"].append({"loss": "hint", "on": "body"})
    with pytest.raises(UserError, match="'hint': in the scheme dgkd"):
        engine(tmp_path, made)


class Says(nn.Module):
    def __init__(self, rows: Any) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, x: Any) -> Any:
        return self.rows


def test_generations_answer_the_mean_of_their_probabilities() -> None:
    draw = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 5, 3, 4, generator=draw, dtype=torch.float64) for _ in range(3)]
    expected = torch.stack([one.softmax(dim=1) for one in maps]).mean(dim=0)
    said = ensemble([Says(one) for one in maps], "logits")(None)
    torch.testing.assert_close(said.softmax(dim=1), expected)
    torch.testing.assert_close(said.exp(), expected)
    frames = [(one[:, :, 0], torch.tensor([4, 4])) for one in maps]
    scores, lengths = ensemble([Says(one) for one in frames], "logits")(None)
    assert lengths.tolist() == [4, 4]
    expected = torch.stack([one[0].softmax(dim=-1) for one in frames]).mean(dim=0)
    torch.testing.assert_close(scores.exp(), expected)
    values = ensemble([Says(one) for one in maps], "prediction")(None)
    torch.testing.assert_close(values, torch.stack(maps).mean(dim=0))


def test_generations_without_a_mean_are_refused() -> None:
    models = [Says({"boxes": Tensor()}) for _ in range(2)]
    with pytest.raises(UserError, match="born_again"):
        ensemble(models, "logits")(None)
