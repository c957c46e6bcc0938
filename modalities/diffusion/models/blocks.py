"""UNets with fewer blocks: a student that starts as its teacher without some of them (BK-SDM: Kim et al., 2023).

Section 3.1 of the paper. A block of a stage is a residual layer with the attention behind it. ``base`` keeps the first
half of a down stage's, which meet the new resolution, and of an up stage as many and the last, which meets the skip of
the stage before; ``small`` has no middle either; ``tiny`` loses the innermost down and up stage too. What is left has
the teacher's widths, so that it starts with the teacher's weights.
"""

from __future__ import annotations

import re
from typing import Any, Literal, cast, get_args

from diffusers import UNet2DConditionModel, UNet2DModel
from torch import nn

from xmodal_kd.compress.origins import Origin, Origins, copy
from xmodal_kd.runtime.errors import UserError

Blocks = Literal["base", "small", "tiny"]
KINDS: tuple[Blocks, ...] = get_args(Blocks)
#: Of a configuration: a value for each stage, from the outermost, or one for all.
STAGED = (
    "attention_head_dim", "block_out_channels", "cross_attention_dim", "down_block_types", "num_attention_heads",
    "only_cross_attention", "transformer_layers_per_block",
)  # fmt: skip
#: And all that the removal changes.
CHANGED = (*STAGED, "layers_per_block", "mid_block_type", "up_block_types")
PLACE = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.(?:(resnets|attentions)\.(\d+)\.)?")


def fewer(net: nn.Module, blocks: Blocks) -> dict[str, Any]:
    """The configuration of `net` without the blocks that `blocks` removes.

    Raises:
        UserError: it has no stages of blocks, one block a stage, or for ``tiny`` an innermost stage that others need.
    """
    if not isinstance(net, UNet2DConditionModel | UNet2DModel):
        raise UserError(f"student.params.blocks: a {type(net).__name__} has no stages of blocks: leave it out")
    config = {key: value for key, value in net.config.items() if not key.startswith("_")}
    layers = config["layers_per_block"]
    if not isinstance(layers, int) or layers < 2:
        raise UserError(
            f"student.params.blocks: {blocks} halves the blocks of each stage, the teacher's layers_per_block is "
            f"{layers}: leave it out"
        )
    config["layers_per_block"] = layers // 2
    if blocks != "base":
        config["mid_block_type"] = None
    if blocks == "tiny":
        widths = config["block_out_channels"]
        if len(widths) < 2 or widths[-1] != widths[-2]:
            raise UserError(
                f"student.params.blocks: tiny leaves out the innermost stage, whose width must be that of the next "
                f"one: the teacher's are {list(widths)}: take small"
            )
        for key in STAGED:
            if isinstance(value := config.get(key), list | tuple):
                config[key] = tuple(value[:-1])
        config["up_block_types"] = tuple(config["up_block_types"][1:])
    return config


def removed(teacher: nn.Module, student: nn.Module) -> Blocks | None:
    """Which blocks `student` is `teacher` without; None where it is another network, or the same."""
    if type(teacher) is not type(student) or not isinstance(teacher, UNet2DConditionModel | UNet2DModel):
        return None
    there = cast(Any, student).config
    for blocks in KINDS:
        try:
            wanted = fewer(teacher, blocks)
        except UserError:
            continue
        if all(_plain(wanted.get(key)) == _plain(there.get(key)) for key in CHANGED):
            return blocks
    return None


def origins(teacher: nn.Module, student: nn.Module, blocks: Blocks) -> Origins:
    """The teacher's tensor of each of the student's."""
    layers, inner = int(cast(Any, teacher).config["layers_per_block"]), int(blocks == "tiny")
    kept = layers // 2

    def renamed(found: re.Match[str]) -> str:
        side, stage, kind, number = found.groups()
        place = f"{side}.{int(stage) + (inner if side == 'up_blocks' else 0)}."
        if kind is None:
            return place
        last = side == "up_blocks" and int(number) == kept  # that meets the skip of the stage before
        return f"{place}{kind}.{layers if last else number}."

    return {name: Origin(PLACE.sub(renamed, name, count=1)) for name in student.state_dict()}


def start(teacher: nn.Module, student: nn.Module) -> Origins | None:
    """Give a student that lacks blocks the teacher's weights, and say which; None, and nothing done, for others."""
    blocks = removed(teacher, student)
    if blocks is None:
        return None
    found = origins(teacher, student, blocks)
    copy(student, teacher, found)
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


__all__ = ["KINDS", "Blocks", "fewer", "origins", "removed", "start"]
