"""Distances in the features of networks at hand are those of torchmetrics, features those of transformers."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
)

from tests.modalities.diffusion.tiny_pipelines import tokenizer
from xmodal_kd.modalities.diffusion.adapter import DiffusionAdapter
from xmodal_kd.modalities.diffusion.data.config import DiffusionData
from xmodal_kd.modalities.diffusion.evaluate.encoders import Encoders, as_bytes
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams

SIDE, COUNT = 8, 40


class Pooled(nn.Module):
    """What NVIDIA's file does, in small: bytes in, features out."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 6)

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        small = nn.functional.adaptive_avg_pool2d(x.float() / 255, 2).flatten(1)
        features = self.layer(small).relu()
        return features if return_features else features.softmax(1)


@dataclass(frozen=True)
class Real:
    x: np.ndarray
    labels: None = None
    class_names: None = None

    def tensor(self, indexes: Any) -> Tensor:
        return torch.from_numpy(self.x[indexes])


def made(seed: int, channels: int = 3) -> Tensor:
    return torch.rand(COUNT, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judges")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Pooled()).save(str(folder / "inception.pt"))  # type: ignore[no-untyped-call]
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    dino = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=SIDE, patch_size=4)
    Dinov2Model(dino).save_pretrained(folder / "dinov2")
    BitImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(folder / "dinov2")
    words = {**small, "vocab_size": 54, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1}
    seen = {**small, "image_size": SIDE, "patch_size": 4}
    clip = CLIPConfig(text_config=words, vision_config=seen, projection_dim=8)
    CLIPModel(clip).save_pretrained(folder / "clip")
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(folder / "clip")
    tokenizer().save_pretrained(folder / "clip")
    return folder


def test_fid_is_that_of_torchmetrics(networks: Path) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance  # which takes a second and a half to import

    real, samples = made(1), made(2) ** 3
    judges = Encoders(networks / "inception.pt", None, None)
    judges.measure(samples, Real(samples.numpy()))  # of other data before
    found = judges.measure(samples, Real(real.numpy()))
    torch.manual_seed(0)
    network = Pooled()  # with the weights that the file has

    class Features(nn.Module):
        num_features = 6

        def forward(self, x: Tensor) -> Tensor:
            return network(x, return_features=True).detach()  # type: ignore[no-any-return]

    theirs = FrechetInceptionDistance(feature=Features(), normalize=False, input_img_size=(3, SIDE, SIDE))
    theirs.set_dtype(torch.float64)
    theirs.update(as_bytes(real), real=True)
    theirs.update(as_bytes(samples), real=False)
    assert found["fid"] == pytest.approx(float(theirs.compute()), rel=1e-5)
    assert set(found) == {"fid", "kid", "precision_inception", "recall_inception"}


def test_dinov2_sees_the_whole_image_as_its_processor_prepares_it(networks: Path) -> None:
    call = Encoders(None, networks / "dinov2", None).calls["dinov2"]
    images = as_bytes(made(3))[:4]
    network = Dinov2Model.from_pretrained(networks / "dinov2").eval()
    given = BitImageProcessor.from_pretrained(networks / "dinov2")(list(images), return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(call(images), network(**given).pooler_output, rtol=1e-5, atol=1e-5)
        wide = torch.nn.functional.interpolate(images.float(), scale_factor=(2, 4)).to(torch.uint8)
        assert call(wide).shape == (4, 16)


def test_clip_score_is_the_cosine_of_the_networks_own_answer(networks: Path) -> None:
    clip = Encoders(None, None, networks / "clip").clip
    images, said = as_bytes(made(4))[:6], ["a b c", "d", "a b c", "x y", "q", "by letters"]
    assert clip is not None
    model = CLIPModel.from_pretrained(networks / "clip").eval()
    seen = CLIPImageProcessor.from_pretrained(networks / "clip")(list(images), return_tensors="pt")
    with torch.no_grad():
        answer = model(**seen, **tokenizer()(said, padding=True, return_tensors="pt"))
        cosines = answer.logits_per_image.diagonal() / model.logit_scale.exp()
    assert (cosines < 0).any()
    assert clip.score(images, said) == pytest.approx(float(100 * cosines.clamp(min=0).mean()), rel=1e-4)


def test_a_recipe_names_them_and_test_alone_is_measured_by_them(networks: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    for i, x in enumerate(as_bytes(made(5))):
        (images / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(x.permute(1, 2, 0).numpy()).save(images / str(i % 2) / f"{i}.png")
    judges = {"inception": networks / "inception.pt", "dinov2": networks / "dinov2"}
    data = DiffusionData.model_validate(
        {"sources": "folder", "path": images, "dev": 8, "test": 8, "samples": 8, "draws": 1, "judges": judges,
         "process": {"steps": 4}, "sampling": {"steps": 2}}
    )  # fmt: skip
    adapter = DiffusionAdapter(data, Streams(0), 4)
    model = adapter.build("teacher", "unet", {"channels": [8]}).eval()
    with torch.no_grad():
        on_test, on_dev = (adapter.measure(model, split).metrics for split in ("test", "dev"))
    assert {"fid", "kid", "fd_dinov2", "kid_dinov2", "recall_dinov2", "fd_clf"} <= on_test.keys()
    assert "fid" not in on_dev
    assert on_test["fid"] > 0


def test_what_is_no_judge_is_refused_in_a_line(networks: Path, tmp_path: Path) -> None:
    said = "a folder as transformers saves it"
    with pytest.raises(UserError, match=said):
        Encoders(None, tmp_path, None)
    with pytest.raises(UserError, match="holds a model of type dinov2"):
        Encoders(None, None, networks / "dinov2")
    with pytest.raises(UserError, match="no such file"):
        Encoders(tmp_path / "gone.pt", None, None)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="torch-fidelity"):
        Encoders(tmp_path / "other.pth", None, None)
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(UserError, match="neither TorchScript"):
        Encoders(tmp_path / "text.pth", None, None)
    with pytest.raises(ValueError, match="judges: see images"):
        DiffusionData.model_validate({"sources": "arrays", "path": "x.npz", "judges": {"dinov2": networks / "dinov2"}})
    with pytest.raises(ValueError, match="compares images with captions"):
        DiffusionData.model_validate({"sources": "digits", "judges": {"clip": networks / "clip"}})
