"""SDXL-Lightning against somebody else's formulas: where steps begin and end, what is told apart, who teaches whom."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import lightning_by_another as oracle
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from toy_samples import Adapter, Source, context, denoiser

from xmodal_kd.modalities.diffusion.methods.discriminator import Head, PairDiscriminator, StridedHead
from xmodal_kd.modalities.diffusion.methods.lightning import EARLIER, Lightning, ladder, usual_rounds
from xmodal_kd.modalities.diffusion.models.denoiser import Denoiser, Sampling
from xmodal_kd.modalities.diffusion.models.networks import UNetConfig, build_unet
from xmodal_kd.modalities.diffusion.models.paths import Edm, Flow
from xmodal_kd.modalities.diffusion.models.process import Process
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Optimizer, Train
from xmodal_kd.runtime.checkpoint import digest
from xmodal_kd.runtime.device import make_accelerator
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.training.engine import Engine
from xmodal_kd.training.method import Stage

T, D, C, H = 1000, 5, 3, 6
TABLE = oracle.alpha_bar(T)
PROCESS = Process(np.array(TABLE[1:]))


class Backbone(nn.Module):
    """The oracle's d: tanh(W x + V c + b t / T). Its times are one more, and it is asked of none below 1."""

    def __init__(self, draw: np.random.RandomState) -> None:
        super().__init__()
        self.P = {"W": draw.randn(H, D) * 0.5, "V": draw.randn(H, C) * 0.5, "b": draw.randn(H)}
        self.W, self.V, self.b = (nn.Parameter(torch.tensor(value)) for value in self.P.values())

    def forward(self, z: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        c = nn.functional.one_hot(labels, C).double()
        return torch.tanh(z @ self.W.T + c @ self.V.T + ((t + 1).double() / T)[:, None] * self.b)


class Net(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = np.random.RandomState(seed)
        self.body, self.out = Backbone(draw), nn.Parameter(torch.tensor(draw.randn(D, H) * 0.3))

    def forward(self, z: Tensor, t: Tensor, class_labels: Tensor) -> Tensor:
        said: Tensor = self.body(z, t, class_labels) @ self.out.T
        return said


class Line(nn.Module):
    """A head of known weights ``(n,)``."""

    def __init__(self, weights: np.ndarray) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights))

    def forward(self, features: Tensor) -> Tensor:
        return features @ self.weights


def model(seed: int) -> Denoiser:
    return Denoiser(Net(seed), PROCESS, "v_prediction", (D,), classes=C, sampling=Sampling("ddim", 8))


def method(steps: int = 8, train: Train | None = None, **params: Any) -> Lightning:
    params = {"at": "net.body", "mse": 0, **params}
    train = train or Train(steps=4, batch_size=6)
    return Lightning(Adapter(steps), Objective(()), train, Streams(1), params=Lightning.Params(**params))  # type: ignore[arg-type]


def batch_of(seed: int = 0, size: int = 9) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, size, D, generator=draw, dtype=torch.float64)
    u = torch.linspace(0, 0.999, size, dtype=torch.float64)
    return {"ids": torch.arange(size), "x": x, "noise": noise, "u": u, "labels": torch.arange(size) % C}


def begun(one: Lightning, name: str) -> tuple[dict[str, nn.Module], dict[str, Tensor], Stage]:
    """Roles at the beginning of a stage: teachers of their own weights."""
    roles: dict[str, nn.Module] = {"teacher": model(1).eval().requires_grad_(False), "student": model(2)}
    batch, stage = batch_of(), next(stage for stage in one.own_stages() if stage.name == name)
    one.round = one.number(stage)
    roles[EARLIER] = model(3).eval().requires_grad_(False)
    one.begin(stage, roles, batch)
    roles["student"].load_state_dict(model(2).state_dict())
    return roles, batch, stage


def noise_of(one: Denoiser, label: int) -> Any:
    """What it says of the noise in one sample, as the oracle asks: its times are one more."""

    def said(x: np.ndarray, t: int) -> np.ndarray:
        with torch.no_grad():
            z, when = torch.tensor(x)[None], torch.tensor([t - 1])
            return one.predict("epsilon", z, when, torch.tensor([label]))[0].numpy()

    return said


def ends(one: Lightning, roles: Any, batch: Any, z: Tensor, rung: Tensor, stage: Stage) -> tuple[Any, Any, Any, Any]:
    """By the oracle of each sample: the times of a step, the teacher's end and the student's."""
    how = one.steps(stage)
    counts = {name: how.fine // rungs for name, rungs in (("teacher", how.taught), ("student", how.stride))}
    times = [int(t) + 1 for t in ladder(PROCESS, how.fine, z.device)[rung]]
    _, several, pairs = oracle.round_pairs(T, counts["teacher"], counts["student"], times)
    assert several == how.several
    teacher, real, made = roles[EARLIER if one.skips(stage) else "teacher"], [], []
    for i, (t, after, path) in enumerate(pairs):
        label, x = int(batch["labels"][i]), z[i].numpy()
        real.append(oracle.teacher_target(x, path, noise_of(teacher, label), TABLE))
        made.append(oracle.move(x, noise_of(roles["student"], label)(x, t), t, after, TABLE))
    return times, [after for _, after, _ in pairs], real, made


#: Of rounds 4, 2, 1 after a teacher of 8 steps: the times at which steps begin, and the teacher's number of steps.
STAGES = {
    "flow-4": ([250, 500, 750, 1000], 8), "steps-4": ([250, 500, 750, 1000], 8),
    "flow-2": (oracle.TRAIN_TIMES_FEW, 4), "steps-2": (oracle.TRAIN_TIMES_FEW, 8),
    "flow-1": (oracle.TRAIN_TIMES_FEW, 2), "steps-1": (oracle.TRAIN_TIMES_FEW, 4),
}  # fmt: skip


@pytest.mark.parametrize("name", list(STAGES))
def test_steps_begin_and_end_where_the_oracle_s_do(name: str) -> None:
    one = method(rounds=(4, 2, 1))
    roles, batch, stage = begun(one, name)
    how, ctx = one.steps(stage), context(stage)
    assert (how.fine // how.taught, how.fine // how.stride) == (STAGES[name][1], int(name[-1]))
    if one.relaxes(stage):
        assert how.fine // how.taught == (oracle.teacher_of(int(name[-1]), skip=True) if name != "steps-4" else 8)
    z, rung = one.begun(PROCESS, batch, ctx, "student")
    times, _, real, made = ends(one, roles, batch, z, rung, stage)
    assert sorted(set(times)) == STAGES[name][0]
    for i, t in enumerate(times):
        expected = oracle.forward_fixed(batch["x"][i].numpy(), batch["noise"][i].numpy(), t, TABLE)
        np.testing.assert_allclose(z[i].numpy(), expected, rtol=1e-12)
        assert (t == T) == torch.equal(z[i], batch["noise"][i])  # no trace of the sample at the last timestep
    labels = batch["labels"]
    with torch.no_grad():
        np.testing.assert_allclose(one.taught(roles, z, rung, labels, stage).numpy(), real, rtol=1e-8, atol=1e-10)
        arrived = one.arrived(roles["student"], z, rung, labels, stage)  # type: ignore[arg-type]
    np.testing.assert_allclose(arrived.numpy(), made, rtol=1e-8, atol=1e-10)
    values = one.values(batch, roles, ctx).detach().numpy()
    np.testing.assert_allclose(values, np.square(np.subtract(made, real)).mean(axis=1), rtol=1e-7)


@pytest.mark.parametrize("name", list(STAGES))
def test_both_players_lose_what_the_oracle_s_do(name: str) -> None:
    """Losses of the discriminator and of the student, and the gradient of the latter by the student's ends."""
    one = method(rounds=(4, 2, 1), critic=2)
    roles, batch, stage = begun(one, name)
    judge, draw, ctx, labels = one.judge, np.random.RandomState(7), context(stage), batch["labels"]
    assert isinstance(judge, PairDiscriminator) and judge.pair == name.startswith("flow")
    assert judge.backbone.state_dict().keys() == roles["teacher"].state_dict().keys()
    relaxed, weights = not judge.pair, draw.randn(2 * H)
    P = {**judge.backbone.net.body.P, "w": weights, "v": weights[:H]}  # type: ignore[union-attr]
    judge.head = Line(weights[:H] if relaxed else weights)
    turns = list(one.losses(batch, roles, ctx))
    assert [turn for turn, _ in turns] == ["discriminator", "discriminator", "student"]
    for turn, out in zip((0, 1, "student"), (found for _, found in turns), strict=True):
        z, rung = one.begun(PROCESS, batch, ctx, turn)
        times, after, real, made = ends(one, roles, batch, z, rung, stage)
        levels = np.zeros(len(z))
        if name[-1] == "1":
            at, noise = one.levels(PROCESS, ctx, turn, z)
            levels = after = [int(t) + 1 for t in at]  # type: ignore[assignment]
            assert set(after) <= set(oracle.RENOISE_TIMES)
            real, made = oracle.renoise(np.array(real), np.array(made), noise.numpy(), after, TABLE)
        shown = [max(t, 1) for t in after]  # of the clean sample it is asked at its first timestep
        c = np.eye(C)[labels.numpy()]
        expected = oracle.toy_losses(P, T, z.numpy(), times, real, made, shown, c, relaxed)
        key, part = ("L_G", "lightning") if turn == "student" else ("L_D", "discriminator")
        assert out.parts[part].total.item() / len(z) == pytest.approx(expected[key], rel=1e-8)
        if turn == "student":
            leaf = torch.tensor(np.array(made)).requires_grad_()
            if name[-1] != "1":
                (told,) = one.logits([leaf], z, rung, labels, PROCESS, ctx, turn)
                nn.functional.softplus(-told).mean().backward()
                assert leaf.grad is not None and not levels.any()
                np.testing.assert_allclose(leaf.grad.numpy(), expected["dLG_dfake_end"], rtol=1e-8, atol=1e-12)


def test_each_turn_moves_its_own() -> None:
    """What the discriminator's features do not hang on rests, and it is not moved by the student's turn."""
    one = method(rounds=(4, 2, 1))
    roles, batch, stage = begun(one, "flow-2")
    judge = one.judge
    assert isinstance(judge, PairDiscriminator)
    assert [name for name, p in judge.backbone.named_parameters() if not p.requires_grad] == ["net.out"]
    for name, out in one.losses(batch, roles, context(stage)):
        out.value().backward()
        learns, rests = (judge, roles["student"]) if name == "discriminator" else (roles["student"], judge)
        assert all(p.grad is not None for p in learns.parameters() if p.requires_grad)
        assert all(p.grad is None for p in [*rests.parameters(), *roles["teacher"].parameters()])
        for owner in (judge, roles["student"]):
            owner.zero_grad()


def test_optimizers_of_adversarial_stages() -> None:
    config = Optimizer(name="adam", lr=1e-3, lr_scale={"student.net.out": 0.5})
    one = method(rounds=(4, 2, 1), mse=1, lr=0.1, critic_lr=2.0, train=Train(steps=4, batch_size=6, optimizer=config))
    roles: dict[str, nn.Module] = {"teacher": model(1).requires_grad_(False), "student": model(2)}
    for stage in one.own_stages()[:2]:
        made = one.begin(stage, roles, batch_of())
        rates = {name: sorted({group["lr"] for group in o.param_groups}) for name, o in made.items()}
        if stage.name == "steps-4":
            assert rates == {"student": [5e-4, 1e-3]} and made["student"].defaults["betas"] == (0.9, 0.999)
        else:
            assert stage.name == "flow-2" and rates["student"] == pytest.approx([5e-5, 1e-4])
            assert rates["discriminator"] == pytest.approx([2e-4])
            assert {o.defaults["betas"] for o in made.values()} == {(0.0, 0.99)}


def test_levels_of_one_step_are_drawn_as_the_paper_has_it() -> None:
    one = method(rounds=(4, 2, 1))
    for stage, phase in ((one.own_stages()[-2], "first"), (one.own_stages()[-1], "later")):
        t, _ = one.levels(PROCESS, context(stage), 0, torch.zeros(4000, 1))
        counts = [int((t + 1 == level).sum()) / 4000 for level in oracle.RENOISE_TIMES]
        assert counts == pytest.approx(oracle.renoise_probabilities(phase), abs=0.03)


def test_rounds_of_the_paper() -> None:
    assert usual_rounds(128) == oracle.CHAIN[1:] and usual_rounds(64) == [16, 4, 2, 1] and usual_rounds(2) == [1]
    one = method(128, train=Train(steps=10, batch_size=6), mse=1)
    assert [(stage.name, stage.steps) for stage in one.own_stages()] == [
        ("steps-32", 10), ("flow-8", 10), ("steps-8", 5), ("flow-4", 10), ("steps-4", 5), ("flow-2", 10),
        ("steps-2", 5), ("flow-1", 10), ("steps-1", 5),
    ]  # fmt: skip
    one = method(8, mse=9)
    assert [stage.name for stage in one.own_stages()] == ["steps-4", "steps-2", "steps-1"]
    one = method(8, relaxed=0.0)
    assert not any(one.relaxes(stage) or one.skips(stage) for stage in one.own_stages())


@pytest.mark.parametrize("resumed", [False, True])
def test_who_teaches_whom(resumed: bool) -> None:
    """The student of the round before; in the relaxed stages of two steps and of one that of the round before it."""
    one = method(rounds=(4, 2, 1))
    first = model(1).eval().requires_grad_(False)
    first.guidance, first.null = 3.0, torch.tensor([2])
    roles: dict[str, nn.Module] = {"teacher": first, "student": model(2)}
    found: dict[str, tuple[Any, Any]] = {}
    for stage in one.own_stages()[5 if resumed else 0 :]:
        one.begin(stage, roles, batch_of())
        found[stage.name] = (roles["teacher"], roles.get(EARLIER))
        assert roles["student"].sampling == Sampling("ddim", int(stage.name[-1]))
        assert isinstance(one.judge, PairDiscriminator) and one.judge.backbone.guidance == 1.0
        assert one.judge.backbone is not first and one.pretrained is first and one.judge.training
        with torch.no_grad():
            roles["student"].net.out += 1.0  # type: ignore[union-attr]
    teacher, earlier = found["steps-1"]
    for role in (teacher, earlier):  # shapes into which a checkpoint's weights are put
        assert role is not first and role.guidance == 1.0 and not role.training
        assert not any(p.requires_grad for p in role.parameters())
    if resumed:
        return
    assert found["flow-4"] == found["steps-4"] == (first, None)
    assert found["flow-2"] == found["steps-2"] and found["flow-2"][1] is first
    assert found["flow-1"] == found["steps-1"] == (teacher, found["flow-2"][0])
    digests = [digest(role.state_dict().items()) for role in (first, earlier, teacher, roles["student"])]
    assert len(set(digests)) == 4


@pytest.mark.parametrize("process", [Process.cosine(64), Edm(steps=64), Flow(steps=64)], ids=["vp", "edm", "flow"])
def test_a_run_to_one_step(tmp_path: Path, process: Process) -> None:
    train = Train(steps=2, batch_size=6, optimizer=Optimizer(lr=1e-3))
    one = Lightning(Adapter(8), Objective(()), train, Streams(1), params=Lightning.Params(at="net.body"))  # type: ignore[arg-type]
    kinds = {"process": process, "prediction": process.natural, "classes": 2}
    roles: dict[str, nn.Module] = {"teacher": denoiser(seed=1, **kinds), "student": denoiser(seed=2, **kinds)}
    one.check(roles)
    seen: list[str] = []
    Engine(
        one, Source((3,), Streams(1), classes=2), roles, train, streams=Streams(1), quiet=True, folder=tmp_path,
        accelerator=make_accelerator("cpu", "fp32"), finished=lambda stage, _: seen.append(stage.name),
    ).fit()  # fmt: skip
    assert seen == ["steps-4", "flow-2", "steps-2", "flow-1", "steps-1"]
    assert roles["student"].sampling == Sampling("ddim", 1)
    assert all(bool(value.isfinite().all()) for value in roles["student"].state_dict().values())


def test_heads_by_the_shape_of_what_they_read() -> None:
    """Convolutions at stride 2 until a side is one place; a line over what has no rows and columns."""
    for shape, kinds in (((8, 4, 4), 2), ((8, 5, 9), 2), ((8, 2, 2), 1)):
        head = StridedHead(shape)
        assert sum(isinstance(layer, nn.Conv2d) for layer in head.narrow) == kinds
        assert head(torch.randn(3, *shape)).shape == (3,)


def test_a_unet_s_middle_is_the_backbone() -> None:
    net = build_unet(UNetConfig(channels=[8, 16]), (1, 8, 8), None)
    judge = PairDiscriminator(
        Denoiser(net, Process.cosine(64), "v_prediction", (1, 8, 8)), "net.mid_block", torch.randn(2, 1, 8, 8), None,
        pair=True,
    )  # fmt: skip
    assert isinstance(judge.head, StridedHead) and judge.head.narrow[0].in_channels == 32
    rests = {name.split(".")[1] for name, p in judge.backbone.named_parameters() if not p.requires_grad}
    assert rests == {"up_blocks", "conv_norm_out", "conv_out"}
    vector = PairDiscriminator(denoiser((3,)), "net.body", torch.randn(2, 3), None, pair=False)
    assert isinstance(vector.head, Head)


@pytest.mark.parametrize(
    ("steps", "params", "told"),
    [
        (8, {"rounds": (3, 1)}, "method.params.rounds: 3 steps do not divide 8"),
        (8, {"rounds": (8, 1)}, "method.params.rounds: 8 steps do not divide 8"),
        (12, {}, "method.params.rounds: 2 does not divide 3 steps: name those of all rounds"),
        (1, {}, "data.sampling.steps: a teacher of one step"),
        (8, {"at": "net.boddy"}, "no module 'net.boddy'"),
        (8, {"rounds": (2,), "starts": 1001}, "on a process of 1000 timesteps: choose 1 to 1000"),
    ],
)
def test_what_cannot_be_is_refused(steps: int, params: dict[str, Any], told: str) -> None:
    roles = {"teacher": model(1), "student": model(2)}
    with pytest.raises(UserError, match=re.escape(told)):
        method(steps, **params).check(roles)


@pytest.mark.parametrize("params", [{"betas": (1.5, 0.99)}, {"levels": (0.5, 2.0)}, {"levels": (0.0,)}])
def test_numbers_out_of_bounds_are_refused_where_the_recipe_is_read(params: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(params))):
        Lightning.Params(**params)


def test_other_samplers_are_refused() -> None:
    one = Lightning(Adapter(8, "heun"), Objective(()), Train(steps=4), Streams(1))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="lightning follows ddim, not heun"):
        one.check({"teacher": model(1), "student": model(2)})
