"""The points modality's own commands. Nothing heavy is imported before one runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .segment_command import segment

COMMANDS: dict[str, Callable[..., Any]] = {"segment": segment}
