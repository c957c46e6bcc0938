"""What a denoiser says of a batch, as signals: its own prediction and the truth on the sample's grid, and features."""

from __future__ import annotations

from collections.abc import Sequence

from einops import rearrange
from torch import Tensor

from xmodal_kd.adapter.adapter import Batch
from xmodal_kd.signals.capture import capture, only_call
from xmodal_kd.signals.signals import Layout, Signals

from .denoiser import Denoiser

#: The whole network, whose output is what it predicts in its own terms, and what it should: of an epsilon network the
#: noise.
OUTPUT, TARGET = "net", "target"


def said(denoiser: Denoiser, batch: Batch, features: Sequence[str] = ()) -> Signals:
    """``prediction`` and ``labels``: v said and true, rows of the sample's grid; captured features on their own.

    Of other processes it is their networks' own prediction, which is of unit size where v is not. The feature `OUTPUT`
    is what the network itself says, be it epsilon, and `TARGET` stands beside it. Features of a guided denoiser are
    those under its condition.
    """
    process, x, noise, own = denoiser.process, batch["x"], batch["noise"], denoiser.prediction
    t = (batch["u"] * process.T).long().clamp(max=process.T - 1)
    z = process.add_noise(x, noise, t)
    with capture(denoiser, [name for name in features if name != OUTPUT]) as taken:
        said = denoiser.predict(own, z, t, batch.get("labels"))
    v = process.convert(said, z, t, own, process.natural)
    out = _add(_add(Signals(batch["ids"]), "prediction", v), "labels", process.truth(process.natural, x, noise, t))
    if OUTPUT in features:
        _add(_add(out, OUTPUT, said), TARGET, process.truth(own, x, noise, t))
    for name, calls in taken.items():
        maps = only_call(name, calls)
        _add(out, name, maps[-len(x) :] if len(maps) == 2 * len(x) else maps)
    return out


def _add(out: Signals, name: str, maps: Tensor) -> Signals:
    """``(b, c, *grid)`` as rows of the grid."""
    grid = tuple(maps.shape[2:])
    layout = Layout.dense("pixel" if grid else "sample", len(maps), grid, maps.device)
    return out.add(name, rearrange(maps, "b c ... -> (b ...) c") if grid else maps, layout)


__all__ = ["said"]
