"""A teacher of many classes for data of some of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DiTTransformer2DModel, UNet2DModel
from PIL import Image
from torch import nn

from xmodal_kd.modalities.diffusion.adapter import DiffusionAdapter
from xmodal_kd.modalities.diffusion.data.config import DiffusionData
from xmodal_kd.modalities.diffusion.export.pipeline import load_denoiser
from xmodal_kd.modalities.diffusion.models.denoiser import Denoiser, Sampling
from xmodal_kd.modalities.diffusion.models.networks import build_like
from xmodal_kd.modalities.diffusion.models.process import Process
from xmodal_kd.modalities.diffusion.models.some_classes import keep_classes
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams

NAMES = ("ant", "bee", "cat", "dog", "eel")


def unet(classes: int | None, told: str | None = None) -> UNet2DModel:
    return UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2, norm_num_groups=4, layers_per_block=1, num_class_embeds=classes,
        class_embed_type=told,
    )  # fmt: skip


def dit(classes: int) -> DiTTransformer2DModel:
    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=1, out_channels=1, num_layers=2, sample_size=8,
        patch_size=2, num_embeds_ada_norm=classes,
    )  # fmt: skip


def teacher(net: nn.Module, null: int | None = None, named: bool = False) -> Denoiser:
    return Denoiser(
        net, Process.linear(100), "epsilon", (1, 8, 8), classes=5, class_names=NAMES if named else None,
        sampling=Sampling("ddim", 2), null=None if null is None else torch.tensor([null]),
    ).eval()  # fmt: skip


@pytest.mark.parametrize(("make", "null"), [(unet, None), (dit, 5)], ids=["unet", "dit"])
def test_it_says_of_a_class_what_it_said_of_its_number_before(make: object, null: int | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = teacher(make(5), null)  # type: ignore[operator]
    z, t = torch.randn(3, 1, 8, 8), torch.tensor([10, 50, 90])
    with torch.no_grad():
        before, none = model(z, t, torch.tensor([4, 1, 4])), model(z, t, torch.tensor([5] * 3)) if null else None
        keep_classes(model, tmp_path, ("eel", "bee"), {"eel": 4, "bee": 1})
        torch.testing.assert_close(model(z, t, torch.tensor([0, 1, 0])), before)
        assert (model.classes, model.class_names) == (2, ("eel", "bee"))
        if none is not None and model.null is not None:
            torch.testing.assert_close(model(z, t, torch.tensor([2] * 3)), none)
            assert int(model.null[0]) == 2  # type: ignore[call-overload]
    student = build_like(model.net, model.classes)
    student.load_state_dict(model.net.state_dict())
    student.save_pretrained(tmp_path / "student")
    back = type(model.net).from_pretrained(tmp_path / "student")  # type: ignore[attr-defined]
    assert {k: v.shape for k, v in back.state_dict().items()} == {k: v.shape for k, v in student.state_dict().items()}


def test_names_need_not_be_told_twice(tmp_path: Path) -> None:
    model = teacher(unet(5), named=True)
    table = model.net.class_embedding.weight.clone()  # type: ignore[union-attr,operator]
    keep_classes(model, tmp_path, ("dog", "ant", "wasp"), {"wasp": "bee"})
    assert torch.equal(model.net.class_embedding.weight, table[[3, 0, 1]])  # type: ignore[union-attr]


def test_what_is_not_there_is_refused_in_a_line(tmp_path: Path) -> None:
    for told, named, said in (
        ({}, False, "have no names, the data have 'eel': say which"), ({"el": 1}, False, "no class 'el' .*eel"),
        ({"eel": 5}, False, "numbers its classes from 0 to 4"), ({"eel": "cow"}, True, "knows no class 'cow'"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            keep_classes(teacher(unet(5), named=named), tmp_path, ("eel",), told)  # type: ignore[arg-type]


def test_a_network_that_is_told_numbers_knows_any_classes(tmp_path: Path) -> None:
    images = tmp_path / "images"
    for i in range(32):
        (images / NAMES[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 8 * i, dtype=np.uint8)).save(images / NAMES[i % 2] / f"{i}.png")
    torch.manual_seed(0)
    DDPMPipeline(unet(None, "timestep"), DDIMScheduler(prediction_type="epsilon")).save_pretrained(tmp_path / "teacher")
    section = {"sources": "folder", "path": images, "dev": 8, "test": 8, "samples": 8, "sampling": {"steps": 8}}

    def adapter(conditional: bool) -> DiffusionAdapter:
        data = DiffusionData.model_validate({**section, "conditional": conditional})
        return DiffusionAdapter(data, Streams(1), 4)

    with pytest.raises(UserError, match=r"is told the number of a class: set data\.conditional to true"):
        adapter(False).load("teacher", tmp_path / "teacher")
    made = adapter(True)
    model = made.load("teacher", tmp_path / "teacher")
    student = made.build("student", "like_teacher", {})
    assert model.classes == student.classes == 2
    z, t = torch.randn(2, 1, 8, 8), torch.tensor([10, 500])
    with torch.no_grad():
        assert not torch.equal(model(z, t, torch.tensor([0, 0])), model(z, t, torch.tensor([1, 1])))
        made.save("student", student, tmp_path / "student")
        back = load_denoiser(tmp_path / "student", quiet=True)
        torch.testing.assert_close(back(z, t, torch.tensor([0, 1])), student.eval()(z, t, torch.tensor([0, 1])))
    assert back.classes == 2
