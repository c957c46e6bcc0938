"""Toy recipes for tests of the teacher's cache."""

from __future__ import annotations

from toy import RECIPE

PLAIN = f"{RECIPE}trackers: []\n"
QUIET = PLAIN.replace("data: {}", "data: {noise: 0.0}")  # the teacher sees the same in every epoch
