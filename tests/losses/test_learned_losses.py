"""What the property suite cannot know of losses that learn: who gets which gradient, when, and from what statistics."""

from __future__ import annotations

from math import cos, pi

import pytest
import torch
from learned_small import GRIDLESS, ITEM, gradients, made, randn
from oracles.learned_losses import delta_weights as oracle_delta_weights
from oracles.learned_losses import relu_margins as oracle_relu_margins
from oracles.target_losses import lelp_statistics
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kd.losses import LOSSES
from xmodal_kd.losses.directions import input_gradients
from xmodal_kd.losses.fine_tuning import NToOne, channel_importance, delta_weights
from xmodal_kd.losses.learned_features import mean_negative, relu_margins
from xmodal_kd.losses.multilevel import _by_rows, _gram_gap
from xmodal_kd.losses.subclasses import subclass_statistics
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.signals.signals import Layout, Signals

# ---------------------------------------------------------------- ctkd


def test_ctkd_is_kd_at_its_temperature() -> None:
    student, teacher = randn(5, 4), randn(5, 4, seed=1)
    ctkd = made("ctkd", 4, 4, start=2.0, span=3.0)
    temperature = 2 + 3 * torch.sigmoid(torch.tensor(1.0)).item()
    expected = LOSSES["kd"].fn(student, teacher, temperature=temperature)
    torch.testing.assert_close(ctkd(student, teacher, 0.5), expected)


@pytest.mark.parametrize(
    ("progress", "strength"), [(0.0, 0.0), (0.025, (1 - cos(pi / 4)) / 2), (0.05, 0.5), (0.1, 1.0), (0.9, 1.0)]
)
def test_ctkd_turns_the_temperatures_gradient_round(progress: float, strength: float) -> None:
    """By how much the loss would rise with theta, measured by finite differences."""
    student, teacher, step = randn(5, 4), randn(5, 4, seed=1), 1e-5
    ctkd = made("ctkd", 4, 4, ramp=0.1)

    def at(theta: float) -> Tensor:
        with torch.no_grad():
            ctkd.theta.fill_(theta)
        total: Tensor = ctkd(student, teacher, progress).sum()
        return total

    slope = (at(1 + step).item() - at(1 - step).item()) / (2 * step)
    assert slope != 0
    (got,) = torch.autograd.grad(at(1.0), ctkd.theta)
    assert got.item() == pytest.approx(-strength * slope, rel=1e-5, abs=1e-9)


def test_ctkd_of_instances_gives_each_row_its_temperature() -> None:
    student, teacher = randn(5, 4).requires_grad_(), randn(5, 4, seed=1)
    ctkd = made("ctkd", 4, 4, mode="instance")
    values = ctkd(student, teacher, 1.0)
    temperature = 1 + 20 * torch.sigmoid(ctkd.mlp(torch.cat([student, teacher], 1))).detach()
    plain = torch.stack([
        LOSSES["kd"].fn(student[i : i + 1], teacher[i : i + 1], temperature=temperature[i].item())[0] for i in range(5)
    ])  # fmt: skip
    torch.testing.assert_close(values, plain)
    grads = [torch.autograd.grad(v.sum(), student, retain_graph=True)[0] for v in (values, plain)]
    torch.testing.assert_close(*grads)  # none through the temperature
    assert all(gradients(values.sum(), ctkd).values())


# ---------------------------------------------------------------- mlkd


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)], ids=str)
def test_gram_gap_by_either_side_is_the_squared_difference(shape: tuple[int, int]) -> None:
    x, y = randn(*shape), randn(*shape, seed=1)
    squared = (x @ x.T - y @ y.T).square()
    keep = torch.tensor([1.0, 0, 1, 0, 1], dtype=torch.float64)[: shape[0]]
    torch.testing.assert_close(_gram_gap(x, y, None), squared.sum())
    torch.testing.assert_close(_gram_gap(x, y, keep), squared[keep > 0].sum())


@pytest.mark.parametrize("confident", ["all", "half"])
def test_mlkd_by_rows_and_by_classes_and_in_chunks_is_one_loss(confident: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven rows of three classes by the products of classes, whole and two rows at a time, and by those of rows."""
    student, teacher = randn(7, 3).requires_grad_(), 2 * randn(7, 3, seed=1)
    params = {"confident": confident, "temperatures": (1.0, 3.0)}
    found = []
    for change in (None, ("xmodal_kd.losses.blocks.BLOCK", 6), ("xmodal_kd.losses.multilevel.by_classes", _by_rows)):
        if change is not None:
            monkeypatch.setattr(*change)
        value = LOSSES["mlkd"].fn(student, teacher, **params)
        found.append((value.detach(), *torch.autograd.grad(value, student)))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("mode", ["global", "instance"])
def test_ctkd_in_chunks_is_the_same_to_all_gradients(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = randn(7, 4).requires_grad_(), randn(7, 4, seed=1)
    ctkd = made("ctkd", 4, 4, mode=mode)
    found = []
    for block in (1 << 22, 8):
        monkeypatch.setattr("xmodal_kd.losses.blocks.BLOCK", block)
        values = ctkd(student, teacher, 0.02)
        wanted = torch.linspace(1, 2, 7, dtype=torch.float64)
        found.append((values.detach(), *torch.autograd.grad((values * wanted).sum(), [student, *ctkd.parameters()])))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


# ---------------------------------------------------------------- factors, masks


def test_ft_trains_its_paraphraser_first_and_then_leaves_it() -> None:
    student, teacher = randn(7, 4).requires_grad_(), randn(7, 6, seed=1)
    ft = made("ft", 4, 6, pretrain=0.2)
    values, counted = ft(student, teacher, *GRIDLESS, 0.1)
    assert counted.tolist() == [True, False, True] and values[1] == 0
    first = gradients(values.sum(), ft)
    assert {name.split(".")[0] for name, size in first.items() if size} == {"paraphraser", "decoder"}
    second = gradients(ft(student, teacher, *GRIDLESS, 0.2)[0].sum(), ft)
    assert {name.split(".")[0] for name, size in second.items() if size} == {"translator"}


def test_ft_without_stages_learns_both_but_the_factors_never_move_the_paraphraser() -> None:
    student, teacher = randn(7, 4), randn(7, 6, seed=1)
    light, heavy = (made("ft", 4, 6, reconstruction=weight) for weight in (1.0, 3.0))
    one, three = (gradients(ft(student, teacher, *GRIDLESS, 0.5)[0].sum(), ft) for ft in (light, heavy))
    for name, size in one.items():
        assert size > 0
        assert three[name] == pytest.approx(size if name.startswith("translator") else 3 * size)


def test_mgd_hides_rows_by_the_seed() -> None:
    """With an identity for a generator the hidden rows are those that are regenerated as 0."""
    student = randn(7, 5).abs() + 1
    mgd = made("mgd", 5, 5, drop=0.5)
    for layer in mgd.generator:
        nn.init.eye_(layer.weight), nn.init.zeros_(layer.bias)
    torch.manual_seed(3)
    keep = torch.rand(7, 1) >= 0.5
    torch.manual_seed(3)
    values, _ = mgd(student, student, *GRIDLESS)
    lost = (student * ~keep).square().sum(1)
    expected = torch.stack([lost[i == ITEM].sum() for i in range(3)])
    assert 0 < keep.sum() < 7
    torch.testing.assert_close(values, expected)
    assert not torch.equal(mgd(student, student, *GRIDLESS)[0], values), "another mask each time"


def test_dmkd_hides_what_the_teacher_looks_at() -> None:
    teacher = torch.tensor([[1.0, 9, 2], [5, 5, 5], [0, 1, 0], [8, 0, 0], [1, 1, 1]])
    item = torch.tensor([0, 1, 0, 0, 1])
    dmkd = made("dmkd", 3, 3, drop=0.5)
    assert dmkd._quiet_rows(teacher, item, 3).squeeze(1).tolist() == [0, 0, 1, 1, 1]
    assert dmkd._quiet_channels(teacher, item, 3).tolist() == [[1, 0, 1], [0, 1, 1], [0, 1, 1]]


# ---------------------------------------------------------------- margins


def test_relu_margins_are_the_means_of_what_a_relu_cuts_off() -> None:
    """Against samples of N(bias, weight^2); far above 0, three deviations."""
    weight, bias = torch.tensor([1.0, -2.0, 0.5, 1.0]), torch.tensor([0.0, 1.0, -1.0, 10.0])
    samples = bias + weight * torch.randn(400_000, 4, generator=torch.Generator().manual_seed(0))
    got = relu_margins(weight, bias)
    torch.testing.assert_close(got[:3], mean_negative(samples)[:3], rtol=0.01, atol=0)
    assert got[3] == -3


def test_mean_negative_of_a_channel_without_negatives_is_0() -> None:
    rows = torch.tensor([[-1.0, 2], [-3, 4], [5, 0]])
    assert mean_negative(rows).tolist() == [-2, 0]


def test_ofd_leaves_alone_what_lies_below_the_teachers_cut() -> None:
    ofd = made("ofd", 2, 2, norm="none", margins=(-1.0, -1.0))
    nn.init.eye_(ofd.connector.weight)
    teacher = torch.tensor([[-5.0, 2.0], [-0.5, -5.0]], dtype=torch.float64)
    student = torch.tensor([[-3.0, 1.0], [-0.6, 1.0]], dtype=torch.float64)
    values, _ = ofd(student, teacher, torch.tensor([0, 1]), 2)
    assert values.tolist() == pytest.approx([0 + 1, 0 + 4])  # -3 <= -1 <= 0: free; 1 against max(-5, -1)
    with pytest.raises(ValueError, match="1 margins for a teacher of 2 channels"):
        made("ofd", 2, 2, margins=(-1.0,))


# ---------------------------------------------------------------- regression


def test_bounded_regression_takes_real_labels_through_the_objective() -> None:
    """Padded rows and their labels, NaN, change nothing; a row that beats the teacher costs nothing."""
    layout = Layout.padded("frame", torch.tensor([2, 1]), 2)
    nan = float("nan")
    target = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0], [nan, nan]], dtype=torch.float64)
    student = torch.tensor([[1.0, 1.0], [1.0, 1.5], [2.0, 2.0], [nan, nan]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, 1.0], [0.0, 0.0], [2.0, 2.0], [nan, nan]], dtype=torch.float64)
    said = [Signals().add("logits", rows, layout).add("labels", target, layout) for rows in (student, teacher)]
    got = Objective([Term(loss="bounded_reg")])(*said).value()
    assert got.item() == pytest.approx((2 + 0 + 0) / 3)
    with_margin = Objective([Term(loss="bounded_reg", params={"margin": 1.0})])(*said).value()
    assert with_margin.item() == pytest.approx((2 + 0 + 4) / 3)


# ---------------------------------------------------------------- the teacher's head


def test_srrl_sends_its_gradient_through_the_head_and_leaves_the_head_alone() -> None:
    head = nn.Linear(3, 2).double()
    student, teacher = randn(7, 4).requires_grad_(), randn(7, 3, seed=1).requires_grad_()
    srrl = made("srrl", 4, 3, weight=1.0)
    without = made("srrl", 4, 3, weight=0.0)
    values = [loss(student, teacher, ITEM, 3, head)[0] for loss in (srrl, without)]
    assert (values[0] > values[1])[[0, 2]].all() and values[0][1] == 0
    through = torch.autograd.grad((values[0] - values[1]).sum(), student)[0]
    assert (through.abs().sum(1) > 0).all()


def test_a_module_that_does_not_fit_is_the_users_error() -> None:
    layout = Layout.samples(3)
    signals = Signals().add("logits", randn(3, 4), layout).add("h", randn(3, 5), layout)
    term = Term(loss="lelp", on={"student": ["logits"], "teacher": ["logits", "h"]})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="term 'lelp': the student has 4 outputs, and 5 subclasses of 4 classes are 20"):
        Objective([term]).build(signals, signals, Streams(1))


# ---------------------------------------------------------------- fine-tuning, N to one, input gradients


def test_delta_weighs_the_channels_that_the_task_needs() -> None:
    """A network that reads only its second channel."""
    layer = nn.Linear(3, 4)
    data, target = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), None
    with torch.no_grad():
        target = layer(data)[:, 1].clone()

    def loss() -> Tensor:
        return (layer(data)[:, 1] - target).square().mean()

    risen = channel_importance(layer, 4, loss)
    assert risen[[0, 2, 3]].tolist() == [0, 0, 0] and risen[1] == pytest.approx(float(target.square().mean()))
    assert loss() == 0, "the hooks are gone"
    weights = delta_weights(risen)
    assert weights.sum() == pytest.approx(1) and weights.argmax() == 1
    z = (risen - risen.mean()) / risen.std(correction=0)
    torch.testing.assert_close(weights, torch.softmax(z / 5, 0))
    with pytest.raises(ValueError, match="2 channel weights for rows of 4 channels"):
        LOSSES["delta"].fn(randn(7, 4), randn(7, 4), ITEM, 3, channel_weights=(0.5, 0.5))


def test_n_to_one_merges_into_one_layer() -> None:
    module = NToOne(5, 3, segments=4).double()
    rows = randn(2, 7, 5)
    torch.testing.assert_close(module.merged()(rows), module(rows))
    assert module.expand(rows).shape == (2, 7, 12)


def test_jacobian_matching_trains_through_a_second_derivative() -> None:
    """The parameter's gradient against finite differences of the loss; the teacher gets none."""
    x, y = randn(4, 3), torch.tensor([0, 1, 1, 0])
    student, teacher = (nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double() for _ in range(2))

    def value() -> Tensor:
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        g_s = input_gradients(student(inputs[0]), inputs[0], y, graph=True)
        g_t = input_gradients(teacher(inputs[1]), inputs[1], y, graph=False)
        assert not g_t.requires_grad
        got: Tensor = LOSSES["jacobian"].fn(g_s, g_t).sum()
        return got

    weight = student[0].weight
    (grad,) = torch.autograd.grad(value(), weight)
    step = 1e-6
    for i, j in ((0, 0), (3, 2)):
        with torch.no_grad():
            weight[i, j] += step
        up = value().item()
        with torch.no_grad():
            weight[i, j] -= 2 * step
        down = value().item()
        with torch.no_grad():
            weight[i, j] += step
        assert grad[i, j].item() == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-8)
    with pytest.raises(ValueError, match="requires_grad_"):
        input_gradients(student(x), x, y, graph=True)


def test_vid_is_least_at_the_variance_of_its_errors() -> None:
    """With a regressor that says 0, the value as a function of the variance has its minimum at the mean square."""
    teacher = 2 * randn(50, 3)
    vid = made("vid", 4, 3)
    for parameter in vid.regressor.parameters():
        nn.init.zeros_(parameter)
    best = teacher.square().mean(0)
    with torch.no_grad():
        vid.raw.copy_(torch.log(torch.expm1(best - vid.eps)))
    values = vid(randn(50, 4), teacher)
    (grad,) = torch.autograd.grad(values.mean(), vid.raw)
    assert grad.abs().max() < 1e-12
    expected = 0.5 * (1 + best.log()).mean()
    torch.testing.assert_close(values.mean(), expected)
    start = F.softplus(made("vid", 4, 3, variance=2.0).raw) + vid.eps
    torch.testing.assert_close(start, torch.full((3,), 2.0, dtype=torch.float64), rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="not above its floor"):
        made("vid", 4, 3, variance=1e-6)


# ---------------------------------------------------------------- statistics against their oracles


def test_statistics_agree_with_their_oracles() -> None:
    """Margins, channel weights, and subclass directions up to their sign."""
    weight, bias = randn(30), 3 * randn(30, seed=1)
    torch.testing.assert_close(
        relu_margins(weight, bias), torch.from_numpy(oracle_relu_margins(weight.numpy(), bias.numpy()))
    )
    torch.testing.assert_close(delta_weights(bias), torch.from_numpy(oracle_delta_weights(bias.numpy())))
    h, classes, classifier = randn(60, 7), torch.arange(60) % 3, randn(3, 7, seed=1)
    got = subclass_statistics(h, classes, classifier, 2)
    expected = list(lelp_statistics(h.numpy(), classes.numpy(), classifier.numpy(), 2).values())
    for name, wanted in zip(("null", "mean", "directions", "scale"), expected, strict=True):
        own = got[name].double()
        if name == "directions":
            own, wanted = own.abs(), abs(wanted)
        torch.testing.assert_close(own, torch.from_numpy(wanted), rtol=1e-5, atol=1e-5)
