"""Streams: a function of the path and of nothing else."""

from __future__ import annotations

import torch

from xmodal_kd.runtime.random_streams import Streams


def test_a_stream_is_a_function_of_seed_and_path() -> None:
    first, second = Streams(3), Streams(3)
    second.numpy("something", 1).random(100)  # whatever was drawn before
    torch.rand(7)
    a = first.torch("order", 2, "x")
    b = second.torch("order", 2, "x")
    assert torch.equal(torch.rand(5, generator=a), torch.rand(5, generator=b))
    assert (first.numpy("n", 4).random(5) == second.numpy("n", 4).random(5)).all()


def test_keys_do_not_collide() -> None:
    """Neither by joining parts, nor by a number that looks like a name, nor by the order of the parts."""
    words = [(), ("a",), ("b",), ("a", "b"), ("b", "a"), ("ab",)]
    paths = [*words, ("a", 1), ("a", "1"), ("a", 11), ("a", 1, 1), (1, "a")]
    keys = [Streams(seed).key(*path) for seed in (1, 2, 11) for path in paths]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**63 for key in keys)


def test_keys_are_the_same_on_every_machine() -> None:
    assert Streams(1).key("order", 3) == 5763109155487854488


def test_forked_seeds_inside_and_restores_outside() -> None:
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    with Streams(1).forked("init", "student"):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(4), expected)
    torch.rand(99)
    with Streams(1).forked("init", "student"):
        assert torch.equal(torch.rand(3), inside)


def test_forked_restores_after_an_exception() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    try:
        with Streams(1).forked("x"):
            torch.rand(3)
            raise KeyError
    except KeyError:
        pass
    assert torch.equal(torch.random.get_rng_state(), before)


def test_seed_torch_replays_dropout() -> None:
    draws = []
    for _ in range(2):
        Streams(1).seed_torch("dropout", 4)
        draws.append(torch.nn.functional.dropout(torch.ones(50), 0.5))
        torch.rand(13)
    assert torch.equal(*draws)
