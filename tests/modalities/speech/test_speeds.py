"""Speeds of which few are drawn, and a second view at the first one's speed."""

from __future__ import annotations

import torch
from spoken_digits import ALL, OFF, make

__all__ = ["make"]  # a fixture


def equal(one, other):
    return torch.equal(one.clean, other.clean) and torch.equal(one.features, other.features)


def test_of_few_speeds_each_is_drawn_and_its_features_are_computed_once(make):
    source = make(augment={**OFF, "speed": (0.8, 1.2), "speeds": 3})
    plain = len(make(augment=OFF).sample(0, 0).clean)
    heard = [source.sample(0, epoch).clean for epoch in range(30)]
    lengths = {len(x) for x in heard}
    assert len(lengths) == 3 and min(lengths) < plain < max(lengths) and plain in lengths
    assert len({x.data_ptr() for x in heard}) == 3
    anew = make(augment={**OFF, "speed": (0.8, 1.2), "speeds": 3, "gain_db": (0, 0)})
    assert all(torch.equal(anew.sample(0, epoch).clean, heard[epoch]) for epoch in range(5))


def test_another_view_has_the_speed_of_the_first_and_masks_and_noise_of_its_own(make):
    source = make(augment=ALL)
    one, again = source.sample(3, 1), source.again(3, 1, 7)
    assert torch.equal(one.clean, again.clean) and not torch.equal(one.features, again.features)
    assert equal(source.again(3, 1, 1), one) and not torch.equal(source.sample(3, 7).clean, one.clean)
    masked = make(augment={"speed": (0.9, 1.1)})
    assert torch.equal(masked.again(3, 1, 7).clean, masked.sample(3, 1).clean)
    assert not torch.equal(masked.again(3, 1, 7).features, masked.sample(3, 1).features)
