"""What the labels of points mean: the classes of a recipe, and which id of a data set is which of them."""

from __future__ import annotations

from .classes import LARGEST, SHIPPED, Classes, classes_of, read_classes
from .eight import EIGHT

__all__ = ["EIGHT", "LARGEST", "SHIPPED", "Classes", "classes_of", "read_classes"]
