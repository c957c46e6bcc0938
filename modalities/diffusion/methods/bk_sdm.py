"""BK-SDM (Kim et al., 2023): a UNet without some of its blocks, which starts with its teacher's weights.

It is then trained on data and by what its teacher says and makes at the end of each stage, equally weighted (section
3.2): terms of the recipe, as in ``recipes/diffusion/bk_sdm.yaml``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, cast

from torch import nn

from xmodal_kd.adapter.adapter import Adapter, Strict
from xmodal_kd.compress.base import COMPRESSIONS, Compression, record
from xmodal_kd.compress.origins import Origin
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.training.role_plan import RolePlan

from ..models.blocks import removed, start
from ..models.denoiser import Denoiser


class BkSdmParams(Strict):
    """None: which blocks go is said by ``student.params.blocks``."""


@COMPRESSIONS.register("bk_sdm")
class BkSdm(Compression):
    """The student starts as its teacher's UNet without some of its blocks (``student.params.blocks``).

    Kim et al., "BK-SDM: A Lightweight, Fast, and Cheap Version of Stable Diffusion", 2023, section 3.1. Few-step
    methods start such a student so of themselves, before its stage of features (``method.params.features``).
    """

    Params: ClassVar[type[Strict]] = BkSdmParams
    paper, year = "BK-SDM: A Lightweight, Fast, and Cheap Version of Stable Diffusion", 2023
    starts_taught = trained = True

    @classmethod
    def check(cls, params: Any, adapter: Adapter, model: nn.Module, roles: Mapping[str, nn.Module]) -> None:
        teacher = _denoiser(roles["teacher"])
        if removed(teacher.net, _denoiser(model).net) is None:
            raise UserError(
                "compress: bk_sdm: the student is not its teacher without blocks: set student.model to like_teacher "
                "and student.params.blocks to base, small or tiny"
            )
        if teacher.prediction != _denoiser(model).prediction:
            raise UserError(
                f"compress: bk_sdm: the teacher predicts {teacher.prediction}, its weights are no start for a student "
                f"that predicts {_denoiser(model).prediction}: set student.params.prediction to the teacher's"
            )
        start(teacher.net, copy.deepcopy(_denoiser(model).net))

    @classmethod
    def start(
        cls, params: Any, adapter: Adapter, role_plan: RolePlan, model: nn.Module, roles: Mapping[str, nn.Module]
    ) -> nn.Module:
        found = start(_denoiser(roles["teacher"]).net, _denoiser(model).net)
        assert found is not None
        record(model).origins = {f"net.{name}": Origin(f"net.{origin.name}") for name, origin in found.items()}
        return model


def _denoiser(model: nn.Module) -> Denoiser:
    return cast(Denoiser, model)


__all__ = ["BkSdm"]
