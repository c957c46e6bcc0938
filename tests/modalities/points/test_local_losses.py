"""PointDistiller against its oracle and its release, and what it and fgd are given of detectors and segmenters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from detection_small import adapter, smallest
from oracles import detection_losses as oracle
from oracles import features_by_another
from points_small import adapter as segmenting
from torch import Tensor

from xmodal_kd.losses import LOSSES
from xmodal_kd.modalities.points.views.ground import Ground, objects
from xmodal_kd.modalities.points.views.overlap import corners
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.signals.signals import Layout, Signals

GROUND = Ground((-4.0, -2.0), 1.0, (8, 4))


def given(seed: int = 0) -> dict[str, Any]:
    """Rows of four items, of which the second has none and the third a single one; some hold as many points."""
    random = torch.Generator().manual_seed(seed)
    item = torch.tensor([0] * 9 + [2] + [3] * 13)
    if seed % 2:
        item = item[torch.randperm(len(item), generator=random)]
    student, teacher = (torch.randn(len(item), width, generator=random, dtype=torch.float64) for width in (4, 5))
    regions = torch.randint(1, 60, (len(item),), generator=random)
    return {"student": student, "teacher": teacher, "item": item, "items": 4, "regions": regions}


def made(dtype: torch.dtype = torch.float64, **params: Any) -> Any:
    torch.manual_seed(0)
    module: Any = LOSSES["pointdistiller"].make(4, 5, **{"width": 3, **params}).to(dtype)
    with torch.no_grad():
        for norm in (module.student.norm, module.teacher.norm):
            norm.bias += torch.linspace(-0.2, 0.3, len(norm.bias))
    return module


@pytest.mark.parametrize("params", [
    {}, {"queries": 4, "neighbours": 3}, {"queries": 5, "neighbours": 1, "temperature": 10.0, "most": None},
    {"queries": 4, "neighbours": 30, "temperature": None}, {"neighbours": 3, "difference": True, "temperature": 20.0},
    {"queries": 6, "neighbours": 4, "importance": "features", "temperature": 0.5},
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_agrees_with_its_oracle(params: dict[str, Any], dtype: torch.dtype) -> None:
    for seed in range(2):
        inputs, module = given(seed), made(dtype, **params)
        plain = {key: value.numpy() if isinstance(value, Tensor) else value for key, value in inputs.items()}
        state = {key: value.double().numpy() for key, value in module.state_dict().items()}
        expected = oracle.pointdistiller(**plain, state=state, **params)
        cast = [x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs.values()]
        exact = 1e-11 if dtype == torch.float64 else 2e-5
        for a, b in zip(module(*cast), expected, strict=True):
            torch.testing.assert_close(a.double(), torch.from_numpy(b).double(), rtol=exact, atol=exact)


def test_the_gradient_is_that_of_the_value() -> None:
    inputs = given()
    for params in ({"temperature": 9.0, "queries": 4}, {"importance": "features", "neighbours": 4}):
        module = made(**params)

        def value(student: Tensor, module: Any = module) -> Tensor:
            out: Tensor = module(student, *list(inputs.values())[1:])[0]
            return out

        assert torch.autograd.gradcheck(value, inputs["student"].clone().requires_grad_(), fast_mode=True)
    module(*inputs.values())[0].sum().backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in module.parameters()), "both maps learn"


def test_by_hand() -> None:
    """Two rows that are a graph each, alone in it: BN of 0 and 2 is -1 and 1 (but for its 1e-5), ReLU 0 and 1.

    The student's map is 0 throughout, so the rows are 0 and 1 apart; weights of 1 and 3 points at 2 / log 3 are 1/4
    and 3/4 of two rows.
    """
    module = made(width=1, neighbours=1, temperature=2 / np.log(3), most=None)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.teacher.own.weight[0, 0] = module.teacher.norm.weight[0] = 1.0
    teacher = torch.tensor([[0.0, 7, 7, 7, 7], [2.0, 7, 7, 7, 7]], dtype=torch.float64)
    student, item = torch.zeros(2, 4, dtype=torch.float64), torch.zeros(2, dtype=torch.long)
    values, number = module(student, teacher, item, 1, torch.tensor([1, 3]))
    assert values.item() == pytest.approx(2 * 0.75, rel=2e-5) and number.item() == 2


def test_what_a_row_holds_beyond_the_most_counts_no_more() -> None:
    inputs = given()
    capped, whole = made(temperature=1e-2, queries=4, most=20), made(temperature=1e-2, queries=4, most=None)
    alike = inputs | {"regions": inputs["regions"].clamp(max=20)}
    assert torch.equal(capped(*inputs.values())[0], whole(*alike.values())[0])
    assert not torch.allclose(capped(*inputs.values())[0], whole(*inputs.values())[0])


def test_a_single_row_has_nothing_to_be_normalised_by() -> None:
    one = torch.zeros(1, dtype=torch.long)
    student = torch.ones(1, 4, requires_grad=True)
    values, number = made(torch.float32)(student, torch.ones(1, 5), one, 2, one + 3)
    values.sum().backward()
    assert values.tolist() == [0, 0] and number.tolist() == [0, 0] and student.grad is not None


@pytest.mark.parametrize("temperature", [0.01, 20.0, None])
@pytest.mark.parametrize("difference", [False, True])
def test_agrees_with_the_oracle_of_somebody_else(temperature: float | None, difference: bool) -> None:
    """Who had read paper and release, not the code; of one scene, as rows of others are no neighbours here."""
    params = {"queries": 6, "neighbours": 4, "temperature": temperature, "most": None, "difference": difference}
    module = LOSSES["pointdistiller"].make(4, 5, width=3, **params).double()
    one = {key: value[-13:] if isinstance(value, Tensor) else value for key, value in given().items()}
    values, number = module(one["student"], one["teacher"], torch.zeros_like(one["item"]), 1, one["regions"])
    maps = [torch.cat([side.other.weight, side.own.weight], dim=1) for side in (module.student, module.teacher)]
    expected = features_by_another.pointdistiller(
        one["student"].numpy(), one["teacher"].numpy(), one["regions"].tolist(),
        (maps[0].detach().numpy(), maps[1].detach().numpy()), 6, 4, temperature, difference,
    )  # fmt: skip
    assert number.tolist() == [6]
    assert values.item() == pytest.approx(float(expected.values.sum()), rel=1e-10)


# ---------------------------------------------------------------- the release


def rows(k: int, n: int, c: int) -> Tensor:
    i, j = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(c, dtype=torch.float64)
    return 2 * torch.sin(1.7 * i * (k + 1) + 0.9 * j * j + k) + 0.3 * torch.cos(2.3 * j * i + k)


def filled(**params: Any) -> Any:
    """The module in float64 with weights that any machine makes the same."""
    module = LOSSES["pointdistiller"].make(5, 7, queries=9, neighbours=6, width=4, **params).double()
    with torch.no_grad():
        for k, (_, parameter) in enumerate(sorted(module.named_parameters())):
            count = torch.arange(parameter.numel(), dtype=torch.float64).reshape(parameter.shape)
            parameter.copy_(0.5 * (1.3 * count + k).sin())
    return module


#: RunpeiDong/PointDistiller, a5dc465, mmdet3d/models/detectors/voxelnet.py: get_voxel_knn of one item, and
#: get_knn_voxel_backbone of two, whose weights are 2 throughout. Half and a quarter of what they return, as the factors
#: are the term's here; one entry of the gradient. The release softens counts in float32, so last digits are not its.
RELEASED: list[tuple[dict[str, Any], float, float]] = [
    ({}, 0.36564666169647886, 0.002719178543022889),
    ({"temperature": 8.0}, 0.2640498949553052, 0.0010097634551083446),
    ({"temperature": 8.0, "difference": True}, 0.21672312215082878, -0.00039351708650670037),
    ({"temperature": None, "importance": "features"}, 0.24108668387296614, -0.00013781171211381382),
]


@pytest.mark.parametrize(("params", "value", "slope"), RELEASED)
def test_says_what_the_release_says(params: dict[str, Any], value: float, slope: float) -> None:
    items = 2 if params.get("importance") else 1
    student = torch.cat([rows(2 * b, 24, 5) for b in range(items)]).requires_grad_()
    teacher = torch.cat([rows(2 * b + 1, 24, 7) for b in range(items)])
    count = (7 * torch.arange(24) % 24 + 1).repeat(items)
    values, number = filled(most=None, **params)(
        student, teacher, torch.arange(items).repeat_interleave(24), items, count
    )
    mean = values.sum() / number.sum()
    mean.backward()
    assert student.grad is not None
    assert (mean.item(), student.grad[5, 2].item()) == pytest.approx((value, slope), rel=1e-6)


# ---------------------------------------------------------------- what detectors and segmenters give


def test_cells_of_things() -> None:
    """A box of 4 x 2 on 8 cells, one that lies in it and is smaller, one on a cell's corner, one beyond the ground."""
    boxes = torch.tensor([
        [-2.0, 0.0, 0, 4.0, 2.0, 1.5, 0.0], [-0.5, 0.5, 0, 1.0, 1.0, 1.5, 0.0], [2.9, -1.9, 0, 0.1, 0.1, 1.7, 0.3],
        [9.0, 0.0, 0, 4.0, 2.0, 1.5, 0.0],
    ], dtype=torch.float64)  # fmt: skip
    found = objects([boxes, boxes[:0]], GROUND).reshape(2, 8, 4)
    expected = torch.zeros(8, 4, dtype=torch.long)
    expected[0:4, 1:3], expected[3, 2], expected[6, 0] = 1, 2, 3
    assert torch.equal(found[0], expected) and not found[1].any()


def test_turned_things_cover_the_cells_in_their_corners() -> None:
    rng = np.random.default_rng(0)
    places = GROUND.centres()
    for _ in range(20):
        box = np.array([[*rng.uniform((-4, -2), (4, 2)), 0.0, *rng.uniform(0.5, 5, 2), 1.5, rng.uniform(-4, 4)]])
        found = objects([torch.from_numpy(box)], GROUND).numpy()
        ring = corners(box)[0]
        edge = np.roll(ring, -1, axis=0) - ring
        to = places[:, None] - ring
        inside = (edge[:, 0] * to[..., 1] - edge[:, 1] * to[..., 0] >= 0).all(axis=1)
        inside[GROUND.rows(box)] = True
        assert found.tolist() == inside.astype(int).tolist()


def test_signals_of_things_and_of_points() -> None:
    detecting = adapter(student={"sees": "pillars", "beams": 16, "columns": 64, "cell": 0.8})
    source = detecting.data("train")
    batch = source.collate([source.sample(i, 0) for i in range(2)])
    said = detecting.signals("student", smallest(detecting, "student"), batch)
    thing, count = said["objects"].rows, said["point_count"].rows
    ours = detecting.ground("student")
    centre = said["centre"].rows > 0
    assert (thing[centre] > 0).all() and set(thing.tolist()) <= set(range(max(map(len, batch["boxes"])) + 1))
    cells = {role: batch["seen"][role]["cell"] for role in ("student", "teacher")}
    coarse = Ground.of(detecting.config.detection, 0.8)
    both = torch.zeros(2 * ours.cells, dtype=torch.long)
    for row in cells["student"].tolist():  # pillars of 0.8 m, two by two in a cell
        item, (i, j) = row // coarse.cells, divmod(row % coarse.cells, coarse.shape[1])
        both[item * ours.cells + i // 2 * ours.shape[1] + j // 2] = 1
    finer = Ground.of(detecting.config.detection, 0.4)
    expected = torch.zeros(2 * ours.cells, dtype=torch.long)
    for row in cells["teacher"].tolist():
        item, (i, j) = row // finer.cells, divmod(row % finer.cells, finer.shape[1])
        expected[item * ours.cells + i // 4 * ours.shape[1] + j // 4] += 1
    assert torch.equal(count, torch.where((both > 0) & (expected > 0), expected, -1)) and (count > 1).any()
    blind = detecting.signals(
        "student", smallest(detecting, "student"), batch | {"labelled": torch.tensor([True, False])}
    )
    halves = blind["objects"].rows.reshape(2, -1)
    assert torch.equal(halves[0], thing.reshape(2, -1)[0]) and (halves[1] == -1).all(), "boxes it may not look at"


TERMS = [
    Term(loss="pointdistiller", on="pillars", regions="point_count", params={"neighbours": 8, "width": 4}),
    Term(loss="fgd", on="features", regions="objects"),
]


def test_terms_of_detectors_take_only_the_rows_that_their_regions_name() -> None:
    detecting = adapter()
    batch = detecting.data("train").collate([detecting.data("train").sample(i, 0) for i in range(2)])
    roles = {"student": smallest(detecting, "student"), "teacher": smallest(detecting, "teacher").eval()}
    mine, theirs = (detecting.signals(role, model, batch, ["pillars", "features"]) for role, model in roles.items())
    objective = Objective(TERMS).build(mine, theirs, Streams(1))
    parts = objective(mine, theirs).parts
    assert float(parts["pointdistiller"].count) == (mine["point_count"].rows > 0).sum()
    assert float(parts["fgd"].count) == 2 and all(part.total > 0 for part in parts.values())
    torch.stack([part.total for part in parts.values()]).sum().backward()
    assert all(one.grad is not None for name, one in roles["student"].named_parameters() if name.startswith("point."))


@pytest.mark.parametrize(("regions", "shape"), [("labels", r"\(512, 3\)"), ("foreground", r"\(512,\)")])
def test_regions_that_number_nothing_are_named(regions: str, shape: str) -> None:
    detecting = adapter()
    batch = detecting.data("train").collate([detecting.data("train").sample(0, 0)])
    roles = {"student": smallest(detecting, "student"), "teacher": smallest(detecting, "teacher").eval()}
    mine, theirs = (detecting.signals(role, model, batch, ["features"]) for role, model in roles.items())
    objective = Objective([Term(loss="fgd", on="features", regions=regions)]).build(mine, theirs, Streams(1))
    with pytest.raises(UserError, match=f"term 'fgd': regions '{regions}' of shape {shape} are no whole number a row"):
        objective(mine, theirs)


def test_a_segmenter_s_term_chooses_by_features() -> None:
    seeing = segmenting()
    batch = seeing.data("train").collate([seeing.data("train").sample(i, 0) for i in range(2)])
    roles = {"student": seeing.build("student", "range_unet", {"width": 4}),
             "teacher": seeing.build("teacher", "range_unet", {"width": 6}).eval()}  # fmt: skip
    mine, theirs = (seeing.signals(role, model, batch, ["features"]) for role, model in roles.items())
    params = {"queries": 16, "neighbours": 4, "width": 4, "importance": "features", "temperature": 1.0}
    term = Term(loss="pointdistiller", on="features", regions="voxels", params=params)
    part = Objective([term]).build(mine, theirs, Streams(1))(mine, theirs).parts["pointdistiller"]
    assert float(part.count) == 32 and part.total > 0


def test_padding_changes_nothing() -> None:
    inputs = given()
    layout = Layout("point", torch.ones(23, dtype=torch.bool), inputs["item"], 4)
    more = Layout("point", torch.arange(30) < 23, torch.cat([inputs["item"], torch.zeros(7, dtype=torch.long)]), 4)
    found = []
    for at, junk in ((layout, 0), (more, 7)):
        sides = []
        for side in ("student", "teacher"):
            padded = torch.cat([inputs[side], torch.full((junk, inputs[side].shape[1]), torch.nan).double()])
            count = torch.cat([inputs["regions"], torch.full((junk,), 10**6)])
            sides.append(Signals().add("body", padded, at).add("n", count, at))
        term = Term(loss="pointdistiller", on="body", regions="n", params={"neighbours": 4, "width": 3})
        mine, theirs = sides
        found.append(Objective([term]).build(mine, theirs, Streams(1))(mine, theirs).parts["pointdistiller"].total)
    assert torch.equal(*found)
