"""What the property suite cannot know of transport, layer pairs, queues and soft labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from learned_small import made, randn
from torch import Tensor, nn

from xmodal_kd.losses import LOSSES
from xmodal_kd.losses.transport import _carried
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import On, Term
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.signals.signals import Layout, Signals


def test_uld_takes_a_permutation_of_the_symbols_for_the_same() -> None:
    """And teachers that know a class less: a score of -inf is a probability of 0."""
    student = randn(4, 5)
    turned = student[:, [3, 0, 4, 1, 2]]
    assert LOSSES["uld"].fn(student, turned).abs().max() < 1e-12
    longer = torch.cat([turned, torch.full((4, 2), -torch.inf, dtype=torch.float64)], dim=1)
    assert LOSSES["uld"].fn(student, longer).abs().max() < 1e-12


def test_multilevel_ot_keeps_a_symbol_s_place_along_the_sequence() -> None:
    """Two rows whose best symbols change places: nothing to `uld`, something to the order of the whole sequence."""
    student = torch.tensor([[4.0, 0.0, -1.0], [3.0, 0.0, -1.0]], dtype=torch.float64)
    teacher = torch.tensor([[4.0, 0.0, -1.0], [0.0, 3.0, -1.0]], dtype=torch.float64)
    item = torch.zeros(2, dtype=torch.int64)
    assert LOSSES["uld"].fn(student, teacher).abs().max() < 1e-12
    assert LOSSES["multilevel_ot"].fn(student, teacher, item, 1, logarithm=0.0, sinkhorn=0.0)[0].item() > 0.5


def test_rows_in_another_order_cost_little_to_carry() -> None:
    rows, item = torch.eye(4, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    assert _carried(rows, rows[[2, 0, 3, 1]], item, 1, 0.05, 20).item() < 1e-6
    assert (rows - rows[[2, 0, 3, 1]]).abs().sum() == 8


def test_wkd_l_moves_between_alike_classes_cheaply() -> None:
    """Mass that is misplaced from class 1 to its twin 2 costs less than to class 3, which is unlike it."""
    head = nn.Linear(2, 4, bias=False, dtype=torch.float64)
    head.weight.data = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 0.1], [-1.0, 0.0]], dtype=torch.float64)
    teacher = torch.tensor([[4.0, 0.0]], dtype=torch.float64)
    label = torch.zeros(1, dtype=torch.int64)
    at = {k: torch.full((1, 4), -3.0, dtype=torch.float64).index_fill(1, torch.tensor([k]), 3.0) for k in (2, 3)}
    cost = {k: LOSSES["wkd_l"].fn(z, teacher, label, head, temperature=1.0).item() for k, z in at.items()}
    assert cost[3] > 10 * cost[2]


@pytest.mark.parametrize(("wide", "deep"), [(5, 8), (8, 5), (4, 4)])
def test_vkd_s_projector_stays_orthonormal(wide: int, deep: int) -> None:
    vkd = made("vkd", wide, deep)
    nn.init.normal_(vkd.raw)
    q = vkd.orthonormal
    product = q.T @ q if deep >= wide else q @ q.T
    torch.testing.assert_close(product, torch.eye(min(wide, deep), dtype=torch.float64))


def test_vkd_whitens_the_teacher() -> None:
    whitened = made("vkd", 3, 4, normalise="whiten", eps=1e-12)._whitened(randn(50, 4) @ randn(4, 4, seed=1))
    torch.testing.assert_close(whitened.T @ whitened / 50, torch.eye(4, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_phi_s_stops_looking_after_its_rows() -> None:
    phi, student = made("phi_s", 3, 5, rows=8), randn(6, 3).requires_grad_()
    for seed in range(2):
        phi(student, randn(6, 5, seed=seed))
    turn, count = phi.turn.clone(), float(phi.count)
    phi(student, 100 * randn(6, 5, seed=7))
    assert count == 12 and float(phi.count) == 12 and torch.equal(phi.turn, turn)


def test_seed_forgets_the_oldest() -> None:
    seed, first, second = made("seed", 3, 4, queue=5), randn(3, 4), randn(3, 4, seed=1)
    for teacher in (first, second):
        seed(randn(3, 3).requires_grad_(), teacher)
    expected = nn.functional.normalize(torch.cat([second[2:], first[1:], second[:2]]), dim=1)
    torch.testing.assert_close(seed.keys, expected)


def test_uskd_averages_a_feature_of_many_rows_over_the_item() -> None:
    logits, cells, labels = randn(3, 4), randn(6, 5, seed=1), torch.tensor([0, 3, 1])
    uskd, one, two = made("uskd", [4, 5], [4, 5]), torch.arange(3), torch.arange(3).repeat_interleave(2)
    means = cells.reshape(3, 2, 5).mean(dim=1)
    assert torch.equal(uskd([logits, cells], [one, two], 3, labels), uskd([logits, means], [one, one], 3, labels))


def test_uskd_leaves_out_samples_without_a_label() -> None:
    """Their cells too; the others' values are those of a batch without them."""

    def value(keep: list[int], *, marked: bool) -> Tensor:
        labels = torch.tensor([0, -100, 2])
        items = 3 if marked else len(keep)
        rows = list(range(3)) if marked else keep
        samples = Layout.samples(items, torch.device("cpu"))
        cells = Layout.dense("pixel", items, (2,), torch.device("cpu"))
        said = Signals(torch.arange(items)).add("logits", randn(3, 4)[rows], samples)
        said.add("mid", randn(3, 10, seed=1)[rows].reshape(-1, 5), cells).add("labels", labels[rows], samples)
        term = Term(loss="uskd", on=["logits", "mid"])  # type: ignore[arg-type]
        return Objective([term]).build(said, None, Streams(0))(said).value().detach()

    torch.testing.assert_close(value([0, 2], marked=True), value([0, 2], marked=False))


def terms(**term: Any) -> Objective:
    """A term on a teacher of maps of 4 x 4 and 3 cells, five features and six classes."""
    samples, grids = Layout.samples(2, torch.device("cpu")), ((4, 4), (3,))
    sides = []
    for _ in range(2):
        said = Signals(torch.arange(2)).add("logits", randn(2, 6), samples).add("features", randn(2, 5), samples)
        said.add("labels", torch.tensor([1, 4]), samples)
        for i, grid in enumerate(grids):
            layout = Layout.dense("pixel", 2, grid, torch.device("cpu"))
            said.add(f"map{i}", randn(len(layout), 5), layout)
        sides.append(said)
    sides[1].model = nn.ModuleDict({"head": nn.Linear(5, 6, dtype=torch.float64)})
    objective = Objective([Term(**term)]).build(sides[0], sides[1], Streams(0))
    objective(sides[0], sides[1]).value()
    return objective


@pytest.mark.parametrize(
    ("term", "text"),
    [
        ({"loss": "wkd_l"}, "say head: <module path>"),
        (
            {"loss": "wkd_l", "head": "head"},
            "on names the student's logits and the teacher's features before it",
        ),
        ({"loss": "uskd", "on": ["logits"]}, "asks for the student's logits of at least 3 classes and a feature"),
        ({"loss": "vitkd", "on": ["map0"]}, "it needs at least 2 of either side"),
        ({"loss": "vitkd", "on": ["features", "features"]}, "its loss works on maps"),
        ({"loss": "afd", "on": ["map0", "map1"]}, "cannot be brought together: leave some out"),
        ({"loss": "fgd", "on": "map0", "regions": "boxes"}, "there is no signal 'boxes'"),
        ({"loss": "semckd", "on": ["map0"], "params": {"batch": 5}}, "set its parameter batch to the items"),
        ({"loss": "af_dcd", "on": "map0"}, "16 groups do not divide 5 channels: set its parameter groups"),
    ],
)
def test_refusals(term: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match="term") as refused:
        terms(**term)
    assert text in str(refused.value)


def test_what_is_refused_has_a_form_that_goes() -> None:
    terms(loss="wkd_l", on=On(student="logits", teacher="features"), head="head")
    terms(loss="uskd", on=["logits", "map0"])
    terms(loss="afd", on=["map0", "map0"])
    terms(loss="semckd", on=["map0", "map0"], params={"batch": 2})
    terms(loss="af_dcd", on="map0", params={"groups": 5})
