"""How networks of different kinds are asked: each of diffusers' takes time, condition and guidance by other names."""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers import DiTTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

from ..data.condition import Condition, Text


def ask(net: nn.Module, z: Tensor, t: Tensor, condition: Condition | None, guidance: float | Tensor = 1.0) -> Tensor:
    """What a network says of z ``(b, c, ...)`` at times t ``(b,)``, without the variance that some say beside it.

    Args:
        guidance: scale, one or ``(b,)``, of networks that are told it (`told_guidance`).
    """
    width = told_guidance(net)
    more: dict[str, Any] = {}
    if width is not None:
        scale = torch.as_tensor(guidance, dtype=torch.float32, device=z.device).expand(len(z))
        more["timestep_cond"] = embedded(scale - 1, width).to(z.dtype)
    if isinstance(condition, Text):
        more["encoder_hidden_states"] = condition.embedding
        if condition.pooled is not None:
            more["pooled_projections"] = condition.pooled
    else:
        more["class_labels"] = condition
    if isinstance(net, DiTTransformer2DModel | SD3Transformer2DModel):
        out: Any = net(z, timestep=t, **more)
    else:
        out = net(z, t, **more)
    said = cast(Tensor, out if isinstance(out, Tensor) else out.sample)
    return said[:, : z.shape[1]] if isinstance(net, DiTTransformer2DModel) else said


def told_guidance(net: nn.Module) -> int | None:
    """The width at which a network is told the guidance scale; None for one that is not told it."""
    if isinstance(net, UNet2DConditionModel):
        width: int | None = net.config.time_cond_proj_dim
        return width
    return getattr(net, "guidance_width", None)


def embedded(w: Tensor, width: int) -> Tensor:
    """w ``(b,)``, the scale less 1, as waves ``(b, width)`` (Luo et al., 2023, section 4.3; diffusers' pipelines).

    Half of them sines, half cosines of 1000 w at rates from 1 down to 1/10000, equally far apart in their logarithm. In
    float32 and in this order, as pipelines compute it: of a large w another rounding is another angle.
    """
    half = width // 2
    step = torch.log(torch.tensor(10000.0, device=w.device)) / (half - 1)
    rates = torch.exp(torch.arange(half, dtype=torch.float32, device=w.device) * -step)
    angles = (w.float() * 1000.0)[:, None] * rates
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    return nn.functional.pad(waves, (0, width - 2 * half))


__all__ = ["ask", "embedded", "told_guidance"]
