"""Training samples that a compression looks at before the training."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from ..adapter.adapter import Adapter, Batch, ControlSpec
from ..objective.objective import Objective
from ..runtime.distributed import Ranks
from ..runtime.errors import UserError
from ..runtime.random_streams import Streams
from ..training.controls import without_teacher
from ..training.role_plan import RolePlan


def batches(
    adapter: Adapter, samples: int, size: int, device: torch.device, *, labelled: bool = False
) -> Iterator[Batch]:
    """So many samples of the train split, or all, evenly over it, as the first epoch augments them."""
    source = adapter.data("train")
    known = list(getattr(source, "labelled", range(len(source)))) if labelled else list(range(len(source)))
    number = min(samples, len(known))
    chosen = [known[i * len(known) // number] for i in range(number)]
    for start in range(0, number, size):
        made = source.collate([source.sample(i, 0) for i in chosen[start : start + size]])
        yield send_to_device(made, device)


@torch.enable_grad()
def gradients(adapter: Adapter, role_plan: RolePlan, model: nn.Module, samples: int) -> dict[str, Tensor]:
    """Of the terms without a teacher at a trained model's weights: their sum over batches of the training's size.

    Args:
        model: of the teacher's role, a copy: it is put in train mode and keeps gradients.
    """
    spec = without_teacher(role_plan.terms)
    if not isinstance(spec, ControlSpec):
        raise UserError(f"width_prune: importance taylor: {spec.reason}: use importance l1")
    objective = Objective([term for term in role_plan.terms if (term.name or term.loss) in spec.terms])
    device = next(model.parameters()).device
    model.train().requires_grad_(True)  # the role was frozen, perhaps
    for batch in batches(adapter, samples, role_plan.steps.batch_size, device, labelled=True):
        said = adapter.signals("teacher", model, batch, objective.features("student"))
        said.model, said.labelled = model, batch.get("labelled")
        if not objective.built:
            objective.build(said, None, Streams(0))
            objective.to(device)
        objective(said, None, step=0, ranks=Ranks()).value().backward()
    return {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
