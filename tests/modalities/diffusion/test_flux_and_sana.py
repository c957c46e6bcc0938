"""Teachers of Flux and Sana: what their pipelines do otherwise than those of Stable Diffusion, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

sys.path.insert(0, str(Path(__file__).parent))
import tiny_pipelines
from tiny_pipelines import WORDS, adapter, refusal

from xmodal_kd.adapter.sketch import SIZES, Given
from xmodal_kd.modalities.diffusion.adapter import DiffusionAdapter
from xmodal_kd.modalities.diffusion.data.config import DiffusionData
from xmodal_kd.modalities.diffusion.export.pipeline import load_denoiser
from xmodal_kd.modalities.diffusion.methods.few_step import copy_weights
from xmodal_kd.modalities.diffusion.models.denoiser import Sampling
from xmodal_kd.modalities.diffusion.models.parts import Parts, parts_of
from xmodal_kd.modalities.diffusion.use.sketch import sketch
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Train
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.timing import StepTimer
from xmodal_kd.training.method import METHODS, Context, Stage

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def test_sana_s_prompts_follow_an_instruction_and_no_prompt_does_not(place: Path) -> None:
    parts = parts_of(place / "linear")
    assert parts.instruction[-1] == "User Prompt: "
    found = parts.pipeline.encode_prompt(["red", "blue"], True, complex_human_instruction=parts.instruction)
    said, nothing = parts.prompts(["red", "blue"]), parts.nothing
    for ours, theirs in zip((*said, *nothing), (*found[:2], None, found[2][:1], found[3][:1], None), strict=True):
        assert ours is theirs or torch.equal(ours, theirs.float())
    assert not torch.equal(parts.prompts([""]).embedding, nothing.embedding)


@pytest.mark.parametrize("kind", ["tokens", "linear"])
def test_prompts_of_wide_encoders_are_asked_once_for_all_runs(
    place: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    first = adapter(place, kind, cache=tmp_path).data("train").sample(3, 0)
    asked = list[int]()
    monkeypatch.setattr(Parts, "prompts", lambda self, texts, *more, **how: asked.append(len(texts)))
    again = adapter(place, kind, cache=tmp_path).data("train").sample(3, 0)
    assert not asked and torch.equal(again.x, first.x)
    assert all(torch.equal(a, b) for a, b in zip(again.said, first.said, strict=True))


def test_what_does_not_fit_flux_and_sana_is_refused(place: Path, tmp_path: Path) -> None:
    for make, told, words in (
        (tiny_pipelines.tokens, {"in_channels": 24, "out_channels": 16}, "24 channels in and 16 out"),
        (tiny_pipelines.tokens, {"patch_size": 2}, "patch_size 2"),
        (tiny_pipelines.linear, {"guidance_embeds": True}, "a few-step network (Sana-Sprint)"),
        (tiny_pipelines.linear, {"sample_size": 6}, "multiples of 32, and its network those of 24x24 colour"),
    ):  # fmt: skip
        folder = make(tmp_path / words[:5], **told)
        if told.get("sample_size"):
            tiny_pipelines.images(tmp_path / "images", side=24)
            data = {"sources": "folder", "path": tmp_path / "images", "captions": True, "dev": 8, "test": 8}
            made = DiffusionAdapter(DiffusionData.model_validate(data), Streams(1), 4)
            assert words in refusal(lambda folder=folder, made=made: made.load("teacher", folder))
        else:
            assert words in refusal(lambda folder=folder: load_denoiser(folder, quiet=True))
    assert "(3, 32, 32) (of latents 8x8 4 channels), the data's are (3, 16, 16)" in refusal(
        lambda: adapter(place, "linear", path=place / "images")
    )
    tiny_pipelines.images(tmp_path / "odd", side=18)
    assert "(3, 16, 16) (of latents 8x8 4 channels), the data's are (3, 18, 18)" in refusal(
        lambda: adapter(place, "tokens", path=tmp_path / "odd")
    )
    made = adapter(place, "tokens", guidance=3.5)
    assert "cannot be told" in refusal(lambda: made.build("student", "like_teacher", {"guidance": 16}))
    config = json.loads((place / "linear/scheduler/scheduler_config.json").read_text())
    shutil.copytree(place / "linear", tmp_path / "dynamic")
    (tmp_path / "dynamic/scheduler/scheduler_config.json").write_text(
        json.dumps(config | {"use_dynamic_shifting": True})
    )
    assert "save the scheduler with a fixed flow_shift" in refusal(lambda: load_denoiser(tmp_path / "dynamic"))


def test_flux_makes_images_of_the_data_s_size_and_its_shift_hangs_on_it(place: Path, tmp_path: Path) -> None:
    tiny_pipelines.images(tmp_path / "images", side=24)
    made = adapter(place, "tokens", path=tmp_path / "images")
    small = adapter(place, "tokens")
    assert made.teacher.shape == made.shape == (4, 12, 12) and small.teacher.shape == (4, 8, 8)
    for model, tokens in ((made.teacher, 36), (small.teacher, 16), (load_denoiser(place / "tokens"), 64 * 64)):
        assert model.process.shift == pytest.approx(np.exp(calculate_shift(tokens)))
    plain = tiny_pipelines.tokens(tmp_path / "plain", guidance_embeds=False)
    untold = load_denoiser(plain, quiet=True, image=(16, 16))
    assert untold.guidance == 1 and load_denoiser(place / "tokens", quiet=True).guidance == 3.5
    untold.guidance = 2.0  # then by the empty prompt, as others
    assert untold.cost == 2 and made.teacher.cost == 1
    assert untold(torch.randn(2, *untold.shape), 3, untold.parts.prompts(WORDS[:2])).shape == (2, 4, 8, 8)


def test_flux_s_images_need_not_be_square(place: Path) -> None:
    model = load_denoiser(place / "tokens", quiet=True, sampling=Sampling("ddim", 4), image=(3, 16, 24))
    pipeline = DiffusionPipeline.from_pretrained(place / "tokens")
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(["blue"], height=16, width=24, num_inference_steps=4, output_type="pt", generator=draw(3)).images
    ours = model.parts.decode(model.sample(torch.randn(1, 4, 8, 12, generator=draw(3)), model.parts.prompts(["blue"])))
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), made, rtol=0, atol=1e-4)


def test_lcm_draws_scales_that_flux_is_told(place: Path) -> None:
    """Without a width of its own: the network has an input for the scale, in the teacher and in its copy."""
    made = adapter(place, "tokens", guidance=3.5)
    made.method, student = "lcm", made.build("student", "like_teacher", {})
    copy_weights(made.teacher, student)
    roles: dict[str, Any] = {"teacher": made.teacher, "student": student, "target": student}
    found, source = [], made.data("train")
    batch = source.collate([source.sample(i, 0) for i in range(4)])
    stage = Stage("consistency", 4, frozenset({"student"}))
    ctx = Context(stage, 1, 0, Streams(1), StepTimer(torch.device("cpu")), Ranks())
    for scales in (None, (3.0, 4.0), (1.0, 9.0)):
        kind = METHODS["lcm"]
        lcm = kind(made, Objective([]), Train(steps=4, batch_size=4), Streams(1), params=kind.Params(guidance=scales))
        lcm.check(roles)
        lcm.prepare(stage, roles)
        assert student.guidance == 3.5
        found.append(lcm.values(batch, roles, ctx))
    assert all(bool(values.isfinite().all()) for values in found)
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_pipelines_of_other_uses_are_refused(place: Path, tmp_path: Path) -> None:
    for kind, other, network in (
        ("tokens", "FluxKontextPipeline", "a FluxTransformer2DModel on the latents of its vae (AutoencoderKL)"),
        ("linear", "SanaSprintPipeline", "a SanaTransformer2DModel on the latents of its vae (AutoencoderDC)"),
    ):
        shutil.copytree(place / kind, tmp_path / kind)
        index = tmp_path / kind / "model_index.json"
        index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": other}))
        told = refusal(lambda kind=kind: load_denoiser(tmp_path / kind, quiet=True))
        assert f"{network}, in a pipeline that is not distilled" in told and "FluxPipeline, SanaPipeline" in told


def test_new_tells_flux_its_own_guidance(place: Path) -> None:
    made = sketch(Given(teacher=place / "tokens", data=place / "images", like=None, size=SIZES["medium"]))
    assert not made.problems and made.sections["data"]["sampling"].value["guidance"] == 3.5
    made = sketch(Given(teacher=place / "linear", data=place / "large", like=None, size=SIZES["medium"]))
    assert not made.problems and made.sections["data"]["sampling"].value["guidance"] == 4.5
