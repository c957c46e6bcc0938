"""The points modality's own commands. Nothing heavy is imported before one runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

COMMANDS: dict[str, Callable[..., Any]] = {}
