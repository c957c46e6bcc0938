"""Each trap of a scheduler's configuration is found, and what we save has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
)

from xmodal_kd.modalities.diffusion.export.scheduler_lint import Finding, lint, lint_scheduler
from xmodal_kd.runtime.checkpoint import read_json, write_json
from xmodal_kd.runtime.errors import UserError

TRAILING: dict[str, Any] = {"timestep_spacing": "trailing", "clip_sample": False, "prediction_type": "v_prediction"}


def config(kind: Any = DDIMScheduler, **changes: Any) -> dict[str, Any]:
    return dict(kind().config) | {"_class_name": kind.__name__} | TRAILING | changes


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


def test_a_pipeline_that_we_save_has_no_finding(student: Path) -> None:
    assert lint(student) == []
    assert lint(student / "scheduler") == [], "a scheduler's folder alone is enough"


def test_more_steps_than_timesteps_are_told_of_a_saved_pipeline(student: Path) -> None:
    assert only(lint(student, steps=65)).what == "65 steps are more than the 64 there are"


@pytest.mark.parametrize(
    ("kind", "spacing"), [(DDIMScheduler, "leading"), (DPMSolverMultistepScheduler, "linspace"), (DDPMScheduler, None)]
)
def test_spacing(kind: Any, spacing: str | None) -> None:
    given = config(kind, timestep_spacing=spacing)
    if spacing is None:
        del given["timestep_spacing"]  # written by an older diffusers: the class's default holds
    found = only(lint_scheduler(given, 4))
    assert found.status == "fail" and repr(spacing or "leading") in found.what and "trailing" in found.advice


def test_the_defaults_we_state_are_those_of_diffusers() -> None:
    for kind in (DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler):
        spacing = kind().config["timestep_spacing"]
        given = {k: v for k, v in config(kind).items() if k != "timestep_spacing"}
        assert repr(spacing) in only(lint_scheduler(given)).what


@pytest.mark.parametrize(("steps", "wrong"), [(64, True), (16, True), (8, False), (1000, False), (None, False)])
def test_ddim_with_steps_that_do_not_divide(steps: int | None, wrong: bool) -> None:
    found = lint_scheduler(config(), steps)
    assert [f.what for f in found] == [f"DDIMScheduler steps to wrong times: {steps} steps do not divide 1000"] * wrong


def test_times_beyond_those_asked_for() -> None:
    found = only(lint_scheduler(config(DPMSolverMultistepScheduler), 61))
    assert found.what == "trailing spacing gives 62 times for 61 steps of 1000"


@pytest.mark.parametrize(("prediction", "count"), [("epsilon", 1), ("v_prediction", 0), ("sample", 0)])
def test_zero_terminal_snr(prediction: str, count: int) -> None:
    found = lint_scheduler(config(rescale_betas_zero_snr=True, prediction_type=prediction))
    assert len(found) == count and all("zero terminal SNR" in f.what and f.status == "fail" for f in found)


def test_little_signal_under_an_epsilon_network_is_a_warning() -> None:
    found = only(lint_scheduler(config(beta_schedule="squaredcos_cap_v2", prediction_type="epsilon")))
    assert found.status == "warn" and "alpha 5e-05" in found.what
    assert not lint_scheduler(config(prediction_type="epsilon")), "DDPM's linear schedule keeps 6e-3"


def test_clipping_fails_what_we_saved_and_warns_of_others(student: Path) -> None:
    assert only(lint_scheduler(config(clip_sample=True))).status == "warn"
    assert only(lint_scheduler(config(thresholding=True))).status == "warn"
    path = student / "scheduler" / "scheduler_config.json"
    write_json(path, {k: v for k, v in read_json(path).items() if v != float("-inf")} | {"thresholding": True})
    assert only(lint(student)).status == "fail"


def test_pipelines_with_a_will_of_their_own() -> None:
    assert "replaces LCMScheduler" in only(lint_scheduler(config(LCMScheduler), pipeline="DDIMPipeline", steps=4)).what
    assert not lint_scheduler(config(), pipeline="DDIMPipeline")
    found = only(lint_scheduler(config(), pipeline="DDPMPipeline"))
    assert found.status == "warn" and "1,000 steps" in found.what


@pytest.mark.parametrize(
    ("original", "steps", "words"),
    [(50, 4, ""), (30, 4, "original_inference_steps 30 does not divide 1000"), (50, 51, "more than the 50 there are")],
)
def test_consistency_models(original: int, steps: int, words: str) -> None:
    found = lint_scheduler(config(LCMScheduler, original_inference_steps=original, timestep_spacing="leading"), steps)
    assert len(found) == bool(words) and all(words in f.what for f in found)


def test_a_folder_without_a_scheduler(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scheduler_config\.json is missing"):
        lint(tmp_path)
