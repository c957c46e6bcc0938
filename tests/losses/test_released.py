"""Losses as their released code computes them: its values on the same rows, in float64, as facts with their source.

The rows are `rows(k)`, student k = 0 and teacher k = 1: eight rows of five channels. Where a loss is of items they are
two maps of four positions. The numbers were found by running the released functions on these rows, projectors left out.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from xmodal_kd.losses import LOSSES
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.schemes import aggregate
from xmodal_kd.schemes.several import Agreed
from xmodal_kd.signals.signals import Layout, Signals

ITEM = torch.arange(2).repeat_interleave(4)
LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
REGIONS = torch.tensor([0, 0, 1, 1, 2, 2, 2, 0])
EVERY = torch.zeros(8, dtype=torch.int64)


def rows(k: int) -> Tensor:
    i, j = torch.arange(8, dtype=torch.float64)[:, None], torch.arange(5, dtype=torch.float64)
    return 2 * torch.sin(1.7 * i * (k + 1) + 0.9 * j * j + k) + 0.3 * torch.cos(2.3 * j * i + k)


def values(name: str, student: Tensor, *more: Any, **params: Any) -> Tensor:
    out = LOSSES[name].fn(student, rows(1), *more, **params)
    found: Tensor = out[0] if isinstance(out, tuple) else out
    return found


#: Loss, further inputs, parameters, how the release reduces, its value and the gradient's entry [2, 3].
RELEASED = [
    # gizi1/NormKD, mdistiller/distillers/NormKD.py, kd_loss_normal
    ("kd", (), {"per_sample": True, "temperature": 1.0}, "mean", 1.4549805647390281, 0.040858774369863717),
    ("kd", (), {"per_sample": True, "temperature": 2.0}, "mean", 1.5772728274485945, 0.043957180759661776),
    # ADLab-AutoDrive/ICKD, Cifar100/distiller_zoo/ICKD.py, ICKDLoss.batch_loss without its embedding
    ("ickd", (ITEM, 2), {"released": True}, "mean", 0.41768679150537524, -0.01321782338420888),
    # valeoai/SLidR, pretrain/lightning_trainer.py, loss_superpixels_average; one image, its features of length 1
    ("infonce_regions", (EVERY, REGIONS), {"released": True}, "mean", 0.3884964466714908, 0.013827797746420662),
    # lixingjian/DELTA, train.py, reg_fea_map and reg_att_fea_map, which sum over the batch
    ("delta", (ITEM, 2), {"released": True}, "sum", 72.77363640293714, -1.0853369783573428),
    ("delta", (ITEM, 2), {"channel_weights": (0.1, 0.3, 0.05, 0.25, 0.3)}, "sum", 15.8171483716714, None),
    # open-mmlab/mmrazor, mmrazor/models/losses/pkd_loss.py, PKDLoss
    ("pearson", (), {"released": True}, "mean", 0.8265655482088903, 0.0022575169604261117),
    # sunshangquan/logit-standardization-KD, mdistiller/distillers: kd_loss, dkd_loss, and MLKD's at 2 to 6
    ("kd_lskd", (), {}, "mean", 0.7375557632325956, None),
    ("kd", (), {"temperature": 2.0, "standardise": True}, "mean", 0.7375557632325956, None),
    ("dkd", (LABELS,), {"temperature": 2.0, "standardise": True}, "mean", 4.152935141412875, None),
    ("mlkd", (), {"standardise": True}, "mean", 3.8054898722281574, None),
]


@pytest.mark.parametrize(("name", "more", "params", "how", "value", "slope"), RELEASED)
def test_agrees_with_the_release(
    name: str, more: tuple[Any, ...], params: dict[str, Any], how: str, value: float, slope: float | None
) -> None:
    student = rows(0).requires_grad_()
    found = getattr(values(name, student, *more, **params), how)()
    assert found.item() == pytest.approx(value, rel=1e-9)
    if slope is not None:
        (grad,) = torch.autograd.grad(found, student)
        assert grad[2, 3].item() == pytest.approx(slope, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "more"), [("ickd", (ITEM, 2)), ("infonce_regions", (EVERY, REGIONS)), ("pearson", ())]
)
def test_the_switch_matters(name: str, more: tuple[Any, ...]) -> None:
    plain, released = (values(name, rows(0), *more, released=switch).mean().item() for switch in (False, True))
    assert abs(plain - released) > 1e-3 * abs(plain)


@pytest.mark.parametrize("name", ["ickd", "pearson", "delta"])
def test_released_forms_are_zero_and_least_at_the_teacher(name: str) -> None:
    more = () if name == "pearson" else (ITEM, 2)
    at = values(name, rows(1), *more, released=True).sum().item()
    assert at < values(name, rows(0), *more, released=True).sum().item()
    assert at == pytest.approx(0, abs=1e-15)


# AnTuo1998/AE-KD, helper/optimization.py, find_optimal_svm: gradients of DistillKL at T = 4 towards three teachers,
# averaged over the batch, weighed by a one-class SVM (tolerance 1e-6) with each weight at most C
AE_KD = [
    (0.5, [0.5, 0.35049769282341003, 0.14950230717658997]),
    (0.6, [0.6, 0.2601662576198578, 0.1398337483406067]),
    (1.0, [0.8966498970985413, 0.0, 0.10335010290145874]),
]


@pytest.mark.parametrize(("most", "expected"), AE_KD)
def test_ae_kd_agrees_with_the_release(most: float, expected: list[float]) -> None:
    slopes = aggregate.gradients(rows(0), [rows(k) for k in (1, 2, 3)], 4.0).mean(dim=1)
    assert aggregate.min_norm(slopes @ slopes.T, 3 * most) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("most", "expected"), AE_KD)
def test_the_scheme_as_released_gives_each_row_these_weights(most: float, expected: list[float]) -> None:
    """And none of them to a row that no teacher sees; without the switch the rows' own gradients say otherwise."""
    outputs = Signals().add("logits", rows(0), Layout.samples(8))
    scores, seen = [rows(k) for k in (1, 2, 3)], torch.ones(3, 8, dtype=torch.bool)

    def weights(released: bool) -> Tensor:
        scheme = SimpleNamespace(
            adapter=SimpleNamespace(output="logits"), temperature=4.0, _ranks=Ranks(),
            params=SimpleNamespace(cap=3 * most, released=released),
        )  # fmt: skip
        found: Tensor = Agreed.weigh(scheme, scores, seen, outputs)  # type: ignore[arg-type]
        return found

    found = weights(released=True)
    assert all(row.tolist() == pytest.approx(expected, abs=1e-4) for row in found.T)
    assert (weights(released=False) - found).abs().max() > 0.01


# ---------------------------------------------------------------- standardised logits in every loss that takes them


@pytest.mark.parametrize("name", ["dkd", "dist"])
def test_standardise_is_the_loss_of_standardised_rows(name: str) -> None:
    more = (LABELS,) if name == "dkd" else ()
    z = [(x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-7) for x in (rows(0), rows(1))]
    found = LOSSES[name].fn(rows(0), rows(1), *more, standardise=True)
    torch.testing.assert_close(found, LOSSES[name].fn(*z, *more))
    torch.testing.assert_close(LOSSES[name].fn(9 * rows(0) + 3, rows(1), *more, standardise=True), found)


def test_ctkd_of_standardised_logits_is_kd_of_them_at_its_temperature() -> None:
    module = LOSSES["ctkd"].make(5, 5, standardise=True).double()
    temperature = 1 + 20 * torch.sigmoid(torch.tensor(1.0, dtype=torch.float64)).item()
    expected = LOSSES["kd"].fn(rows(0), rows(1), temperature=temperature, standardise=True)
    torch.testing.assert_close(module(rows(0), rows(1), 0.5), expected)


# ---------------------------------------------------------------- mhgd


def layers(k: int) -> list[Tensor]:
    return [rows(k), rows(k + 2)[:, :3]]


def test_mhgd_as_released_sums_over_items_and_has_hidden_estimators() -> None:
    """Its release is TensorFlow 1, which cannot be run beside this: what its code says is held here, not its values."""
    item, found = torch.arange(4).repeat_interleave(2), {}
    for released in (False, True):
        torch.manual_seed(0)
        module = LOSSES["mhgd"].make([5, 3], [5, 3], heads=2, released=released).double()
        found[released] = module(layers(0), layers(1), [item, item], 4)
        names = dict(module.named_parameters())
        assert any(name.startswith("hidden") for name in names) == released
        found[released].backward()
        assert all(p.grad is not None for p in names.values())
    torch.testing.assert_close(found[True], 4 * found[False])
