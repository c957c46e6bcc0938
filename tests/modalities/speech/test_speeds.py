"""Speeds of which few are drawn, a second view at the first one's speed, vocal tracts of other lengths."""

from __future__ import annotations

import pytest
import torch
from spoken_digits import ALL, OFF, make

from xmodal_kd.modalities.speech.data.augment import Augment, warp_frequencies
from xmodal_kd.modalities.speech.data.features import Features, Frontend

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


def tone(hertz):
    wave = torch.sin(2 * torch.pi * hertz * torch.arange(4000) / 16000)
    return Frontend(Features(mels=80, normalise="none"))(wave)


@pytest.mark.parametrize("factor", [0.8, 0.9, 1.0, 1.1, 1.25])
@pytest.mark.parametrize("hertz", [400, 1000, 3000])
def test_a_warped_tone_stands_where_the_tone_of_that_frequency_stands(hertz, factor):
    warped, wanted = warp_frequencies(tone(hertz), factor, 16000), tone(factor * hertz)
    place = lambda x: (x.exp() * torch.arange(80)).sum(dim=1) / x.exp().sum(dim=1)  # noqa: E731
    torch.testing.assert_close(place(warped), place(wanted), atol=0.6, rtol=0)


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.25, 2.0])
def test_a_warp_keeps_the_order_of_all_mels_and_its_ends(factor):
    mels = torch.arange(80.0).expand(2, 80).contiguous()
    warped = warp_frequencies(mels, factor, 16000)
    assert (warped.diff(dim=1) >= 0).all() and warped[0, -1] > 78 and warped[0, 0] < 1.5
    torch.testing.assert_close(warp_frequencies(mels, 1.0, 16000), mels)
    assert warp_frequencies(mels[:, :1], factor, 16000).shape == (2, 1)


def test_a_warp_is_of_the_augmented_view_alone_and_drawn_anew_for_each(make):
    source, plain = make(augment={**OFF, "warp": (0.8, 1.2)}), make(augment=OFF)
    one, again = source.sample(3, 1), source.again(3, 1, 7)
    assert torch.equal(one.clean, plain.sample(3, 1).clean) and torch.equal(again.clean, one.clean)
    assert not torch.equal(one.features, one.clean) and not torch.equal(again.features, one.features)
    assert equal(source.sample(3, 1), one)
    with pytest.raises(ValueError, match=r"within 0\.5 and 2"):
        Augment(warp=(0.1, 1.0))
