"""A cached teacher of speech: what it hears decides, warps need replay, frames lie on the student's grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xmodal_kd.recipe.recipe import Recipe, load
from xmodal_kd.run.roles import build, make_adapter, role_plans
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.teacher_cache.content import Contents
from xmodal_kd.teacher_cache.session import check

ROOT = Path(__file__).parents[3]


def smoke(*sets: str) -> tuple[Recipe, Any]:
    small = (
        f"data.path={ROOT / 'assets/digits'}",
        "data.compose={utterances: {train: 12, dev: 4, test: 4}}",
        "cache={}",
    )
    loaded = load("smoke/speech", [*small, *sets])
    adapter = make_adapter(loaded, Streams(1))
    for role_plan in (one for one in role_plans(loaded, adapter) if one.role in ("teacher", "student")):
        build(adapter, loaded, role_plan, Streams(1))
    return loaded.recipe, adapter


def test_the_clean_view_is_alike_in_every_epoch_whatever_is_masked() -> None:
    recipe, adapter = smoke("data.augment.noise_snr_db=[0, 20]")
    check(recipe, adapter)
    source, contents = adapter.data("train"), Contents()
    first, second = source.sample(3, 0), source.sample(3, 5)
    assert not first.features.equal(second.features)
    assert contents.digest(adapter.teacher_sees(first)) == contents.digest(adapter.teacher_sees(second))
    assert contents.digest(adapter.teacher_sees(first)) != contents.digest(adapter.teacher_sees(source.sample(4, 0)))


@pytest.mark.parametrize("warp", ["augment.speed=[0.8, 1.2]", "augment.gain_db=[-6, 6]", "teacher_view=shared"])
def test_what_changes_what_the_teacher_hears_needs_replay(warp: str) -> None:
    with pytest.raises(
        UserError, match=r"cache\.view: clean: what the teacher sees of sample .* say cache\.view=replay"
    ):
        check(*smoke(f"data.{warp}"))
    check(*smoke(f"data.{warp}", "cache={view: replay, epochs: 3}"))


def test_the_grid_of_the_student_is_part_of_what_decides() -> None:
    _, adapter = smoke()
    sample, contents = adapter.data("train").sample(0, 0), Contents()
    before = contents.digest(adapter.teacher_sees(sample))
    adapter.stride *= 2
    assert contents.digest(adapter.teacher_sees(sample)) != before
