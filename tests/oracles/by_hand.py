"""Cases with values by hand: (oracle, its inputs and hyper-parameters by name, what it should say)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .losses import ORACLES

Case = tuple[str, dict[str, Any], Any]


def check(name: str, given: dict[str, Any], expected: Any) -> None:
    """Lists of numbers are handed over as arrays, lists of lists that no array holds as lists of arrays."""
    got = ORACLES[name](**{key: _arrays(key, value) for key, value in given.items()})
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def layer(*names: str, weight: Any = ((1.0,),), bias: Any = (0.0,)) -> dict[str, Any]:
    """The state of layers by these names, all with the same weight and bias."""
    return {f"{name}.{part}": value for name in names for part, value in (("weight", weight), ("bias", bias))}


def _arrays(key: str, value: Any) -> Any:
    if key == "state":
        return {name: np.array(parameter) for name, parameter in value.items()}
    if key == "grid" or not isinstance(value, list):
        return value
    try:
        return np.array(value)
    except ValueError:
        return [np.array(signal) for signal in value]
