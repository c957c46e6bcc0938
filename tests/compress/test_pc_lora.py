"""PC-LoRA: what a layer computes while its weights fade, what is left of it, in memory and on disk, and runs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from killed_runs import command
from oracles import pc_lora_by_another as oracle
from safetensors.torch import load_file
from scheme_runs import engine, resumed, weights
from torch import Tensor, nn
from toy import compressed

from xmodal_kd.cli.main import call
from xmodal_kd.compress.low_rank import LowRank, layers_of, take_apart
from xmodal_kd.compress.pc_lora import DISTIL, Fade, left
from xmodal_kd.modalities.images.models.vit import ViT, ViTConfig
from xmodal_kd.models.weight_swap import weight_swap_of
from xmodal_kd.runtime.checkpoint import read_json

RECIPE = compressed(
    "[layer_copy, {name: pc_lora, params: {rank: 2, fade: 0.75}}]", "{model: mlp, params: {width: 16, dropout: 0.1}}",
    "steps: 16, eval_every: 2", "[{loss: test_ce, weight: 0.2}]",
)  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(RECIPE)
    return path


class Net(nn.Module):
    """A layer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.strided = nn.Conv2d(6, 5, (3, 1), dilation=(2, 1), padding="same", padding_mode="circular")
        self.narrow, self.head = nn.Linear(5, 3), nn.Linear(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.strided(self.grouped(self.conv(x))).mean(dim=(2, 3))
        return torch.cat([self.narrow(rows), self.head(rows)], dim=1)


class Said(nn.Module):
    """A network of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


def net() -> tuple[Net, Fade]:
    torch.manual_seed(0)
    model = Net().double()
    swap = Fade(model, layers_of(model, 2), 2)
    swap.attach(model)
    return model, swap


@pytest.mark.parametrize("kind", ["sine", "linear", "cosine"])
def test_weights_fade_as_somebody_else_says(kind: Any) -> None:
    assert [left(n, 8, kind) for n in range(11)] == pytest.approx([oracle.decay(n, 8, kind) for n in range(11)])


def test_a_layer_is_somebody_elses_while_it_fades() -> None:
    torch.manual_seed(1)
    layer, draw = nn.Linear(9, 8).double(), np.random.RandomState(1)
    model = Said(layer)
    swap = Fade(model, ["layer"], 2)
    for parameter in swap.parameters():
        parameter.data = torch.from_numpy(draw.randn(*parameter.shape))
    swap.share.fill_(0.3)
    swap.attach(model)
    x, (A, B, c) = draw.randn(4, 9), (p.detach().numpy() for p in swap.parameters())
    expected = oracle.layer(x, layer.weight.detach().numpy(), layer.bias.detach().numpy(), A, B, 0.3, c)
    np.testing.assert_allclose(model(torch.from_numpy(x)).detach().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(6, 8, (3, 1), (2, 1), (1, 0), bias=False), nn.Conv2d(8, 9, 3), nn.Linear(9, 8)], ids=str
)
def test_two_factors_are_asked_as_the_layer_was(layer: Any) -> None:
    """By networks that look at a layer's sizes: patches of a vision transformer, the state of a stream."""
    low = copy.deepcopy(LowRank(layer, 2))
    names = {"in_features", "out_features"} if isinstance(layer, nn.Linear) else {
        "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode", "groups",
    }  # fmt: skip
    assert {name: getattr(low, name) for name in names} == {name: getattr(layer, name) for name in names}
    assert (low.bias is None) == (layer.bias is None) and not hasattr(low, "weight")
    assert not hasattr(low, "kernel_size") or isinstance(layer, nn.Conv2d)


def test_a_vision_transformer_ends_as_its_factors() -> None:
    model = ViT(ViTConfig(width=16, depth=1, heads=2), channels=1, classes=3).eval()
    swap = Fade(model, layers_of(model, 2), 2)
    assert "patch" in swap.layers
    for up in swap.up:
        nn.init.normal_(up)
    swap.attach(model)
    x, _ = torch.randn(2, 1, 8, 8), swap.share.fill_(0)
    with torch.no_grad():
        before = model(x)
        swap.leave(model)
        torch.testing.assert_close(model(x), before)


def test_it_starts_as_it_was_and_ends_as_its_factors() -> None:
    model, swap = net()
    assert swap.layers == ("conv", "strided", "head")  # in groups, or no smaller: neither
    x = torch.randn(3, 4, 6, 6).double()
    swap.share.fill_(1.0)
    with torch.no_grad():
        begun = model(x)
        swap.detach(model)
        torch.testing.assert_close(begun, model(x))
        swap.attach(model)
        for parameter in swap.parameters():
            parameter.normal_()
        swap.share.fill_(0.0)
        faded, before = model(x), sum(p.numel() for p in Net().parameters())
        swap.leave(model)
        torch.testing.assert_close(model(x), faded)
    assert weight_swap_of(model) is None and isinstance(model.conv, LowRank)
    assert sum(p.numel() for p in model.parameters()) < before
    again = Net().double()
    take_apart(again, model.state_dict())
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), model(x))


def test_shared_weights_stay_whole() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    assert layers_of(model, 1) == ["1"]
    assert layers_of(nn.TransformerEncoderLayer(8, 2, 16), 1) == ["linear1", "linear2"]


def test_a_step_is_somebody_elses(tmp_path: Path) -> None:
    made = yaml.safe_load(RECIPE)
    made["data"] |= {"double": True}
    built = engine(tmp_path, made)
    method, roles = built.method, built.roles
    [batch] = next(iter([[built.source.collate([built.source.sample(i, 0) for i in range(6)])]]))
    stage = method.stages()[0]
    method.begin(stage, roles, batch)
    model: Any = roles["student"].eval()
    for parameter in weight_swap_of(model).parameters():  # type: ignore[union-attr]
        parameter.data.normal_()
    from xmodal_kd.runtime.distributed import Ranks
    from xmodal_kd.runtime.timing import StepTimer
    from xmodal_kd.training.method import Context

    ctx = Context(stage, 3, 0, built.streams, StepTimer(torch.device("cpu")), Ranks())
    [(_, out)] = list(method.losses(batch, roles, ctx))
    assert float(weight_swap_of(model).share) == pytest.approx(oracle.decay(3, 12, "sine"))  # type: ignore[union-attr]
    said = [built.method.forward_role(role, roles, batch) for role in ("student", "teacher")]  # type: ignore[attr-defined]
    valid = said[0].layout("logits").mask
    mine, theirs = ([one.rows(path)[valid].detach().numpy() for path in ("body.0", "head")] for one in said)
    task = out.parts["test_ce"].total.item() / float(out.parts["test_ce"].count)
    assert out.value().item() == pytest.approx(oracle.total(task, oracle.feature(mine, theirs)), rel=1e-10)


@pytest.mark.parametrize("step", [4, 14], ids=["while weights fade", "behind"])
def test_it_goes_on_to_the_bit(step: int, tmp_path: Path) -> None:
    made = yaml.safe_load(RECIPE)
    made["train"]["checkpoint_every"] = 2
    whole = engine(tmp_path / "whole", made)
    whole.fit()
    again = resumed(lambda: engine(tmp_path / "stopped", made), step)
    assert weights(again) == weights(whole)


def test_a_run_saves_and_counts_the_factors(recipe: Path, tmp_path: Path) -> None:
    assert call(command(recipe, tmp_path / "run")) == 0
    report = read_json(tmp_path / "run" / "report.json")
    for role in ("control", "student"):
        told, weights = report["compressed"][role]["pc_lora"], load_file(tmp_path / "run" / role / "model.safetensors")
        assert {"body.0.down.weight", "body.0.up.weight", "head.up.bias"} <= weights.keys()
        assert "body.0.weight" not in weights
        assert report["roles"][role]["parameters"] == told["parameters"] == sum(w.numel() for w in weights.values())
        assert f"{role}: 2 layers are two factors each" in (tmp_path / "run" / "report.md").read_text()
        assert told["parameters"] < told["parameters_before"] == report["roles"]["teacher"]["parameters"]


def test_what_it_starts_with_is_held_and_all_else_learns(tmp_path: Path) -> None:
    built = engine(tmp_path, yaml.safe_load(RECIPE))
    student: Any = built.roles["student"]
    held, norm = student.body[0].weight.clone(), student.body[1].weight.clone()
    seen = []
    losses = built.method.losses

    def remembered(batch: Any, roles: Any, ctx: Any) -> Any:
        if ctx.stage.name != DISTIL:
            seen.append(torch.equal(student.body[0].weight, held))
        return losses(batch, roles, ctx)

    built.method.losses = remembered  # type: ignore[method-assign]
    built.fit()
    assert len(seen) == 12 and all(seen)
    assert not torch.equal(student.body[1].weight, norm) and student.body[0].up.weight.abs().sum() > 0


@pytest.mark.parametrize(("sets", "said"), [
    (["compress.1.params.rank=50"], "no linear layer or convolution of * has fewer weights at rank 50"),
    (["compress.1.params.features=[bod]"], "no module 'bod'"),
    (["train.ema=0.9"], "it knows no train.ema"),
    (["compress=[layer_copy, pc_lora, qat]"], "qat stands before the same weights"),
    (["compress=[pc_lora, layer_copy]"], "it is the last of the list"),
    (["train.steps=1"], "give train.steps at least 2"),
])  # fmt: skip
def test_what_cannot_be_is_said_before_anything_is_trained(
    sets: list[str], said: str, recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more = [word for one in sets for word in ("--set", one)]
    assert call(command(recipe, tmp_path / "run", *more)) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert said in line
