"""How networks of different kinds are asked: each of diffusers' takes time, condition and guidance by other names."""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from einops import rearrange
from torch import Tensor, nn

from ..data.condition import Condition, Text

#: What diffusers calls an embedding of class numbers like that of timesteps.
WAVES = "timestep"
#: Networks that may say a variance beside their prediction; and all that take the time by name.
WITH_VARIANCE = (DiTTransformer2DModel, PixArtTransformer2DModel, SanaTransformer2DModel)
TRANSFORMERS = (*WITH_VARIANCE, SD3Transformer2DModel)


def ask(net: nn.Module, z: Tensor, t: Tensor, condition: Condition | None, guidance: float | Tensor = 1.0) -> Tensor:
    """What a network says of z ``(b, c, ...)`` at times t ``(b,)``, without the variance that some say beside it.

    Args:
        guidance: scale, one or ``(b,)``, of networks that are told it (`is_told`).
    """
    if isinstance(net, FluxTransformer2DModel):
        return ask_flux(net, z, t, condition, guidance)
    width = told_guidance(net)
    more: dict[str, Any] = {}
    if width is not None:
        scale = torch.as_tensor(guidance, dtype=torch.float32, device=z.device).expand(len(z))
        more["timestep_cond"] = embedded(scale - 1, width).to(z.dtype)
    if isinstance(condition, Text):
        more |= prompted(net, condition)
    else:
        more["class_labels"] = condition
    if isinstance(net, TRANSFORMERS):
        t = t * net.config.get("timestep_scale", 1.0)
        out: Any = net(z, timestep=t, **more)
    else:
        out = net(z, t, **more)
    said = cast(Tensor, out if isinstance(out, Tensor) else out.sample)
    return said[:, : z.shape[1]] if isinstance(net, WITH_VARIANCE) else said


def ask_flux(net: nn.Module, z: Tensor, t: Tensor, condition: Condition | None, guidance: float | Tensor) -> Tensor:
    """As `ask`, of a network of tokens, each 2 x 2 latents, that knows by three numbers where a token stands."""
    assert isinstance(condition, Text) and condition.beside is not None
    rows, columns = z.shape[2] // 2, z.shape[3] // 2
    places = torch.zeros(rows, columns, 3, dtype=z.dtype, device=z.device)
    places[..., 1] = torch.arange(rows, device=z.device)[:, None]
    places[..., 2] = torch.arange(columns, device=z.device)
    config: Any = net.config
    told = torch.as_tensor(guidance, dtype=torch.float32, device=z.device).expand(len(z))
    out = net(
        packed(z), timestep=t / 1000, guidance=told if config.guidance_embeds else None,  # it counts in thousands
        encoder_hidden_states=condition.embedding, pooled_projections=condition.beside,
        txt_ids=places.new_zeros(condition.embedding.shape[1], 3), img_ids=places.flatten(0, 1),
    )  # fmt: skip
    return unpacked(out.sample, z)


def packed(z: Tensor) -> Tensor:
    """Latents ``(b, c, h, w)`` as tokens ``(b, h w / 4, 4 c)``."""
    return rearrange(z, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)


def unpacked(tokens: Tensor, like: Tensor) -> Tensor:
    """The inverse of `packed`, of the shape of `like`."""
    return rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=like.shape[2] // 2, p=2, q=2)


def prompted(net: nn.Module, said: Text) -> dict[str, Any]:
    """What prompts say, by the names that the network takes it under."""
    found: dict[str, Any] = {"encoder_hidden_states": said.embedding}
    if isinstance(net, SD3Transformer2DModel):
        found["pooled_projections"] = said.beside
    elif isinstance(net, PixArtTransformer2DModel):
        told: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
        if net.use_additional_conditions and said.sizes is not None:
            told = {"resolution": said.sizes, "aspect_ratio": said.sizes[:, :1] / said.sizes[:, 1:]}
        found |= {"encoder_attention_mask": said.beside, "added_cond_kwargs": told}
    elif isinstance(net, SanaTransformer2DModel):
        found["encoder_attention_mask"] = said.beside
    elif said.sizes is not None:  # SDXL's: as large before as after, and nothing cut off (Podell et al., 2023)
        ids = torch.cat([said.sizes, torch.zeros_like(said.sizes), said.sizes], dim=1)
        found["added_cond_kwargs"] = {"text_embeds": said.beside, "time_ids": ids}
    return found


def by_waves(net: nn.Module) -> bool:
    """Whether a network is told a class by the waves of its number, as it is told the time, so that it knows any."""
    config: Any = getattr(net, "config", {})
    return isinstance(net, UNet2DModel) and config.get("class_embed_type") == WAVES


def is_told(net: nn.Module) -> bool:
    """Whether a network is told the scale of guidance, so that it is asked once where others are asked twice."""
    if isinstance(net, FluxTransformer2DModel):
        return bool(net.config.guidance_embeds)
    return told_guidance(net) is not None


def told_guidance(net: nn.Module) -> int | None:
    """The width of the waves by which a network is told the scale; None for one that is not told it so."""
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


__all__ = ["WAVES", "ask", "by_waves", "embedded", "is_told", "packed", "told_guidance", "unpacked"]
