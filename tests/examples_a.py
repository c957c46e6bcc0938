"""What single losses need of the random batch in `harness`, by name. Imports nothing from there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Batch = dict[str, Any]

#: Changes of the random batch ``(batch, seed) -> batch`` for a loss whose rows have a form of their own.
EXAMPLES: dict[str, Callable[[Batch, int], Batch]] = {}
#: Widths of the signals of losses that compare lists, where two of equal width will not do.
WIDTHS: dict[str, tuple[int, ...]] = {}
#: Hyper-parameters under every setting, where the defaults make tests slow or do not fit the random batch.
PARAMS: dict[str, dict[str, Any]] = {}
