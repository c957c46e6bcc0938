"""Export to ONNX: what is proven, what is refused, what a failed export leaves."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from xmodal_kd.models import onnx
from xmodal_kd.runtime.errors import RunError, UserError
from xmodal_kd.runtime.leftovers import temporary


class Toy(nn.Module):
    """Rows in, their scores and how many there are."""

    def __init__(self, fill: float = 0.5) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        nn.init.constant_(self.linear.weight, fill)
        nn.init.zeros_(self.linear.bias)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(rows), torch.tensor(2) * rows.shape[0]


def write(model: nn.Module, path: Path, check: object = lambda path: None) -> Path:
    return onnx.export(
        model, path, {"rows": torch.zeros(4, 3)}, ["scores", "count"], {"rows": {0: "n"}}, check, extra="x"
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(Toy().train(), tmp_path_factory.mktemp("toy") / "deep" / "toy.onnx")


def test_an_exported_model_says_what_torch_says(path: Path) -> None:
    session = onnx.session(path, extra="x")
    for n in (1, 7):
        assert onnx.prove(Toy(), partial(onnx.run, session), torch.linspace(-1, 1, 3 * n).reshape(n, 3)) <= 1e-6
    assert int(onnx.run(session, torch.zeros(7, 3))[1]) == 14


@pytest.mark.parametrize(
    "result",
    [
        (torch.zeros(2, 2), torch.tensor(4)),
        (torch.full((2, 2), float("nan")), torch.tensor(4)),
        (torch.zeros(1, 2), torch.tensor(4)),
    ],
)
def test_another_result_is_refused(result: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(RunError, match=r"differs from the torch model by .* on inputs of 2 x 3"):
        onnx.prove(Toy(), lambda rows: result, torch.ones(2, 3))


def test_counts_must_be_equal() -> None:
    model = Toy()
    onnx.prove(model, model, torch.ones(2, 3))
    with pytest.raises(RunError, match="inf"):
        onnx.prove(model, lambda rows: (model(rows)[0], torch.tensor(5)), torch.ones(2, 3))


def test_a_file_that_fails_its_check_does_not_appear(tmp_path: Path) -> None:
    def check(path: Path) -> None:
        assert path.is_file() and path.parent == temporary(tmp_path / "toy.onnx")
        raise RunError("no")

    model = Toy().train()
    with pytest.raises(RunError, match="no"):
        write(model, tmp_path / "toy.onnx", check)
    assert list(tmp_path.iterdir()) == [] and model.training


def test_weights_that_are_too_many_lie_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "MOST", 0)
    model = Toy()
    model.linear = nn.Linear(3, 500)
    path = write(model, tmp_path / "toy.onnx", lambda made: onnx.session(made, extra="x"))
    assert onnx.weights_of(path).stat().st_size >= 4 * 3 * 500 > path.stat().st_size
    assert len(list(tmp_path.iterdir())) == 2
    onnx.prove(model, partial(onnx.run, onnx.session(path, extra="x")), torch.ones(2, 3))


def test_a_file_that_is_missing_is_named() -> None:
    with pytest.raises(UserError, match="no such file"):
        onnx.session("nowhere.onnx", extra="x")
