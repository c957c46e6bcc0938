"""Networks of the recipe: a diffusers `UNet2DModel` of given widths, or another like the teacher's.

The entries of `MODELS` are not networks themselves: what they build is diffusers' own class, so that a saved student
loads where this package is not installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

from diffusers import UNet2DConditionModel, UNet2DModel
from pydantic import Field
from torch import nn

from xmodal_kd.adapter.adapter import Strict
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.registry import Registry

from .blocks import Blocks, fewer
from .denoiser import Denoiser
from .lora import adapted
from .process import Prediction

#: Width of an attention head, where the block's width allows it.
HEAD = 8

MODELS: Registry[Any] = Registry("model")


class UNetConfig(Strict):
    """The defaults hold 0.18 million parameters."""

    channels: tuple[int, ...] = (16, 32)
    """Width of each level; the resolution halves from one to the next."""
    layers: int = Field(1, ge=1)
    """Residual blocks a level."""
    attention: Literal["lowest", "none"] = "lowest"
    """Self-attention at the lowest resolution, or nowhere."""
    groups: int = Field(8, ge=1)
    """Of the group norms; divides every width."""
    dropout: float = Field(0.0, ge=0, lt=1)
    prediction: Prediction | None = None
    """What the network predicts; None: what ``data.process.prediction``, or the teacher, says."""


class LikeTeacherConfig(Strict):
    prediction: Prediction | None = None
    """As `UNetConfig.prediction`."""
    guidance: int | None = Field(None, ge=4, le=1 << 14)
    """Width at which a UNet2DConditionModel is told the scale of guidance (diffusers' time_cond_proj_dim; Luo et al.
    take 256), for methods that distil a range of scales. None: it is told what its teacher is."""
    lora: int | None = Field(None, ge=1, le=1 << 12)
    """Rank of low-rank adapters, which alone learn on the teacher's frozen weights (LCM-LoRA takes 64); needs peft.
    None: all weights learn."""
    blocks: Blocks | None = None
    """A UNet without some of its teacher's blocks (BK-SDM: Kim et al., 2023): ``base`` with half of each stage's,
    ``small`` without the middle too, ``tiny`` without the innermost stage too. None: with all of them."""


def build_unet(config: UNetConfig, shape: Sequence[int], classes: int | None) -> UNet2DModel:
    """A UNet with fresh weights from the global torch generator.

    Args:
        shape: ``(c, h, w)`` of a sample.
        classes: how many it is conditioned on; None for an unconditional one.

    Raises:
        UserError: the shape is no image's, does not halve often enough, or the groups do not divide a width.
    """
    sides = _sides(shape)
    widths, factor = config.channels, 2 ** (len(config.channels) - 1)
    if not widths or min(widths) < 1:
        raise UserError(f"model channels {list(widths)}: give one or more positive widths")
    if (odd_side := next((side for side in sides if side % factor), None)) is not None:
        raise UserError(
            f"model channels {list(widths)}: {len(widths)} levels need a side that {factor} divides, not {odd_side}: "
            "use fewer levels"
        )
    if (odd := next((width for width in widths if width % config.groups), None)) is not None:
        raise UserError(f"model groups {config.groups} do not divide the width {odd}: choose another of the two")
    attends = config.attention == "lowest"
    lowest = "Attn" if attends else ""
    down = [*["DownBlock2D"] * (len(widths) - 1), f"{lowest}DownBlock2D"]
    up = [f"{lowest}UpBlock2D", *["UpBlock2D"] * (len(widths) - 1)]
    return UNet2DModel(
        sample_size=_size(sides), in_channels=shape[0], out_channels=shape[0], block_out_channels=widths,
        layers_per_block=config.layers, down_block_types=tuple(down), up_block_types=tuple(up), add_attention=attends,
        attention_head_dim=HEAD if widths[-1] % HEAD == 0 else widths[-1], norm_num_groups=config.groups,
        dropout=config.dropout, num_class_embeds=classes,
    )  # fmt: skip


def build_like(net: Any, classes: int | None, guidance: int | None = None, blocks: Blocks | None = None) -> Any:
    """Another network of `net`'s class and configuration with fresh weights.

    Args:
        classes: that a UNet2DModel is conditioned on; others have as many as `net`.
        guidance: width at which it is told the scale of guidance; None: as `net`.
        blocks: which of `net`'s are left out.

    Raises:
        UserError: no network of this class can be told it.
    """
    config = {key: value for key, value in net.config.items() if not key.startswith("_")}
    if blocks is not None:
        config = fewer(net, blocks)
    if not isinstance(size := config.get("sample_size", 0), int):
        config["sample_size"] = _size(size)
    if isinstance(net, UNet2DModel):
        config["num_class_embeds"] = classes
    if guidance is not None:
        if not isinstance(net, UNet2DConditionModel):
            raise UserError(
                f"student.params.guidance: a {type(net).__name__} cannot be told the scale of guidance: leave it out, "
                "and distil one scale"
            )
        config["time_cond_proj_dim"] = guidance
    made = type(net)(**config)
    if guidance is not None:  # it starts as a copy of what knows nothing of it
        nn.init.zeros_(made.time_embedding.cond_proj.weight)
    keep_labels(made)
    return made


def keep_labels(net: nn.Module) -> None:
    """A DiT leaves out labels of its own accord while it trains: here whoever trains it decides."""
    for module in net.modules():
        if hasattr(module, "token_drop") and hasattr(module, "dropout_prob"):
            cast(Any, module).dropout_prob = 0.0  # its table keeps the entry of no class


def built(
    model: str, config: Any, shape: Sequence[int], names: Sequence[str] | None, teacher: Denoiser | None
) -> nn.Module:
    """The network of a recipe's `model`, for classes of these names.

    Raises:
        UserError: it does not fit the shape, or the pipeline of the teacher.
    """
    classes = None if names is None else len(names) + (teacher is not None and teacher.null_class is not None)
    if model == "like_teacher":
        assert teacher is not None
        if config.blocks is not None and config.guidance is not None:
            raise UserError("student.params.guidance: a network without blocks is not told the scale: leave one out")
        if config.lora is None:
            return cast(nn.Module, build_like(teacher.net, classes, config.guidance, config.blocks))
        if config.blocks is not None:
            raise UserError("student.params.lora: adapters stand on all of the teacher's blocks: leave blocks out")
        if config.guidance is not None:
            raise UserError("student.params.lora: adapters cannot be told the scale of guidance: leave guidance out")
        return adapted(teacher.net, config.lora)
    if teacher is not None and teacher.parts is not None and teacher.parts.family.network != UNet2DModel.__name__:
        raise UserError(
            f"student.model: {model} is no {teacher.parts.family.network}, as the teacher is: take like_teacher"
        )
    return cast(nn.Module, build_unet(config, shape, classes))


def _sides(shape: Sequence[int]) -> tuple[int, int]:
    """Height and width of ``(c, h, w)``."""
    if len(shape) != 3:
        raise UserError(f"samples of shape {tuple(shape)}: a UNet is made for images (channels, height, width)")
    return shape[1], shape[2]


def _size(sides: Sequence[int]) -> Any:
    """As diffusers writes it: one number for a square."""
    return sides[0] if sides[0] == sides[1] else tuple(sides)


@MODELS.register("unet")
class UNet:
    """diffusers' UNet2DModel of given widths, with attention at the lowest resolution or none."""

    Config: ClassVar[type[Strict]] = UNetConfig
    build = staticmethod(build_unet)


@MODELS.register("like_teacher")
class LikeTeacher:
    """Another network of the teacher's own configuration, as progressive distillation starts from."""

    Config: ClassVar[type[Strict]] = LikeTeacherConfig
    build = staticmethod(build_like)


__all__ = [
    "MODELS",
    "LikeTeacher",
    "LikeTeacherConfig",
    "UNet",
    "UNetConfig",
    "build_like",
    "build_unet",
    "built",
    "keep_labels",
]
