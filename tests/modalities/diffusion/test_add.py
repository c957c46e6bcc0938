"""ADD: its losses by the paper's formulas in NumPy, networks of pixels as they occur, decoded latents, refusals."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model, T5Config, T5EncoderModel, ViTConfig, ViTModel

sys.path.insert(0, str(Path(__file__).parent))
import tiny_pipelines
from toy_samples import Adapter, denoiser

from xmodal_kd.modalities.diffusion.data.condition import Text
from xmodal_kd.modalities.diffusion.methods.add import Add
from xmodal_kd.modalities.diffusion.methods.discriminator import ToldHead, whole
from xmodal_kd.modalities.diffusion.models import pixel_network
from xmodal_kd.modalities.diffusion.models.denoiser import Denoiser, Sampling
from xmodal_kd.modalities.diffusion.models.paths import Edm, Flow
from xmodal_kd.modalities.diffusion.models.pixel_network import PixelNetwork, load_network
from xmodal_kd.modalities.diffusion.models.process import Process
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Train
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.timing import StepTimer
from xmodal_kd.training.method import Context, Stage

PROCESSES = [Process.cosine(64), Edm(steps=64), Flow(steps=64)]
EVERY = pytest.mark.parametrize("process", PROCESSES, ids=["vp", "edm", "flow"])
CTX = Context(Stage("matching", 4, frozenset({"student"})), 1, 0, Streams(1), StepTimer(torch.device("cpu")), Ranks())
SHAPE = (2, 3)
pytestmark = [
    pytest.mark.usefixtures("short_classifier"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


def begun(process: Process, classes: int = 3, **params: Any) -> tuple[Any, dict[str, nn.Module], dict[str, Tensor]]:
    """The method at the start of its stage, its roles and a batch."""
    kind = {"process": process, "prediction": process.natural, "classes": classes}
    one = Add(
        Adapter(shape=SHAPE), Objective(()), Train(steps=4, batch_size=4), Streams(1), params=Add.Params(**params)
    )  # fmt: skip
    teacher, student = denoiser(SHAPE, seed=1, **kind).eval().requires_grad_(False), denoiser(SHAPE, seed=2, **kind)
    draw = torch.Generator().manual_seed(0)
    x, noise, made = torch.randn(3, 4, *SHAPE, generator=draw)
    batch = {"ids": torch.arange(4), "x": x, "noise": noise, "u": torch.rand(4, generator=draw), "made": made}
    batch |= {"labels": torch.tensor([0, 1, 2, 0])} if classes else {}
    roles: dict[str, nn.Module] = {"teacher": teacher, "student": student}
    one.optimizers = one.begin(one.own_stages()[0], roles, batch)
    student.sampling = Sampling("lcm", 2, 64)
    return one, roles, batch


def logit(head: Any, feature: np.ndarray, label: int | None) -> float:
    """A head's of the features ``(c, n)`` of one sample: narrow, group norm, SiLU, a line; and a class's product."""
    weights = {name: value.detach().double().numpy() for name, value in head.named_parameters()}
    h = weights["narrow.weight"][:, :, 0] @ feature + weights["narrow.bias"][:, None]
    groups = h.reshape(8, -1)
    centred = groups - groups.mean(axis=1, keepdims=True)
    h = (centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)).reshape(h.shape)
    h = h * weights["norm.weight"][:, None] + weights["norm.bias"][:, None]
    h = h / (1 + np.exp(-h))
    found = float(weights["out.weight"][0] @ h.ravel() + weights["out.bias"][0])
    if label is not None:
        found += float(weights["told.weight"][label] @ h.mean(axis=1)) / h.shape[0] ** 0.5
    return found


def features(one: Any, x: Tensor) -> list[np.ndarray]:
    """``(c, n)`` of each layer, of one sample."""
    return [f[0].detach().double().numpy().reshape(f.shape[1], -1) for f in one.fake(x[None])]


@pytest.mark.parametrize("told", [True, False])
def test_the_critic_s_loss_is_the_paper_s(told: bool) -> None:
    """max(0, 1 - D(x)) + max(0, 1 + D(made)) of clean samples, and |dD / dF|^2 of real ones at what a head takes in."""
    one, roles, batch = begun(PROCESSES[0], r1=0.3, told=told)
    with torch.no_grad():
        for head in one.head:
            head.out.weight.mul_(30)
    out = one.critic_loss(roles["teacher"], one.asked(roles["teacher"]), batch["made"], batch, CTX, 0)
    hinges, slopes = 0.0, 0.0
    for i in range(4):
        label = int(batch["labels"][i]) if told else None
        real, made = features(one, batch["x"][i]), features(one, batch["made"][i])
        heads = list(zip(one.head, real, made, strict=True))
        for head, f, g in heads:
            hinges += max(0.0, 1 - logit(head, f, label)) / len(heads)
            hinges += max(0.0, 1 + logit(head, g, label)) / len(heads)
            for place in np.ndindex(f.shape):
                move = np.zeros_like(f)
                move[place] = 1e-5
                rise = (logit(head, f + move, label) - logit(head, f - move, label)) / 2e-5
                slopes += rise**2 / len(heads)
    assert out.parts["discriminator"].total.item() == pytest.approx(hinges, rel=1e-4)
    assert out.parts["r1"].weight == 0.3 and out.parts["r1"].total.item() == pytest.approx(slopes, rel=1e-3)


@EVERY
def test_the_student_s_loss_is_the_paper_s(process: Process) -> None:
    """-D(made), and c(t) |made - teacher's x in it at t|^2 with c(t) = alpha_t of a variance-preserving process."""
    one, roles, batch = begun(process)
    teacher = roles["teacher"]
    assert isinstance(teacher, Denoiser)
    leaf = batch["made"].clone().requires_grad_()
    out = one.student_loss(teacher, one.asked(teacher), leaf, batch, CTX)
    noise, u = one.noisy(batch, CTX, "student")
    judged, distance = 0.0, 0.0
    for i in range(4):
        label, x = int(batch["labels"][i]), batch["made"][i]
        found = [logit(head, f, label) for head, f in zip(one.head, features(one, x), strict=True)]
        judged -= sum(found) / len(found)
        t = torch.tensor([int(u[i] * 64)])
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        with torch.no_grad():
            z = alpha * x + sigma * noise[i]
            seen = teacher.predict_x(z[None], t, batch["labels"][i : i + 1])[0].numpy().astype(np.float64)
        preserved = alpha if process.kind == "vp" else alpha / np.hypot(alpha, sigma)
        distance += preserved * float(np.mean((x.numpy() - seen) ** 2))
    assert out.parts["add"].total.item() == pytest.approx(judged, rel=1e-4)
    assert out.parts["distil"].weight == 2.5 and out.parts["distil"].total.item() == pytest.approx(distance, rel=1e-4)
    out.value().backward()
    assert leaf.grad is not None and bool(leaf.grad.any())


@pytest.mark.parametrize("classes", [0, 3])
def test_each_turn_moves_its_own_and_the_network_rests(classes: int) -> None:
    one, roles, batch = begun(PROCESSES[0], classes, critic=2)
    one.check(roles)
    assert isinstance(one.fake, PixelNetwork) and one.modules()["fake"] is one.fake
    assert isinstance(one.head[0], ToldHead) == bool(classes)
    for module in one.modules().values():
        module.train()  # as the engine does
    assert not one.fake.net.training
    learns = {id(p) for group in one.optimizers["fake"].param_groups for p in group["params"]}
    assert learns == {id(p) for p in one.head.parameters()}
    turns = []
    for name, out in one.losses(batch, roles, CTX):
        out.value().backward()
        moved, rests = (one.head, roles["student"]) if name == "fake" else (roles["student"], one.head)
        assert all(p.grad is not None for p in moved.parameters())
        assert all(p.grad is None for p in [*rests.parameters(), *one.fake.parameters()])
        for model in (one.head, roles["student"]):
            model.zero_grad()
        turns.append(name)
    assert turns == ["fake", "fake", "student"]


def test_the_network_is_not_the_judge_s_and_the_same_every_time() -> None:
    from xmodal_kd.modalities.diffusion.models.classifier import RECIPE, train_classifier

    images = Adapter(shape=(1, 8, 8)).data("train").images
    one, again = (pixel_network.trained(images, None, "cpu") for _ in range(2))
    judge = train_classifier(images, recipe=replace(RECIPE, fewest_steps=2, most_steps=2))
    x = images.tensor(slice(0, 3))
    assert all(torch.equal(a, b) for a, b in zip(one(x), again(x), strict=True)) and len(one.at) == 4
    assert one.net.recipe.seed != judge.recipe.seed
    assert [f.shape[:2] for f in one(x)] == [(3, 48), (3, 96), (3, 96), (3, 96)]


# ---------------------------------------------------------------- networks of folders


def vit(folder: Path, kind: Any = ViTModel, config: Any = ViTConfig, **more: Any) -> Path:
    torch.manual_seed(0)
    net = kind(config(hidden_size=16, num_hidden_layers=7, num_attention_heads=2, intermediate_size=16, image_size=16,
                      patch_size=4, **more))  # fmt: skip
    net.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "config", "rows"), [(ViTModel, ViTConfig, 17), (Dinov2Model, Dinov2Config, 17)], ids=["vit", "dinov2"]
)
def test_a_transformer_of_a_folder_sees_photographs(tmp_path: Path, kind: Any, config: Any, rows: int) -> None:
    """Grey images in three colours, of its size, in its colours; five blocks, whose tokens are places."""
    folder = vit(tmp_path, kind, config)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    network = load_network(folder, None)
    assert [name.rpartition(".")[2] for name in network.at] == ["0", "1", "3", "4", "6"]
    x = torch.rand(2, 1, 8, 8, requires_grad=True)
    found = network(2 * x - 1)
    assert [tuple(f.shape) for f in found] == [(2, 16, rows)] * 5 and all(f.dtype == torch.float32 for f in found)
    large = nn.functional.interpolate(2 * x - 1, (16, 16), mode="bicubic", antialias=True)
    with torch.no_grad():
        given = ((large / 2 + 0.5).expand(-1, 3, -1, -1) - 0.5) / 0.25
        theirs = network.net(given, output_hidden_states=True).hidden_states
    torch.testing.assert_close(found[-2].transpose(1, 2), theirs[5], rtol=1e-4, atol=1e-4)
    sum(f.sum() for f in found).backward()
    assert x.grad is not None and bool(x.grad.any()) and not any(p.requires_grad for p in network.parameters())


def test_a_processor_says_the_size(tmp_path: Path) -> None:
    folder = vit(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 8, "width": 8}}))
    assert [f.shape[2] for f in load_network(folder, ["layers.2"])(torch.zeros(1, 3, 8, 8))] == [5]


def test_a_network_of_torchvision(tmp_path: Path) -> None:
    from torchvision import models

    net = models.shufflenet_v2_x0_5(weights=None)
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"library": "torchvision", "architecture": "shufflenet_v2_x0_5"}))
    network = load_network(tmp_path, ["stage2", "conv5"])
    x = torch.rand(2, 3, 32, 32)
    assert [tuple(f.shape) for f in network(x)] == [(2, 48, 4, 4), (2, 1024, 1, 1)]
    assert "name those of its modules that are to be read (it has conv1" in refusal(
        lambda: load_network(tmp_path, None)
    )


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_networks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder, roles = tmp_path / "folder", {"teacher": denoiser(SHAPE), "student": denoiser(SHAPE)}
    folder.mkdir()

    def check(**params: Any) -> Any:
        method = Add(Adapter(), Objective(()), Train(steps=1), Streams(1), params=Add.Params(**params))
        return method.check(roles)

    assert "no folder of a network" in refusal(lambda: check(network=str(folder)))
    config = folder / "config.json"
    for said, words in (
        ({"architecture": "vit"}, "a network of timm"), ({"auto_map": {}}, "asks for code of its own"),
        ({"library": "torchvision", "architecture": "resnet1"}, "torchvision has no 'resnet1'"),
        ({"library": "torchvision", "architecture": "resnet18"}, "0 files of safetensors"),
        ({"model_type": "none"}, "transformers cannot load it"),
    ):  # fmt: skip
        config.write_text(json.dumps(said))
        assert words in refusal(lambda: check(network=str(folder)))
    T5EncoderModel(T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(
        tmp_path / "text"
    )
    assert "sees input_ids, no images" in refusal(lambda: check(network=str(tmp_path / "text")))
    assert "samples of (2, 3) are no photographs" in refusal(lambda: check(network=str(vit(tmp_path / "vit"))))
    assert "no module 'body.99'" in refusal(lambda: check(at=["body.99"]))


# ---------------------------------------------------------------- latents and prompts


def test_latents_are_decoded_for_the_network_and_the_teacher(tmp_path: Path) -> None:
    """Of a prompted teacher: heads are told the prompt, both losses are of images, gradients reach the latents."""
    from xmodal_kd.modalities.diffusion.adapter import DiffusionAdapter
    from xmodal_kd.modalities.diffusion.data.config import DiffusionData

    torch.manual_seed(0)
    folder = tiny_pipelines.stable(tmp_path / "stable")
    tiny_pipelines.images(tmp_path / "images", 24)
    section = {"sources": "folder", "path": tmp_path / "images", "captions": True, "dev": 8, "test": 8,
               "cache": tmp_path / "cache", "sampling": {"steps": 8}}  # fmt: skip
    adapter = DiffusionAdapter(DiffusionData.model_validate(section), Streams(1), 4)
    adapter.teachers, adapter.method = {"teacher": SimpleNamespace(path=folder)}, "add"
    teacher = adapter.load("teacher", folder).requires_grad_(False)
    student = adapter.build("student", "like_teacher", {})
    source = adapter.data("train")
    batch = source.collate([source.sample(i, 0) for i in range(4)])
    roles: dict[str, nn.Module] = {"teacher": teacher, "student": student}
    one = Add(adapter, Objective(()), Train(steps=4, batch_size=4), Streams(1), params=Add.Params())
    one.begin(one.own_stages()[0], roles, batch)
    assert one.fake.net.shape == (3, 16, 16) and one.head[0].told.in_features == 16
    torch.testing.assert_close(one.layers(teacher, batch["x"])[0], one.fake(teacher.parts.decode(batch["x"]))[0])
    leaf = batch["noise"].clone().requires_grad_()
    out = one.student_loss(teacher, teacher, leaf, batch, CTX)
    gradients = [
        torch.autograd.grad(out.parts[part].total, leaf, retain_graph=True)[0] for part in ("add", "distil")
    ]  # fmt: skip
    assert all(bool(g.any()) for g in gradients)
    t, seen = one.teacher_sees(teacher, leaf, batch["labels"], *one.noisy(batch, CTX, "student"))
    apart = (teacher.parts.decode(leaf.detach()) - teacher.parts.decode(seen)).flatten(1).square().mean(dim=1)
    expected = (teacher.process.alpha(t).float() * apart).sum().item()
    assert out.parts["distil"].total.item() == pytest.approx(expected, rel=1e-4)


def test_a_prompt_s_vector_is_the_mean_of_its_words() -> None:
    words = torch.arange(12.0).reshape(1, 3, 4)
    assert torch.equal(whole(Text(words, torch.ones(1, 7))), words.mean(dim=1))
    assert torch.equal(whole(Text(words, torch.tensor([[1.0, 1, 0]]))), words[:, :2].mean(dim=1))
