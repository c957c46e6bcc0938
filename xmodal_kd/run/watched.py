"""What a run says of itself while it is at work: that it is, what its roles make of a few samples, and how it ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import torch
from torch import nn

from .. import report
from ..adapter.adapter import Adapter
from ..adapter.moments import Moments
from ..recipe.recipe import Loaded
from ..report.html import short
from ..runtime import run_status
from ..runtime.interrupt import Interrupted
from ..runtime.progress import console
from ..runtime.random_streams import Streams
from ..runtime.saved_steps import Progressed
from ..training.finite_check import NotFiniteError
from ..training.role_plan import RolePlan
from .alerts import Teller, check

#: Of the seconds of a training that showing may take: a share, and what is never too much.
SHARE, FREE = 0.03, 2.0


class Watched:
    """The run in `out`, of whom one process tells.

    Args:
        metric: by which the best is chosen, and whether less is better.
    """

    def __init__(self, out: Path, loaded: Loaded, metric: tuple[str, bool], streams: Streams) -> None:
        self.out, self.loaded, self.metric, self.streams = out, loaded, metric, streams
        recipe = loaded.recipe
        check(recipe.on)
        self.about = {
            "recipe": short(str(loaded.source)), "modality": recipe.modality, "method": recipe.method.name,
            "seed": recipe.seed, "metric": metric[0], "lower_is_better": metric[1],
        }  # fmt: skip
        self.teller = Teller(recipe.on, {"run": str(out.absolute()), **self.about})

    @contextmanager
    def telling(self, plans: Sequence[RolePlan], *, whole: bool) -> Iterator[None]:
        """Say that the run is at work on `plans`, and how it ended.

        Args:
            whole: it ends with a report, not with a part that was asked for.
        """
        run_status.began(self.out, self.about, [(one.role, 0 if one.path else one.steps.steps) for one in plans])
        try:
            yield
            self._done(whole)
        except (Interrupted, KeyboardInterrupt) as error:
            run_status.ended(self.out, "stopped", str(error) or "interrupted")
            raise
        except Exception as error:
            why = str(error) or type(error).__name__
            run_status.ended(self.out, "failed", why)
            if isinstance(error, NotFiniteError):
                self.teller.tell("nan", why=why)
            self.teller.tell("failed", why=why)
            raise
        finally:
            self.teller.wait()

    def _done(self, whole: bool) -> None:
        if not whole:
            run_status.ended(self.out, "stopped", "only a part of it was asked for")
            return
        run_status.ended(self.out, "finished")
        if self.loaded.recipe.on.done:
            found, (name, _) = report.load(self.out), self.metric
            values = {role: entry["metrics"][name] for role, entry in found["roles"].items()}
            self.teller.tell("done", values=values, gain=found["gain"], gap_closed=found["gap_closed"])

    def evaluations(self, role: str, adapter: Adapter) -> Callable[[Progressed, nn.Module], None]:
        """What an engine tells of each evaluation of `role`."""
        glimpses = Glimpses(self.out, role, adapter, self.streams)

        def evaluated(at: Progressed, model: nn.Module) -> None:
            self.teller.evaluated(role, at.bad, step=at.total, best=at.best, best_at=at.best_at)
            glimpses(at, model)

        return evaluated


class Glimpses:
    """What a role makes of a few dev samples at its evaluations, as far as there is time for it."""

    def __init__(self, out: Path, role: str, adapter: Adapter, streams: Streams) -> None:
        self.out, self.role, self.adapter, self.streams = out, role, adapter, streams
        self.moments: Moments | None = None
        self.spent, self.failed = 0.0, False

    def __call__(self, at: Progressed, model: nn.Module) -> None:
        if self.failed or self.spent > max(FREE, SHARE * at.seconds):
            return
        start = monotonic()
        try:
            with torch.no_grad(), self.streams.forked("evaluate"):
                panels = self.adapter.glimpse(self.role, model)
        except Exception as error:  # no training ends for want of a picture
            told = " ".join(str(error).split())[:200]
            console.print(f"{self.role}  nothing is shown of it while it learns: {told}", highlight=False, markup=False)
            self.failed = True
            return
        if panels:
            self.moments = self.moments or Moments(self.out, self.role, at.total - 1)
            self.moments.add(at.total, panels)
        self.spent += monotonic() - start


__all__ = ["Watched"]
