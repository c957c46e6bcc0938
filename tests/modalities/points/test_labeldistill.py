"""LabelDistill: labels on cells, an encoder that learns from the teacher's heads, thirds of the student's features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detection_small import adapter, run
from oracles import detection_losses as oracle
from points_small import adapter as segmenting

from xmodal_kd.adapter.adapter import Batch
from xmodal_kd.modalities.points.methods import LabelDistill, LabelDistillParams, masked_square
from xmodal_kd.modalities.points.models.label_encoder import LabelEncoder, drawn
from xmodal_kd.modalities.points.tasks.detection import DetectionAdapter
from xmodal_kd.modalities.points.views.ground import CODE, Ground, decoded, objects
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term, Train
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.timing import StepTimer
from xmodal_kd.training.method import Context, Roles, Stage

GROUND = Ground((-4.0, -2.0), 1.0, (8, 4))
TERMS = [Term(loss="gaussian_focal"), Term(loss="reg_l1", on="boxes", labels="box_labels")]
TRAIN = Train.model_validate({"steps": 4, "optimizer": {"lr": 1e-2}})
STAGE = Stage("student", 4, frozenset({"student"}))


def small(made: DetectionAdapter, **sizes: int) -> Roles:
    torch.manual_seed(0)
    widths = {"teacher": 6, "student": 8} | sizes
    roles = {role: made.build(role, "centerpoint_pillar", {"width": width}) for role, width in widths.items()}
    roles["teacher"].eval().requires_grad_(False)
    return roles


def method(made: Any, **params: Any) -> LabelDistill:
    return LabelDistill(made, Objective(TERMS), TRAIN, Streams(1), params=LabelDistillParams(**params))


def batch_of(made: DetectionAdapter, **more: Any) -> Batch:
    source = made.data("train")
    return source.collate([source.sample(i, 0) for i in range(2)]) | more


def context(step: int) -> Context:
    return Context(STAGE, step, 0, Streams(1), StepTimer("cpu"), Ranks())


def test_a_cell_says_the_box_that_is_on_it() -> None:
    boxes = [
        torch.tensor([[-2.0, 0.0, 0.4, 4.0, 2.0, 1.5, 0.7], [2.6, 1.2, 0, 0.6, 0.6, 1.7, -1.0]]),
        torch.zeros(0, 7),
    ]
    numbers = [torch.tensor([2, 0]), torch.zeros(0, dtype=torch.long)]
    rows, on = drawn(boxes, numbers, GROUND, 3), objects(boxes, GROUND)
    assert rows.shape == (64, CODE + 3) and not rows[on == 0].any() and (on == 1).sum() > 4
    for number, kind in ((1, 2), (2, 0)):
        said = rows[on == number].numpy().astype(np.float64)
        places = np.tile(GROUND.centres(), (2, 1))[on.numpy() == number]
        expected = np.tile(boxes[0][number - 1].numpy(), (len(said), 1))
        np.testing.assert_allclose(decoded(said[:, :CODE], places), expected, atol=1e-5)
        assert said[:, CODE:].tolist() == [[float(k == kind) for k in range(3)]] * len(said)


def test_terms_are_those_of_the_oracle() -> None:
    random = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(9, 4, generator=random, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(9, generator=random, dtype=torch.float64)
    expected = oracle.masked_square(student.numpy(), teacher.numpy(), mask.numpy())
    assert masked_square(student, teacher, mask).item() == pytest.approx(expected, rel=1e-12)


def test_the_student_s_parts_by_hand() -> None:
    """Thirds of 2 of 8 channels, each through its own way, against the labels' features and the teacher's."""
    made = adapter()
    roles, batch, learns = small(made), batch_of(made), method(made, label=0.2, lidar=0.7)
    learns.check(roles)
    learns.begin(STAGE, roles, batch)
    early, late = (learns.loss("student", roles, batch, context(step)).parts for step in (0, 2))
    assert early["label"].weight == 0.1 and late["label"].weight == 0.2, "of two steps"
    assert early["lidar"].weight == late["lidar"].weight == 0.7
    with torch.no_grad():
        said = {role: made.signals(role, roles[role], batch, ["features"]) for role in roles}
        heat = said["student"].rows("labels").sum(dim=1)
        labels = learns.labels_as_features(batch).permute(0, 2, 3, 1).flatten(0, 2)
        maps = said["student"].rows("features").reshape(2, *made.ground("student").shape, 8).permute(0, 3, 1, 2)
        for k, (name, target, mask) in enumerate(
            (("label", labels, heat > 0), ("lidar", said["teacher"].rows("features"), heat))
        ):
            mine = learns.made[name](maps[:, 2 * k : 2 * k + 2]).permute(0, 2, 3, 1).flatten(0, 2)
            expected = oracle.masked_square(mine.numpy(), target.numpy(), mask.numpy())
            assert late[name].total.item() == pytest.approx(expected, rel=1e-4)
            assert float(late[name].count) == pytest.approx(float(mask.sum()), rel=1e-6)


def test_the_encoder_learns_and_the_teacher_does_not() -> None:
    made = adapter()
    roles, batch, learns = small(made), batch_of(made), method(made)
    optimizers = learns.begin(STAGE, roles, batch)
    before = [value.clone() for value in roles["teacher"].state_dict().values()]
    values = []
    for _ in range(30):
        out = learns.encoder_loss(roles, batch)
        optimizers["encoder"].zero_grad()
        out.value().backward()
        optimizers["encoder"].step()
        values.append(out.value().item())
    assert values[-1] < 0.8 * values[0], values[:: len(values) - 1]
    assert set(out.parts) == {"encoder/gaussian_focal", "encoder/reg_l1"}
    assert all(one.grad is None for name, role in roles.items() for one in role.parameters()), "no role learns by it"
    assert all(torch.equal(a, b) for a, b in zip(before, roles["teacher"].state_dict().values(), strict=True))


def test_the_encoder_learns_by_what_heads_answer_alone() -> None:
    """A term on a feature of the student, as the depth of a camera's, says nothing of labels as features."""
    feature = Term(loss="reg_l1", on="features", labels="box_labels", name="of a feature")
    learns = LabelDistill(adapter(), Objective([*TERMS, feature]), TRAIN, Streams(1), params=LabelDistillParams())
    assert [term.name for term in learns.task] == ["gaussian_focal", "reg_l1"] and len(learns.objective.terms) == 3


def test_a_step_moves_the_student_and_its_ways_but_not_the_encoder() -> None:
    made = adapter()
    roles, batch, learns = small(made), batch_of(made), method(made, warmup=0.0)
    learns.begin(STAGE, roles, batch)
    names = [name for name, _ in learns.losses(batch, roles, context(0))]
    assert names == ["encoder", "student"]
    learns.loss("student", roles, batch, context(0)).value().backward()
    assert all(one.grad is not None for one in (*learns.made["label"].parameters(), *roles["student"].parameters()))
    assert all(one.grad is None for one in learns.made["encoder"].parameters())


def test_frames_whose_labels_may_not_be_looked_at_teach_nothing() -> None:
    made = adapter()
    roles, learns = small(made), method(made, warmup=0.0)
    batch = batch_of(made, labelled=torch.tensor([False, False]))
    learns.begin(STAGE, roles, batch)
    parts = learns.loss("student", roles, batch, context(0)).parts
    assert all(float(parts[name].count) == 0 and parts[name].total == 0 for name in ("label", "lidar"))
    ground = made.ground("teacher")
    nothing = torch.zeros(2 * ground.cells, CODE + len(made.classes))
    encoder = learns.made["encoder"]
    assert isinstance(encoder, LabelEncoder)
    assert torch.equal(learns.labels_as_features(batch), encoder(nothing, 2, ground.shape)), "no box is drawn"


def test_what_it_cannot_train_is_said() -> None:
    made = adapter()
    with pytest.raises(UserError, match="and there is no teacher: give one"):
        method(made).check({"student": small(made)["student"]})
    with pytest.raises(UserError, match=r"needs data\.task detection"):
        method(segmenting()).check({})
    unpaid = LabelDistill(made, Objective([]), TRAIN, Streams(1), params=LabelDistillParams())
    with pytest.raises(UserError, match="no term without a teacher trains its encoder: add gaussian_focal"):
        unpaid.check(small(made))
    with pytest.raises(UserError, match=r"set student\.params\.width to 3"):
        method(made).check(small(made, student=2))
    coarse = adapter(student={"sees": "pillars", "beams": 16, "columns": 64, "cell": 0.8})
    with pytest.raises(UserError, match=r"cells of 1\.6 m, the teacher on cells of 0\.8 m: make data\.student\.cell"):
        method(coarse).check(small(coarse))


@pytest.mark.full
def test_a_run_of_it(tmp_path: Path) -> None:
    assert run(tmp_path / "run", "method={name: labeldistill, params: {warmup: 0.3, hidden: 4}}") == 0
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert set(report["roles"]) == {"teacher", "control", "student"}
