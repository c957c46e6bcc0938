"""A saved teacher that writes other symbols, or the same in another order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from xmodal_kd.adapter.adapter import Batch
from xmodal_kd.cli.main import call
from xmodal_kd.modalities.speech.adapter import SpeechAdapter
from xmodal_kd.modalities.speech.data.tokens import Tokens
from xmodal_kd.recipe.recipe import load
from xmodal_kd.run.roles import make_adapter
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams

SMALL = ("data.compose.utterances={train: 12, dev: 4, test: 4}", "trackers=[]", "threads=1")


def adapter(digits: Path, *sets: str) -> SpeechAdapter:
    made: Any = make_adapter(load("smoke/speech", [*SMALL, f"data.path={digits}", *sets]), Streams(1))
    made.build("student", "conv", {"width": 8, "dilations": [1]})
    return made  # type: ignore[no-any-return]


def saved(digits: Path, symbols: tuple[str, ...], folder: Path) -> nn.Module:
    """A model of `symbols` in `folder`."""
    other = adapter(digits)
    other.tokens = Tokens("words", symbols)
    torch.manual_seed(0)
    model = other.build("teacher", "conv", {"width": 8, "dilations": [1]})
    other.save("teacher", model, folder)
    return model.eval()


def batch_of(made: SpeechAdapter) -> Batch:
    train = made.data("train")
    return train.collate([train.sample(i, 0) for i in range(3)])


def test_symbols_in_another_order_stand_in_ours(digits: Path, tmp_path: Path) -> None:
    made = adapter(digits, "data.vocabulary=by_name")
    ours = made.tokens.symbols
    order = [0, *range(len(ours) - 1, 0, -1)]
    model = saved(digits, tuple(ours[i] for i in order), tmp_path)
    batch = batch_of(made)
    said = made.signals("teacher", made.load("teacher", tmp_path).eval(), batch).rows("logits")
    plain = adapter(digits).signals("teacher", model, batch).rows("logits")
    torch.testing.assert_close(said, plain[:, order])
    assert made.class_names("teacher") == ours
    with pytest.raises(UserError, match="writes another vocabulary than the training texts: class 1"):
        adapter(digits).load("teacher", tmp_path)


@pytest.mark.parametrize("stride", [2, 4])
def test_symbols_that_it_does_not_know_have_no_score(digits: Path, tmp_path: Path, stride: int) -> None:
    """Also where several of its frames are one of the student's; what the student does not know is left out."""
    made = adapter(digits, "data.vocabulary=by_name")
    ours = made.tokens.symbols
    few = (ours[0], ours[3], "zebra", ours[1])
    saved(digits, few, tmp_path)
    model: Any = made.load("teacher", tmp_path).eval()
    made.stride = stride * model.stride // 2
    said = made.signals("teacher", model, batch_of(made))
    rows = said.rows("logits")[said.layout("logits").mask]
    assert (rows > -torch.inf).any(dim=0).nonzero().flatten().tolist() == [0, 1, 3]
    assert rows[:, [0, 1, 3]].isfinite().all()
    found = made.evaluate("teacher", model, "dev")
    words = {word for one in found.examples for word in str(one.get("hypothesis", "")).split()}
    assert words <= {ours[1], ours[3]}


def test_a_vocabulary_of_nothing_in_common_is_refused(digits: Path, tmp_path: Path) -> None:
    made = adapter(digits, "data.vocabulary=by_name")
    saved(digits, (made.tokens.symbols[0], "zebra"), tmp_path)
    with pytest.raises(UserError, match="of its 2 classes fewer than two are the student's"):
        made.load("teacher", tmp_path)


@pytest.mark.full
def test_two_teachers_of_half_the_digits_teach_all(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xmodal_kd.run.runner.LATENCY", 0.01)
    made = adapter(digits)
    blank, *words = made.tokens.symbols
    for name, known in (("low", words[:5]), ("high", words[5:])):
        saved(digits, (blank, *known), tmp_path / name)
    sets = [
        *SMALL, f"data.path={digits}", "data.vocabulary=by_name", "scheme=uhc", f"teacher={{path: {tmp_path / 'low'}}}",
        f"teachers={{high: {{path: {tmp_path / 'high'}}}}}", "objective=[{loss: ctc}, {loss: uhc}]",
        "student.params={width: 8, dilations: [1]}", "train.steps=2", "train.batch_size=4",
    ]  # fmt: skip
    listed = [word for one in sets for word in ("--set", one)]
    assert call(["run", "smoke/speech", "--out", str(tmp_path / "run"), "--quiet", "--no-export", *listed]) == 0
    found = read_json(tmp_path / "run" / "report.json")
    assert list(found["roles"]) == ["teacher", "teacher-high", "control", "student"]
    assert found["taught"]["student"] == {"classes": {"teacher": 6, "high": 6}}
    assert call(["check", "smoke/speech", "--device", "cpu", *listed]) == 0
