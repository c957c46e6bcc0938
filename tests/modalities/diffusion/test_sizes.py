"""``xmodal-kd sample --size``: other sizes are what the saved pipeline makes of them; what does not fit is refused."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DiffusionPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from tiny_pipelines import refusal

from xmodal_kd.cli.main import call
from xmodal_kd.modalities.diffusion.export.pipeline import load_denoiser, save_pipeline
from xmodal_kd.modalities.diffusion.models.denoiser import Denoiser, Sampling
from xmodal_kd.modalities.diffusion.models.process import Process
from xmodal_kd.modalities.diffusion.models.sizes import Sizes, read_size, resize, sizes_of

Make = Callable[..., Denoiser]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def drawn(folder: Path, out: Path, size: str, *more: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Two samples ``(2, h, w, ...)`` in [0, 1], and what the command told."""
    told = out.with_suffix(".json")
    with told.open("w") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", file)
        command = ["sample", str(folder), "-n", "2", "--seed", "3", "--size", size, "--out", str(out), "--json"]
        assert call([*command, "--device", "cpu", *more]) == 0
    images = [np.asarray(Image.open(path)) for path in sorted((out / "images").iterdir())]
    return np.stack(images) / 255, json.loads(told.read_text())


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("stable", (24, 40)), ("larger", (24, 16)), ("flowing", (24, 16)), ("tokens", (24, 16)),
        *(pytest.param(*one, marks=pytest.mark.full) for one in (("pixels", (24, 16)), ("linear", (32, 64)))),
    ],
)  # fmt: skip
def test_a_prompted_student_makes_other_sizes_as_its_pipeline_does(
    place: Path, tmp_path: Path, kind: str, size: tuple[int, int]
) -> None:
    """With guidance, so that both prompts are told the size where the network is."""
    model = load_denoiser(place / kind, quiet=True, sampling=Sampling("ddim", 2), image=(16, 16))
    model.guidance = 2.5
    student = save_pipeline(model, tmp_path / "student", {"prompts": ["a red"]})
    ours, told = drawn(student, tmp_path / "out", "x".join(map(str, size)))
    assert told["size"] == list(size)
    pipeline = DiffusionPipeline.from_pretrained(student, **dict.fromkeys(model.parts.absent))
    pipeline.set_progress_bar_config(disable=True)
    binned = "use_resolution_binning"
    given = {binned: False} if binned in inspect.signature(pipeline.__call__).parameters else {}
    theirs = pipeline(
        prompt=["a red"] * 2, height=size[0], width=size[1], guidance_scale=2.5, num_inference_steps=2,
        generator=torch.manual_seed(3), output_type="np", **given,
    ).images  # fmt: skip
    np.testing.assert_allclose(ours, theirs, atol=0.5 / 255 + 1e-4)


def test_a_student_of_pixels_makes_other_sizes_as_its_pipeline_does(make: Make, tmp_path: Path) -> None:
    student = save_pipeline(make(Process.cosine(64), shape=(3, 8, 12)), tmp_path / "student", {})
    ours, told = drawn(student, tmp_path / "out", "10x6")
    pipeline = DDPMPipeline.from_pretrained(student)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.register_to_config(sample_size=(10, 6))
    generator = torch.Generator().manual_seed(3)
    theirs = pipeline(batch_size=2, num_inference_steps=4, generator=generator, output_type="np").images
    assert told["size"] == [10, 6] and ours.shape == theirs.shape == (2, 10, 6, 3)
    np.testing.assert_allclose(ours, theirs, atol=0.5 / 255 + 1e-4)


def test_classes_come_in_squares_and_arrays_in_rows_and_columns(place: Path, make: Make, tmp_path: Path) -> None:
    images, told = drawn(place / "transformer", tmp_path / "classes", "24", "--steps", "2")
    assert images.shape == (2, 24, 24, 3) and told["size"] == [24, 24]
    odd, _ = drawn(place / "stable", tmp_path / "odd", "18x26", "--steps", "2", "--prompt", "a red")
    assert odd.shape == (2, 18, 26, 3), "a UNet with a text meets latents of odd sides"
    spectra = save_pipeline(make(Process.cosine(64)), tmp_path / "spectra", {"data": "arrays"})
    _, told = drawn(spectra, tmp_path / "arrays", "8x20")
    with np.load(told["arrays"]) as held:
        assert held["x"].shape == (2, 1, 8, 20)


def test_what_does_not_fit_names_what_does(place: Path, make: Make, tmp_path: Path) -> None:
    for kind, size, words in (
        ("stable", (17, 16), "images whose sides 2 divides: take 16x16 or 18x16"),
        ("unconditional", (18, 16), "images whose sides 4 divides: take 16x16 or 20x16"),
        ("transformer", (16, 24), "squares whose side 4 divides: take 16x16 or 24x24"),
        ("tokens", (18, 16), "images whose sides 4 divides: take 16x16 or 20x16"),
        ("linear", (32, 40), "images whose sides 32 divides: take 32x32 or 32x64"),
        ("flowing", (16, 1000), "images whose sides 4 divides, of at most 64: take 16x64"),
    ):
        model = load_denoiser(place / kind, quiet=True)
        line = refusal(lambda model=model, size=size: resize(model, size, Path("here")))
        assert line == f"--size {size[0]}x{size[1]}: here makes {words}"
    flat = sizes_of(make(Process.cosine(64)))
    assert flat == Sizes(2) and flat.nearest((1, 7)) == [(2, 6), (2, 8)]
    for text in ("8by8", "0x8", "8x", "-8", "8x8x8", "", "٨"):
        assert f"--size {text}: write height and width" in refusal(lambda text=text: read_size(text))
    assert read_size("32X48") == (32, 48) and read_size(" 16 ") == (16, 16)


def test_a_size_beyond_memory_is_one_line(student: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert call(["sample", str(student), "--size", "4000000x4000000", "--out", str(tmp_path / "x")]) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("error: --size 4000000x4000000: it would take") and not (tmp_path / "x").exists()


def test_the_shift_of_a_teacher_s_scheduler_follows_the_size(place: Path, tmp_path: Path) -> None:
    """A student keeps that of the size that it learnt (`load_denoiser` reads it from its card)."""
    path = place / "flowing/scheduler/scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dynamic_shifting": True}))
    own, wide = (load_denoiser(place / "flowing", quiet=True, image=size) for size in ((16, 16), (16, 32)))
    for model, tokens in ((own, 16), (wide, 32)):
        assert model.process.shift == pytest.approx(np.exp(calculate_shift(tokens)))
    student = save_pipeline(own, tmp_path / "student", {})
    assert load_denoiser(student, quiet=True, image=(16, 32)).process.shift == own.process.shift
