"""Students that start as part of their teacher, or as a saved model."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from ..adapter.adapter import Adapter, Strict
from ..recipe.recipe import Recipe
from ..runtime.checkpoint import load_weights, read_tensors
from ..runtime.errors import UserError, nearest
from ..training.role_plan import RolePlan
from . import origins, prune
from .base import COMPRESSIONS, Compression, record
from .channels import Channels
from .data import batches, gradients
from .origins import Origin, Origins

#: The file of weights in the folder of a saved model.
WEIGHTS = "model.safetensors"


def begin(model: nn.Module, teacher: nn.Module, found: Origins) -> nn.Module:
    """Give the student what `found` says of the teacher, and note it."""
    origins.copy(model, teacher, found)
    record(model).origins = found
    return model


class Copied(Strict):
    layers: Literal["uniform", "last", "spaced"] | tuple[int, ...] = "uniform"
    """Which of the teacher's layers where it has more: evenly over its depth, its last ones, as far apart as they can
    be (the first and the last among them), or these, from 0."""


class Left(Copied):
    leave: tuple[str, ...] = ()
    """Names or globs of the student's weights that start as they would without a teacher: tables of other tokens."""


@COMPRESSIONS.register("layer_copy")
class LayerCopy(Compression):
    """The student starts as its teacher with fewer layers: the same model, as wide, every so many layers taken.

    Sanh et al., "DistilBERT, a distilled version of BERT", 2019, section 3: one layer of two, all else as it is. Where
    the depths agree the student starts as the teacher.
    """

    Params: ClassVar[type[Strict]] = Left
    paper, year = "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter", 2019
    starts_taught = trained = True

    @classmethod
    def check(cls, params: Any, adapter: Adapter, model: nn.Module, roles: Mapping[str, nn.Module]) -> None:
        origins.copy(copy.deepcopy(model), roles["teacher"], cls._found(params, model, roles))

    @classmethod
    def start(
        cls, params: Any, adapter: Adapter, role_plan: RolePlan, model: nn.Module, roles: Mapping[str, nn.Module]
    ) -> nn.Module:
        return begin(model, roles["teacher"], cls._found(params, model, roles))

    @staticmethod
    def _found(params: Any, model: nn.Module, roles: Mapping[str, nn.Module]) -> Origins:
        named = origins.names(model, roles["teacher"], params.layers)
        if idle := next((one for one in params.leave if not any(fnmatchcase(name, one) for name in named)), None):
            raise UserError(f"layer_copy: leave: the student has no weight {idle!r}{nearest(idle, named)}")
        return {
            mine: Origin(theirs)
            for mine, theirs in named.items()
            if not any(fnmatchcase(mine, one) for one in params.leave)
        }


class Pruned(Copied):
    importance: Literal["l1", "taylor"] = "l1"
    """``l1``: the absolute weights that write a channel; ``taylor``: what the teacher's loss would be without it, to
    first order, on labelled samples."""
    samples: int = Field(64, gt=0)
    """Training samples for ``taylor``."""


@COMPRESSIONS.register("width_prune")
class WidthPrune(Compression):
    """The student starts as its teacher's most important channels: the same model with fewer of each, layers too.

    Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017 (l1); Molchanov et al., "Importance Estimation for
    Neural Network Pruning", CVPR 2019 (taylor). How many of each is what the student's own sizes say; channels that a
    residual stream, a gate or an attention ties are chosen together, of heads and norm groups alike many.
    """

    Params: ClassVar[type[Strict]] = Pruned
    paper, year = "Pruning Filters for Efficient ConvNets", 2017
    starts_taught = trained = True

    @classmethod
    def plan(cls, params: Any, recipe: Recipe, role_plan: RolePlan) -> RolePlan:
        if params.importance == "taylor" and recipe.labels is not None:
            raise UserError("width_prune: importance taylor reads labels of any sample: with labels, use importance l1")
        return super().plan(params, recipe, role_plan)

    @classmethod
    def check(cls, params: Any, adapter: Adapter, model: nn.Module, roles: Mapping[str, nn.Module]) -> None:
        mine = copy.deepcopy(model)
        origins.copy(mine, roles["teacher"], cls._found(params, adapter, None, mine, roles["teacher"]))

    @classmethod
    def start(
        cls, params: Any, adapter: Adapter, role_plan: RolePlan, model: nn.Module, roles: Mapping[str, nn.Module]
    ) -> nn.Module:
        return begin(model, roles["teacher"], cls._found(params, adapter, role_plan, model, roles["teacher"]))

    @staticmethod
    def _found(
        params: Any, adapter: Adapter, role_plan: RolePlan | None, model: nn.Module, teacher: nn.Module
    ) -> Origins:
        named = origins.names(model, teacher, params.layers)
        theirs, mine = followed(adapter, teacher), followed(adapter, model)
        weights = {name: value.detach() for name, value in theirs.state.items() if value.is_floating_point()}
        if params.importance == "l1" or role_plan is None:
            parts = prune.l1(weights)
        else:
            parts = prune.taylor(weights, gradients(adapter, role_plan, copy.deepcopy(teacher), params.samples))
        groups = prune.groups(theirs)
        wanted = {
            (named[name], dim): size for name, value in mine.state.items() for dim, size in enumerate(value.shape)
        }
        stays = prune.choose(
            groups, prune.sizes(groups, wanted), prune.importance(theirs, parts), prune.partitions(theirs, mine, named)
        )
        kept = prune.kept(theirs, stays)
        return {name: Origin(other, kept.get(other, ())) for name, other in named.items()}


@torch.no_grad()
def followed(adapter: Adapter, model: nn.Module) -> Channels:
    """The channels of a model, as one training sample shows them."""
    whole = copy.deepcopy(model).cpu().eval()  # shadows are on the CPU
    channels = Channels(whole)
    for batch in batches(adapter, 1, 1, torch.device("cpu")):
        with channels.following(whole):
            adapter.signals("student", whole, batch)
    return channels


class Saved(Strict):
    path: Path
    """Folder of a saved model of the student's own kind and size."""
    fresh: tuple[str, ...] = ()
    """Patterns of parameters that start anew, as ``head.*`` where the saved model knew other classes. Without any, the
    folder must fit this data; with them it is read for its weights alone."""


@COMPRESSIONS.register("pretrained")
class Pretrained(Compression):
    """The student starts as a saved one: train, then compress, then train again.

    Han, Mao, Dally, "Deep Compression", ICLR 2016, whose network is trained whole before it is made small. What follows
    it in the list (quantise with learned points) works on those weights.
    """

    Params: ClassVar[type[Strict]] = Saved
    paper, year = "Deep Compression", 2016
    trained = True

    @classmethod
    def check(cls, params: Any, adapter: Adapter, model: nn.Module, roles: Mapping[str, nn.Module]) -> None:
        cls._load(params, adapter, copy.deepcopy(model))

    @classmethod
    def start(
        cls, params: Any, adapter: Adapter, role_plan: RolePlan, model: nn.Module, roles: Mapping[str, nn.Module]
    ) -> nn.Module:
        cls._load(params, adapter, model)
        return model

    @staticmethod
    def _load(params: Any, adapter: Adapter, model: nn.Module) -> None:
        path = params.path / WEIGHTS
        own = model.state_dict()
        fresh = {pattern: set(fnmatch.filter(own, pattern)) for pattern in params.fresh}
        if (nothing := next((pattern for pattern, names in fresh.items() if not names), None)) is not None:
            raise UserError(
                f"compress pretrained: fresh: {nothing!r} is none of the student's weights{nearest(nothing, own)}"
            )
        if not fresh:
            adapter.load("student", params.path)  # checks it against this data
        anew = {name: own[name] for names in fresh.values() for name in names}
        load_weights(model, read_tensors(path) | anew, path)
