"""Clips of figures: batches of them, a network that follows joints from frame to frame, the critic of their changes."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import pose_by_another as oracle
from scheme_runs import begun, engine, resumed, weights
from torch import Tensor, nn

from xmodal_kd.modalities.images.adapter import ImagesAdapter
from xmodal_kd.modalities.images.data.keypoints.source import FiguresSource, load_figures
from xmodal_kd.modalities.images.data.source import ImagesData
from xmodal_kd.modalities.images.export.card import save_model
from xmodal_kd.modalities.images.export.keypoints_folder import NEXT, about, export, load_card
from xmodal_kd.modalities.images.methods.temporal import Critic
from xmodal_kd.modalities.images.models import DynamicKernels
from xmodal_kd.modalities.images.models.dynamic_kernels import NextFrame, matched
from xmodal_kd.models import onnx
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams

FRAMES = 3
RECIPE: dict[str, Any] = {
    "modality": "images", "seed": 1, "method": {"name": "dkd_pose", "params": {"rate": 0.1, "hidden": 4}},
    "data": {"task": "keypoints", "sources": "skeletons", "size": 16, "dev": 2, "test": 2,
             "keypoints": {"figures": 6, "frames": FRAMES, "rotate": 5}},
    "student": {"model": "dynamic_kernels", "params": {"first": {"width": 4, "depth": 1}, "width": 3, "kernel": 3,
                                                       "hidden": 4}},
    "objective": [{"loss": "heatmap_mse", "labels": "heatmaps"}], "trackers": [],
    "train": {"steps": 4, "batch_size": 6, "optimizer": {"lr": 2e-2}, "checkpoint_every": 4, "schedule": {}},
}  # fmt: skip


def recipe(**train: Any) -> dict[str, Any]:
    made = copy.deepcopy(RECIPE)
    return {**made, "train": {**made["train"], **train}}


def source(batch_size: int = 6, split: str = "train") -> FiguresSource:
    config = ImagesData(**RECIPE["data"])
    return FiguresSource(config, split, load_figures(config, split), Streams(1), batch_size)


def test_batches_are_whole_clips_that_move_together() -> None:
    data = source()
    plan = [list(batch) for batch in data.plan(0)]
    assert (
        len(plan) == 3
        and sorted(i for batch in plan for i in batch) == list(range(18))
        and plan != [list(b) for b in data.plan(1)]
    )
    for batch in plan:
        assert [i % FRAMES for i in batch] == [0, 1, 2, 0, 1, 2] and len({i // FRAMES for i in batch}) == 2
    batch = data.collate([data.sample(i, 0) for i in plan[0]])
    assert batch["before"].tolist() == [-1, 0, 1, -1, 3, 4]
    figures = data.figures
    still = torch.from_numpy(np.diff(figures.joints[plan[0][:FRAMES]], axis=0)).norm(dim=2)
    torch.testing.assert_close(batch["joints"][:FRAMES].diff(dim=0).norm(dim=2), still, atol=1e-4, rtol=1e-4)
    assert [list(b) for b in source(split="test").plan(0)] == [list(range(6))]
    with pytest.raises(UserError, match=r"train.batch_size: 4 images are no whole number of clips of 3 \(data.keypoi"):
        source(4)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_each_sample_is_matched_with_its_own_kernels(k: int) -> None:
    r = np.random.RandomState(k)
    features, kernels = r.randn(2, 3, 5, 4), r.randn(2, 4, 3, k, k)
    found = matched(torch.from_numpy(features), torch.from_numpy(kernels))
    np.testing.assert_allclose(found.numpy(), oracle.match(features, kernels), rtol=1e-9, atol=1e-12)


def network() -> DynamicKernels:
    torch.manual_seed(0)
    made = ImagesAdapter.of(config := ImagesData(**RECIPE["data"]))(config, Streams(1), 6)
    found = made.build("student", "dynamic_kernels", RECIPE["student"]["params"])
    assert isinstance(found, DynamicKernels)
    return found


def test_a_frame_is_found_by_the_one_before() -> None:
    """Whatever the order in the batch; one whose frame before is not there is a first one."""
    model, x = network().eval(), torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    maps = [model(x[:1])]
    for t in (1, 2):
        seen, later = model.encoder(x[t - 1 : t]), model.encoder(x[t : t + 1])
        kernels = model.distillator(seen, maps[-1]).detach().numpy()
        expected = oracle.match(later.detach().numpy(), kernels)
        maps.append(model.follow(seen, maps[-1], later))
        np.testing.assert_allclose(maps[-1].detach().numpy(), expected, rtol=1e-4, atol=1e-6)
    expected_maps = torch.cat([*maps, model(x[3:])])
    torch.testing.assert_close(model(x, torch.tensor([-1, 0, 1, -1, -1])), expected_maps)
    turned = model(x.flip(0), torch.tensor([-1, -1, 3, 4, -1]))
    torch.testing.assert_close(turned.flip(0), expected_maps)


def test_a_gradient_flows_through_all_frames() -> None:
    model, x = network(), torch.randn(3, 3, 16, 16)
    x.requires_grad_()
    model(x, torch.tensor([-1, 0, 1]))[2].sum().backward()
    assert x.grad is not None and all(float(frame.abs().sum()) > 0 for frame in x.grad)
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.full
def test_both_graphs_are_exported(tmp_path: Path) -> None:
    model = network().eval()
    save_model(tmp_path, model, {})
    said = export(model, tmp_path)
    assert max(one["max_error"] for one in said.values()) < 1e-4 and list(said) == ["model.onnx", NEXT]
    x, previous = torch.randn(2, 5, 3, 16, 16).unbind(0)
    session = onnx.session(tmp_path / NEXT, extra="images")
    assert onnx.prove(NextFrame(model), partial(onnx.run, session), x, previous, torch.rand(5, 14, 4, 4)) <= 1e-4
    assert "follows the figure" in about(load_card(tmp_path)).what


class Again(nn.Module):
    """A critic that makes given changes again."""

    def __init__(self, again: Tensor) -> None:
        super().__init__()
        self.register_buffer("again", again)

    def forward(self, x: Tensor) -> Tensor:
        return self.again  # type: ignore[return-value]


def test_the_critics_errors_and_its_balance_are_the_oracles() -> None:
    r = np.random.RandomState(0)
    maps, again = r.randn(FRAMES, 2, 4, 6, 6), r.randn(FRAMES - 1, 2, 4, 6, 6)
    critic = Critic(4, 3, 5).double()
    critic.inward, critic.outward = nn.Sequential(), nn.Sequential(Again(torch.from_numpy(again).flatten(0, 1)))
    changes = torch.from_numpy(maps[1:] - maps[:-1]).flatten(0, 1)
    errors = critic(changes, torch.zeros(4, 6, 6, 6))
    expected = oracle.reconstruction(again, maps)
    assert float(errors.mean()) * (FRAMES - 1) == pytest.approx(expected, rel=1e-9)
    kappa = 0.0
    for real, fake in ((3.0, 1.0), (2.0, 4.0), (0.1, 9.0), (1.0, 0.2)):
        critic.note(torch.tensor([real, real]), torch.tensor([fake, fake]), _Alone())  # type: ignore[arg-type]
        critic.balance(0.5, 0.1)
        kappa = oracle.began(real, fake, kappa, 0.5, 0.1)[2]
        assert float(critic.kappa) == pytest.approx(kappa, rel=1e-6)
    critic.balance(0.5, 0.1)
    assert float(critic.kappa) == pytest.approx(kappa, rel=1e-6), "without a batch nothing changes"


class _Alone:
    def sum(self, values: Tensor) -> Tensor:
        return values


def test_a_step_is_the_objective_and_the_game(tmp_path: Path) -> None:
    method, roles, batch, ctx = begun(tmp_path, recipe())
    method.critic.kappa.fill_(0.25)
    taken = method.losses(batch, roles, ctx)
    owner, out = next(taken)
    assert owner == "student"
    maps = method.adapter.answer("student", roles["student"], batch).detach()
    seen = batch["visible"].reshape(2, FRAMES, 14)
    both = (seen[:, 1:] & seen[:, :-1])[..., None, None]
    fake, real = ((x := some.reshape(2, FRAMES, 14, 4, 4))[:, 1:] - x[:, :-1] for some in (maps, batch["heatmaps"]))
    small = torch.nn.functional.interpolate(batch["x"], size=(4, 4), mode="area").reshape(2, FRAMES, 3, 4, 4)
    images = torch.cat([small[:, 1:], small[:, :-1]], dim=2).flatten(0, 1)
    errors = {name: method.critic((x * both).flatten(0, 1), images) for name, x in (("true", real), ("made", fake))}
    part = out.parts["changes"]
    torch.testing.assert_close(part.total, errors["made"].sum())
    assert part.count == 4 and part.weight == 1e-3
    out.value().backward()
    assert all(p.grad is None for p in method.critic.parameters()), "the student's part leaves the critic alone"
    owner, learned = next(taken)
    assert owner == "critic"
    expected = oracle.began(errors["true"].mean().item(), errors["made"].mean().item(), 0.25)[0]
    assert learned.value().item() == pytest.approx(expected, rel=1e-5)
    learned.value().backward()
    assert all(p.grad is not None for p in method.critic.parameters())
    assert list(taken) == []


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumes_to_the_bit(tmp_path: Path, accumulate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kappa too, which begins so high here that four steps do not bring it to its end."""
    made = Critic.__init__

    def high(self: Critic, *sizes: int) -> None:
        made(self, *sizes)
        self.kappa.fill_(0.9)

    monkeypatch.setattr(Critic, "__init__", high)
    whole = engine(tmp_path / "whole", recipe(accumulate=accumulate))
    whole.fit()
    assert 0 < float(whole.method.critic.kappa) < 0.9  # type: ignore[attr-defined]
    for step in (1, 3):
        again = resumed(lambda step=step: engine(tmp_path / str(step), recipe(accumulate=accumulate)), step)
        assert weights(again) == weights(whole), step


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    made = recipe()
    made["data"]["keypoints"]["frames"] = 1
    with pytest.raises(UserError, match=r"'dynamic_kernels' follows a figure from frame to frame: set data.keypoints"):
        engine(tmp_path, made)
    made["student"] = {"model": "hourglass", "params": {"width": 4, "depth": 1}}
    with pytest.raises(UserError, match=r"method dkd_pose compares heat maps of frames: set data.task"):
        engine(tmp_path, made)
