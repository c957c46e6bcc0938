"""Progressive and consistency distillation: values against the oracles, stages, roles and resume."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import diffusion as oracle
from oracles import few_step as more
from scheme_runs import resumed, weights
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from toy_samples import Adapter, Source, context, denoiser, said_by

from xmodal_kd.modalities.diffusion.methods import consistency, every, progressive  # noqa: F401 - registers
from xmodal_kd.modalities.diffusion.methods.few_step import FewStep
from xmodal_kd.modalities.diffusion.models.denoiser import Denoiser, Sampling
from xmodal_kd.modalities.diffusion.models.paths import Edm, Flow
from xmodal_kd.modalities.diffusion.models.process import Process
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term, Train
from xmodal_kd.recipe.schedules import Schedule
from xmodal_kd.runtime.checkpoint import digest
from xmodal_kd.runtime.device import make_accelerator
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.training.engine import Engine
from xmodal_kd.training.method import METHODS, Stage

SHAPES = [(3,), (2, 4), (1, 2, 2), (2, 2, 2, 2)]
PROCESS = Process.cosine(64)
SCHEDULE = oracle.Schedule(oracle.cosine_table(64))


def objective() -> Objective:
    return Objective([Term(loss="hint", on="prediction")])


def method(name: str, *, steps: int = 5, adapter: Adapter | None = None, terms: Any = None, **params: Any) -> Any:
    kind = METHODS[name]
    train = Train(steps=steps, batch_size=6, schedule=Schedule(kind="linear"), checkpoint_every=1)
    made = terms if terms is not None else objective()
    return kind(adapter or Adapter(), made, train, Streams(1), params=kind.Params(**params))


def batch_of(shape: Sequence[int], seed: int = 0, size: int = 7) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(size, *shape, generator=draw, dtype=torch.float64)
    noise = torch.randn(size, *shape, generator=draw, dtype=torch.float64)
    return {"ids": torch.arange(size), "x": x, "noise": noise, "u": torch.linspace(0, 0.999, size, dtype=torch.float64)}


def double(shape: Sequence[int], seed: int) -> Denoiser:
    return denoiser(shape, seed=seed, process=PROCESS).double()


# -------------------------------------------------------------------- values


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 2, 4, 16])
def test_progressive_is_the_oracles(shape: Sequence[int], steps: int) -> None:
    teacher, student, batch = double(shape, 1), double(shape, 2), batch_of(shape)
    made = method("progressive", adapter=Adapter(2 * steps))
    values = made.values(
        batch, {"teacher": teacher, "student": student}, context(Stage(f"steps-{steps}", 1, frozenset()))
    )
    for i in range(7):
        index = min(int(batch["u"][i] * steps), steps - 1)
        x, noise = batch["x"][i].numpy(), batch["noise"][i].numpy()
        expected = oracle.progressive_loss(
            SCHEDULE, said_by(student, shape), said_by(teacher, shape), x, noise, index, steps
        )
        assert values[i].item() == pytest.approx(expected, rel=1e-8)


def test_the_target_is_stable_in_single_precision() -> None:
    shape, batch = (4,), batch_of((4,), size=64)
    process = Process.cosine(1024)
    teacher = denoiser(shape, process=process)
    single = {k: v.float() if v.is_floating_point() else v for k, v in batch.items()}
    with torch.no_grad():
        _, _, rough = progressive.progressive_target(teacher, single, 512)
        _, _, exact = progressive.progressive_target(teacher.double(), batch, 512)
    torch.testing.assert_close(rough.double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("solver", ["ddim", "heun"])
@pytest.mark.parametrize("distance", ["l2", "huber"])
def test_consistency_is_the_oracles(shape: Sequence[int], solver: str, distance: str) -> None:
    roles = {"teacher": double(shape, 1), "student": double(shape, 2), "target": double(shape, 3)}
    batch, steps = batch_of(shape), 8
    made = method("consistency", grid=steps, solver=solver, distance=distance)
    values = made.values(batch, roles, context(Stage("consistency", 1, frozenset())))
    c = 0.00054 * np.sqrt(np.prod(shape)) if distance == "huber" else None
    student, target, teacher = (said_by(roles[name], shape) for name in ("student", "target", "teacher"))
    for i in range(7):
        x, noise, index = batch["x"][i].numpy(), batch["noise"][i].numpy(), min(int(batch["u"][i] * steps), steps - 1)
        expected = oracle.consistency_loss(
            SCHEDULE, student, target, teacher, x, noise, index, steps, solver=solver, huber=c
        )
        assert values[i].item() == pytest.approx(expected, rel=1e-7, abs=1e-12)


@pytest.mark.parametrize(
    ("process", "compare"), [(Edm(steps=64), None), (Edm(steps=64), "sample"), (Flow(steps=64), None), (PROCESS, None),
                             (Flow(steps=64), "network"), (PROCESS, "network")],
)  # fmt: skip
def test_consistency_is_compared_in_what_networks_say(process: Process, compare: str | None) -> None:
    """On EDM unless said; there x is c_out F beside what both share (Karras et al., 2022), else sigma v."""
    models = [denoiser((3,), seed=i, process=process, prediction=process.natural).double() for i in (1, 2, 3)]
    roles, batch = dict(zip(("teacher", "student", "target"), models, strict=True)), batch_of((3,))
    made = method("consistency", grid=8, distance="l2", **({"compare": compare} if compare else {}))
    values = made.values(batch, roles, context(Stage("consistency", 1, frozenset())))
    z, t, lower, after = consistency.neighbours(roles["teacher"], batch, 8, "ddim")
    off = roles["student"].consistency(z, t) - roles["target"].consistency(lower, after)
    sigma = process.sigma(t)[:, None]
    scale = torch.ones_like(sigma)
    if compare == "network" or (process.kind == "edm" and compare is None):
        scale = sigma * 0.5 / (sigma**2 + 0.5**2).sqrt() if process.kind == "edm" else sigma
    torch.testing.assert_close(values, (off / scale).square().mean(dim=1), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("step", [0, 9])
def test_ect_is_the_oracles(shape: Sequence[int], step: int) -> None:
    student, batch = double(shape, 2), batch_of(shape)
    made, stage = method("ect", grid=8, q=3.0, doublings=4), Stage("consistency", 12, frozenset())
    ctx = context(stage, step)
    values = made.values(batch, {"teacher": student, "student": student}, ctx)
    levels, _ = made.levels(PROCESS, batch["u"], ctx)

    def denoise(y: np.ndarray, s: float) -> np.ndarray:
        t = PROCESS.time_of(torch.tensor([s], dtype=torch.float64))
        z = torch.tensor(y).reshape(1, *shape) / np.sqrt(1 + s**2)
        with torch.no_grad():
            return student.consistency(z, t)[0].numpy()

    for i in range(7):
        expected = oracle.ect_loss(
            denoise, batch["x"][i].numpy(), batch["noise"][i].numpy(), float(levels[i]), q=3.0,
            stage=0 if step == 0 else 3, c=0.00054 * np.sqrt(np.prod(shape)),
        )  # fmt: skip
        assert values[i].item() == pytest.approx(expected, rel=1e-6)


def test_ect_draws_the_same_dropout_on_both_sides() -> None:
    """Only then do sides that are nearly the same sample differ by nearly nothing."""
    model, batch = denoiser((4,), dropout=0.5).double().train(), batch_of((4,))
    made = method("ect", grid=8, q=1e9, doublings=1)
    ctx = context(Stage("consistency", 1, frozenset()))
    level, other = made.levels(PROCESS, batch["u"], ctx)
    assert float((level / other).max()) < 1 + 1e-7
    values = made.values(batch, {"teacher": model, "student": model}, ctx)
    assert float(values.detach().max()) < 50  # other units would make it the inverse of the sides' distance


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("step", [0, 11])
def test_ict_is_the_oracles(shape: Sequence[int], step: int) -> None:
    student, batch = double(shape, 2), batch_of(shape)
    made, stage = method("ict", grid=8, first=3, last=12, mean=-0.5, std=1.5), Stage("consistency", 12, frozenset())
    ctx = context(stage, step)
    values = made.values(batch, {"teacher": student, "student": student}, ctx)
    count = more.ict_count(step, 12, 3, 12)
    assert made.count(ctx) == count == (4 if step == 0 else 13)
    above, below = made.levels(PROCESS, batch["u"], count)
    low = float(PROCESS.sigma(0) / PROCESS.alpha(0))
    ladder = more.ict_levels(count, low, 80.0, 7.0)
    edges = np.cumsum(more.ict_shares(ladder, -0.5, 1.5))

    def denoise(y: np.ndarray, s: float) -> np.ndarray:
        t = PROCESS.time_of(torch.tensor([s], dtype=torch.float64))
        with torch.no_grad():
            return student.consistency(torch.tensor(y).reshape(1, *shape) / np.sqrt(1 + s**2), t)[0].numpy()

    for i in range(7):
        index = int(np.searchsorted(edges, float(batch["u"][i])))
        lower = ladder[index] if index else 0.0
        assert (float(above[i]), float(below[i])) == pytest.approx((ladder[index + 1], lower), rel=1e-9)
        expected = more.ict_loss(denoise, batch["x"][i].numpy(), batch["noise"][i].numpy(), lower, ladder[index + 1])
        assert values[i].item() == pytest.approx(expected, rel=1e-6)


def test_levels_double_as_the_oracle_has_them() -> None:
    for first, last, steps in ((10, 1280, 400), (2, 64, 97), (5, 5, 10), (10, 100, 50), (4, 6, 30)):
        made, stage = method("ict", grid=8, first=first, last=last), Stage("consistency", steps, frozenset())
        for step in range(steps):
            assert made.count(context(stage, step)) == more.ict_count(step, steps, first, last), (first, last, step)


def test_multistep_sampling_is_the_oracles() -> None:
    shape, model = (3,), double((3,), 4)
    noise = torch.randn(1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for steps in (1, 2, 3, 4):
        how = Sampling("lcm", steps, 16)
        made = model.sample(noise, sampling=how, generator=torch.Generator().manual_seed(9))
        draw = torch.Generator().manual_seed(9)
        noises = [torch.randn(1, 3, dtype=torch.float64, generator=draw)[0].numpy() for _ in range(steps - 1)]
        times = oracle.lcm_times(64, 16, steps)
        assert (*times, -1) == how.times(PROCESS)
        expected = oracle.consistency_sampling(SCHEDULE, said_by(model, shape), noise[0].numpy(), times, noises)
        np.testing.assert_allclose(made[0].numpy(), expected, rtol=1e-9)


# -------------------------------------------------------------------- stages and roles


def engine(folder: Path, name: str, *, shape: Sequence[int] = (3,), width: int = 12, classes: int = 0, prediction: str =
           "v_prediction", dropout: float = 0.0, **params: Any) -> Engine:  # fmt: skip
    made = method(name, **params)
    roles: dict[str, nn.Module] = {
        "teacher": denoiser(shape, seed=1, classes=classes, prediction=prediction),
        "student": denoiser(shape, seed=2, width=width, classes=classes, dropout=dropout),
    }
    made.check(roles)
    return Engine(
        made, Source(shape, Streams(1), classes=classes), roles, made.train, streams=Streams(1),
        accelerator=make_accelerator("cpu", "fp32"), folder=folder, quiet=True,
    )  # fmt: skip


def test_progressive_halves_and_stays_longer_at_the_end(tmp_path: Path) -> None:
    built = engine(tmp_path, "progressive")
    assert [(s.name, s.steps) for s in built.method.stages()] == [("steps-4", 5), ("steps-2", 10), ("steps-1", 10)]
    seen = []
    built.finished = lambda stage, model: seen.append(
        (stage.name, model.sampling.steps, digest(model.state_dict().items()))
    )
    begin, taught = built.method.begin, []

    def watched(stage: Stage, roles: Any, batch: Any) -> Any:
        out = begin(stage, roles, batch)
        taught.append(digest(roles["teacher"].state_dict().items()))
        assert not roles["teacher"].training and not any(p.requires_grad for p in roles["teacher"].parameters())
        return out

    built.method.begin = watched
    at = built.fit()
    assert at.total == 25
    assert [(name, steps) for name, steps, _ in seen] == [("steps-4", 4), ("steps-2", 2), ("steps-1", 1)]
    assert taught[1:] == [weights_ for _, _, weights_ in seen[:-1]]  # the student became the teacher
    assert built.roles["student"].sampling == Sampling("ddim", 1)


#: Of those whose parameters name a module of the network, the toy's.
AT: dict[str, dict[str, Any]] = {name: {"at": "net.body"} for name in ("ctm", "lightning", "meanflow", "shortcut")}
AT |= {"ladd": {"at": ["net.body"]}}
EVERY = sorted(name for name in METHODS if isinstance(METHODS[name], type) and issubclass(METHODS[name], FewStep))
#: Whose stages, roles and modules are those of another: of `ect`, `dmd2`, `shortcut`, `consistency`, `progressive`.
RELATED = {"ict", "moment_matching", "sid", "meanflow", "ctm", "pcm", "tcd", "rdd"}


@pytest.mark.usefixtures("short_classifier")
def test_the_student_starts_as_its_teacher(tmp_path: Path) -> None:
    for name in EVERY:
        more: dict[str, Any] = {"shortcut": {"finest": 16}, "reflow": {"pairs": 6}}.get(name, {})
        built = engine(tmp_path / name, name, **AT.get(name, {}), **more)
        source = built.source
        batch = source.collate([source.sample(i, 0) for i in range(6)])
        built.method.begin(built.method.stages()[0], built.roles, batch)
        assert weights(built)["student"] == weights(built)["teacher"]


@pytest.mark.usefixtures("short_classifier")
@pytest.mark.parametrize(("name", "width"), [
    *((name, 12) for name in EVERY if name not in RELATED),
    ("consistency", 5),
    *(pytest.param(name, 12, marks=pytest.mark.full) for name in sorted(RELATED)),
    *(pytest.param(name, 5, marks=pytest.mark.full) for name in EVERY if name != "consistency"),
])  # fmt: skip
def test_resumes_to_the_bit_in_the_middle_of_a_stage(tmp_path: Path, name: str, width: int) -> None:
    """A student of another width learns features first, and takes the teacher's place in its own shape."""
    more = {"width": width, "features": 3 if width != 12 else 0, "classes": 2, "dropout": 0.3, "steps": 3}
    if name not in ("progressive", "rdd", "reflow", *AT):
        more["grid"] = 8
    more |= {
        "dmd2": {"critic": 2, "gan": 0.1, "at": "net.body", "divergence": "jeffreys"}, "sid": {"critic": 2},
        "ladd": {"grid": 8, "critic": 2, "r1": 0.1, "distil": 1.0}, "ctm": {"steps": 2, "grid": 8, "most": 3},
        "reflow": {"pairs": 9, "rounds": 2, "distil": 0.0}, "shortcut": {"finest": 16}, "tcd": {"segments": [2, 1]},
        "moment_matching": {"critic": 2, "steps": 2}, "pcm": {"steps": 4}, "add": {"steps": 2, "critic": 2},
        "rdd": {"queue": 40, "remembered": 4}, "lightning": {"steps": 2},
    }.get(name, {}) | AT.get(name, {})  # fmt: skip
    whole = engine(tmp_path / "whole", name, **more)
    total = whole.fit().total
    expected = weights(whole)
    for step in range(1, total):
        again = resumed(lambda step=step: engine(tmp_path / str(step), name, **more), step)
        assert weights(again) == expected, step


def test_an_epsilon_teacher_teaches_a_v_student(tmp_path: Path) -> None:
    built = engine(tmp_path, "progressive", prediction="epsilon", features=4)
    assert built.method.stages()[0] == Stage("features", 4, frozenset({"student"}))
    built.fit()
    assert built.roles["student"].prediction == "v_prediction"


def test_steps_of_features_that_were_forgotten_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: list[str] = []
    monkeypatch.setattr("xmodal_kd.modalities.diffusion.methods.few_step.tell", told.append)
    roles = {"teacher": denoiser((3,), seed=1, prediction="epsilon"), "student": denoiser((3,), seed=2)}
    for features, said in ((10, []), (11, ["method.params.features: 11 steps come before"])):
        made = method("progressive", steps=1, features=features)
        batch = {name: value.float() if value.is_floating_point() else value for name, value in batch_of((3,)).items()}
        made.begin(made.stages()[0], roles, batch)
        assert [line[:44] for line in told] == said


@pytest.mark.full
def test_progressive_learns_to_skip(tmp_path: Path) -> None:
    """A student of one step lands nearer to where its teacher of eight arrives than the teacher does in one."""
    teacher = denoiser((3,), seed=1, width=64)
    optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-2)
    source = Source((3,), Streams(1), size=64, batch=64)
    for epoch in range(300):
        batch = source.collate([source.sample(i, epoch) for i in range(64)])
        t = (batch["u"] * 64).long()
        z = PROCESS.add_noise(batch["x"], batch["noise"], t)
        loss = (teacher(z, t) - PROCESS.velocity(batch["x"], batch["noise"], t)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    teacher.process = PROCESS
    made = method("progressive", steps=150)
    student = denoiser((3,), seed=2, width=64)
    built = Engine(
        made, source, {"teacher": teacher, "student": student}, made.train, streams=Streams(1),
        accelerator=make_accelerator("cpu", "fp32"), folder=tmp_path, quiet=True,
    )  # fmt: skip
    noise = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    full, one = teacher.sample(noise), teacher.sample(noise, sampling=Sampling("ddim", 1))
    built.fit()
    mine = built.roles["student"].sample(noise)
    assert (mine - full).square().mean() < 0.5 * (one - full).square().mean()


# -------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prediction": "epsilon"}, "set method.params.features"),
        ({"width": 5}, "set method.params.features"),
        ({"end": 3}, "cannot be halved to 3"),
        ({"end": 8}, "cannot be halved to 8"),
    ],
)
def test_progressive_refuses(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        engine(tmp_path, "progressive", **change)


def test_refuses_what_cannot_be_distilled() -> None:
    teacher, student, roles = denoiser(), denoiser(prediction="epsilon"), {"teacher": denoiser(), "student": denoiser()}
    with pytest.raises(UserError, match="cannot predict epsilon"):
        method("progressive").check({"teacher": teacher, "student": student})
    with pytest.raises(UserError, match="needs a teacher"):
        method("progressive").check({"student": student})
    with pytest.raises(UserError, match="of ddim, not of heun"):
        method("progressive", adapter=Adapter(8, "heun")).check({"teacher": teacher, "student": denoiser()})
    with pytest.raises(UserError, match="no term of the objective compares"):
        method("progressive", features=3, terms=Objective(())).check({"teacher": teacher, "student": denoiser()})
    with pytest.raises(UserError, match="does not divide"):
        consistency.consistency_grid(PROCESS, 48)
    with pytest.raises(UserError, match=r"method.params.grid: 48 does not divide the teacher's 64 timesteps: take 32"):
        method("consistency", grid=48).check(roles)
    with pytest.raises(UserError, match=r"method.params.steps: 9 is more than method.params.grid \(8\)"):
        kind = METHODS["consistency"]
        kind(Adapter(), objective(), Train(steps=5), Streams(1), params=kind.Params(grid=8, steps=9)).check(roles)
    with pytest.raises(UserError, match="not every other one"):
        progressive.check_grids(Process.cosine(100), 24)
