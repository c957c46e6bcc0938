"""Sets of samples that a run has drawn and measured, so that it does neither twice."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, device

from xmodal_kd.runtime.checkpoint import digest

from ..models.denoiser import Denoiser, Sampling

#: Bytes of samples that are held; those that were asked for longest ago go first.
HELD = 2**28
#: Weights, what they predict, how they are sampled and guided, where, the draw of noise, how many (None: all).
Key = tuple[str, str, Sampling, float, device, int, int | None]


@dataclass
class Drawn:
    """Samples of one draw of noise, the seconds that they took, and what was measured of them by split."""

    samples: Tensor
    seconds: float
    found: dict[str, dict[str, float]] = field(default_factory=dict)

    def measured(self, split: str, measure: Callable[[Tensor], dict[str, float]]) -> dict[str, float]:
        if split not in self.found:
            self.found[split] = measure(self.samples)
        return self.found[split]


class Memory:
    """What was drawn, of models that are known by their weights: a student on disk is the one that was trained.

    Args:
        held: bytes of samples, beside one set that may be larger.
    """

    def __init__(self, held: int = HELD) -> None:
        self.held = held
        self._sets: OrderedDict[Key, Drawn] = OrderedDict()

    def of(
        self, model: Denoiser, draw: int, make: Callable[[], tuple[Tensor, float]], count: int | None = None
    ) -> Drawn:
        """The samples that `make` draws from `model` with the first `count` of the noise of `draw`, made once."""
        key = self._key(model, draw, count)
        if key not in self._sets:
            self._sets[key] = Drawn(*make())
        self._sets.move_to_end(key)
        while len(self._sets) > 1 and sum(one.samples.nbytes for one in self._sets.values()) > self.held:
            self._sets.popitem(last=False)
        return self._sets[key]

    def first(self, model: Denoiser, draw: int, make: Callable[[], tuple[Tensor, float]], count: int) -> Tensor:
        """As the samples of `of`, or the first of the whole draw where that is there."""
        whole = self._sets.get(self._key(model, draw, None))
        return self.of(model, draw, make, count).samples if whole is None else whole.samples[:count]

    def _key(self, model: Denoiser, draw: int, count: int | None) -> Key:
        where = next(iter(model.parameters())).device
        return digest(model.state_dict().items()), model.prediction, model.sampling, model.guidance, where, draw, count


__all__ = ["HELD", "Drawn", "Memory"]
