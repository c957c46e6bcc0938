"""The objective: valid rows only, sums and counts, modules of its own, and the traps of other frameworks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from objective_small import (
    LENGTHS,
    NAN,
    ROWS,
    STEPS,
    N,
    padded,
    padded_layout,
    ragged_layout,
    randn,
    says,
    single,
)
from torch import Tensor, nn

from xmodal_kd.objective.objective import Objective
from xmodal_kd.objective.parts import LossOut, Part
from xmodal_kd.recipe.recipe import Term
from xmodal_kd.recipe.schedules import Schedule
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.signals.signals import Layout, Signals
from xmodal_kd.training.gradients import Turn

# ---------------------------------------------------------------- valid rows


@pytest.mark.parametrize("junk", [NAN, float("inf"), 1e30])
@pytest.mark.parametrize("name", ROWS)
def test_padding_changes_nothing_in_value_or_gradient(name: str, junk: float) -> None:
    objective = single(name)
    results = []
    for fill in (0.0, junk):
        student = padded(randn(N, 6), fill).requires_grad_()
        out = objective(says(student, padded_layout()), says(padded(randn(N, 6, seed=1), fill), padded_layout()))
        value = out.value()
        value.backward()
        assert student.grad is not None
        results.append((value.detach(), student.grad))
    (value, grad), (value_junk, grad_junk) = results
    assert torch.equal(value, value_junk) and torch.equal(grad, grad_junk)
    assert grad.isfinite().all() and grad.abs().sum() > 0
    assert (grad[torch.arange(STEPS) >= LENGTHS[:, None]] == 0).all()


@pytest.mark.parametrize("name", ROWS)
def test_ragged_and_padded_layouts_of_the_same_rows_agree(name: str) -> None:
    objective, student, teacher = single(name), randn(N, 6), randn(N, 6, seed=1)
    a = objective(says(student, ragged_layout()), says(teacher, ragged_layout()))
    b = objective(says(padded(student, NAN), padded_layout()), says(padded(teacher, NAN), padded_layout()))
    assert a.parts.keys() == b.parts.keys()
    for key, part in a.parts.items():
        torch.testing.assert_close(part.total, b.parts[key].total, rtol=0, atol=0)
        torch.testing.assert_close(part.count, b.parts[key].count, rtol=0, atol=0)


def test_a_row_counts_where_both_sides_are_valid() -> None:
    item = torch.zeros(4, dtype=torch.int64)
    mine = Layout("point", torch.tensor([True, True, True, False]), item, 1)
    theirs = Layout("point", torch.tensor([False, True, True, True]), item, 1)
    s, t = randn(4, 3), randn(4, 3, seed=1)
    part = single("hint")(says(s, mine), says(t, theirs)).parts["hint"]
    assert part.count == 2
    torch.testing.assert_close(part.total, (s[1:3] - t[1:3]).square().mean(-1).sum())


@pytest.mark.parametrize("name", ROWS)
def test_no_valid_row_gives_zero_with_the_graph_intact(name: str) -> None:
    layout = Layout.padded("frame", torch.zeros(2, dtype=torch.int64), 3)
    student = torch.full((2, 3, 4), NAN, requires_grad=True)
    out = single(name)(says(student, layout), says(torch.full((2, 3, 4), NAN), layout))
    value = out.value()
    assert value == 0 and next(iter(out.parts.values())).count == 0
    value.backward()
    assert student.grad is not None and (student.grad == 0).all()


@pytest.mark.parametrize("name", ["cka", "dist"])
def test_one_row_has_no_relations(name: str) -> None:
    student = torch.zeros(1, 4, requires_grad=True)
    out = single(name)(says(student, Layout.samples(1)), says(torch.ones(1, 4), Layout.samples(1)))
    assert out.value() == 0 and out.value().requires_grad


@pytest.mark.parametrize(
    "theirs",
    [
        Layout.ragged("frame", torch.tensor([0, 1, 1, 1]), 2),
        Layout.ragged("point", torch.tensor([0, 0, 1, 1]), 2),
        Layout.ragged("frame", torch.tensor([0, 0, 1]), 2),
    ],
    ids=["items", "kind", "number"],
)
def test_misaligned_rows_are_refused(theirs: Layout) -> None:
    mine = Layout.ragged("frame", torch.tensor([0, 0, 1, 1]), 2)
    with pytest.raises(UserError, match=r"term 'kd': .* are not aligned"):
        single("kd")(says(randn(4, 3), mine), says(randn(len(theirs), 3), theirs))


def test_differing_class_counts_name_both_shapes() -> None:
    """Trap 19: they ended in a cryptic broadcast error, or in none."""
    layout = Layout.samples(4)
    for width in (3, 1):
        with pytest.raises(UserError) as refused:
            single("kd")(says(randn(4, 5), layout), says(randn(4, width), layout))
        assert "'kd'" in str(refused.value) and "(4, 5)" in str(refused.value) and f"(4, {width})" in str(refused.value)


@pytest.mark.parametrize("name", ["kd", "logit_mse"])
def test_frames_are_rows_of_classes(name: str) -> None:
    """Trap 5: a softmax over dim 1 was wrong for (b, t, v) logits."""
    s, t = randn(2, 3, 5), randn(2, 3, 5, seed=1)
    grid, flat = Layout.dense("frame", 2, (3,)), Layout.samples(6)
    a = single(name)(says(s, grid), says(t, grid)).value()
    b = single(name)(says(s.reshape(6, 5), flat), says(t.reshape(6, 5), flat)).value()
    assert a == b


# ---------------------------------------------------------------- labels


def test_labels_of_valid_rows_stand_beside_them() -> None:
    rows = randn(N, 6)
    labels = torch.arange(N) % 6
    padding = torch.full((len(LENGTHS), STEPS), -100)
    padding[torch.arange(STEPS) < LENGTHS[:, None]] = labels
    signals = says(padded(rows, NAN), padded_layout()).add("labels", padding.reshape(-1), padded_layout())
    part = single("test_row_ce")(signals).parts["test_row_ce"]
    torch.testing.assert_close(part.total, nn.functional.cross_entropy(rows, labels, reduction="sum"))
    assert part.count == N


def test_rows_without_a_label_are_left_out() -> None:
    """The labels' own mask: points that nobody annotated."""
    rows, item = randn(4, 3), torch.zeros(4, dtype=torch.int64)
    labelled = Layout("point", torch.tensor([True, False, True, False]), item, 1)
    signals = says(rows, Layout.ragged("point", item, 1)).add("labels", torch.tensor([1, -100, 2, -100]), labelled)
    part = single("test_row_ce")(signals).parts["test_row_ce"]
    expected = nn.functional.cross_entropy(rows[[0, 2]], torch.tensor([1, 2]), reduction="sum")
    torch.testing.assert_close(part.total, expected)
    assert part.count == 2


def test_labels_on_other_rows_of_the_same_kind_are_refused() -> None:
    signals = says(randn(4, 3), Layout.ragged("point", torch.tensor([0, 0, 1, 1]), 2))
    signals.add("labels", torch.tensor([0, 1, 2, 0]), Layout.ragged("point", torch.tensor([0, 1, 1, 1]), 2))
    with pytest.raises(UserError, match="not aligned"):
        single("test_row_ce")(signals)


def test_labels_of_tokens_beside_rows_of_frames() -> None:
    tokens_layout = Layout.padded("token", torch.tensor([2, 1, 0, 1]), 3)
    labels = torch.tensor([[1, 2, 99], [3, 99, 99], [99, 99, 99], [4, 99, 99]])
    rows = randn(N, 6)
    signals = says(padded(rows, NAN), padded_layout()).add("labels", labels.reshape(-1), tokens_layout)
    part = single("test_tokens")(signals).parts["test_tokens"]
    sums = [group.sum() for group in rows[:, 0].split(LENGTHS.tolist())]
    torch.testing.assert_close(part.total, 3 * sums[0] + 3 * sums[1] + 4 * sums[3])
    assert part.count == 3


# ---------------------------------------------------------------- sums and counts


def micro_batches(sizes: list[int], leaf: Tensor) -> Iterator[tuple[Signals, Signals]]:
    start = 0
    for size in sizes:
        layout = Layout.ragged("frame", torch.zeros(size, dtype=torch.int64), 1)
        yield (
            says(leaf[start : start + size], layout),
            says(randn(sum(sizes), 4, seed=9)[start : start + size], layout),
        )
        start += size


@pytest.mark.parametrize("sizes", [[4, 4], [1, 5, 2], [0, 3, 5], [8]])
@pytest.mark.parametrize("names", [("kd",), ("kd", "at"), ("hint", "kd", "at")])
def test_micro_batches_add_up_to_the_global_mean(names: tuple[str, ...], sizes: list[int]) -> None:
    """Value and gradient; rows of a micro-batch weigh the same whatever its size. `at` counts items, not rows."""
    objective = Objective([Term(loss=name, weight=0.5 + i) for i, name in enumerate(names)])
    expected_leaf = randn(8, 4).requires_grad_()
    pairs = list(micro_batches(sizes, expected_leaf))
    values = []
    for name in names:
        parts = [objective(*pair).parts[name] for pair in pairs]
        total, count = sum(p.total for p in parts), sum(p.count for p in parts)
        values.append(total / count * parts[0].weight)
    torch.stack(values).sum().backward()

    leaf = nn.Parameter(randn(8, 4))
    turn = Turn([leaf], len(sizes), Ranks(), lambda loss: loss)
    for student, teacher in micro_batches(sizes, leaf):
        turn.add(objective(student, teacher))
    means = turn.finish()
    assert leaf.grad is not None and expected_leaf.grad is not None
    torch.testing.assert_close(leaf.grad, expected_leaf.grad, rtol=1e-5, atol=1e-7)
    for name, value, term in zip(names, values, objective, strict=True):
        assert float(means[name]) * term.term.weight == pytest.approx(value.item(), rel=1e-5)
    if names == ("kd",):
        whole = next(iter(micro_batches([8], leaf)))
        torch.testing.assert_close(objective(*whole).value().detach(), values[0].detach())


def test_terms_that_count_differently_share_no_unit() -> None:
    """Equal units are summed before they are divided by one count: labels, items and other signals count otherwise."""
    item = torch.zeros(6, dtype=torch.int64)
    some = Layout("point", torch.tensor([True, False, False, True, False, False]), item, 1)
    points = Layout.ragged("point", item, 1)
    objective = Objective(
        [
            Term(loss="kd"), Term(loss="logit_mse"), Term(loss="test_row_ce"), Term(loss="test_taught_ce"),
            Term(loss="at"), Term(loss="dist"), Term(loss="cka"), Term(loss="cka", on="pooled", name="cka pooled"),
        ]
    )  # fmt: skip
    s = says(randn(6, 3), points).add("labels", torch.zeros(6, dtype=torch.int64), some)
    t = says(randn(6, 3, seed=1), points)
    for signals in (s, t):
        signals.add("pooled", randn(1, 3), Layout.samples(1))
    counts: dict[str, set[float]] = {}
    parts = objective(s, t).parts
    for part in parts.values():
        counts.setdefault(part.unit, set()).add(float(part.count))
    assert all(len(found) == 1 for found in counts.values()), counts
    assert parts["kd"].unit == parts["logit_mse"].unit, "equal masks are computed in one backward pass"


def test_value_is_the_weighted_sum_of_means() -> None:
    out = LossOut({
        "a": Part(torch.tensor(6.0), torch.tensor(3.0), 2.0, "a"),
        "b": Part(torch.tensor(1.0), torch.tensor(4.0), 1.0, "b"),
    })  # fmt: skip
    assert out.value() == 4.25
    assert (LossOut.mean("c", torch.tensor([1.0, 3.0]), 0.5) + out).value() == 5.25
    with pytest.raises(ValueError, match="two parts are called a"):
        _ = out + out


# ---------------------------------------------------------------- weights


def test_schedules_multiply_weights() -> None:
    objective = Objective([Term(loss="kd", weight=3.0, schedule=Schedule(kind="linear")), Term(loss="hint")], steps=4)
    s, t = says(randn(4, 3), Layout.samples(4)), says(randn(4, 3, seed=1), Layout.samples(4))
    assert [objective(s, t, step=i).parts["kd"].weight for i in range(4)] == [3.0, 2.25, 1.5, 0.75]
    assert "kd" not in objective(s, t, step=4).parts and "hint" in objective(s, t, step=4).parts


@pytest.mark.parametrize("name", ROWS)
def test_continuous_in_its_weight(name: str) -> None:
    """Trap 3: at weight 0 a factor T^2 was dropped from the other term."""
    layout, t = Layout.samples(8), says(randn(8, 5, seed=1), Layout.samples(8))
    grads = []
    for weight in (0.0, 1e-9):
        leaf = randn(8, 5).requires_grad_()
        terms = [Term(loss="kd", name="other"), Term(loss=name, weight=weight)]
        value = Objective(terms)(says(leaf, layout), t).value()
        value.backward()
        assert leaf.grad is not None
        grads.append((value.detach(), leaf.grad))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("weight", [1e-9, 0.5, 1.0, 100.0])
def test_the_temperature_counts_at_every_weight(weight: float) -> None:
    s, t = says(randn(4, 3), Layout.samples(4)), says(randn(4, 3, seed=1), Layout.samples(4))
    term = Term(loss="kd", weight=weight, params={"temperature": 4.0})
    part = Objective([term])(s, t).parts["kd"]
    log_p, log_q = ((x.rows("logits") / 4).log_softmax(-1) for x in (t, s))
    torch.testing.assert_close(part.total, 16 * (log_p.exp() * (log_p - log_q)).sum())
    assert part.weight == weight


def test_all_weights_zero_is_an_error() -> None:
    s, t = says(randn(4, 3), Layout.samples(4)), says(randn(4, 3), Layout.samples(4))
    with pytest.raises(UserError, match="every term's weight is 0 at step 0 of 9"):
        Objective([Term(loss="kd", weight=0.0)], steps=9)(s, t)
