"""Capture: every call of every module asked for, inside the block and nowhere else."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from xmodal_kd.runtime.errors import UserError
from xmodal_kd.signals.capture import capture, find_modules, only_call, split


class Net(nn.Module):
    """Two blocks, the second called twice, and a recurrent layer that returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(3, 3), nn.ReLU()) for _ in range(2))
        self.rnn = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](x)
        x = self.blocks[1](self.blocks[1](x))
        out: Tensor = self.rnn(x)[0]
        return out


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def test_path_input_and_output(net: Net) -> None:
    x = torch.randn(2, 5, 3)
    with capture(net, ["blocks.0", "blocks.0:input", "blocks.0:output", "rnn"]) as got:
        out = net(x)
    assert got["blocks.0:input"][0] is x
    torch.testing.assert_close(got["blocks.0"][0], net.blocks[0](x))
    assert got["rnn"][0] is out, "of a tuple the first tensor"


def test_glob_in_the_order_of_the_model(net: Net) -> None:
    assert find_modules(net, "blocks.*.0") == ["blocks.0.0", "blocks.1.0"]
    with capture(net, ["blocks.?.1"]) as got:
        net(torch.randn(1, 2, 3))
    assert list(got) == ["blocks.0.1", "blocks.1.1"]


def test_several_calls_of_a_module_are_all_recorded_in_order(net: Net) -> None:
    """Trap 13: the second call overwrote the first."""
    x = torch.randn(1, 2, 3)
    with capture(net, ["blocks.1", "blocks.1:input"]) as got:
        net(x)
    assert len(got["blocks.1"]) == 2
    assert got["blocks.1:input"][1] is got["blocks.1"][0]
    torch.testing.assert_close(got["blocks.1"][0], net.blocks[1](net.blocks[0](x)))


def test_a_module_named_twice_is_hooked_once(net: Net) -> None:
    with capture(net, ["blocks.0", "blocks.[01]"]) as got:
        assert hooks(net) == 2
        net(torch.randn(1, 2, 3))
    assert len(got["blocks.0"]) == 1


def test_hooks_are_gone_after_the_block_and_after_an_exception(net: Net) -> None:
    """Trap 12: hooks kept firing in evaluation."""
    with capture(net, ["blocks.*"]) as got:
        assert hooks(net) > 0
    net(torch.randn(1, 2, 3))
    assert hooks(net) == 0 and not any(got.values())
    with pytest.raises(RuntimeError, match="boom"), capture(net, ["rnn"]):
        raise RuntimeError("boom")
    assert hooks(net) == 0
    with pytest.raises(UserError), capture(net, ["rnn", "nowhere"]):
        pass
    assert hooks(net) == 0, "hooks set before the bad path are removed too"


def test_nothing_is_retained(net: Net) -> None:
    with capture(net, ["blocks.0"]) as got:
        net(torch.randn(1, 2, 3))
    alive = weakref.ref(got["blocks.0"][0])
    assert alive() is not None
    del got
    gc.collect()
    assert alive() is None


def test_two_captures_of_one_model_do_not_disturb_each_other(net: Net) -> None:
    x = torch.randn(1, 2, 3)
    with capture(net, ["rnn"]) as outer:
        with capture(net, ["rnn"]) as inner:
            net(x)
        net(x)
    assert (len(outer["rnn"]), len(inner["rnn"])) == (2, 1)


def test_unknown_path_offers_the_nearest(net: Net) -> None:
    with pytest.raises(UserError, match=r"no module 'block.0' in Net \(nearest: blocks.0"), capture(net, ["block.0"]):
        pass


def test_features_and_what_cannot_be_captured() -> None:
    assert split("a.b:input") == ("a.b", True) and split("a.b:output") == ("a.b", False)
    with pytest.raises(UserError, match="input or output"):
        split("a.b:inputs")

    class Says(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"x": x}

    model = nn.Sequential(Says())
    with pytest.raises(UserError, match="module '0' gave dict, not a tensor"), capture(model, ["0"]):
        model(torch.zeros(1))
    assert hooks(model) == 0


def test_a_term_needs_one_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.idle = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.shared(self.shared(x))

    model = Twice()
    with capture(model, ["shared", "idle"]) as taken:
        model(torch.zeros(1, 2))
    with pytest.raises(UserError, match="'shared' was called 2 times"):
        only_call("shared", taken["shared"])
    with pytest.raises(UserError, match="'idle' was called 0 times"):
        only_call("idle", taken["idle"])
    assert only_call("shared", taken["shared"][:1]) is taken["shared"][0]
