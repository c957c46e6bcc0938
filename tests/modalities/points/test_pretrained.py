"""Encoders of torchvision and timm by name, with weights of a file: as students of photographs and as teachers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from points_small import IMAGE, adapter, batch_of, run
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from xmodal_kd.modalities.points.export.saved_folder import load_model
from xmodal_kd.modalities.points.models import MODELS
from xmodal_kd.modalities.points.models.trunks import Trunk, as_map, load_trunk
from xmodal_kd.modalities.points.models.vision_encoder import load_encoder
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError

#: The smallest of torchvision.
NAME = "squeezenet1_1"
MOBILE = "mobilenet_v3_small"


def theirs(name: str, seed: int = 0) -> nn.Module:
    """As the library makes it, with statistics that are not those of a new one."""
    models = pytest.importorskip("torchvision.models", reason="of use to those who have torchvision: its encoders")
    torch.manual_seed(seed)
    net: nn.Module = models.get_model(name, weights=None)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr, operator]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr, operator]
    return net.eval()


def stored(folder: Path, name: str = MOBILE, **more: Any) -> Path:
    """A teacher's folder: its name and its weights."""
    folder.mkdir(exist_ok=True)
    torch.save(theirs(name).state_dict(), folder / "weights.pth")
    (folder / "config.json").write_text(json.dumps({"library": "torchvision", "architecture": name, **more}))
    return folder


def test_the_maps_are_those_of_the_library(tmp_path: Path) -> None:
    """The same numbers as its own network's, for pictures whose colours are shifted as its weights want it."""
    net = theirs(MOBILE)
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "saved.pth")
    trunk = Trunk("torchvision", MOBILE, ["features.1", "features"], groups=False)
    load_trunk(trunk, tmp_path)
    x = torch.rand(2, 3, *IMAGE)
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    y = (x - mean) / std
    trunk.train()
    fine, coarse = trunk(x)
    with torch.no_grad():
        assert torch.allclose(fine, net.features[:2](y), atol=1e-5)
        assert torch.allclose(coarse, net.features(y), atol=1e-5), "in training too, by the statistics of its weights"
    assert trunk.widths == [fine.shape[1], coarse.shape[1]]


def test_layers_are_one_of_each_resolution() -> None:
    theirs(NAME)
    trunk = Trunk("torchvision", "resnet18")
    assert trunk.layers == ("relu", "layer1", "layer2", "layer3", "layer4") and trunk.widths == [64, 64, 128, 256, 512]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in trunk.modules()), "without weights there are no statistics"
    assert trunk.left_out == ("fc", "avgpool")
    assert Trunk("torchvision", "resnet18", ["layer2"]).left_out == ("fc", "avgpool", "layer3", "layer4")
    x = torch.rand(2, 3, *IMAGE)
    trunk.train()
    both, alone = trunk(x), trunk(x[:1])
    assert all(torch.allclose(b[:1], a, atol=1e-4) for b, a in zip(both, alone, strict=True))
    assert [tuple(one.shape[2:]) for one in alone] == [(12, 32), (6, 16), (3, 8), (2, 4), (1, 2)]


def test_tokens_and_channels_last_become_maps() -> None:
    tokens = torch.arange(2 * 25 * 3).reshape(2, 25, 3)
    found = as_map(tokens, (24, 64), 8)
    assert found is not None and found.shape == (2, 3, 3, 8)
    assert torch.equal(found[1, :, 1, 2], tokens[1, 1 + 8 + 2]), "row by row, behind the one of no patch"
    last = torch.rand(1, 3, 8, 5)
    turned = as_map(last, (24, 64), None)
    assert turned is not None and torch.equal(turned, last.permute(0, 3, 1, 2))
    assert as_map(turned, (24, 64), None) is turned
    assert as_map(tokens, (24, 64), None) is None and as_map(tokens, (64, 64), 8) is None


def test_weights_of_another_network_are_one_line(tmp_path: Path) -> None:
    torch.save(theirs("resnet34").state_dict(), tmp_path / "resnet34.pth")
    trunk = Trunk("torchvision", "resnet18", groups=False)
    with pytest.raises(UserError, match=r"resnet34.pth: no weights of torchvision's resnet18: it holds \d+ that the"):
        load_trunk(trunk, tmp_path / "resnet34.pth")
    with pytest.raises(UserError, match=r"no weights of torchvision's \w+: \d+ of \d+ are missing, first 'features"):
        load_trunk(Trunk("torchvision", MOBILE, groups=False), tmp_path)
    held = theirs("resnet18").state_dict()
    held["conv1.weight"] = held["conv1.weight"][:, :1].clone()
    save_file(held, tmp_path / "grey.safetensors")
    with pytest.raises(UserError, match=r"'conv1.weight' is \(64, 1, 7, 7\), the network's \(64, 3, 7, 7\)"):
        load_trunk(trunk, tmp_path)
    torch.save({"net": theirs(NAME)}, tmp_path / "whole.pt")
    with pytest.raises(UserError, match=r"torch cannot read tensors alone from it .* save its state_dict as safetens"):
        load_trunk(trunk, tmp_path / "whole.pt")
    with pytest.raises(UserError, match=r"there is no such file: give one that ends in \.safetensors"):
        load_trunk(trunk, tmp_path / "none.pth")
    (tmp_path / "grey.safetensors").unlink()
    with pytest.raises(UserError, match="2 files of weights in it: name the one that is meant"):
        load_trunk(trunk, tmp_path)


def test_what_is_not_there_is_named() -> None:
    theirs(NAME)
    with pytest.raises(UserError, match=r"torchvision has no network 'resnet19' that classifies .nearest: resnet18"):
        Trunk("torchvision", "resnet19")
    with pytest.raises(
        UserError, match=r"resnet18 has no layer 'layer5' that gives a map: it has relu, layer1, layer2"
    ):
        Trunk("torchvision", "resnet18", ["layer1", "layer5"])
    with torch.device("meta"):  # of its sizes, not of its numbers
        vit = Trunk("torchvision", "vit_b_32")
    with pytest.raises(UserError, match=r"data.image: \[24, 64\] is no whole number of the encoder's patches of 32"):
        vit.fits(IMAGE)
    with pytest.raises(
        UserError, match=r"takes no picture of \[64, 96\] \(Wrong image height.* set it to \[224, 224\]"
    ):
        vit.fits((64, 96))


def test_a_student_starts_from_a_file_and_is_built_without_it(tmp_path: Path) -> None:
    made = adapter("scan", "image")
    path = stored(tmp_path) / "weights.pth"
    params = {"name": MOBILE, "weights": str(path), "layers": ["features.1", "features.3"], "width": 8}
    student = made.build("student", "torchvision", params)
    held = {name for name, _ in student.named_parameters() if ".features." in name}
    assert {name.split(".")[3] for name in held} == {"0", "1", "2", "3"}, "what its decoder does not see is not there"
    made.begin("student", range(6))
    batch = batch_of(made.data("train"))
    said = made.signals("student", student, batch, ("trunk.encoder.features.3", "decoder.0", "features"))
    rows = 2 * IMAGE[0] * IMAGE[1]
    assert said.rows("logits").shape == (rows, 8) and said.rows("decoder.0").shape == (rows, 8)
    assert said.rows("trunk.encoder.features.3").shape == (rows, 24)
    said.rows("logits").square().mean().backward()
    first = student.get_parameter("trunk.encoder.features.0.0.weight")
    assert first.grad is not None and first.grad.abs().sum() > 0, "the encoder learns"
    made.save("student", student, tmp_path / "student")
    path.unlink()
    again, card = load_model(tmp_path / "student")
    assert card.params["weights"] is None and card.params["groups"] is False
    x = batch["student"]["inputs"]
    with torch.no_grad():
        assert torch.equal(again(x), student.eval()(x))


def test_an_encoder_of_torchvision_teaches_by_its_layers(tmp_path: Path) -> None:
    made = adapter("image", "sparse", superpixels=12)
    model = made.load("teacher", stored(tmp_path))
    made.begin("student", range(6))
    batch = batch_of(made.data("train"))
    said = made.signals("teacher", model, batch, ("features", "trunk.encoder.features.1"))
    assert said.rows("features").shape[1] == 576 and said.rows("trunk.encoder.features.1").shape[1] == 16
    assert made.evaluate("teacher", model, "dev").metrics == {"miou": None}
    assert not any(p.requires_grad for p in model.parameters())
    stored(tmp_path, library="keras")
    with pytest.raises(UserError, match=r"library 'keras': write torchvision or timm"):
        load_encoder(tmp_path, IMAGE)
    half = {"mean": [0.5, 0.5, 0.5]}
    with pytest.raises(UserError, match=r"config.json: pretrained_cfg has one of mean and std: write both"):
        load_encoder(stored(tmp_path, pretrained_cfg=half), IMAGE)
    with pytest.raises(UserError, match=r"config.json: pretrained_cfg\.std\.0: Input should be greater than 0"):
        load_encoder(stored(tmp_path, pretrained_cfg=half | {"std": [0, 1, 1]}), IMAGE)
    other = load_encoder(stored(tmp_path, pretrained_cfg=half | {"std": [0.5, 0.5, 0.5]}), IMAGE)
    x = torch.rand(1, 3, *IMAGE)
    assert torch.allclose(other(x), theirs(MOBILE).features((x - 0.5) / 0.5), atol=1e-5)  # type: ignore[operator]


def test_layers_of_a_vit_teach_as_maps(tmp_path: Path) -> None:
    transformers = pytest.importorskip(
        "transformers", reason="of use to those who have transformers: encoders of images"
    )
    small = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.ViTConfig(**small, image_size=32, patch_size=8)
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    made = adapter("image", "sparse")
    model = made.load("teacher", tmp_path)
    made.begin("student", range(6))
    path = next(p for p, _ in model.named_modules() if p.endswith(("layer.0", "layers.0")))
    said = made.signals("teacher", model, batch_of(made.data("train")), (path,))
    assert said.rows(path).shape[1] == 8


def test_networks_of_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="of use to those who have timm: its encoders")
    torch.manual_seed(0)
    net = timm.create_model("vit_tiny_patch16_224", num_classes=5).eval()
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224"}))
    model = load_encoder(tmp_path, (32, 64))
    x = torch.rand(1, 3, 32, 64)
    own = timm.create_model("vit_tiny_patch16_224", num_classes=5, dynamic_img_size=True).eval()
    own.load_state_dict(net.state_dict())
    tokens = own.forward_features((x - 0.5) / 0.5)
    assert torch.allclose(model(x), tokens[:, 1:].transpose(1, 2).reshape(1, 192, 2, 4), atol=1e-5)
    kind = MODELS["timm"]
    config = kind.Config.model_validate({"name": "resnet10t", "width": 4})
    assert kind(config, channels=3, classes=5)(x).shape == (1, 5, 32, 64)


@pytest.mark.full
def test_whole_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`points/camera` in small with such a student, and `points/lidar_from_image` with such a teacher."""
    monkeypatch.setattr("xmodal_kd.run.runner.LATENCY", 0.01)
    path = stored(tmp_path / "weights")
    params = f"{{name: {MOBILE}, weights: {path}, layers: [features.1, features.3], width: 8}}"
    sets = ["data.image=[24, 64]", "labels=4", "student.model=torchvision", f"student.params={params}"]
    assert run(tmp_path / "run", *sets, recipe="points/camera") == 0
    assert read_json(tmp_path / "run/report.json")["roles"]["student"]["metrics"]["miou"] > 0
    learner = (
        "{model: torchvision, params: {name: mobilenet_v3_small, layers: [features.1], width: 4}, train: {steps: 4}}"
    )
    sets = ["data.image=[24, 64]", "labels=4", f"teacher={learner}"]
    assert run(tmp_path / "scan", *sets, recipe="points/lidar_from_image") == 0
    assert read_json(tmp_path / "scan/report.json")["roles"]["teacher"]["metrics"]["miou"] > 0
    pairs = "{student: [logits, decoder.0, features], teacher: [features, trunk.encoder.features.1, features]}"
    sets = ["data.image=[24, 64]", f"teacher={{path: {path}}}", f"objective.1.on={pairs}"]
    assert run(tmp_path / "fused", *sets, recipe="points/2dpass") == 0
    report = read_json(tmp_path / "fused/report.json")
    assert report["roles"]["teacher"]["metrics"] == {"miou": None} and report["roles"]["student"]["metrics"]["miou"] > 0


@pytest.mark.full
def test_exported_for_its_size(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnxruntime", reason="of use to those who have onnxruntime: exports")
    made = adapter("scan", "image")
    student = made.build("student", "torchvision", {"name": MOBILE, "layers": ["features.1", "features.3"], "width": 4})
    made.save("student", student, tmp_path)
    found = made.export(student.eval(), tmp_path)
    assert found["model.onnx"]["free"] == ["batch"] and found["model.onnx"]["max_error"] < 1e-4
    x = torch.rand(1, 3, *IMAGE)
    [said] = onnx.InferenceSession(tmp_path / "model.onnx").run(None, {"view": x.numpy()})
    with torch.no_grad():
        assert F.mse_loss(torch.from_numpy(said), student(x)) < 1e-8
