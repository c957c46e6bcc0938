"""Small random denoisers, and pipelines saved the way others save them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from once import once, shared_folder

from xmodal_kd.modalities.diffusion.export import reload_gate as gate
from xmodal_kd.modalities.diffusion.models import pixel_network
from xmodal_kd.modalities.diffusion.models.classifier import train_classifier
from xmodal_kd.modalities.diffusion.models.denoiser import Denoiser, Sampling
from xmodal_kd.modalities.diffusion.models.networks import UNetConfig, build_unet
from xmodal_kd.modalities.diffusion.models.process import Process

Make = Callable[..., Denoiser]


@pytest.fixture(scope="session", autouse=True)
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The adapter's classifiers are trained once for all tests of the same images, as a run's once for its resumes."""
    kept = shared_folder(tmp_path_factory) / "classifiers"
    kept.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "xmodal_kd.modalities.diffusion.evaluate.judge.train_classifier", partial(train_classifier, cache=kept)
        )
        yield


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline of each class (see `tiny_pipelines`), and images with captions, small and large."""
    sys.path.insert(0, str(Path(__file__).parent))
    import tiny_pipelines

    def fill(folder: Path) -> None:
        torch.manual_seed(0)
        for name, make in tiny_pipelines.KINDS.items():
            make(folder / name)
        tiny_pipelines.images(folder / "images")
        tiny_pipelines.images(folder / "large", side=tiny_pipelines.LARGE)

    return once(tmp_path_factory, "pipelines", fill)


@pytest.fixture(scope="module")
def place(pipelines: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pipelines`, the module's own: what it caches there, others do not see."""
    return shutil.copytree(pipelines, tmp_path_factory.mktemp("place") / "all")


@pytest.fixture
def make() -> Make:
    """``make(process, prediction, sampling, classes=None, shape=...)``: a denoiser with random weights."""

    def build(
        process: Process, prediction: str = "v_prediction", sampling: Sampling | None = None, *,
        classes: int | None = None, shape: tuple[int, int, int] = (1, 8, 8), **more: Any,
    ) -> Denoiser:  # fmt: skip
        torch.manual_seed(0)
        net = build_unet(UNetConfig(channels=(8, 16)), shape, classes)
        sampling = sampling or Sampling("ddim", 4)
        return Denoiser(net, process, prediction, shape, classes=classes, sampling=sampling, **more).eval()

    return build


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline's half of the reload gate in this process, which saves the seconds of importing diffusers again."""

    def run(folders: Sequence[Path], samples: int) -> None:
        for folder in folders:
            gate.main(str(folder), samples)

    monkeypatch.setattr(gate, "_in_a_fresh_process", run)


@pytest.fixture
def student(make: Make, tmp_path: Path) -> Path:
    """A saved class-conditional student of 4 steps."""
    from xmodal_kd.modalities.diffusion.export.pipeline import save_pipeline

    names = ["zero", "one", "two"]
    return save_pipeline(make(Process.cosine(64), classes=3, class_names=names), tmp_path / "student", {})


@pytest.fixture
def short_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network that `add` trains for its heads learns for two steps."""
    monkeypatch.setattr(pixel_network, "RECIPE", replace(pixel_network.RECIPE, fewest_steps=2, most_steps=2))
