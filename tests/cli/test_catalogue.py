"""What `list` shows: every kind of thing, with one line each, and the paper of each loss."""

from __future__ import annotations

import json
from typing import Any

import pytest

from xmodal_kd.cli.catalogue import KINDS, catalogue
from xmodal_kd.losses import LOSSES, loss
from xmodal_kd.losses.base import INPUTS
from xmodal_kd.runtime.errors import UserError

FIELDS = {
    "losses": {"name", "summary", "paper", "year", "family", "needs", "reduction", "parameters", "for"},
    "methods": {"name", "summary"},
    "schemes": {"name", "summary", "paper", "year", "family", "teacher", "needs"},
    "compress": {"name", "summary", "paper", "year"},
    "models": {"name", "modality", "summary"},
    "datasets": {"name", "modality", "summary"},
    "modalities": {"name", "summary"},
    "recipes": {"name", "summary"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_has_its_fields_and_one_line(kind: str) -> None:
    rows = [row for row in catalogue(kind) if not row["name"].startswith("test_")]
    assert rows
    names = [(row.get("modality"), row["name"]) for row in rows]
    assert len(set(names)) == len(names) and names == sorted(names, key=lambda n: (n[0] or "", n[1]))
    for row in rows:
        assert FIELDS[kind] <= row.keys()
        assert row["summary"] and "\n" not in row["summary"], row["name"]
    assert json.loads(json.dumps(rows)) == rows, "as --json prints it"


def test_losses_name_their_paper_and_what_they_need() -> None:
    rows = {row["name"]: row for row in catalogue("losses")}
    assert {"kd", "logit_mse", "hint", "at", "cka", "dist", "ctc"} <= rows.keys(), "those of the modalities too"
    for name, row in rows.items():
        if not name.startswith("test_"):
            assert row["paper"] and row["year"] > 1950 and row["needs"], name
    assert rows["dmkd"]["experimental"] and rows["dmkd"]["summary"].startswith("Experimental. Inspired by")
    assert all(row["experimental"] == (row["confidence"] == "C") for row in rows.values())
    assert rows["kd"]["parameters"]["temperature"] == 4.0 and "teacher" in rows["kd"]["needs"]
    assert "labels" in rows["ctc"]["needs"] and "teacher" not in rows["ctc"]["needs"]


def test_a_required_parameter_can_be_listed() -> None:
    @loss("test_required", reduction="rows", family="test", paper="", year=2026)
    def required(student: Any, teacher: Any, *, margin: float) -> Any:
        """A margin that has no default."""

    assert json.loads(json.dumps(LOSSES["test_required"].describe()))["parameters"] == {"margin": None}


def test_a_loss_that_asks_for_what_nobody_has_fails_at_import() -> None:
    with pytest.raises(TypeError, match=r"'test_bad' asks for unknown inputs \['logits'\]; .*behind a \*"):

        @loss("test_bad", reduction="rows", family="test", paper="", year=2026)
        def bad(logits: Any) -> Any: ...

    assert "test_bad" not in LOSSES and "student" in INPUTS


def test_an_unknown_list_offers_the_nearest() -> None:
    with pytest.raises(UserError, match=r"list 'loses': there is no such list \(nearest: losses"):
        catalogue("loses")


def names(*what: Any) -> set[str]:
    return {row["name"] for row in catalogue(*what)}


def test_losses_by_what_they_need() -> None:
    assert {"dkd", "nkd", "ntce"} <= names("losses", ["labels", "teacher"]) and "kd" not in names("losses", ["labels"])
    assert {"kd", "hint"} <= names("losses", [], ["labels"]) and not {"dkd", "ce"} & names("losses", [], ["labels"])
    assert names("losses", ["features"], ["labels"]) == names("losses", ["features"]) - names("losses", ["labels"])
    assert {"average", "you"} <= names("schemes", ["several_teachers"]) and "dml" not in names("schemes", ["teacher"])


def test_losses_by_the_modality_that_they_serve() -> None:
    """Speech has labels of utterances and none of frames; diffusion no class scores; a loss of one serves no other."""
    serving = {name: names("losses", [], [], name) for name in ("speech", "points", "images", "diffusion")}
    assert {"kd", "hint", "ctc", "sdd_teacher"} <= serving["speech"] and "dkd" not in serving["speech"]
    assert {"kd", "dkd", "hint"} <= serving["points"] & serving["images"] and "ctc" not in serving["images"]
    assert {"hint", "at", "denoising", "bounded_reg"} <= serving["diffusion"] and "kd" not in serving["diffusion"]
    assert "sdd" in serving["images"] and "sdd" not in serving["points"]
    images = {"cnn", "resnet", "vit", "hourglass", "pose_resnet", "dynamic_kernels", "edsr"}
    assert names("models", [], [], "images") == images
    assert "digits" in names("datasets", [], [], "images")


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (("losses", ["lables"]), r"nothing needs 'lables' \(nearest: labels"),
        (("recipes", ["labels"]), "they have no needs to choose by"),
        (("losses", [], [], "speach"), r"no such modality \(nearest: speech"),
        (("compress", [], [], "speech"), "for every modality alike"),
    ],
)
def test_words_that_mean_nothing(what: tuple[Any, ...], says: str) -> None:
    with pytest.raises(UserError, match=says):
        catalogue(*what)
