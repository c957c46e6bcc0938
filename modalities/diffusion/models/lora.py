"""Low-rank adapters (Hu et al., 2021): a student that is its teacher's network, of which only these learn.

They are peft's, which needs no base class, so that any network takes them; a student is saved with them merged.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from xmodal_kd.runtime.errors import UserError

#: Layers that get one, by the ends of their names, as in the release of LCM-LoRA: attention, its feed-forward layers
#: and projections, the convolutions, and what brings the time in.
LAYERS = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2",
    "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip
#: What diffusers looks for in a folder that it loads adapters from.
FILE = "pytorch_lora_weights.safetensors"
BASE, LOW = ".base_layer.", ".lora_"


def adapted(net: nn.Module, rank: int) -> nn.Module:
    """A copy of `net` that says the same, whose adapters of this rank are all that can learn.

    Raises:
        UserError: peft is not installed, or no layer of the network takes one.
    """
    peft = _peft()
    made = copy.deepcopy(net).requires_grad_(False)
    config = peft.LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(LAYERS))
    try:
        found: nn.Module = peft.inject_adapter_in_model(config, made)
    except ValueError as error:
        raise UserError(f"student.params.lora: {type(net).__name__}: {' '.join(str(error).split())[:200]}") from error
    return found


def is_adapted(net: nn.Module) -> bool:
    return any(LOW in name for name, _ in net.named_parameters())


def merged(net: nn.Module) -> Any:
    """The network without adapters, which says what it said with them; itself where it has none."""
    if not is_adapted(net):
        return net
    made = copy.deepcopy(net)
    for name, module in list(made.named_modules()):
        if hasattr(module, "base_layer") and hasattr(module, "merge"):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(made.get_submodule(parent), child, module.get_base_layer())
    return made


def write_adapters(net: nn.Module, folder: Path) -> None:
    """`FILE`, from which diffusers' ``pipeline.load_lora_weights`` puts them onto the teacher's own pipeline."""
    if is_adapted(net) and isinstance(net, UNet2DConditionModel):
        layers = _peft().get_peft_model_state_dict(net)
        StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers, safe_serialization=True)


def plain_names(state: dict[str, Tensor]) -> dict[str, str]:
    """The names of weights as they are without adapters, and as they are; those of adapters are left out."""
    return {name.replace(BASE, "."): name for name in state if LOW not in name}


@torch.no_grad()
def share_frozen(net: nn.Module, other: nn.Module) -> int:
    """Let weights of `net` that do not learn lie where the same ones of `other` do. Returns the bytes that are spared.

    Those of one name (adapters aside), shape and device, and of the same values; whoever changes one changes both.
    """
    theirs = {name.replace(BASE, "."): parameter for name, parameter in other.named_parameters()}
    spared = 0
    for name, mine in net.named_parameters():
        there = theirs.get(name.replace(BASE, "."))
        if mine.requires_grad or there is None or there.shape != mine.shape or there.device != mine.device:
            continue
        if hasattr(mine, "to_local") or hasattr(there, "to_local"):  # spread over processes
            continue
        if there.data_ptr() != mine.data_ptr() and there.dtype == mine.dtype and torch.equal(mine, there):
            mine.data = there.data
            spared += mine.nbytes
    return spared


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise UserError("student.params.lora needs 'peft': pip install 'xmodal-kd[lora]'") from error
    return peft


__all__ = ["FILE", "adapted", "is_adapted", "merged", "plain_names", "share_frozen", "write_adapters"]
