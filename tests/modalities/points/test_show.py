"""Clouds on a run's page."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import torch
from points_small import adapter, smallest

from xmodal_kd.adapter.panels import UNSEEN
from xmodal_kd.modalities.points.data.frame import CLASSES
from xmodal_kd.modalities.points.show.overview import answers


def test_a_cloud_shows_what_each_role_says_of_a_frame(tmp_path: Path) -> None:
    made = adapter()
    models = {role: smallest(made, role).eval() for role in ("teacher", "student")}
    with torch.no_grad():
        [panel] = made.show(models, tmp_path)
        frames = made.data("test").frames[0]
        said = answers(made, models, frames)
        [glimpse] = made.glimpse("student", models["student"])
    assert [view["name"] for view in glimpse.content["views"]] == ["labels", "student"]
    assert glimpse.content["of"] == len(made.data("dev").frames[0][0].scan)
    found = panel.content
    assert [view["name"] for view in found["views"]] == ["labels", "teacher", "student"]
    assert found["reference"] == "labels" and found["classes"] == list(CLASSES)
    assert found["points"] == found["of"] == len(frames[0].scan)  # so few that none is left out
    labels = frames[0].scan.labels
    assert labels is not None
    for view in found["views"][1:]:
        shown = np.frombuffer(base64.b64decode(view["labels"]), np.uint8)
        truth = said[view["name"]]
        assert ((shown == UNSEEN) == (truth < 0)).all() and (shown[truth >= 0] == truth[truth >= 0]).all()
        common = (labels >= 0) & (said["teacher"] >= 0) & (said["student"] >= 0)
        assert view["errors"] == [int((truth != labels)[common].sum()), int(common.sum())] and common.any()
    xyz = np.frombuffer(base64.b64decode(found["xyz"]), "<i2").reshape(-1, 3) * found["scale"]
    assert np.abs(xyz - frames[0].scan.xyz).max() <= found["scale"]
