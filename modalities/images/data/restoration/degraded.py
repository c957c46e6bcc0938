"""What is taken from an image: pixels by bicubic sampling, certainty by noise; and what bicubic sampling gives back."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor


def degraded(
    target: UInt8[np.ndarray, "c h w"], scale: int, noise: float, generator: torch.Generator
) -> UInt8[np.ndarray, "c i j"]:
    """The input of 8 bits that a target whose sides divide by `scale` is to be made of.

    Args:
        noise: deviation, of 255 levels.
    """
    _, height, width = target.shape
    small = resized(target, height // scale, width // scale)
    if not noise:
        return small
    added = torch.randn(small.shape, generator=generator).numpy() * noise
    return np.clip(np.rint(small + added), 0, 255).astype(np.uint8)


def resized(x: UInt8[np.ndarray, "c h w"], height: int, width: int) -> UInt8[np.ndarray, "c i j"]:
    """By bicubic sampling (Keys' with a = -1/2), over a support that grows where it makes smaller."""
    if x.shape[1:] == (height, width):
        return x
    picture = Image.fromarray(x[0] if len(x) == 1 else np.ascontiguousarray(x.transpose(1, 2, 0)))
    found = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
    return found[None] if found.ndim == 2 else found.transpose(2, 0, 1)


def enlarged(x: UInt8[np.ndarray, "c h w"], scale: int) -> UInt8[np.ndarray, "c i j"]:
    """What one has without a network: `x` by bicubic sampling."""
    return resized(x, x.shape[1] * scale, x.shape[2] * scale)


def as_seen(x: UInt8[np.ndarray, "c h w"]) -> Float[Tensor, "c h w"]:
    """As a network sees 8 bits: in [-1, 1]."""
    return torch.from_numpy(x.astype(np.float32)).div_(127.5).sub_(1)


def as_bytes(x: Float[Tensor, "c h w"]) -> UInt8[np.ndarray, "c h w"]:
    """What a network says, as 8 bits."""
    found: np.ndarray = x.clamp(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8).numpy()
    return found


__all__ = ["as_bytes", "as_seen", "degraded", "enlarged", "resized"]
