"""FLOPs, by hand."""

from __future__ import annotations

import torch
from torch import nn

from xmodal_kd.runtime import flops


def test_a_matrix_product_by_hand() -> None:
    layer = nn.Linear(5, 7, bias=False)
    x = torch.randn(3, 5)
    assert flops.count(lambda: layer(x)) == 2 * 3 * 5 * 7


def test_backward_is_counted_where_the_work_calls_it() -> None:
    layer = nn.Linear(5, 7, bias=False)
    x = torch.randn(3, 5, requires_grad=True)
    assert flops.count(lambda: layer(x).sum().backward()) == 3 * (2 * 3 * 5 * 7)


def test_a_convolution_by_hand() -> None:
    layer = nn.Conv1d(4, 6, 3, padding=1, bias=False)
    x = torch.randn(2, 4, 10)
    assert flops.count(lambda: layer(x)) == 2 * 2 * 10 * 6 * 4 * 3


def test_forward_runs_in_eval_mode_without_gradients_and_puts_the_mode_back() -> None:
    seen = []
    for training in (True, False):
        model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Dropout()).train(training)

        def work(model: nn.Sequential = model) -> None:
            out = model(torch.ones(1, 2))
            seen.append((model.training, out.requires_grad))

        assert flops.forward(model, work) == 8
        assert model.training is training
    assert seen == [(False, False)] * 2
