"""What is captured inside a network of images, as rows."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor

from xmodal_kd.runtime.errors import UserError
from xmodal_kd.signals.signals import Layout, Signals


def add_feature(out: Signals, name: str, value: Tensor) -> None:
    """Vectors ``(b, c)`` a row an image, maps ``(b, c, h, w)`` as rows of their grid, tokens ``(b, t, c)`` as rows."""
    if value.ndim == 2:
        out.add(name, value, Layout.samples(len(value), value.device))
    elif value.ndim == 4:
        layout = Layout.dense("pixel", len(value), tuple(value.shape[2:]), value.device)
        out.add(name, rearrange(value, "b c h w -> (b h w) c"), layout)
    elif value.ndim == 3:
        out.add(name, value.flatten(0, 1), Layout.dense("token", len(value), (value.shape[1],), value.device))
    else:
        raise UserError(
            f"module {name!r} gives {tuple(value.shape)}: a feature here is (b, c), (b, t, c) or (b, c, h, w)"
        )


__all__ = ["add_feature"]
