"""Continuous-time consistency distillation (Lu and Song, 2024), for one sample in NumPy, with data of unit spread.

z = cos(a) x + sin(a) eps. F is what a network says of cos(a) eps - sin(a) x, and f(z, a) = cos(a) z - sin(a) F(z, a).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .maths import Array

#: F(z, a).
Velocity = Callable[[Array, float], Array]


def slope_of_f(student: Velocity, teacher: Velocity, z: Array, a: float, step: float) -> Array:
    """df/da along the teacher's path through z, by Richardson's extrapolation of central differences of f itself."""
    along = teacher(z, a)

    def f(s: float) -> Array:
        moved, angle = z + s * along, a + s
        return math.cos(angle) * moved - math.sin(angle) * student(moved, angle)

    def central(h: float) -> Array:
        return (f(h) - f(-h)) / (2 * h)

    return (4 * central(step / 2) - central(step)) / 3


def tangent(
    student: Velocity, teacher: Velocity, z: Array, a: float, *, warm: float, step: float = 1e-3, c: float = 0.1
) -> Array:
    """g / (|g| + c): g is cos(a) df/da at warm = 1, and its part without derivatives of F or z alone at warm = 0."""
    whole = math.cos(a) * slope_of_f(student, teacher, z, a, step)
    still = -(math.cos(a) ** 2) * (student(z, a) - teacher(z, a))
    g = warm * whole + (1 - warm) * still
    return g / (math.sqrt(float(np.sum(g.ravel() ** 2))) + c)
