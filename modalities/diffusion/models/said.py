"""What a denoiser says of a batch, as signals: its own prediction and the truth on the sample's grid, and features."""

from __future__ import annotations

from collections.abc import Sequence

from einops import rearrange
from torch import Tensor

from xmodal_kd.adapter.adapter import Batch
from xmodal_kd.signals.capture import capture, only_call
from xmodal_kd.signals.signals import Layout, Signals

from .denoiser import Denoiser


def said(denoiser: Denoiser, batch: Batch, features: Sequence[str] = ()) -> Signals:
    """``prediction`` and ``labels``: v said and true, rows of the sample's grid; captured features on their own.

    Of other processes it is their networks' own prediction, which is of unit size where v is not.
    """
    process, x, noise = denoiser.process, batch["x"], batch["noise"]
    t = (batch["u"] * process.T).long().clamp(max=process.T - 1)
    z = process.add_noise(x, noise, t)
    with capture(denoiser, features) as taken:
        v = denoiser.predict(process.natural, z, t, batch.get("labels"))
    out = _add(_add(Signals(batch["ids"]), "prediction", v), "labels", process.truth(process.natural, x, noise, t))
    for name, calls in taken.items():
        _add(out, name, only_call(name, calls))
    return out


def _add(out: Signals, name: str, maps: Tensor) -> Signals:
    """``(b, c, *grid)`` as rows of the grid."""
    grid = tuple(maps.shape[2:])
    layout = Layout.dense("pixel" if grid else "sample", len(maps), grid, maps.device)
    return out.add(name, rearrange(maps, "b c ... -> (b ...) c") if grid else maps, layout)


__all__ = ["said"]
