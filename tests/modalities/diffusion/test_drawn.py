"""What a run draws and measures once, how far its curve goes, and the alarm of collapse and drift."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from toy_samples import denoiser

from xmodal_kd.adapter.adapter import Evaluation
from xmodal_kd.modalities.diffusion.adapter import DiffusionAdapter
from xmodal_kd.modalities.diffusion.data.config import DiffusionData
from xmodal_kd.modalities.diffusion.evaluate.drawn import Memory
from xmodal_kd.modalities.diffusion.evaluate.guard import alarms, compared, guarded
from xmodal_kd.modalities.diffusion.models.denoiser import Denoiser, Sampling
from xmodal_kd.modalities.diffusion.show.overview import overview, points
from xmodal_kd.runtime.random_streams import Streams


class Judge:
    """Counts what it is asked to measure."""

    def __init__(self) -> None:
        self.seen = 0

    def measure(self, samples: Tensor, labels: Tensor | None = None) -> dict[str, float]:
        self.seen += 1
        return {"fd_clf": float(samples.mean())}

    def facts(self) -> dict[str, Any]:
        return {"floor": {"fd_clf": 0.1}}


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> DiffusionAdapter:
    made = DiffusionAdapter(DiffusionData(sources="digits", samples=20, draws=2, batch=8), Streams(1), 4)
    monkeypatch.setattr(DiffusionAdapter, "shape", (1, 2, 3))
    judges = {split: Judge() for split in ("dev", "test")}
    monkeypatch.setattr(made, "judge", lambda split, device: judges[split])
    made.judges = judges  # type: ignore[attr-defined]
    return made


def model(seed: int = 0) -> Denoiser:
    return denoiser((1, 2, 3), seed=seed, steps=4)


def test_the_same_samples_are_drawn_and_measured_once(
    adapter: DiffusionAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a copy with the same weights; not of other weights, samplers, draws or splits."""
    drawn: list[int] = []
    real = DiffusionAdapter._sample
    monkeypatch.setattr(
        DiffusionAdapter, "_sample", lambda self, m, draw, count=None: drawn.append(draw) or real(self, m, draw, count)
    )
    one, other, judges = model(), model(1), cast(Any, adapter).judges
    dev = adapter.evaluate("teacher", one, "dev").metrics
    test = adapter.evaluate("teacher", copy.deepcopy(one), "test").metrics
    assert drawn == [0, 1] and (judges["dev"].seen, judges["test"].seen) == (1, 2)
    full = [adapter.sample(one, draw) for draw in range(2)]
    again = adapter.measure(one, "test", full).metrics
    assert drawn == [0, 1] and judges["test"].seen == 2
    assert again == {**test, "paired_error": 0.0} and test["fd_clf"] != dev["fd_clf"]
    assert torch.equal(adapter.sample(one, 0, 5), full[0][:5]) and len(drawn) == 2
    assert torch.equal(full[1], real(adapter, one, 1)[0])
    adapter.sample(other, 0, 5), adapter.sample(other, 0, 5)
    other.sampling = Sampling("heun", 2)
    adapter.sample(other)
    assert drawn == [0, 1, 0, 0]


def test_a_network_is_asked_once_about_the_same_samples(
    adapter: DiffusionAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All solvers begin alike, in two steps they are one; what was spared is in the seconds; the bits are the same."""
    one, asked = model(), list[int]()
    real = Denoiser.predict_x
    monkeypatch.setattr(
        Denoiser, "predict_x", lambda self, z, t, *more: asked.append(len(z)) or real(self, z, t, *more)
    )
    expected = {"ddim": 2, "dpmpp_2m": 0, "heun": 0}  # new ones for a draw of 20 samples in batches of 8, 8 and 4
    for solver, new in expected.items():
        asked.clear()
        other = copy.copy(one)
        other.sampling = Sampling(solver, 2)
        samples = adapter.sample(other, 0)
        assert asked == [8, 8, 8, 8, 4, 4][: 3 * new], solver
        noise = adapter.noise(0)
        alone = torch.cat([other.sample(part) for part in noise.split(8)]).clamp(-1, 1)
        assert torch.equal(samples, alone), solver
    asked.clear()
    one.sampling = Sampling("dpmpp_2m", 4)
    adapter._answers.spared = 0.0
    _, seconds = adapter._sample(one, 0)
    assert len(asked) == 3 * 3 and seconds > adapter._answers.spared > 0, "the first of four evaluations is known"
    asked.clear()
    adapter._sample(model(1), 0)
    assert len(asked) == 3 * 4, "other weights are asked"


def test_what_is_held_is_bounded() -> None:
    memory, made, calls = Memory(held=100), model(), []

    def make() -> tuple[Tensor, float]:
        calls.append(0)
        return torch.zeros(20), 1.0  # 80 bytes

    for draw in (0, 0, 1, 0):
        assert len(memory.of(made, draw, make).samples) == 20
    assert len(calls) == 3  # the first draw made room for the second


def told(adapter: DiffusionAdapter, tmp_path: Path) -> tuple[list[tuple[str, str, int]], dict[str, Any]]:
    student = model(1)
    student.sampling = Sampling("lcm", 1, 4)
    found = overview(adapter, {"teacher": model(), "student": student}, tmp_path)
    return [(p["role"], p["solver"], p["nfe"]) for p in found.curve], dict(found.facts)


def test_how_far_the_curve_goes(adapter: DiffusionAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for drawn in ("draw_curve", "contact_sheet"):
        monkeypatch.setattr(f"xmodal_kd.modalities.diffusion.show.overview.{drawn}", lambda *_, **__: None)
    students = [("student", "lcm", n) for n in (1, 2, 4)]
    every, facts = told(adapter, tmp_path)
    assert every[0] == ("teacher", "ddim", 4) and len(every) == 10 and every[-3:] == students
    assert list(facts) == ["floor"]
    for extent, expected in (("students", [every[0], *students]), ("ends", [every[0], students[0]])):
        adapter.config = adapter.config.model_copy(update={"curve": extent})
        found, facts = told(adapter, tmp_path)
        assert found == expected and f"data.curve: {extent}" in facts["left out of the curve"]
    assert [role for role, _ in points({"student": model()}, tmp_path, "ends")] == ["student"]


def test_collapse_and_drift_are_told() -> None:
    x = torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert compared(x, x) == {"diversity": 1.0, "drift": 0.0} and not alarms(compared(x, x))
    few = x[:4].repeat(16, 1, 1, 1) + 0.01 * x
    assert compared(few, x)["diversity"] < 0.1
    assert compared(x + 2 * x.std(), x)["drift"] == pytest.approx(2, rel=1e-5)
    assert "collapse" in alarms(compared(few, x))[0] and "drifts" in alarms(compared(x + 3, x))[0]


def test_a_student_is_compared_with_its_teacher(
    adapter: DiffusionAdapter, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, student = model(), model(1)
    assert "diversity" not in adapter.evaluate("student", student, "dev").metrics
    adapter.teacher = teacher
    found: Evaluation = adapter.evaluate("student", student, "dev")
    assert found.metrics["diversity"] > 0 and "drift" not in adapter.evaluate("control", student, "dev").metrics
    capsys.readouterr()
    size = [6]
    still = SimpleNamespace(sample=lambda m, *_: torch.zeros(size[0], 3) if m is student else torch.randn(size[0], 3))
    assert (
        guarded(still, teacher, student)["diversity"] == 0 and not capsys.readouterr().err
    )  # of so few nothing is said
    size[0] = 64
    guarded(still, teacher, student)
    assert "warning  the student's samples are 0.00 as far apart" in capsys.readouterr().err
