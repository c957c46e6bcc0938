"""Signals: every layout a role may give, one view of rows and maps, errors that name the signal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from xmodal_kd.runtime.errors import UserError
from xmodal_kd.signals.signals import Layout, Signals


@pytest.mark.parametrize("grid", [(), (3,), (2, 3), (2, 1, 4)])
def test_maps_are_the_rows_with_channels_first(grid: tuple[int, ...]) -> None:
    given = torch.randn(2, *grid, 5)
    signals = Signals().add("f", given, Layout.dense("pixel", 2, grid))
    torch.testing.assert_close(signals.maps("f"), given.movedim(-1, 1), rtol=0, atol=0)
    torch.testing.assert_close(signals.rows("f"), given.reshape(-1, 5), rtol=0, atol=0)


def test_rows_of_a_grid_are_not_copied() -> None:
    given = torch.randn(2, 3, 4, 5)
    signals = Signals().add("f", given, Layout.dense("pixel", 2, (3, 4)))
    assert signals.rows("f").data_ptr() == signals.maps("f").data_ptr() == given.data_ptr()


def test_padded_layout_by_hand() -> None:
    layout = Layout.padded("frame", torch.tensor([2, 0, 3]), 3)
    assert layout.mask.tolist() == [True, True, False, False, False, False, True, True, True]
    assert layout.item.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert (len(layout), layout.items, layout.grid) == (9, 3, (3,))


def test_samples_are_one_row_an_item() -> None:
    layout = Layout.samples(3)
    assert layout.item.tolist() == [0, 1, 2] and bool(layout.mask.all()) and layout.grid == ()


def test_ragged_rows_have_no_maps_and_the_error_names_the_signal() -> None:
    signals = Signals().add("points", torch.zeros(4, 2), Layout.ragged("point", torch.tensor([0, 0, 2, 2]), 3))
    assert signals.layout("points").items == 3
    with pytest.raises(ValueError, match=r"'points' is ragged"):
        signals.maps("points")


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(5, 4),  # too few rows
        torch.zeros(2, 3, 4, 4),  # an axis too many
        torch.zeros(2, 4, 3),  # channels first
        torch.zeros(2, 6, 1),  # another grid
        torch.zeros(3, 2, 4),  # items and grid exchanged
        torch.zeros(()),
    ],
    ids=lambda t: "x".join(map(str, t.shape)) or "scalar",
)
def test_a_signal_that_does_not_fit_its_layout_is_named(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match=r"'logits'.*6 frame rows"):
        Signals().add("logits", wrong, Layout.dense("frame", 2, (3,)))


def test_channel_first_maps_whose_sizes_happen_to_fit_are_refused() -> None:
    """(b, c, h, w) with c = w has as many numbers as (b, h, w, c)."""
    with pytest.raises(ValueError, match="channels last"):
        Signals().add("f", torch.zeros(2, 16, 4, 16), Layout.dense("pixel", 2, (4, 16)))


def test_labels_are_a_vector() -> None:
    signals = Signals().add("labels", torch.tensor([3, 1]), Layout.samples(2))
    assert signals.rows("labels").tolist() == [3, 1]


def test_layouts_that_contradict_themselves_are_refused() -> None:
    item = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="layout of points"):
        Layout("point", torch.ones(3), item, 1)
    with pytest.raises(ValueError, match="layout of points"):
        Layout("point", torch.ones(2, dtype=torch.bool), item, 1)
    with pytest.raises(ValueError, match=r"2 items of grid \(2,\) are not 3"):
        Layout("pixel", torch.ones(3, dtype=torch.bool), item, 2, (2,))


def test_same_rows() -> None:
    padded, dense = Layout.padded("frame", torch.tensor([2, 3]), 3), Layout.dense("frame", 2, (3,))
    assert padded.same_rows(dense), "masks may differ"
    assert not padded.same_rows(Layout.dense("point", 2, (3,)))
    assert not padded.same_rows(Layout.dense("frame", 3, (2,)))
    assert not Layout.ragged("point", torch.tensor([0, 0, 1]), 2).same_rows(
        Layout.ragged("point", torch.tensor([0, 1, 1]), 2)
    )


def test_unknown_signals_and_views_offer_the_nearest() -> None:
    signals = Signals().add("logits", torch.zeros(1, 2), Layout.samples(1)).add_view("strong", Signals())
    with pytest.raises(UserError, match=r"no signal 'logit' .*nearest: logits"):
        signals.rows("logit")
    with pytest.raises(UserError, match=r"no view 'stron' .*nearest: strong"):
        signals.view("stron")
    assert "logits" in signals and "logit" not in signals and list(signals) == ["logits"]


def test_detach_cuts_signals_and_views_and_keeps_ids() -> None:
    rows = torch.zeros(1, 2, requires_grad=True) * 2
    view = Signals().add("logits", rows, Layout.samples(1))
    cut = Signals(torch.tensor([7])).add("logits", rows, Layout.samples(1)).add_view("other", view).detach()
    assert not cut.rows("logits").requires_grad and not cut.view("other").rows("logits").requires_grad
    assert cut.ids is not None and cut.ids.tolist() == [7]
