"""Losses as their released code computes them: its values on the same rows, in float64, as facts with their source.

The numbers were found by running the released functions on `rows(k)`, with the weights that `filled` gives ours and
projectors taken over. Each is the mean over items or rows that the release minimises, and one entry of its gradient.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from released_rows import filled, mean_and_slope_of, places, pyramid, rows
from torch import Tensor, nn

from xmodal_kd.losses import LOSSES

LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
ITEM = torch.arange(2).repeat_interleave(4)


def head(features: Tensor) -> Tensor:
    """Five classes of seven features."""
    weight = torch.linspace(-1, 1, 35, dtype=torch.float64).reshape(5, 7)
    return features @ (weight.sin() + (7 * weight).cos()).T


def mean_and_slope(name: str, student: Tensor, *more: Any, **params: Any) -> tuple[float, float]:
    """Mean of the loss's values and the gradient's entry [2, 3]."""
    student = student.clone().requires_grad_()
    out = LOSSES[name].fn(student, *more, **params)
    value = (out[0] if isinstance(out, tuple) else out).mean()
    (grad,) = torch.autograd.grad(value, student)
    return value.item(), grad[2, 3].item()


#: Loss, what it is given beside the student's rows, parameters, mean value, gradient at [2, 3].
PLAIN: list[tuple[str, tuple[Any, ...], dict[str, Any], float, float]] = [
    # JiamingLv/WKD, 214cf88, mdistiller/distillers/WKD.py, wkd_logit_loss_with_speration with COST_MATRIX fc
    ("wkd_l", (rows(1, 8, 7), LABELS, head), {}, 3.0506874676542903, -0.0415875942650748),
    (
        "wkd_l", (rows(1, 8, 7), LABELS, head),
        {"temperature": 1.0, "gamma": 10.0, "sharpen": 3.0, "regularisation": 0.2, "iterations": 3},
        5.937302980960621, -0.1361993486553662,
    ),
    # the same file, wkd_feature_loss at MEAN_COV_RATIO 4; two maps of four positions
    ("wkd_f", (rows(1), ITEM, 2), {}, 2.5644410898844665, -0.27723685935819325),
    # winycg/CIRKD, dab64db, losses/cirkd_mini_batch.py
    ("cirkd", (rows(1, 8, 7), ITEM, 2), {}, 6.020324544192565, 0.058510463797377066),
    ("cirkd", (rows(1, 8, 7), ITEM, 2), {"temperature": 1.0}, 0.388216513814732, -0.0018204836042538738),
]  # fmt: skip


@pytest.mark.parametrize(("name", "more", "params", "value", "slope"), PLAIN)
def test_functions(name: str, more: tuple[Any, ...], params: dict[str, Any], value: float, slope: float) -> None:
    assert mean_and_slope(name, rows(0), *more, **params) == pytest.approx((value, slope), rel=1e-9)


#: songmzhang/DSKD, 077337a, code/criterions/universal_logit_distillation.py: teachers of 4, 5 and 7 symbols, summed.
@pytest.mark.parametrize(
    ("symbols", "value"), [(4, 3.6888294052504476), (5, 3.1208223932924706), (7, 4.019127576996988)]
)
def test_uld(symbols: int, value: float) -> None:
    assert LOSSES["uld"].fn(rows(0), rows(1, 8, symbols)).sum().item() == pytest.approx(value, rel=1e-9)


#: 2018cx/Multi-Level-OT, 712cfb4, models/distillation_model.py: improved_sort of one sequence of probabilities and the
#: mean of the absolute difference; Sinkhorn_seq.sinkhorn_loss of the same with 20 rounds, over the number of tokens.
@pytest.mark.parametrize(
    ("symbols", "kept", "token", "sequence"),
    [
        (5, 50, 1.061910176841964, 0.5800687632206124),
        (7, 50, 1.0847028034344262, 0.7742498278105258),
        (7, 3, 0.7221573413679242, 0.4941011462121122),
    ],
)
def test_multilevel_ot(symbols: int, kept: int, token: float, sequence: float) -> None:
    student, teacher, item = rows(0, 4), rows(1, 4, symbols), torch.zeros(4, dtype=torch.int64)

    def value(sinkhorn: float) -> float:
        out = LOSSES["multilevel_ot"].fn(student, teacher, item, 1, kept=kept, logarithm=0.0, sinkhorn=sinkhorn)
        return float(out[0].item())

    assert value(0.0) == pytest.approx(token, rel=1e-9)
    assert value(1.0) - value(0.0) == pytest.approx(sequence, rel=1e-9)


# ---------------------------------------------------------------- modules

FIELD = {  # two items of 4 x 4, objects of four cells, four and one
    "student": torch.cat([rows(0, 16), rows(2, 16)]),
    "teacher": torch.cat([rows(1, 16), rows(3, 16)]),
    "item": torch.arange(2).repeat_interleave(16),
    "regions": torch.tensor([0, 1, 1, 0] * 2 + [0] * 8 + [0, 0, 0, 2] + [0] * 4 + [1, 1, 0, 0] * 2),
}


#: Mean and slope, of lists the last student's.
MODULES = {
    # roymiles/Simple-Recipe-Distillation, 31e8477, OurDistillationLoss.forward_loss, without our 1e-5 in the logarithm
    "srd": (6.212287382814624, 0.004313513015902328),
    # roymiles/VkD, engine.py: smooth_l1_loss of the orthogonal projection of `rows(4, 7)`
    "vkd": (0.806288957466687, -0.004811201662866146),
    # jiequancui/DKL, c5e8ad2, DKLv1, dkl_loss with GI; the weights are those of the batch before
    "ikl_classes": (14.195185433062452, -0.008858696309397535),
    # yzd-v/FGD, c03a6cf, mmdet/distillation/losses/fgd.py
    "fgd": (0.04863576988277535, -6.16966926034267e-05),
    # clovaai/attention-feature-distillation, dd990d0, distill/AFD.py
    "afd": (0.026691715127785752, 0.0006287101183392471),
    # yzd-v/cls_KD, 1e5d48f, mmcls/models/dis_losses/vitkd.py
    "vitkd": (466.5413065173945, 13.433331966751751),
    # hunto/DiffKD, 2393a4a, diffkd.py with use_ae, whose time variances are computed in float64 here
    "diffkd": (6.799034916520976, 0.001987784844331641),
    # jacobswan1/SEED, f236cac, seed/builder.py, with soft cross-entropy
    "seed": (2.357547833906359, -0.06492696202950878),
    # yzd-v/cls_KD, 1e5d48f, mmcls/models/dis_losses/uskd.py
    "uskd": (3.1062652693520025, 0.005864672809648034),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str) -> None:
    assert released(name) == pytest.approx(MODULES[name], rel=1e-7)


def released(name: str) -> tuple[float, float]:
    """What ours gives where the release gave `MODULES`."""
    if name == "diffkd":
        call, field = filled(LOSSES["diffkd"].make(5, 10, 2, latent=8)), torch.cat([rows(0, 16), rows(2, 16)])
        call.kept = lambda *_: noises()
        teacher, item, cell = torch.cat([rows(1, 16, 10), rows(3, 16, 10)]), FIELD["item"], torch.arange(32)
        return mean_and_slope_of(lambda s: call(s, teacher, item, 2, cell, (4, 4)), field)
    if name == "seed":
        call, student = filled(LOSSES["seed"].make(5, 7, queue=6, teacher_temperature=0.5)), rows(0)
        call.keys.copy_(rows(3, 6, 7) / rows(3, 6, 7).norm(dim=1, keepdim=True))
        return mean_and_slope_of(lambda s: call(s, rows(1, 8, 7)), student)
    if name == "uskd":
        call, student = filled(LOSSES["uskd"].make([5, 7], [5, 7], beta=0.7, mu=0.3)), rows(0)
        item = torch.arange(8)
        return mean_and_slope_of(lambda s: call([s, rows(2, 8, 7)], [item, item], 8, LABELS), student)
    if name == "srd":
        call, student = filled(LOSSES["srd"].make(5, 7)), rows(0)
        return mean_and_slope_of(lambda s: call(s, rows(1, 8, 7)), student)
    if name == "vkd":
        call, student = filled(LOSSES["vkd"].make(5, 7)), rows(0)
        call.raw.data.copy_(rows(4, 7))  # the rank of `filled` is 2, of which rounding would choose three directions
        return mean_and_slope_of(lambda s: call(s, rows(1, 8, 7)), student)
    if name == "ikl_classes":  # the second batch, whose weights are of the first
        call, student = LOSSES["ikl_classes"].make(5, 5).double(), rows(0)
        call(student.clone().requires_grad_(), rows(1), LABELS)
        return mean_and_slope_of(lambda s: call(s, rows(1), LABELS), student)
    if name == "fgd":
        call = filled(LOSSES["fgd"].make(5, 5))
        return mean_and_slope_of(
            lambda s: call(s, FIELD["teacher"], FIELD["item"], 2, FIELD["regions"])[0], FIELD["student"]
        )
    if name == "afd":
        call, at = filled(LOSSES["afd"].make([5, 6], [7, 8], [2, 2], width=6)), places((4, 2))
        first, last = pyramid(0, (5, 6), (4, 2))
        teacher = pyramid(2, (7, 8), (4, 2))
        return mean_and_slope_of(lambda s: call([first, s], teacher, at["item"], 3, at["cell"], at["grid"])[0], last)
    call, at = filled(LOSSES["vitkd"].make([5, 5, 5], [7, 7, 7], [2, 2, 2], mimic=0.3, generate=0.2)), places((4,) * 3)
    *low, last = pyramid(0, (5, 5, 5), (4, 4, 4))
    teacher = pyramid(4, (7, 7, 7), (4, 4, 4))
    call.kept = lambda *_: noise()
    return mean_and_slope_of(lambda s: call([*low, s], teacher, at["item"], 3, at["cell"], at["grid"])[0], last)


@pytest.mark.parametrize(("channels", "value"), [(8, 0.9875), (4, 0.9875)])
def test_phi_s(channels: int, value: float) -> None:
    """NVlabs/RADIO, c0f3701, examples/common/phi_s.py, whose signs are free: the mean square of standardised rows.

    Seen in two batches, as the release sees them whole. Every channel has variance 1.
    """
    call, both = LOSSES["phi_s"].make(5, channels).double(), (rows(1, 40, channels), rows(3, 40, channels))
    nn.init.zeros_(call.adaptor.weight), nn.init.zeros_(call.adaptor.bias)
    student = torch.zeros(40, 5, dtype=torch.float64, requires_grad=True)
    for teacher in both:
        call(student, teacher)
    turned = (torch.cat(both) - call.mean) @ call.turn.T
    torch.testing.assert_close(turned.var(dim=0), torch.ones(channels, dtype=torch.float64))
    assert torch.cat([call.eval()(student, teacher) for teacher in both]).mean().item() == pytest.approx(value)


def noise() -> Tensor:
    return (0.6180339887498949 * torch.arange(48, dtype=torch.float64)) % 1


def noises() -> Tensor:
    """Two noises of 32 rows of eight channels, and a time an item: 123 and 877 of a thousand."""
    time = torch.tensor([0.1235, 0.8775], dtype=torch.float64).repeat_interleave(16)[:, None]
    return torch.cat([rows(5, 32, 8) / 2, rows(6, 32, 8) / 2, time], dim=1)
