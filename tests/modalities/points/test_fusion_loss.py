"""2DPASS's fusion of a picture's and a scan's features: its oracle, its release, and a term of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import detection_losses as oracle
from points_small import adapter, batch_of, smallest
from torch import Tensor

from xmodal_kd.losses import LOSSES
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams


def rows(k: int, n: int, c: int) -> Tensor:
    i, j = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(c, dtype=torch.float64)
    return 2 * torch.sin(1.7 * i * (k + 1) + 0.9 * j * j + k) + 0.3 * torch.cos(2.3 * j * i + k)


def made(student: list[int], teacher: list[int], **params: Any) -> Any:
    """In float64 with weights that any machine makes the same."""
    module = LOSSES["msfskd"].make(student, teacher, [2] * len(student), **params).double()
    with torch.no_grad():
        for k, (_, parameter) in enumerate(sorted(module.named_parameters())):
            count = torch.arange(parameter.numel(), dtype=torch.float64).reshape(parameter.shape)
            parameter.copy_(0.5 * (1.3 * count + k).sin())
    return module


@pytest.mark.parametrize("params", [{}, {"fusion": 0.3, "cross": 2.0}, {"fusion": 0.0, "cross": 0.0}])
def test_agrees_with_its_oracle(params: dict[str, Any]) -> None:
    sizes = {"hidden": 3, "inner": 4}
    module = made([4, 3, 5], [4, 2, 6], **sizes, **params)
    student, teacher = [rows(0, 7, 4), rows(2, 7, 3), rows(4, 7, 5)], [rows(1, 7, 4), rows(3, 7, 2), rows(5, 7, 6)]
    labels = torch.arange(7) % 4
    state = {key: value.numpy() for key, value in module.state_dict().items()}
    plain = [[x.numpy() for x in side] for side in (student, teacher)]
    expected = oracle.msfskd(*plain, labels.numpy(), state=state, **sizes, **params)
    torch.testing.assert_close(module(student, teacher, labels), torch.from_numpy(expected), rtol=1e-12, atol=1e-12)
    single = [[x.float() for x in side] for side in (student, teacher)]
    got = module.float()(*single, labels)
    torch.testing.assert_close(got, torch.from_numpy(expected).float(), rtol=1e-4, atol=1e-4)


def test_says_what_the_release_says() -> None:
    """yanx27/2DPASS, 80b8646, network/arch_2dpass.py, xModalKD of two scales, every point a voxel, no Lovasz term."""
    module, labels = made([5, 6, 6], [5, 6, 6], hidden=6), torch.arange(12) % 5
    student = [rows(0, 12, 6).requires_grad_(), rows(2, 12, 6).requires_grad_()]
    nothing = torch.zeros(12, 5, dtype=torch.float64)
    value = module([nothing, *student], [nothing, rows(1, 12, 6), rows(3, 12, 6)], labels).mean()
    value.backward()
    slope = student[1].grad
    assert slope is not None
    assert (value.item(), slope[2, 3].item()) == pytest.approx((37.61938339263866, 0.09626741467191585), rel=1e-9)


def test_the_kl_moves_the_scan_alone() -> None:
    """With it alone the heads of what is fused get no gradient, and the scan's features do."""
    student, teacher, labels = [rows(0, 6, 4), rows(2, 6, 3)], [rows(1, 6, 4), rows(3, 6, 2)], torch.arange(6) % 4
    grads = []
    for cross in (0.0, 5.0):
        module = made([4, 3], [4, 2], hidden=3, inner=4, fusion=0.0, cross=cross)
        scan = student[1].clone().requires_grad_()
        module([student[0], scan], teacher, labels).sum().backward()
        grads.append((scan.grad, module.scales[0].both[0].weight.grad))
    assert not torch.allclose(grads[0][0], grads[1][0]) and all(not heads.any() for _, heads in grads)


def test_it_wants_logits_and_features() -> None:
    with pytest.raises(ValueError, match=r"the logits and at least one pair of features: on: \[logits, features\]"):
        LOSSES["msfskd"].make([4], [4], [2])


def test_a_term_of_a_camera_and_a_scan() -> None:
    """Rows are those that have a label and that the picture shows; class weights weigh them."""
    seeing = adapter("image", "sparse")
    batch = batch_of(seeing.data("train"))
    roles = {"student": smallest(seeing, "student"), "teacher": smallest(seeing, "teacher").eval()}
    features = ["decoder.0", "features"]
    mine, theirs = (seeing.signals(role, model, batch, features) for role, model in roles.items())
    term = Term(loss="msfskd", on=("logits", *features), weights="class_weight", params={"hidden": 4, "inner": 4})
    objective = Objective([term]).build(mine, theirs, Streams(1))
    part = objective(mine, theirs).parts["msfskd"]
    seen = mine.layout("labels").mask & theirs.layout("logits").mask
    weight = theirs.rows("class_weight")[seen].sum()
    assert seen.any() and not seen.all() and float(part.count) == pytest.approx(float(weight), rel=1e-5)
    part.total.backward()
    still = [name for name, one in roles["student"].named_parameters() if one.grad is None or not one.grad.any()]
    assert still == ["head.weight", "head.bias"], "the logits are not compared"
    with pytest.raises(UserError, match="term 'msfskd'"):
        Objective([Term(loss="msfskd", on="logits")]).build(mine, theirs, Streams(1))
