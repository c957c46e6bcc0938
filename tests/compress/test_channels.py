"""Channels found in real models: whatever is found to be one can change places with another, and nothing is heard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from oracles import scheme_compress as oracle
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kd.compress import origins, prune
from xmodal_kd.compress.channels import Channels
from xmodal_kd.compress.origins import Origin
from xmodal_kd.modalities.points.models import MODELS as POINTS
from xmodal_kd.modalities.points.models.centre import Answer
from xmodal_kd.modalities.speech.models import MODELS as SPEECH
from xmodal_kd.runtime.errors import UserError

SPEECH_INPUT = (torch.linspace(-1, 1, 2 * 40 * 10).sin().reshape(2, 40, 10) * 3, torch.tensor([40, 33]))
GRID = torch.linspace(-9, 9, 2 * 5 * 8 * 32).cos().reshape(2, 5, 8, 32)
POINT_INPUT = (torch.linspace(-30, 30, 80).sin().reshape(20, 4) * 5, torch.tensor([11, 9]))

#: Points, the pillar of each, and how many pillars there are.
PILLARS = (torch.linspace(-9, 9, 120).cos().reshape(24, 5), torch.arange(24) * 5 % 64, (1, 8, 8))


def speech(name: str, **params: Any) -> nn.Module:
    kind = SPEECH[name]
    return random(kind(kind.Config(**params), mels=10, classes=5))


def points(name: str, **params: Any) -> nn.Module:
    kind = POINTS[name]
    return random(kind(kind.Config(**params), channels=4 if name == "point_transformer" else 5, classes=6))


def random(model: nn.Module) -> nn.Module:
    """Gains and biases that are not trivial, so that no channel equals another."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    return model.eval()


class Normed(nn.Module):
    """What the rooms' models do not do: batch norm, gain by a parameter, a mean over time, a concatenation in place."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv1d(4, width, 3, padding=1), nn.BatchNorm1d(width)
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, width))
        self.up, self.head = nn.Linear(2 * width, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.first(x)))
        y = torch.cat([y.mean(dim=2) * self.gain, F.max_pool1d(y, x.shape[2]).squeeze(2)], dim=1)
        return self.head(torch.sigmoid(self.up(y)))  # type: ignore[no-any-return]


MODELS: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {
    "conv": (speech("conv", width=8, dilations=(1, 2)), SPEECH_INPUT),
    "conformer": (speech("conformer", width=8, layers=2, heads=2, feed_forward=12, kernel=3), SPEECH_INPUT),
    "range_unet": (points("range_unet", width=8, levels=3), (GRID,)),
    "image_unet": (points("image_unet", width=4, levels=2), (GRID[..., :7, :31],)),
    "point_transformer": (points("point_transformer", width=8, heads=2, blocks=3, window=4), POINT_INPUT),
    "centerpoint_pillar": (points("centerpoint_pillar", width=8), PILLARS),
    "normed": (random(Normed()), (torch.linspace(-5, 5, 2 * 4 * 9).sin().reshape(2, 4, 9),)),
}


def followed(model: nn.Module, given: tuple[Any, ...]) -> Channels:
    channels = Channels(model)
    with torch.no_grad(), channels.following(model):
        model(*given)
    return channels


def answer(model: nn.Module, given: tuple[Any, ...]) -> Tensor:
    with torch.no_grad():
        out = model(*given)
    if isinstance(out, Answer):
        return torch.cat(out, dim=1)
    return out[0] if isinstance(out, tuple) else out


def pairs(channels: Channels, group: prune.Group) -> Iterator[tuple[int, int]]:
    """Two channels of a group that sit in the same block of every partition."""
    blocks = [{int(n): i for i, b in enumerate(bs) for n in b} for _, bs in prune.current(channels)]
    numbers = group.channels.tolist()
    for a in numbers:
        for b in numbers:
            if a < b and all(block.get(a) == block.get(b) for block in blocks):
                yield a, b


def swap(channels: Channels, a: int, b: int) -> None:
    """Every entry of one channel changes places with the other's."""
    with torch.no_grad():
        for name, dim in channels.first:
            entries = channels.entries(name, dim)
            places = np.arange(len(entries))
            places[entries == a], places[entries == b] = np.flatnonzero(entries == b), np.flatnonzero(entries == a)
            weight = channels.state[name]
            weight.copy_(weight.index_select(dim, torch.from_numpy(places)))


@pytest.mark.parametrize("name", MODELS)
def test_channels_that_are_one_change_places_unheard(name: str) -> None:
    model, given = MODELS[name]
    channels, expected = followed(model, given), answer(model, given)
    tried = 0
    for group in prune.groups(channels):
        outside = {slot for slot, _ in group.slots.items() if slot[1] > 1}  # taps of a kernel are no channels
        found = list(pairs(channels, group))
        if outside or not found or _touches_input_or_output(name, group):
            continue
        for a, b in (found[0], found[-1]):
            swap(channels, a, b)
            torch.testing.assert_close(answer(model, given), expected, rtol=1e-4, atol=1e-5)
            tried += 1
    assert tried >= 4


def _touches_input_or_output(name: str, group: prune.Group) -> bool:
    """Channels of the data and of the classes have places of their own."""
    return any(
        (slot[0].startswith(("head", "heat.1", "boxes.1")) and slot[1] == 0) or (len(group.slots) == 1 and slot[1] == 1)
        for slot in group.slots
    )


def test_a_residual_stream_is_one_and_a_hidden_layer_its_own() -> None:
    model, given = MODELS["conv"]
    sizes = {frozenset(g.slots): len(g.channels) for g in prune.groups(followed(model, given))}
    hidden = frozenset({("blocks.0.mlp.0.weight", 0), ("blocks.0.mlp.0.bias", 0), ("blocks.0.mlp.2.weight", 1)})
    assert sizes[hidden] == 16
    [stream] = [slots for slots in sizes if ("head.weight", 1) in slots]
    assert {
        ("subsample.convolutions.1.weight", 0),
        ("blocks.1.mlp.2.weight", 0),
        ("blocks.0.depthwise.weight", 0),
    } < stream


def test_queries_are_one_with_their_keys_by_heads() -> None:
    model, given = MODELS["conformer"]
    channels = followed(model, given)
    [query] = [g for g in prune.groups(channels) if set(g.slots) == {
        ("blocks.0.self_attn.in_proj_weight", 0), ("blocks.0.self_attn.in_proj_bias", 0)}]  # fmt: skip
    assert len(query.channels) == 8 and set(query.slots.values()) == {2}
    assert [len(blocks) for kind, blocks in channels.partitions if kind == "heads"] == [2, 2]


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 4)

    def forward(self, x: Tensor, written: bool) -> Tensor:
        if not written:
            return torch.cumsum(self.a(x), dim=1)
        y = torch.zeros(2, 4)
        y[:, [3, 2, 1, 0]] = self.a(x)
        return y


@pytest.mark.parametrize(("written", "said"), [(False, "'cumsum'"), (True, "'__setitem__'")])
def test_what_cannot_be_followed_is_said_in_one_line(written: bool, said: str) -> None:
    with pytest.raises(UserError, match=f"cannot be followed through {said}"):
        followed(Odd(), (torch.ones(2, 3), written))


# ---------------------------------------------------------------- choice


def pruned(teacher: nn.Module, student: nn.Module, given: tuple[Any, ...]) -> prune.Floats:
    """Give the student the teacher's best channels by l1; returns how important each channel was."""
    theirs, mine = followed(teacher, given), followed(student, given)
    names = origins.names(student, teacher)
    groups = prune.groups(theirs)
    wanted = {(names[n], dim): size for n, v in mine.state.items() for dim, size in enumerate(v.shape)}
    scores = prune.importance(theirs, prune.l1(theirs.state))
    parts = prune.partitions(theirs, mine, names)
    kept = prune.kept(theirs, prune.choose(groups, prune.sizes(groups, wanted), scores, parts))
    origins.copy(student, teacher, {mine: Origin(other, kept.get(other, ())) for mine, other in names.items()})
    return scores


@pytest.mark.parametrize(("big", "small"), [
    (speech("conv", width=8, dilations=(1, 2, 4)), speech("conv", width=6, dilations=(1, 2))),
    (speech("conformer", width=16, layers=2, heads=4, feed_forward=12, kernel=3),
     speech("conformer", width=8, layers=1, heads=2, feed_forward=8, kernel=3)),
    (speech("conformer", width=16, layers=1, heads=4, feed_forward=12, kernel=3),
     speech("conformer", width=8, layers=1, heads=4, feed_forward=8, kernel=3)),
])  # fmt: skip
def test_every_narrower_student_gets_weights_of_its_teacher(big: nn.Module, small: nn.Module) -> None:
    pruned(big, small, SPEECH_INPUT)
    theirs, mine = set(big.state_dict()["head.weight"].flatten().tolist()), small.state_dict()["head.weight"]
    assert set(mine.flatten().tolist()) <= theirs


def test_a_detector_of_fewer_channels_starts_with_some_of_its_teachers() -> None:
    """As SparseKD's inherits weights by the norms of filters: points pooled into pillars included."""
    big, small = points("centerpoint_pillar", width=16), points("centerpoint_pillar", width=8)
    pruned(big, small, PILLARS)
    for name in ("point.0.weight", "heat.1.weight", "boxes.1.weight"):
        theirs, mine = (set(model.state_dict()[name].flatten().tolist()) for model in (big, small))
        assert mine < theirs, name
    assert torch.equal(small.state_dict()["boxes.1.bias"], big.state_dict()["boxes.1.bias"])


def test_unets_keep_as_many_channels_of_every_norm_group() -> None:
    big, small = points("range_unet", width=16, levels=2), points("range_unet", width=8, levels=2)
    pruned(big, small, (GRID,))
    gains = big.state_dict()["encoder.0.0.norm.weight"].reshape(4, 4)
    for group, mine in zip(gains, small.state_dict()["encoder.0.0.norm.weight"].reshape(4, 2), strict=True):
        assert set(mine.tolist()) <= set(group.tolist())


class Joined(nn.Module):
    """A norm over two tensors behind each other, whose groups are those of neither."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 2 * width, 1), nn.Conv1d(3, width, 1)
        self.norm, self.head = nn.GroupNorm(4, 3 * width), nn.Conv1d(3 * width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(torch.cat([self.a(x), self.b(x)], dim=1)))  # type: ignore[no-any-return]


def test_norm_groups_across_a_concatenation_bind_nothing() -> None:
    big, small = random(Joined(8)), random(Joined(4))
    pruned(big, small, (torch.linspace(-2, 2, 30).sin().reshape(2, 3, 5),))
    best = big.state_dict()["b.weight"].abs().sum(dim=(1, 2)).argsort(descending=True)[:4].sort().values
    assert torch.equal(small.state_dict()["b.weight"], big.state_dict()["b.weight"][best])


def test_dead_hidden_channels_are_the_ones_that_go() -> None:
    """A teacher of which a student's worth is alive: the student answers as it does."""
    big, small = speech("conv", width=8, dilations=(1, 2)), speech("conv", width=8, dilations=(1, 2), expansion=1)
    with torch.no_grad():
        for block in big.blocks:  # type: ignore[union-attr]
            dead = torch.arange(16) % 2 == 1
            block.mlp[0].weight[dead] = 0  # type: ignore[index]
            block.mlp[0].bias[dead] = 0  # type: ignore[index]
    pruned(big, small, SPEECH_INPUT)
    torch.testing.assert_close(answer(small, SPEECH_INPUT), answer(big, SPEECH_INPUT), rtol=1e-5, atol=1e-6)


def test_importance_is_the_oracles() -> None:
    model, given = MODELS["conv"]
    channels = followed(model, given)
    weight = model.state_dict()["blocks.0.mlp.0.weight"].double()
    slope = torch.linspace(-1, 1, weight.numel(), dtype=torch.float64).reshape(weight.shape)
    name = "blocks.0.mlp.0.weight"
    entries = channels.entries(name, 0)
    mine = prune.importance(channels, prune.l1({name: weight}))[entries]
    np.testing.assert_allclose(mine, oracle.l1_importance([(weight.numpy(), 0)]))
    mine = prune.importance(channels, prune.taylor({name: weight}, {name: slope}))[entries]
    np.testing.assert_allclose(mine, oracle.taylor_importance([(weight.numpy(), slope.numpy(), 0)]))
    group = prune.Group({(name, 0): 1}, entries)
    stays = prune.choose([group], [5], prune.importance(channels, prune.l1({name: weight})))
    scores = oracle.l1_importance([(weight.numpy(), 0)])
    assert np.flatnonzero(stays[entries]).tolist() == oracle.kept(scores, 5)


def test_sizes_that_no_choice_gives_are_refused() -> None:
    big = speech("conformer", width=16, layers=1, heads=4, feed_forward=12, kernel=3)
    with pytest.raises(UserError, match="1 heads of 8 cannot be chosen from 4"):
        pruned(big, speech("conformer", width=8, layers=1, heads=1, feed_forward=8, kernel=3), SPEECH_INPUT)
    with pytest.raises(UserError, match="which no choice of the teacher's channels gives"):
        pruned(big, speech("conformer", width=32, layers=1, heads=4, feed_forward=8, kernel=3), SPEECH_INPUT)


# ---------------------------------------------------------------- layers


def test_layers_are_those_that_the_rule_says() -> None:
    big, small = (speech("conformer", width=8, layers=n, heads=2, feed_forward=8, kernel=3) for n in (4, 2))
    for layers, expected in (("uniform", [1, 3]), ("last", [2, 3]), ((0, 3), [0, 3])):
        names = origins.names(small, big, layers)  # type: ignore[arg-type]
        assert [names[f"blocks.{i}.ffn1.sequential.1.weight"] for i in range(2)] == [
            f"blocks.{n}.ffn1.sequential.1.weight" for n in expected
        ]
        origins.copy(small, big, {mine: Origin(theirs) for mine, theirs in names.items()})
        for i, n in enumerate(expected):
            mine, theirs = (m.get_submodule(f"blocks.{k}").state_dict() for m, k in ((small, i), (big, n)))
            assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_layers_and_widths_that_do_not_fit_are_refused() -> None:
    big, small = (speech("conformer", width=8, layers=n, heads=2, feed_forward=8, kernel=3) for n in (2, 4))
    with pytest.raises(UserError, match="the student has 4 layers in 'blocks', the teacher only 2"):
        origins.names(small, big)
    with pytest.raises(UserError, match="needs 2 of the teacher's 0 to 3"):
        origins.names(big, small, (0, 4))
    wide = speech("conformer", width=16, layers=2, heads=2, feed_forward=8, kernel=3)
    with pytest.raises(UserError, match="width_prune chooses channels"):
        origins.copy(big, wide, {name: Origin(name) for name in big.state_dict()})
    with pytest.raises(UserError, match="which there is not"):
        origins.names(big, MODELS["conv"][0])
