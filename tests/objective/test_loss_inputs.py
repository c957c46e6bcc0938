"""What the objective hands to losses beyond one pair of rows: lists, grids, regions, the teacher's head, critics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xmodal_kd.losses import LOSSES, loss
from xmodal_kd.losses.base import beside, frozen, item_mean, to_maps, to_rows
from xmodal_kd.objective.loss_inputs import Plain, as_they_are, collect
from xmodal_kd.objective.objective import Objective, spec_of
from xmodal_kd.recipe.recipe import Term
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.signals.signals import Layout, Signals

NAN = float("nan")

if "test_levels" not in LOSSES:

    @loss("test_levels", reduction="items", family="test", paper="", year=2026, needs="features")
    def levels(student: list[Tensor], teacher: list[Tensor], item: list[Tensor], items: int) -> Tensor:
        """Squared difference, item by item, summed over the pairs."""
        pairs = zip(student, teacher, item, strict=True)
        return torch.stack([item_mean((s - t).square().mean(-1), i, items) for s, t, i in pairs]).sum(0)

    @loss("test_layers", reduction="rows", family="test", paper="", year=2026, needs="features")
    class Layers(nn.Module):
        """The mean of the teacher's layers, of any number, from a learned mix of the student's."""

        def __init__(self, student_width: list[int], teacher_width: list[int]) -> None:
            super().__init__()
            self.mix = nn.Linear(sum(student_width), teacher_width[0])

        def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
            return (self.mix(torch.cat(student, -1)) - torch.stack(teacher).mean(0)).square().mean(-1)

    @loss("test_maps", reduction="rows", family="test", paper="", year=2026, needs="features maps")
    def blurred(student: Tensor, teacher: Tensor, cell: Tensor, items: int, grid: tuple[int, ...]) -> Tensor:
        """Squared difference after a sum over each cell and its neighbours in the grid's last axis."""
        maps = to_maps(student - teacher, cell, items, grid)
        wide = nn.functional.pad(maps, (1, 1))
        return to_rows(wide[..., :-2] + wide[..., 1:-1] + wide[..., 2:], cell).square().mean(-1)

    @loss("test_regions", reduction="rows", family="test", paper="", year=2026, needs="features")
    def by_region(student: Tensor, teacher: Tensor, regions: Tensor) -> Tensor:
        return (student - teacher).square().mean(-1) * regions

    @loss("test_head", reduction="rows", family="test", paper="", year=2026, needs="features head")
    def through_head(student: Tensor, teacher: Tensor, head: Any) -> Tensor:
        difference: Tensor = head(student) - head(teacher)
        return difference.square().mean(-1)

    @loss("test_critic", reduction="rows", family="test", paper="", year=2026, needs="features")
    class Critic(nn.Module):
        def __init__(self, student_width: int, teacher_width: int) -> None:
            super().__init__()
            self.score = nn.Linear(student_width, 1)

        def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
            own = self.score(student.detach()) - self.score(teacher)
            return beside(-frozen(self.score, student), own).squeeze(-1)

    @loss("test_samples", reduction="batch", family="test", paper="", year=2026, needs="features")
    class Bank(nn.Module):
        """The mean of `slots` at the rows' samples, where it also writes."""

        slots: Tensor

        def __init__(self, student_width: int, teacher_width: int) -> None:
            super().__init__()
            self.register_buffer("slots", torch.zeros(8))
            self.scale = nn.Parameter(torch.ones(student_width))

        def forward(self, student: Tensor, item: Tensor, items: int, ids: Tensor, progress: float) -> Tensor:
            assert len(ids) == items and 0 <= progress < 1
            self.slots[ids[item]] += student.detach().mean(-1)
            return (self.scale * student).square().mean() + self.slots[ids[item]].mean()


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def says(layout: Layout, **rows: Tensor) -> Signals:
    out = Signals(torch.arange(layout.items))
    for name, value in rows.items():
        out.add(name.replace("_", "."), value, layout)
    return out


FRAMES = Layout.padded("frame", torch.tensor([3, 1]), 3)


def value(signals: tuple[Signals, Signals], **term: Any) -> Tensor:
    return Objective([Term(**term)]).build(*signals, Streams(1))(*signals).value()


def test_lists_are_pairs_with_their_own_rows() -> None:
    """One pair on frames, one on samples; padding is left out of each."""
    a, b = randn(2, 3, 4), randn(2, 3, 4, seed=1)
    a[1, 1:], b[1, 1:] = NAN, NAN
    s, t = says(FRAMES, low=a), says(FRAMES, low=b)
    for signals, seed in ((s, 2), (t, 3)):
        signals.add("high", randn(2, 5, seed=seed), Layout.samples(2))
    difference = (a - b).square().mean(-1)
    expected = torch.stack([difference[0].mean(), difference[1, 0]])
    expected = expected + (s.rows("high") - t.rows("high")).square().mean(-1)
    got = value((s, t), loss="test_levels", on=["low", "high"])
    torch.testing.assert_close(got, expected.mean())
    names = {"student": ["low", "high"], "teacher": ["low", "high"]}
    assert value((s, t), loss="test_levels", on=names) == got
    with pytest.raises(UserError, match=r"2 signals .* one pair a term"):
        value((s, t), loss="hint", on=["low", "high"])


def test_a_glob_lists_layers_in_natural_order() -> None:
    s = says(FRAMES, layer_10=randn(6, 2), layer_9=randn(6, 3, seed=1))
    objective = Objective([Term(loss="test_layers", on="layer.*")]).build(s, s_with_one(s), Streams(1))
    assert objective.features("student") == ["layer.*"]
    loss_module: Any = next(iter(objective)).module
    assert loss_module.mix.weight.shape == (4, 5)
    s2 = says(FRAMES, layer_9=s.rows("layer.9"), layer_10=s.rows("layer.10"))
    assert objective(s, s_with_one(s)).value() == objective(s2, s_with_one(s)).value()


def s_with_one(s: Signals) -> Signals:
    return says(FRAMES, layer_1=randn(6, 4, seed=5))


def test_lists_of_unequal_length_hold_the_same_rows() -> None:
    s = says(FRAMES, layer_1=randn(6, 2), layer_2=randn(6, 3, seed=1))
    t = says(FRAMES, layer_1=randn(6, 4, seed=2)).add("other", randn(2, 4), Layout.samples(2))
    s.rows("layer.2")[4:] = NAN
    out = Objective([Term(loss="test_layers", on="layer.*")]).build(s, t, Streams(1))(s, t)
    assert out.parts["test_layers"].count == 4 and out.value().isfinite()
    with pytest.raises(UserError, match="not aligned"):
        value((s, t), loss="test_layers", on={"student": "layer.*", "teacher": ["other"]})


def test_no_projector_goes_before_a_list() -> None:
    s = says(FRAMES, layer_1=randn(6, 2))
    with pytest.raises(UserError, match="no projector"):
        value((s, s), loss="test_layers", on="layer.*", projector="linear")


def test_maps_hold_zeros_where_no_row_is_valid() -> None:
    a, b = randn(2, 3, 4), randn(2, 3, 4, seed=1)
    a[1, 1:] = NAN
    got = value((says(FRAMES, f=a), says(FRAMES, f=b)), loss="test_maps", on="f")
    d = (a - b).nan_to_num(0.0)
    d[1, 1:] = 0
    sums = [d[0, 0] + d[0, 1], d[0].sum(0), d[0, 1] + d[0, 2], d[1, 0]]
    torch.testing.assert_close(got, torch.stack(sums).square().mean(-1).mean())


def test_maps_of_two_axes_are_the_signals_own() -> None:
    layout = Layout.dense("pixel", 2, (3, 5))
    rows = randn(30, 4)
    maps = to_maps(rows, torch.arange(30), 2, (3, 5))
    assert torch.equal(maps, says(layout, f=rows).maps("f"))
    assert torch.equal(to_rows(maps, torch.arange(30)), rows)
    keep = torch.tensor([0, 7, 29])
    assert torch.equal(to_rows(to_maps(rows[keep], keep, 2, (3, 5)), keep), rows[keep])


def test_points_have_no_maps() -> None:
    layout = Layout.ragged("point", torch.tensor([0, 0, 1]), 2)
    s = says(layout, f=randn(3, 2))
    with pytest.raises(UserError, match="term 'test_maps': its loss works on maps, and the point rows form no grid"):
        value((s, s), loss="test_maps", on="f")


def test_regions_are_a_signal_of_the_student() -> None:
    layout = Layout.dense("point", 1, (4,))
    s = says(layout, f=randn(4, 2)).add("parts", torch.tensor([2, -1, 0, 1]), layout)
    t = says(layout, f=randn(4, 2, seed=1))
    out = Objective([Term(loss="test_regions", on="f", regions="parts")])(s, t)
    difference = (s.rows("f") - t.rows("f")).square().mean(-1)
    torch.testing.assert_close(out.parts["test_regions"].total, 2 * difference[0] + difference[3])
    assert out.parts["test_regions"].count == 3 and "parts" in out.parts["test_regions"].unit
    with pytest.raises(UserError, match="no signal 'labels'"):
        value((s, t), loss="test_regions", on="f")


@pytest.mark.parametrize("kind", ["linear", "conv", "sequence"])
def test_the_teachers_head_passes_gradients_and_takes_none(kind: str) -> None:
    heads = {
        "linear": nn.Linear(3, 2),
        "conv": nn.Conv2d(3, 2, 1),
        "sequence": nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)),
    }
    model = nn.ModuleDict({"head": heads[kind]})
    before = {key: x.clone() for key, x in model.state_dict().items()}
    layout = Layout.samples(4)
    leaf = randn(4, 3).requires_grad_()
    s, t = says(layout, f=leaf), says(layout, f=randn(4, 3, seed=1))
    t.model = model
    got = value((s, t), loss="test_head", on="f", head="head")
    got.backward()
    assert leaf.grad is not None and (leaf.grad != 0).any()
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(x, before[key]) for key, x in model.state_dict().items())
    if kind != "sequence":
        head = model["head"]
        apply = head if kind == "linear" else lambda x: head(x[..., None, None])[..., 0, 0]
        torch.testing.assert_close(got, (apply(leaf) - apply(t.rows("f"))).square().mean())


def test_a_head_that_is_not_there() -> None:
    s = says(Layout.samples(2), f=randn(2, 3))
    with pytest.raises(UserError, match="say head"):
        value((s, s), loss="test_head", on="f")
    with pytest.raises(UserError, match="whose model this method does not give"):
        value((s, s), loss="test_head", on="f", head="head")
    s.model = nn.ModuleDict({"head": nn.Linear(3, 2)})
    with pytest.raises(UserError, match=r"no module 'haed' \(nearest: head"):
        value((s, s), loss="test_head", on="f", head="haed")


def test_a_critic_learns_beside_the_student() -> None:
    """One backward pass: the student's gradient passes a critic that it does not move; the critic has its own loss."""
    leaf, teacher = randn(4, 3).requires_grad_(), randn(4, 3, seed=1)
    s, t = says(Layout.samples(4), f=leaf), says(Layout.samples(4), f=teacher)
    objective = Objective([Term(loss="test_critic", on="f", weight=2.0)]).build(s, t, Streams(1))
    score = next(iter(objective)).module.score  # type: ignore[union-attr]
    got = objective(s, t).value()
    torch.testing.assert_close(got, -2 * score(leaf).mean())
    got.backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, -2 / 4 * score.weight.expand(4, 3))
    torch.testing.assert_close(score.weight.grad[0], 2 * (leaf.detach() - teacher).mean(0))


class TwoRanks(Ranks):
    """The first of two ranks, the second holding `theirs`, in the order in which values are gathered."""

    world, rank = 2, 0

    def __init__(self, theirs: list[Tensor]) -> None:
        self.theirs = theirs

    def gather_rows(self, rows: Tensor) -> Tensor:
        return torch.cat([rows, self.theirs.pop(0)])


def test_over_ranks_items_are_numbered_on_and_modules_learn_once() -> None:
    rows = randn(4, 3)
    whole = says(Layout.ragged("frame", torch.tensor([0, 0, 1, 2]), 3), f=rows)
    first = says(Layout.ragged("frame", torch.tensor([0, 0, 1]), 2), f=rows[:3])
    other = [torch.tensor([1]), rows[3:], torch.tensor([2]), torch.tensor([2])]  # items, student, item, ids
    term = Term(loss="test_samples", on="f")
    grads, slots, totals = [], [], []
    for signals, ranks in ((whole, Ranks()), (first, TwoRanks(other))):
        objective = Objective([term]).build(signals, None, Streams(1))
        module: Any = next(iter(objective)).module
        total = objective(signals, ranks=ranks).parts["test_samples"].total
        total.backward()
        grads.append(module.scale.grad)
        slots.append(module.slots)
        totals.append(total.detach())
    torch.testing.assert_close(grads[1], grads[0] / 2)  # the ranks' gradients are added up
    torch.testing.assert_close(totals[1], totals[0] / 2)
    assert torch.equal(slots[0], slots[1])


def test_what_a_loss_may_not_ask_for() -> None:
    with pytest.raises(TypeError, match=r"all ranks' rows, where \['grid'\] mean nothing"):

        @loss("test_bad", reduction="batch", family="test", paper="", year=2026)
        def bad(student: Tensor, grid: tuple[int, ...]) -> Tensor:
            return student.sum()

    with pytest.raises(TypeError, match=r"no one row for \['labels'\]"):

        @loss("test_bad", reduction="rows", family="test", paper="", year=2026)
        def worse(student: list[Tensor], labels: Tensor) -> Tensor:
            return student[0].sum()

    assert "test_bad" not in LOSSES


# ---------------------------------------------------------------- the usual case


def said(rows: Tensor, layout: Layout, labels: Tensor | None = None) -> Signals:
    out = Signals(torch.arange(layout.items)).add("logits", rows, layout).add("body", rows + 1, layout)
    return out if labels is None else out.add("labels", labels, layout)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("name", "on"), [("kd", "logits"), ("ce", "logits"), ("hint", "body"), ("wsld", "logits")])
def test_plain_rows_are_what_collect_gives(name: str, on: str, half: bool) -> None:
    layout, labels = Layout.dense("pixel", 3, (2, 2)), torch.arange(12) % 5
    draw = torch.Generator().manual_seed(1)
    rows = [torch.randn(12, 5, generator=draw).to(torch.bfloat16 if half else torch.float32) for _ in range(2)]
    student, teacher = said(rows[0].requires_grad_(), layout, labels), said(rows[1], layout)
    term = Term(loss=name, on=on)
    spec = spec_of(term)
    plain = Plain.of(term, spec)
    assert plain is not None
    found = as_they_are(plain, student, teacher)
    whole = collect(name, term, spec, student, teacher, 0.0, False)
    assert found is not None and set(spec.inputs) <= found.keys()
    for key in spec.inputs:
        assert found[key].dtype == whole[key].dtype and torch.equal(found[key], whole[key])


def test_what_is_not_plain_is_left_to_collect() -> None:
    layout, labels = Layout.samples(4), torch.tensor([0, 1, 2, 1])
    rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    unknown = rows.clone()
    unknown[:, 1] = -torch.inf
    kd, ce = (Plain.of(term, spec_of(term)) for term in (Term(loss="kd"), Term(loss="ce")))
    assert kd is not None and ce is not None
    assert as_they_are(kd, said(rows, layout), said(unknown, layout)) is None, "a class that the teacher does not know"
    assert as_they_are(kd, said(rows, layout), said(rows, Layout.ragged("sample", torch.arange(4), 4))) is None
    assert as_they_are(kd, said(rows, layout), None) is None
    for wrong in (torch.tensor([0, 1, 3, 1]), torch.tensor([0, -100, 2, 1])):
        assert as_they_are(ce, said(rows, layout, wrong), None) is None
    few = said(rows, layout, labels)
    few.labelled = torch.tensor([True, False, True, True])
    assert as_they_are(ce, few, None) is None and as_they_are(ce, said(rows, layout), None) is None
    padded = Layout.padded("frame", torch.tensor([1, 2]), 2)
    assert as_they_are(kd, said(rows, padded), said(rows, padded)) is None
    for term in (Term(loss="kd", weights="logits"), Term(loss="kd", min_confidence=0.5), Term(loss="dist")):
        assert Plain.of(term, spec_of(term)) is None
