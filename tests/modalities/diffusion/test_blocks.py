"""UNets without some of their blocks: which go, where what stays comes from, what is compared, what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from oracles import pruned_and_guided as oracle
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import tiny_pipelines

from xmodal_kd.cli.catalogue import catalogue
from xmodal_kd.cli.main import call
from xmodal_kd.compress.known import COMPRESSIONS
from xmodal_kd.modalities.diffusion.data.condition import Text
from xmodal_kd.modalities.diffusion.methods.bk_sdm import BkSdm
from xmodal_kd.modalities.diffusion.methods.lcm import Lcm, LcmParams
from xmodal_kd.modalities.diffusion.models.blocks import KINDS, Blocks, fewer, origins, removed, start
from xmodal_kd.modalities.diffusion.models.denoiser import Denoiser, Sampling
from xmodal_kd.modalities.diffusion.models.networks import LikeTeacherConfig, build_like, built
from xmodal_kd.modalities.diffusion.models.process import Process
from xmodal_kd.modalities.diffusion.models.said import said
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import On, Term, Train
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.signals.signals import Signals

WORDS, WIDTH = 5, 16
EVERY = pytest.mark.parametrize("blocks", KINDS)


def prompted(**more: Any) -> UNet2DConditionModel:
    """As Stable Diffusion's, its four stages of three; of the innermost two one width."""
    torch.manual_seed(0)
    stages = {
        "block_out_channels": (8, 16, 16), "layers_per_block": 2, "attention_head_dim": (2, 4, 4),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    }  # fmt: skip
    return UNet2DConditionModel(
        **{"sample_size": 8, "in_channels": 4, "out_channels": 4, "cross_attention_dim": WIDTH, "norm_num_groups": 8}
        | stages
        | more
    )


def deep() -> dict[str, Any]:
    """The stages of `prompted`, for another's configuration."""
    keys = ("block_out_channels", "layers_per_block", "down_block_types", "up_block_types")
    return {key: prompted().config[key] for key in keys}


def plain() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16, 16), layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"), norm_num_groups=8,
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8,
    )  # fmt: skip


def without(net: nn.Module, blocks: Blocks) -> Any:
    torch.manual_seed(1)
    return build_like(net, None, None, blocks)


def batch(count: int = 3) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(2)
    text = Text(torch.randn(count, WORDS, WIDTH, generator=generator, dtype=torch.float64))
    x, noise = (torch.randn(count, 4, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    return {"ids": torch.arange(count), "x": x, "noise": noise, "u": torch.tensor([0.05, 0.5, 0.9]), "labels": text}


class Prompted:
    """As much of a pipeline's parts as a prompted denoiser asks for."""

    text = True
    nothing = Text(torch.zeros(1, WORDS, WIDTH, dtype=torch.float64))


def denoiser(net: nn.Module, prediction: str = "epsilon") -> Denoiser:
    return Denoiser(net.double(), Process.linear(1000), prediction, (4, 8, 8), parts=Prompted()).eval()  # type: ignore[arg-type]


#: The paper's (section 3.1 and figure 3): which residual layers of the teacher's are left, by stage.
LEFT: dict[str, dict[str, list[str]]] = {
    "base": {"down": ["0.0", "1.0", "2.0"], "up": ["0.0", "0.2", "1.0", "1.2", "2.0", "2.2"]},
    "small": {"down": ["0.0", "1.0", "2.0"], "up": ["0.0", "0.2", "1.0", "1.2", "2.0", "2.2"]},
    "tiny": {"down": ["0.0", "1.0"], "up": ["1.0", "1.2", "2.0", "2.2"]},
}


@EVERY
@pytest.mark.parametrize("make", [prompted, plain])
def test_what_is_left_is_the_teacher_s(make: Any, blocks: Blocks) -> None:
    teacher = make()
    student = without(teacher, blocks)
    assert removed(teacher, student) == blocks
    found = start(teacher, student)
    assert found is not None and found == origins(teacher, student, blocks)
    theirs = teacher.state_dict()
    for name, value in student.state_dict().items():
        assert torch.equal(value, theirs[found[name].name])
    for side in ("down", "up"):
        taken = {origin.name for origin in found.values() if origin.name.startswith(f"{side}_blocks")}
        layers = {".".join(name.split(".")[1:4:2]) for name in taken if ".resnets." in name}
        assert sorted(layers) == LEFT[blocks][side]
    assert any(name.startswith("mid_block") for name in found) == (blocks == "base")


#: Of Stable Diffusion 1.4, in millions: all of it, and table 1 of the paper.
PUBLISHED = {"base": 580, "small": 490, "tiny": 330}


def test_stable_diffusion_s_sizes_are_the_published_ones() -> None:
    with torch.device("meta"):
        teacher = UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, block_out_channels=(320, 640, 1280, 1280), attention_head_dim=8
        )
        assert sum(p.numel() for p in teacher.parameters()) == 859_520_964
        for blocks, millions in PUBLISHED.items():
            size = sum(p.numel() for p in without(teacher, blocks).parameters())  # type: ignore[arg-type]
            assert abs(size / 1e6 - millions) < 10, (blocks, size)


def test_a_copy_or_another_network_is_no_pruned_one() -> None:
    teacher = prompted()
    assert removed(teacher, build_like(teacher, None)) is None and start(teacher, build_like(teacher, None)) is None
    assert removed(teacher, without(plain(), "small")) is None
    assert removed(nn.Linear(2, 2), nn.Linear(2, 2)) is None


# ---------------------------------------------------------------- what is compared


def stages(blocks: str) -> list[tuple[str, str]]:
    """Of three stages as the release has four: (teacher's, student's)."""
    pairs = oracle.BK_TINY_PAIRS if blocks == "tiny" else oracle.BK_BASE_SMALL_PAIRS
    shift = {"down_blocks.2": "down_blocks.1", "down_blocks.3": "down_blocks.2", "up_blocks.3": "up_blocks.2"}
    if blocks != "tiny":
        return [(name, name) for name, _ in pairs if not name.endswith("3")]
    found = []
    for theirs, mine in pairs:
        if theirs in ("down_blocks.1", "up_blocks.2"):
            continue  # the stage that this network has not
        theirs = next((theirs.replace(old, new) for old, new in shift.items() if theirs.startswith(old)), theirs)
        mine = mine.replace("down_blocks.2", "down_blocks.1").replace("up_blocks.2", "up_blocks.1")
        found.append((theirs, mine))
    return found


def hooked(net: nn.Module, names: list[str], call: Any) -> tuple[Tensor, list[np.ndarray]]:
    """What a call returns, and what modules put out in it: the first of several, as the release has it."""
    taken: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, args, out: taken.update({name: out[0] if isinstance(out, tuple) else out})

    handles = [net.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    found = call()
    for handle in handles:
        handle.remove()
    return found, [taken[name].numpy() for name in names]


@EVERY
@torch.no_grad()
def test_the_recipe_s_terms_are_the_paper_s_loss(blocks: Blocks) -> None:
    net = prompted()
    student_net = without(net, blocks)
    start(net, student_net)
    teacher, student, given = denoiser(net), denoiser(student_net), batch()
    pairs = stages(blocks)
    terms = [
        Term(loss="denoising", on="net", labels="target", name="task"), Term(loss="hint", on="net"),
        *(Term(loss="hint", on=On(student=f"net.{b}", teacher=f"net.{a}"), name=b) for a, b in pairs),
    ]  # fmt: skip
    objective = Objective(terms)
    ours = [
        said(one, given, objective.features(role)) for role, one in (("student", student), ("teacher", teacher))
    ]  # fmt: skip
    objective.build(*ours, Streams(0))
    assert not list(objective.parameters())  # widths agree: there is nothing to project
    value = float(objective(*ours, step=0, ranks=Ranks()).value())
    t = (given["u"] * 1000).long()
    z = teacher.process.add_noise(given["x"], given["noise"], t)
    text = given["labels"].embedding
    out_t, ft = hooked(net, [a for a, _ in pairs], lambda: net(z, t, text).sample)
    out_s, fs = hooked(student_net, [b for _, b in pairs], lambda: student_net(z, t, text).sample)
    wanted = oracle.bk_sdm(out_s.numpy(), out_t.numpy(), given["noise"].numpy(), fs, ft)
    assert value == pytest.approx(wanted, rel=1e-6) and wanted > 1e-3


@torch.no_grad()
def test_features_of_a_guided_teacher_are_those_under_its_prompt() -> None:
    model, given = denoiser(prompted()), batch()
    plain_ = said(model, given, ["net.down_blocks.0"])
    model.guidance = 3.0
    guided = said(model, given, ["net.down_blocks.0", "net"])
    torch.testing.assert_close(guided["net.down_blocks.0"].rows, plain_["net.down_blocks.0"].rows)
    t = (given["u"] * 1000).long()
    z = model.process.add_noise(given["x"], given["noise"], t)
    own = model(z, t, given["labels"]).permute(0, 2, 3, 1).reshape(-1, 4)
    torch.testing.assert_close(guided["net"].rows, own)


# ---------------------------------------------------------------- few steps after it


class Room:
    """As much of an adapter as few-step methods ask for."""

    config = SimpleNamespace(sampling=Sampling("ddim", 8))

    def signals(self, role: str, model: Any, batch: Any, features: Any = ()) -> Signals:
        return said(model, batch, features)


def test_few_step_methods_start_it_so_before_their_features() -> None:
    net, train = prompted(), Train(steps=1, batch_size=3)
    terms = [Term(loss="hint", on="net"), Term(loss="hint", on="net.down_blocks.0", name="down")]
    roles: dict[str, Any] = {"teacher": denoiser(net), "student": denoiser(without(net, "small"))}
    made = [
        Lcm(Room(), Objective(terms), train, Streams(1), params=LcmParams(features=steps))  # type: ignore[arg-type]
        for steps in (1, 0)
    ]
    with pytest.raises(UserError, match=r"method\.params\.features"):
        made[1].check(roles)
    made[0].check(roles)
    first, second = made[0].stages()
    made[0].begin(first, roles, batch())
    student, theirs = roles["student"].net, net.state_dict()
    for name, origin in origins(net, student, "small").items():
        assert torch.equal(student.state_dict()[name], theirs[origin.name])
    with torch.no_grad():
        student.conv_out.bias += 1
    made[0].begin(second, roles, batch())  # what it has learnt stays
    assert not torch.equal(student.conv_out.bias, net.conv_out.bias)
    assert roles["student"].sampling == Sampling("lcm", 4, 50)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_pruned_then_in_few_steps_by_two_recipes_or_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tiny_pipelines.images(tmp_path / "images")
    tiny_pipelines.stable(tmp_path / "teacher", **deep())
    terms = [{"loss": "hint", "on": "net"}, {"loss": "hint", "on": "net.down_blocks.0", "name": "down"}]
    data = {"sources": "folder", "path": str(tmp_path / "images"), "captions": True, "dev": 8, "test": 8, "samples": 8,
            "draws": 1, "curve": "ends", "cache": str(tmp_path / "cache"), "sampling": {"steps": 4}}  # fmt: skip
    train = {"steps": 2, "batch_size": 4, "optimizer": {"name": "adam", "lr": 1e-4}, "eval_every": 2}
    common: dict[str, Any] = {"modality": "diffusion", "seed": 1, "threads": 1, "data": data, "train": train}
    pruned = {
        **common, "data": {**data, "unprompted": 0.3}, "teacher": {"path": str(tmp_path / "teacher")},
        "student": {"model": "like_teacher", "params": {"blocks": "tiny", "prediction": "epsilon"}},
        "compress": "bk_sdm",
        "objective": [{"loss": "denoising", "on": "net", "labels": "target", "name": "task"}, *terms],
    }  # fmt: skip
    guided = {**common, "data": {**data, "sampling": {"steps": 4, "guidance": 2.0}}}
    after = {
        **guided, "teacher": {"path": str(tmp_path / "pruned/student")}, "student": {"model": "like_teacher"},
        "method": {"name": "lcm", "params": {"steps": 2}}, "objective": [{"loss": "denoising", "on": "prediction"}],
    }  # fmt: skip
    once = {
        **guided, "teacher": pruned["teacher"], "student": {"model": "like_teacher", "params": {"blocks": "tiny"}},
        "method": {"name": "lcm", "params": {"steps": 2, "features": 2}}, "objective": terms,
    }  # fmt: skip
    prices = {}
    for name, recipe in (("pruned", pruned), ("after", after), ("once", once)):
        (tmp_path / f"{name}.yaml").write_text(json.dumps(recipe))
        assert call(["run", str(tmp_path / f"{name}.yaml"), "--out", str(tmp_path / name), "--quiet"]) == 0
        report = json.loads((tmp_path / name / "report.json").read_text())
        assert report["export"]["student"]["reload_difference"] < 1e-4
        metrics, parameters = report["roles"]["student"]["metrics"], report["roles"]["student"]["parameters"]
        prices[name] = metrics["parameter_evaluations"]
        assert prices[name] == metrics["nfe"] * parameters
        assert prices[name] < report["roles"]["teacher"]["metrics"]["parameter_evaluations"]
    assert prices["pruned"] == 2 * prices["after"] == 2 * prices["once"]


# ---------------------------------------------------------------- refusals


def test_what_does_not_fit_is_refused() -> None:
    def refusal(net: nn.Module, blocks: Blocks) -> str:
        with pytest.raises(UserError) as caught:
            fewer(net, blocks)
        return str(caught.value)

    assert "a Linear has no stages of blocks" in refusal(nn.Linear(2, 2), "base")
    assert "layers_per_block is 1" in refusal(prompted(layers_per_block=1), "small")
    assert "take small" in refusal(prompted(block_out_channels=(8, 8, 16)), "tiny")
    teacher = denoiser(prompted())
    for more, words in (({"guidance": 8}, "leave one out"), ({"lora": 2}, "leave blocks out")):
        with pytest.raises(UserError, match=words):
            built("like_teacher", LikeTeacherConfig(blocks="base", **more), (4, 8, 8), None, teacher)
    for student, words in (
        (denoiser(prompted()), "set student.model to like_teacher and student.params.blocks"),
        (denoiser(without(prompted(), "base"), "v_prediction"), "set student.params.prediction to the teacher's"),
    ):
        with pytest.raises(UserError, match=words):
            BkSdm.check(None, None, student, {"teacher": teacher})  # type: ignore[arg-type]


@pytest.mark.usefixtures("here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_it_is_listed_and_a_deep_pipeline_s_student_is_saved_and_reloaded(tmp_path: Path) -> None:
    from xmodal_kd.modalities.diffusion.export.pipeline import load_denoiser, save_pipeline
    from xmodal_kd.modalities.diffusion.export.reload_gate import reload_gate

    assert COMPRESSIONS["bk_sdm"] is BkSdm and "bk_sdm" in {row["name"] for row in catalogue("compress")}
    folder = tiny_pipelines.stable(tmp_path / "teacher", **deep())
    teacher = load_denoiser(folder, quiet=True)
    student = Denoiser(
        without(teacher.net, "tiny"), teacher.process, teacher.prediction, teacher.shape, parts=teacher.parts
    ).eval()  # fmt: skip
    assert start(teacher.net, student.net)
    saved = save_pipeline(student, tmp_path / "student", {"role": "student", "prompts": ["a red square"]})
    assert reload_gate(saved, student) < 1e-4
    again = load_denoiser(saved, quiet=True)
    assert again.net.config.mid_block_type is None and again.price == student.price < teacher.price
