"""Few-step methods of prompted teachers: what they are told, and what they hold."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from xmodal_kd.modalities.diffusion.adapter import DiffusionAdapter
from xmodal_kd.modalities.diffusion.data.captions import read_captions
from xmodal_kd.modalities.diffusion.data.config import DiffusionData
from xmodal_kd.modalities.diffusion.methods.matching import MatchingParams
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Train
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.timing import StepTimer
from xmodal_kd.training.method import METHODS, Context

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def adapter(place: Path, guidance: float = 1.0) -> DiffusionAdapter:
    section = {"sources": "folder", "path": place / "images", "captions": True, "dev": 8, "test": 8, "samples": 8,
               "cache": place / "cache", "sampling": {"steps": 8, "guidance": guidance}}  # fmt: skip
    made = DiffusionAdapter(DiffusionData.model_validate(section), Streams(1), 4)
    made.teachers = {"teacher": SimpleNamespace(path=place / "stable")}
    made.load("teacher", place / "stable")
    return made


def test_pairs_of_a_prompted_teacher_are_guided_by_captions_of_the_training_samples(place: Path) -> None:
    made = adapter(place, 3.0)
    method = METHODS["reflow"](made, Objective([]), Train(steps=3, batch_size=2), Streams(1))
    roles = {"teacher": made.teacher, "student": made.build("student", "like_teacher", {})}
    source = made.data("train")
    batch = source.collate([source.sample(i, 0) for i in range(2)])
    method.check(roles)
    stage = next(stage for stage in method.stages() if stage.name == "reflow-1")
    method.begin(stage, roles, batch)
    pairs, captions = method.pairs, read_captions(place / "images", source.images.keys)
    said = made.parts.prompts([captions[int(i)] for i in pairs.told])
    torch.testing.assert_close(pairs.x, made.teacher.sample(pairs.noise, said), rtol=1e-4, atol=1e-5)
    assert len({captions[int(i)] for i in pairs.told}) > 1 and len(pairs.x) == 6
    ctx = Context(stage, 0, 0, Streams(1), StepTimer(torch.device("cpu")), Ranks())
    assert method.values(batch, roles, ctx).shape == (2,)


def test_three_networks_of_adapters_have_one_base(place: Path) -> None:
    made = adapter(place)
    method = METHODS["dmd2"](
        made, Objective([]), Train(steps=1, batch_size=2), Streams(1), params=MatchingParams(steps=4)
    )
    student = made.build("student", "like_teacher", {"lora": 2, "prediction": made.teacher.prediction})
    roles = {"teacher": made.teacher.requires_grad_(False), "student": student}
    source = made.data("train")
    batch = source.collate([source.sample(i, 0) for i in range(2)])
    stage = next(stage for stage in method.stages() if stage.name == "matching")
    method.begin(stage, roles, batch)
    base = {p.data_ptr() for p in made.teacher.parameters()}
    for net in (student, method.fake):
        own = [p for p in net.parameters() if p.data_ptr() not in base]
        assert own and all(p.requires_grad for p in own), "none of the base has a place of its own"
    learns = [{n: p.data_ptr() for n, p in net.named_parameters() if p.requires_grad} for net in (student, method.fake)]
    assert learns[0].keys() == learns[1].keys() and not {*learns[0].values()} & {*learns[1].values()}
