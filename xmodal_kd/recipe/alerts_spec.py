"""The section ``on`` of a recipe: who is told what of a run."""

from __future__ import annotations

import shlex
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, model_validator

from ..adapter.adapter import Strict


class Hook(Strict):
    """Who is told: an address that gets the event as JSON by POST, or a program that gets it on its standard input."""

    webhook: str | None = None
    """``https://...``; redirects are not followed."""
    command: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """A program and its arguments, started without a shell: ``[notify-send, "a run"]``."""
    timeout: float = Field(10.0, gt=0, le=300)
    """Seconds after which it is given up; the run goes on meanwhile."""

    @model_validator(mode="after")
    def _one_way(self) -> Hook:
        if (self.webhook is None) == (self.command is None):
            raise ValueError("give webhook (an address) or command (a list: program and arguments)")
        if self.command is not None and not self.command[0]:
            raise ValueError("command: the program has no name")
        if self.webhook is not None:
            try:
                parts = urlsplit(self.webhook)
                sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
            except ValueError:
                sound = False
            if not sound or not self.webhook.isascii() or any(letter <= " " for letter in self.webhook):
                raise ValueError("webhook: an address that begins with https:// (or http://) is expected")
        return self

    @property
    def name(self) -> str:
        """What the command line allows: the host of an address, or a whole command as a shell would write it."""
        return (urlsplit(self.webhook).hostname or "") if self.webhook is not None else shlex.join(self.command or ())


class PlateauHook(Hook):
    evaluations: int = Field(gt=0)
    """That brought nothing better, before it is told."""


def _several(hooks: Any) -> Any:
    return [hooks] if isinstance(hooks, dict) else hooks


Hooks = Annotated[tuple[Hook, ...], BeforeValidator(_several, json_schema_input_type=Hook | tuple[Hook, ...])]
PlateauHooks = Annotated[
    tuple[PlateauHook, ...], BeforeValidator(_several, json_schema_input_type=PlateauHook | tuple[PlateauHook, ...])
]


class Alerts(Strict):
    """Who is told that a run is done, failed, met NaN or Inf, or that a role has stopped getting better.

    >>> Alerts.model_validate({"done": {"command": ["notify-send", "done"]}}).done[0].name
    'notify-send done'
    """

    done: Hooks = ()
    """With the values of all roles, gain and gap closed."""
    failed: Hooks = ()
    """Also told where the error was NaN."""
    nan: Hooks = ()
    """NaN or Inf in a loss, a gradient or the metric on dev."""
    plateau: PlateauHooks = ()
    """A role has brought nothing better for so many evaluations."""


__all__ = ["Alerts", "Hook", "PlateauHook"]
