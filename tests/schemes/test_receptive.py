"""MasKD against somebody else's formulas: what the tokens learn, the masked teacher, and the student's part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import masks_by_another as oracle
from oracles.logit_losses import ce
from scheme_runs import begun, content, engine
from torch import Tensor, nn

from xmodal_kd.runtime.errors import UserError
from xmodal_kd.schemes.receptive import Masks, apart, dice, masked

SHAPE = (2, 5, 3, 4)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(maps: Tensor) -> Tensor:
    return maps.movedim(1, -1).flatten(0, -2)


def made(tokens: int) -> Masks:
    masks = Masks(tokens, SHAPE[1]).double()
    masks.tokens.data = drawn(7, tokens, SHAPE[1])
    return masks


ITEM = torch.arange(2).repeat_interleave(12)


@pytest.mark.parametrize("tokens", [1, 3])
def test_masks_and_what_is_told_by_them(tokens: int) -> None:
    student, teacher, masks = drawn(0, *SHAPE), drawn(1, *SHAPE), made(tokens)
    by_hand = oracle.masks(teacher.numpy(), masks.tokens.detach().numpy())
    with torch.no_grad():
        found = masks(rows(teacher))
        np.testing.assert_allclose(found.reshape(2, 3, 4, tokens).permute(0, 3, 1, 2).numpy(), by_hand)
        assert dice(found, ITEM, 2).mean().item() == pytest.approx(oracle.dice_diversity(by_hand), rel=1e-10)
        values = apart(rows(student), rows(teacher), found, ITEM, 2)
    expected = oracle.distill(student.numpy(), teacher.numpy(), masks.tokens.detach().numpy())
    assert values.mean().item() == pytest.approx(expected, rel=1e-10)


def test_the_teacher_goes_on_from_its_masked_feature() -> None:
    teacher, masks = drawn(1, *SHAPE), made(3)
    model = nn.Sequential(nn.Identity(), nn.Flatten())
    with masked(model, "0", masks):
        kept = model(teacher)
    expected = oracle.masked_teacher(teacher.numpy(), oracle.masks(teacher.numpy(), masks.tokens.detach().numpy()))
    np.testing.assert_allclose(kept.detach().numpy(), expected.reshape(2, -1))
    tokens = rows(teacher)
    with masked(model, "0", masks):
        np.testing.assert_allclose(model(tokens).detach().numpy(), rows(torch.from_numpy(expected)).numpy())
    assert torch.equal(model(teacher), teacher.flatten(1)), "and is as it was afterwards"


def test_a_step(tmp_path: Path) -> None:
    """Both losses; the tokens get gradients of the first alone, the student of the second."""
    recipe = content("maskd")
    recipe["data"] |= {"single": True, "double": True}
    recipe["scheme"]["params"] |= {"diversity": 0.5, "weight": 2.0}
    recipe["objective"] = [{"loss": "test_ce"}]
    method, roles, batch, ctx = begun(tmp_path, recipe)
    labels = batch["labels"].reshape(-1).numpy()
    turns: Any = method.losses(batch, roles, ctx)
    name, first = next(turns)
    tokens = method.masks.tokens
    with torch.no_grad():
        teacher = method.forward_role("teacher", roles, batch)
        student = method.forward_role("student", roles, batch)
        t, s = teacher.rows("body"), method.project(student.rows("body"))
        mask = oracle.masks(t.numpy()[:, :, None, None], tokens.numpy())
        kept = torch.from_numpy(oracle.masked_teacher(t.numpy()[:, :, None, None], mask))[:, :, 0, 0]
        task = ce(roles["teacher"].head(kept).numpy(), labels).mean()
    assert name == "tokens"
    assert first.value().item() == pytest.approx(oracle.mask_stage_loss(task, mask, mu=0.5), rel=1e-9)
    (slope,) = torch.autograd.grad(first.value(), tokens)
    assert slope.abs().max() > 0
    name, second = next(turns)
    expected = ce(student.rows("logits").numpy(), labels).mean()
    expected += 2.0 * oracle.distill(s.numpy()[:, :, None, None], t.numpy()[:, :, None, None], tokens.detach().numpy())
    assert name == "student" and second.value().item() == pytest.approx(expected, rel=1e-9)
    slopes = torch.autograd.grad(second.value(), [tokens, method.project.weight], allow_unused=True)
    assert slopes[0] is None and slopes[1].abs().max() > 0


def test_without_a_task_no_masks_are_found(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="by which masks could learn"):
        term = {"loss": "test_ce", "on": "head"}  # of what is no answer
        engine(tmp_path, content("maskd") | {"objective": [term, {"loss": "kd"}]})
