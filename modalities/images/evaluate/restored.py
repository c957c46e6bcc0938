"""How near restored images come to what is right: PSNR and SSIM, as super-resolution is measured."""

from __future__ import annotations

from collections.abc import Sequence
from math import log10
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from .joints import interval

#: The least mean square that is told from none, of 255 levels: 100 dB.
LEAST = 255**2 / 1e10
#: Of SSIM: side and deviation of the Gaussian window, and the constants (Wang et al., 2004, section III-C).
WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03


def compared(
    made: UInt8[np.ndarray, "c h w"], target: UInt8[np.ndarray, "c h w"], border: int
) -> tuple[float, float | None]:
    """PSNR in dB and SSIM of one image's luma, `border` pixels left out on each side (of small images fewer)."""
    border = min(border, (min(target.shape[1:]) - 1) // 2)
    inner = slice(border, -border or None)
    a, b = (luma(x)[inner, inner] for x in (made, target))
    return psnr(a, b), ssim(a, b)


def luma(x: UInt8[np.ndarray, "c h w"]) -> Float[np.ndarray, "h w"]:
    """Y of YCbCr by ITU-R BT.601, 16 to 235, which papers measure; a grey image as it is."""
    if len(x) == 1:
        return np.asarray(x[0], dtype=np.float64)
    red, green, blue = x.astype(np.float64) / 255
    found: np.ndarray = 16 + 65.481 * red + 128.553 * green + 24.966 * blue
    return found


def psnr(a: Float[np.ndarray, "h w"], b: Float[np.ndarray, "h w"]) -> float:
    """``10 log10(255^2 / mean (a - b)^2)`` in dB; at most 100."""
    return 10 * log10(255**2 / max(float(np.square(a - b).mean()), LEAST))


def ssim(a: Float[np.ndarray, "h w"], b: Float[np.ndarray, "h w"]) -> float | None:
    """Mean structural similarity (Wang et al., 2004, eq. 13) over all places of a whole window; None without one."""
    if min(a.shape) < WINDOW:
        return None
    at = np.arange(WINDOW) - WINDOW // 2
    taps = np.exp(-np.square(at) / (2 * SIGMA**2))
    taps /= taps.sum()

    def mean(x: np.ndarray) -> np.ndarray:
        for axis in (0, 1):
            x = np.lib.stride_tricks.sliding_window_view(x, WINDOW, axis=axis) @ taps
        return x

    mine, theirs = mean(a), mean(b)
    variances = mean(a * a) - mine**2 + mean(b * b) - theirs**2
    covariance = mean(a * b) - mine * theirs
    c1, c2 = (K1 * 255) ** 2, (K2 * 255) ** 2
    similar = (2 * mine * theirs + c1) * (2 * covariance + c2) / ((mine**2 + theirs**2 + c1) * (variances + c2))
    return float(similar.mean())


def metrics(found: Sequence[tuple[float, float | None]]) -> dict[str, Any]:
    """``psnr`` and ``ssim``, means over images with their 95 % bootstrap intervals over images."""
    out: dict[str, Any] = {}
    for name, values in (("psnr", [p for p, _ in found]), ("ssim", [s for _, s in found if s is not None])):
        each = torch.tensor(values, dtype=torch.float64)
        out[name] = float(each.mean()) if values else None
        out[f"{name}_interval"] = interval(each, torch.ones_like(each))
        out[f"{name}_interval_over"] = "images"
    return out | {"images": len(found)}


__all__ = ["compared", "luma", "metrics", "psnr", "ssim"]
