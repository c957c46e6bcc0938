"""A student as ONNX: its sampler as a table, its network and decoder, and the card's program, which needs no torch."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from tiny_pipelines import refusal

from xmodal_kd.adapter.hub import KINDS
from xmodal_kd.modalities.diffusion.adapter import DiffusionAdapter
from xmodal_kd.modalities.diffusion.data.config import DiffusionData
from xmodal_kd.modalities.diffusion.export import onnx_network, onnx_sampler
from xmodal_kd.modalities.diffusion.export.limits import check_saveable
from xmodal_kd.modalities.diffusion.export.onnx_card import snippet
from xmodal_kd.modalities.diffusion.export.onnx_table import follow, table
from xmodal_kd.modalities.diffusion.export.pipeline import load_denoiser, save_pipeline
from xmodal_kd.modalities.diffusion.models.denoiser import Denoiser, Sampling
from xmodal_kd.modalities.diffusion.models.networks import UNetConfig, build_unet
from xmodal_kd.modalities.diffusion.models.paths import Edm, Flow
from xmodal_kd.modalities.diffusion.models.process import Process
from xmodal_kd.runtime.errors import RunError
from xmodal_kd.runtime.random_streams import Streams

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


class Bent(nn.Module):
    """Anything but linear in what it is given."""

    def forward(self, z: Tensor, t: Tensor, **_: Any) -> Tensor:
        return torch.tanh(z * z + t.to(z.dtype)[:, None] / 300) - z / 3


@pytest.mark.parametrize(
    ("process", "prediction", "sampling"),
    [
        (Process.cosine(64), "v_prediction", Sampling("ddim", 4)),
        (Process.cosine(64), "v_prediction", Sampling("dpmpp_2m", 4)),
        (Process.linear(1000), "epsilon", Sampling("heun", 4)),
        (Process.linear(1000), "sample", Sampling("lcm", 3, 50)),
        (Process.linear(1000), "epsilon", Sampling("tcd", 3, 50)),
        (Edm(), "edm", Sampling("ddim", 4)),
        (Flow(3.0), "flow_prediction", Sampling("lcm", 4, 64)),
        (Flow(), "flow_prediction", Sampling("ddim", 1)),
    ],
)  # fmt: skip
def test_a_table_is_the_sampler(process: Process, prediction: str, sampling: Sampling) -> None:
    net = Bent()
    model = Denoiser(net, process, prediction, (5,), sampling=sampling)
    noise = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = model.sample(noise, generator=torch.Generator().manual_seed(2))
    found, generator = table(process, prediction, sampling), torch.Generator().manual_seed(2)
    assert len(found["steps"]) == sampling.nfe and found == json.loads(json.dumps(found))

    def ask(z: np.ndarray, t: float) -> np.ndarray:
        assert z.dtype == np.float32
        return net(torch.from_numpy(z).double(), torch.full((3,), t, dtype=torch.float64)).numpy()

    def fresh() -> np.ndarray:
        return torch.randn(3, 5, generator=generator, dtype=torch.float64).numpy()

    made = follow(found, noise.numpy(), ask, fresh)
    np.testing.assert_allclose(made, expected.numpy(), atol=2e-5 * float(expected.abs().max()))


def played(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> dict[str, Any]:
    """What the program of a card leaves, which is run in its folder and imports no torch."""
    monkeypatch.chdir(folder)
    [program] = re.findall(r"```python\n(import json.*?)```", text, flags=re.DOTALL)
    assert "torch" not in program and "xmodal" not in program
    left: dict[str, Any] = {}
    exec(program, left)
    return left


def by_torch(model: Denoiser, said: Any) -> np.ndarray:
    """The trainer's own samples from the program's noise, in the order in which it draws."""
    rng = np.random.default_rng(0)

    def drawn() -> Tensor:
        return torch.from_numpy(rng.standard_normal((4, *model.shape))).float()

    noise = drawn()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Denoiser, "fresh", lambda self, like, generator: drawn())
        x = model.sample(noise, said)
    x = x if model.parts is None else model.parts.decode(x)
    return ((x + 1) * 127.5).round().clamp(0, 255).byte().numpy()


def test_a_student_is_sampled_by_onnx_runtime_and_numpy_alone(
    here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By consistency sampling, which draws noise between its steps, class by class; at another size, too."""
    data = {"sources": "digits", "conditional": True, "onnx": True, "dev": 297, "test": 500}
    adapter = DiffusionAdapter(DiffusionData.model_validate(data), Streams(1), 4)
    names = adapter.class_labels
    torch.manual_seed(0)
    net = build_unet(UNetConfig(channels=(8, 8), attention="none"), (1, 8, 8), 10)  # tracing takes what it has layers
    how = Sampling("lcm", 2, 16)
    model = Denoiser(net, Process.cosine(64), "v_prediction", (1, 8, 8), classes=10, class_names=names, sampling=how)
    folder = save_pipeline(model, tmp_path / "student", {})
    found = adapter.export(model, folder)
    assert set(found) == {"student", "model.onnx"} and found["student"]["milliseconds"] > 0
    entry = found["model.onnx"]
    assert entry["bytes"] == (folder / "model.onnx").stat().st_size and entry["free"] == ["batch", "rows", "columns"]
    assert entry["max_error"] < 1e-4 and entry["reload_difference"] < 1e-4 and entry["milliseconds"] > 0
    assert all(path.name.endswith(KINDS) for path in folder.glob("*onnx*"))

    told = adapter.about("student", model, folder).use
    assert (folder / "README.md").read_text().count("onnxruntime.InferenceSession") == 1, "until the run writes it anew"
    assert "sides 2 divides" in told and told.count("```python") == 2
    left = played(folder, monkeypatch, told)
    theirs = by_torch(load_denoiser(folder, quiet=True), torch.arange(4))
    assert left["images"].shape == (4, 1, 8, 8) and left["images"].dtype == np.uint8
    assert np.abs(left["images"].astype(int) - theirs).max() <= 1, "one of 255 where a value lies between two"
    wide = played(folder, monkeypatch, told.replace('*about["shape"]', "1, 6, 10"))
    assert wide["images"].shape == (4, 1, 6, 10)
    many = played(folder, monkeypatch, told.replace("count, rng = 4,", "count, rng = 130,"))
    assert many["images"].shape == (130, 1, 8, 8), "more than the exporter's batch"

    monkeypatch.setattr(onnx_sampler, "TOLERANCE", -1.0)
    with pytest.raises(RunError, match=r"by ONNX Runtime differs .* set data\.onnx to false"):
        onnx_sampler.measured(load_denoiser(folder, quiet=True), folder, *_classes())


def _classes() -> tuple[Tensor, dict[str, Tensor]]:
    labels = torch.arange(4)
    return labels, {"class_labels": labels}


@pytest.mark.full
@pytest.mark.parametrize("kind", ["stable", "unconditional", "transformer", "flowing", "larger", "tokens", "linear"])
def test_whole_pipelines_are_sampled_so_too(
    place: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guided, or told the scale, by prompts and by the empty one; their decoder beside."""
    side, prompts = 32 if kind == "linear" else 16, ["a red", "blue"]
    model = load_denoiser(place / kind, quiet=True, sampling=Sampling("ddim", 2), image=(side, side))
    model.guidance = 1.0 if kind == "unconditional" or (kind == "transformer" and model.null is None) else 2.5
    folder = save_pipeline(model, tmp_path / "student", {"prompts": prompts} if model.prompted else {})
    found = onnx_network.export(folder)
    free = (
        []
        if kind in ("tokens", "linear")
        else ["batch", *([] if kind in ("transformer", "flowing") else ["rows", "columns"])]
    )
    assert found["model.onnx"]["free"] == free and found["model.onnx"]["reload_difference"] <= 1e-3
    assert (folder / "decoder.onnx").stat().st_size == found["decoder.onnx"]["bytes"]
    about = json.loads((folder / "onnx.json").read_text())
    images = played(folder, monkeypatch, snippet(about))["images"]
    assert images.shape == (4 if free else 1, 3, side, side)
    if free:
        said = model.parts.prompts([prompts[i % 2] for i in range(4)]) if model.prompted else torch.arange(4) % 3
        saved = load_denoiser(folder, quiet=True)
        theirs = by_torch(saved, None if kind == "unconditional" else said)
        assert np.abs(images.astype(int) - theirs).max() <= 1


def test_what_cannot_be_exported_is_refused_before_the_training(place: Path, tmp_path: Path) -> None:
    data = DiffusionData.model_validate({"sources": "folder", "path": place / "images", "captions": True, "onnx": True})
    model = load_denoiser(place / "pixels", quiet=True)
    assert "data.onnx: torch's exporter does not follow a PixArtTransformer2DModel: set it to false" in refusal(
        lambda: check_saveable(model, data)
    )
