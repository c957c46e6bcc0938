"""Teachers as others keep them: variants, shards, checkpoints, few-step models, epsilon, and folders that lie."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ConsistencyModelPipeline, DDPMPipeline, DDPMScheduler, LCMScheduler, TCDScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from toy_samples import Adapter as ToyAdapter
from toy_samples import Source, denoiser

from xmodal_kd.modalities.diffusion.adapter import DiffusionAdapter
from xmodal_kd.modalities.diffusion.data.config import DiffusionData
from xmodal_kd.modalities.diffusion.evaluate.denoising import readings, trust
from xmodal_kd.modalities.diffusion.export.foreign import foreign_parts, foreign_schedule
from xmodal_kd.modalities.diffusion.export.pipeline import load_denoiser, save_pipeline
from xmodal_kd.modalities.diffusion.methods.few_step import TRUST, velocity_error
from xmodal_kd.modalities.diffusion.models.denoiser import Denoiser, Sampling
from xmodal_kd.modalities.diffusion.models.networks import UNetConfig, build_unet
from xmodal_kd.modalities.diffusion.models.process import Process
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Train
from xmodal_kd.runtime.checkpoint import digest, write_json
from xmodal_kd.runtime.device import make_accelerator
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.training.engine import Engine
from xmodal_kd.training.method import METHODS

Make = Callable[..., Denoiser]
WEIGHTS = "diffusion_pytorch_model.safetensors"
CASES = Path(__file__).parents[4] / "shared/cases/diffusion"
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:diffusers"
)


def adapter(**data: Any) -> DiffusionAdapter:
    return DiffusionAdapter(DiffusionData(sources="digits", **data), Streams(1), 16)


def weights(model: nn.Module) -> str:
    return digest(model.state_dict().items())


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


# ---------------------------------------------------------------- files


def test_variants_and_their_shards_are_read(make: Make, tmp_path: Path) -> None:
    folder = save_pipeline(make(Process.linear(1000)), tmp_path / "teacher", {})
    unet, expected = folder / "unet", weights(load_denoiser(folder, quiet=True))
    tensors = load_file(unet / WEIGHTS)
    (unet / WEIGHTS).rename(unet / "diffusion_pytorch_model.fp16.safetensors")
    assert weights(load_denoiser(folder, quiet=True)) == expected
    save_file(tensors, unet / "diffusion_pytorch_model.ema.safetensors")
    assert "several variants" in (told := refusal(lambda: load_denoiser(folder))) and "fp16" in told and "ema" in told
    for variant in ("fp16", "ema"):
        (unet / f"diffusion_pytorch_model.{variant}.safetensors").unlink()
    parts = {
        name: f"diffusion_pytorch_model.fp16-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(tensors)
    }
    for part in set(parts.values()):
        save_file({name: tensors[name] for name in tensors if parts[name] == part}, unet / part)
    assert "no index that says what is in them" in refusal(lambda: load_denoiser(folder))
    write_json(unet / f"{WEIGHTS}.index.fp16.json", {"metadata": {}, "weight_map": parts})
    assert weights(load_denoiser(folder, quiet=True)) == expected
    (unet / "diffusion_pytorch_model.fp16-00002-of-00002.safetensors").unlink()
    told = refusal(lambda: load_denoiser(folder))
    assert "1 of its 2 parts are missing (diffusion_pytorch_model.fp16-00002-of-00002" in told


def test_a_training_s_checkpoint_gives_its_averaged_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain, averaged = (build_unet(UNetConfig(channels=(8, 16)), (1, 8, 8), None) for _ in range(2))
    for step in (9, 10):
        plain.save_pretrained(tmp_path / f"out/checkpoint-{step}/unet")
    averaged.save_pretrained(tmp_path / "out/checkpoint-10/unet_ema")
    newest = tmp_path / "out/checkpoint-10"
    assert f"2 checkpoint(s) of a training: name one, as {newest}" in refusal(lambda: load_denoiser(tmp_path / "out"))
    told = refusal(lambda: adapter(sampling={"steps": 4}).load("teacher", newest))
    assert "unet_ema" in told and "set data.process" in told and "prediction: epsilon" in told
    known = {"schedule": "linear", "steps": 1000, "prediction": "epsilon"}
    made = adapter(process=known, sampling={"steps": 4})
    teacher = made.load("teacher", newest)
    assert (teacher.prediction, teacher.process.T) == ("epsilon", 1000)
    assert weights(teacher.net) == weights(averaged)
    assert list(made.lint(newest)) == []
    assert weights(made.load("teacher", newest / "unet").net) == weights(plain)
    DDPMScheduler(prediction_type="sample").save_pretrained(tmp_path / "out/scheduler")
    assert load_denoiser(newest, quiet=True).prediction == "sample"


def test_the_folder_of_a_pipeline_s_unet_finds_its_scheduler(make: Make, tmp_path: Path) -> None:
    folder = save_pipeline(make(Process.linear(1000), "sample"), tmp_path / "teacher", {})
    whole, alone = load_denoiser(folder, quiet=True), load_denoiser(folder / "unet", quiet=True)
    assert alone.prediction == "sample" and weights(alone) == weights(whole)


# ---------------------------------------------------------------- few-step models


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 4])
def test_a_tcd_model_is_sampled_as_diffusers_does(tmp_path: Path, prediction: str, steps: int) -> None:
    torch.manual_seed(0)
    net = build_unet(UNetConfig(channels=(8, 16)), (1, 8, 8), None).eval()
    scheduler = TCDScheduler(prediction_type=prediction, clip_sample=False)
    ConsistencyModelPipeline(net, scheduler).save_pretrained(tmp_path / "tcd")
    model = load_denoiser(tmp_path / "tcd", quiet=True)
    assert model.sampling == Sampling("tcd", 4, 50)
    pipeline = ConsistencyModelPipeline(net, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        batch_size=3, num_inference_steps=steps, generator=torch.Generator().manual_seed(3), output_type="pt"
    ).images
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(3, 1, 8, 8, generator=generator)
    ours = model.sample(noise, sampling=Sampling("tcd", steps, 50), generator=generator)
    assert float(((ours / 2 + 0.5).clamp(0, 1) - theirs).abs().max()) < 2e-3
    again = save_pipeline(model, tmp_path / "again", {})
    assert load_denoiser(again, quiet=True).sampling == model.sampling


@pytest.mark.parametrize("kind", [LCMScheduler, TCDScheduler])
def test_a_few_step_model_is_no_teacher(tmp_path: Path, kind: Any) -> None:
    net = build_unet(UNetConfig(channels=(8, 16)), (1, 8, 8), None)
    DDPMPipeline(net, kind()).save_pretrained(tmp_path / "model")
    told = refusal(lambda: adapter().load("teacher", tmp_path / "model"))
    assert f"a few-step model ({kind.__name__})" in told and "the model that it was distilled from" in told
    assert adapter().load("student", tmp_path / "model").sampling.steps == 4


# ---------------------------------------------------------------- other kinds


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"transformer": "DiTTransformer2DModel", "vae": "AutoencoderKL"}, ["DiTTransformer2DModel", "its vae"]),
        ({"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}, ["prompted by text", "give a pipeline"]),
        ({"unet": "UNet2DModel", "vqvae": "VQModel"}, ["vqvae (VQModel)", "data.latents: true"]),
        ({"unet": "UNet2DModel", "safety": "Checker"}, ["has safety beside"]),
        ({}, ["names no unet, only nothing"]),
    ],
)  # fmt: skip
def test_pipelines_of_other_kinds_say_what_they_are_and_what_to_do(parts: dict[str, str], words: list[str]) -> None:
    told = foreign_parts({"scheduler": "DDIMScheduler", **parts} if parts else {})
    assert told is not None and all(word in told for word in words), told


def test_other_processes_are_named() -> None:
    assert foreign_parts({"unet": "UNet2DModel", "scheduler": "DDIMScheduler"}) is None
    assert foreign_schedule("FlowMatchEulerDiscreteScheduler") is foreign_schedule("EDMEulerScheduler") is None
    assert "a few-step model already" in str(foreign_schedule("FlowMapEulerDiscreteScheduler"))
    assert "TrigFlow" in str(foreign_schedule("SCMScheduler"))
    assert "few-step model already" in str(foreign_schedule("CMStochasticIterativeScheduler"))
    assert foreign_schedule("DDPMScheduler") is foreign_schedule("DPMSolverMultistepScheduler") is None


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("sd", "without text_encoder, tokenizer"), ("sd3", "without text_encoder, text_encoder_2"),
        ("train_ckpt", "checkpoint-500"),
    ],
)  # fmt: skip
def test_cases_that_are_refused(case: str, words: str) -> None:
    if not CASES.is_dir():
        pytest.skip(f"no {CASES}")
    assert words in refusal(lambda: adapter().load("teacher", CASES / case))


# ---------------------------------------------------------------- epsilon


def test_an_epsilon_teacher_s_student_keeps_it_where_the_method_and_the_schedule_allow(tmp_path: Path) -> None:
    net = build_unet(UNetConfig(channels=(8, 16)), (1, 8, 8), None)
    DDPMPipeline(net, DDPMScheduler()).save_pretrained(tmp_path / "linear")
    cosine = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    DDPMPipeline(net, cosine).save_pretrained(tmp_path / "cosine")
    expected = {("consistency", "linear"): "epsilon", ("ect", "linear"): "epsilon"}
    for method in ("consistency", "ect", "progressive"):
        for schedule in ("linear", "cosine"):
            made = adapter()
            made.method = method
            roles = {"teacher": made.load("teacher", tmp_path / schedule)}
            roles["student"] = made.build("student", "like_teacher", {})
            said = expected.get((method, schedule), "v_prediction")
            assert roles["student"].prediction == said and made.changes_prediction == (said != "epsilon")
            kind = METHODS[method]
            trains = kind(made, Objective(()), Train(steps=7, batch_size=6), Streams(1), params=kind.Params())
            trains.check(roles)
            first = trains.stages()[0]
            assert (first.name, first.steps) == ("features", 7) if said != "epsilon" else first.name != "features"
            if method == "consistency":
                trains.prepare(trains.stages()[-1], roles)
                assert roles["student"].sampling == Sampling("lcm", 2, 50)  # the most up to 64 that divide 1,000


def test_progressive_matches_an_epsilon_teacher_first_and_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = ToyAdapter()
    made.changes_prediction = True  # type: ignore[attr-defined]
    roles: dict[str, nn.Module] = {"teacher": denoiser(seed=1, prediction="epsilon"), "student": denoiser(seed=2)}
    kind, train = METHODS["progressive"], Train(steps=4, batch_size=6)
    method = kind(made, Objective(()), train, Streams(1), params=kind.Params())
    method.check(roles)
    assert [stage.name for stage in method.stages()] == ["features", "steps-4", "steps-2", "steps-1"]
    Engine(
        method, Source((3,), Streams(1)), roles, train, streams=Streams(1), quiet=True, folder=tmp_path,
        accelerator=make_accelerator("cpu", "fp32"),
    ).fit()  # fmt: skip
    assert "the teacher predicts epsilon, the student v_prediction: 4 steps of matching" in capfd.readouterr().err


def test_the_velocity_of_an_epsilon_teacher_counts_by_its_signal() -> None:
    """By hand, sample by sample: v = (eps - sigma z) / alpha, mixed with the true v."""
    process = Process.cosine(64)
    teacher, student = (denoiser(seed=s, prediction=p).double() for s, p in ((1, "epsilon"), (2, "v_prediction")))
    draw = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(5, 3, generator=draw, dtype=torch.float64) for _ in range(2))
    u = torch.tensor([0.0, 0.3, 0.6, 0.95, 0.999], dtype=torch.float64)
    found = velocity_error({"x": x, "noise": noise, "u": u}, {"teacher": teacher, "student": student})
    for i, t in enumerate((u * 64).long().tolist()):
        alpha = float(process.alphas_cumprod[t]) ** 0.5
        sigma = (1 - alpha**2) ** 0.5
        z = (alpha * x[i] + sigma * noise[i])[None]
        times = torch.tensor([t])
        theirs = (teacher.net(z, times)[0] - sigma * z[0]) / alpha
        share = alpha**2 / (alpha**2 + TRUST**2)
        aim = share * theirs + (1 - share) * (alpha * noise[i] - sigma * x[i])
        expected = (student.net(z, times)[0] - aim).square().mean()
        torch.testing.assert_close(found[i], expected, rtol=1e-6, atol=1e-9)


# ---------------------------------------------------------------- folders that lie


class Exact(nn.Module):
    """What is known of x, whose values are all the same standard normal number, in the words of `prediction`."""

    def __init__(self, process: Process, prediction: str) -> None:
        super().__init__()
        self.process, self.prediction = process, prediction

    def forward(self, z: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        alpha, sigma = self.process.pair(t, z)
        flat = z.flatten(1).sum(dim=1).reshape(-1, *[1] * (z.ndim - 1))
        size = z[0].numel()
        x = (alpha * flat / (size * alpha**2 + sigma**2)).expand_as(z)
        return self.process.convert(x, z, t, "sample", self.prediction)


def batch(count: int = 64) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(count, 1, 1, 1, generator=draw).expand(count, 1, 4, 4).contiguous()
    return {"x": x, "noise": torch.randn(count, 1, 4, 4, generator=draw)}


@pytest.mark.parametrize("true", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("said", ["epsilon", "sample", "v_prediction"])
def test_the_denoising_error_tells_the_prediction_type(true: str, said: str) -> None:
    process = Process.cosine(1024)
    [(status, _, advice)] = trust(Denoiser(Exact(process, true), process, said, (1, 4, 4)), batch())
    assert status == ("pass" if true == said else "warn")
    assert true == said or f"prediction_type {true}" in advice


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_the_denoising_error_tells_the_schedule(prediction: str) -> None:
    true, said = Process.cosine(1000), Process.linear(1000)
    [(status, _, advice)] = trust(Denoiser(Exact(true, prediction), said, prediction, (1, 4, 4)), batch())
    assert status == "warn" and "squaredcos_cap_v2" in advice and "prediction_type" not in advice
    [(status, _, advice)] = trust(Denoiser(Exact(said, prediction), said, prediction, (1, 4, 4)), batch())
    assert status == "pass"


def test_a_teacher_that_knows_nothing_is_warned_of() -> None:
    class Noise(nn.Module):
        def forward(self, z: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
            return torch.randn_like(z) * 3

    torch.manual_seed(0)
    model = Denoiser(Noise(), Process.cosine(1024), "v_prediction", (1, 4, 4))
    assert all(reading.error > 1 for reading in readings(model, batch()))
    [(status, what, _)] = trust(model, batch())
    assert status == "warn" and "no better than that guess" in what


@pytest.mark.parametrize(("case", "words"), [("wp_x", "prediction_type v_prediction"), ("wp_lin", "squaredcos_cap_v2")])
def test_trained_teachers_whose_scheduler_file_lies(case: str, words: str) -> None:
    if not CASES.is_dir():
        pytest.skip(f"no {CASES}")
    made = adapter()
    made.load("teacher", CASES / case)
    source = made.data("train")
    [(status, what, advice)] = made.traps(source.collate([source.sample(i, 0) for i in range(32)]))
    assert status == "warn" and words in advice, (what, advice)


# ---------------------------------------------------------------- not square


def test_a_sampler_of_images_that_are_not_square_reloads(tmp_path: Path, make: Make, here: None) -> None:
    from xmodal_kd.modalities.diffusion.export.reload_gate import reload_gate

    for name, sampling in (("ddim", Sampling("ddim", 4)), ("lcm", Sampling("lcm", 2, 16))):
        model = make(Process.cosine(64), sampling=sampling, shape=(3, 12, 16))
        folder = save_pipeline(model, tmp_path / name, {})
        assert load_denoiser(folder, quiet=True).shape == (3, 12, 16)
        assert reload_gate(folder, model) < 1e-4
