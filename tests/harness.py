"""What the property suites give to losses: random rows, lists, grids, regions, modules with fixed weights; oracles."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from examples_a import EXAMPLES, PARAMS, SHAPES
from oracles.losses import ORACLES, SETTINGS
from torch import Tensor, nn

from xmodal_kd.losses import LOSSES, LossSpec
from xmodal_kd.recipe.recipe import Term
from xmodal_kd.signals.signals import Layout, Signals

Batch = dict[str, Any]
Settings = dict[str, Any]

# the core's own: a modality's losses (ctc) have their oracles in the modality's tests
NAMES = [name for name in LOSSES if LOSSES[name].fn.__module__.startswith("xmodal_kd.losses.")]
TAUGHT = [name for name in NAMES if LOSSES[name].needs_teacher]
FUNCTIONS = [name for name in NAMES if not LOSSES[name].is_module]
MODULES = [name for name in NAMES if LOSSES[name].is_module]
KNOWN = [name for name in NAMES if name in ORACLES]

WIDTH, ITEMS, GRID = 6, 4, (3, 4)
COUNTS = (7, 0, 5, 8)  # rows of each item: ragged, and one item has none
FEW = (2, 0, 1, 1)  # fewer rows than channels, and items of a single row
SINGLE = (1, 1, 1, 1)

#: Losses that compare one row an item.
BY_SAMPLE = {"crcd", "crd", "crd_exact", "hkd"}
#: Widths of the signals of losses that compare lists; others get two of equal width.
SIGNALS = {
    "dskd": (5, 5),
    "fsp": (6, 4, 3, 5),
    "irg": (6, 12, 5),
    "kdsvd": (6, 4, 5),
    "mhgd": (6, 4),
    "patch_gan": (6,),
    "skd_adv": (5,),
}
#: So many of a loss's first signals say which rows belong together, and learn nothing.
LINKING = {"hkd": 1}
#: Hyper-parameters under every setting, where the defaults make tests slow.
SMALL: dict[str, Settings] = {
    "adv_feature": {"hidden": 8},
    "af_dcd": {"groups": 2, "pool": 2, "drop": 0.3},
    "attnfd": {"reduction": 1},
    "crcd": {"samples": 40, "negatives": 16, "width": 8},
    "crd": {"samples": 40, "negatives": 16, "width": 8},
    "crd_exact": {"samples": 40, "negatives": 16, "width": 8},
    "hkd": {"samples": 40, "negatives": 16, "width": 8, "neighbours": 2},
    "multilevel_ot": {"iterations": 4},
    "patch_gan": {"hidden": 4, "layers": 2},
    "seed": {"queue": 24},
    "semckd": {"batch": 4, "width": 3},
    "skd_adv": {"hidden": 4},
    "wkd_l": {"iterations": 4},
} | PARAMS


def settings(names: list[str]) -> list[Any]:
    """Every loss with each of its hyper-parameters."""
    return [
        pytest.param(name, params, id="-".join([name, *(f"{key}={value}" for key, value in params.items())]))
        for name in names
        for params in SETTINGS.get(name, [{}])
    ]


def declared(word: str, names: list[str] = NAMES) -> list[str]:
    return [name for name in names if word in LOSSES[name].properties]


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def each(change: Callable[[Tensor], Any], value: Any) -> Any:
    """`change` of a signal, or of every signal of a list."""
    return [change(x) for x in value] if isinstance(value, list) else change(value)


class Head:
    """A head that takes NumPy rows as well."""

    def __init__(self, wide: int) -> None:
        self.weight = torch.linspace(-1, 1, 5 * wide, dtype=torch.float64).reshape(5, wide).sin()

    def __call__(self, rows: Any) -> Any:
        return rows @ (self.weight.numpy().T if isinstance(rows, np.ndarray) else self.weight.T.to(rows))


def batch(seed: int, spec: LossSpec, dtype: torch.dtype = torch.float64, counts: tuple[int, ...] = COUNTS) -> Batch:
    """Random rows of four items, all inputs by name. The teacher is wider where the loss allows it.

    Odd seeds mix the items' rows, but for rows that lie on a grid.
    """
    random = torch.Generator().manual_seed(seed)
    counts = SINGLE if spec.name in BY_SAMPLE else counts
    item = torch.arange(ITEMS).repeat_interleave(torch.tensor(counts))
    if seed % 2 and not {"cell", "grid"} & set(spec.inputs):
        item = item[torch.randperm(len(item), generator=random)]
    place = torch.stack([(item[:i] == item[i]).sum() for i in range(len(item))])
    cells = [
        torch.randperm(prod(GRID), generator=random)[:n].sort().values + i * prod(GRID) for i, n in enumerate(counts)
    ]

    def rows(width: int, shift: float) -> Tensor:
        values = 2 * torch.randn(len(item), width, dtype=torch.float64, generator=random) + shift
        return values.to(dtype)

    wider = 3 if "widths_differ" in spec.properties else 0
    widths = SIGNALS.get(spec.name, (WIDTH, WIDTH)) if spec.many else (WIDTH,)
    lists: Batch = {
        "student": [rows(width, 0.0) for width in widths],
        "teacher": [rows(width + wider, 0.5) for width in widths],
        "item": [item for _ in widths],
        "teacher_item": [item for _ in widths],
        "cell": [torch.cat(cells) for _ in widths],
        "grid": [GRID for _ in widths],
    }
    given = lists if spec.many else {key: value[0] for key, value in lists.items()}
    made = given | {
        "items": ITEMS,
        "labels": torch.randint(WIDTH, (len(item),), generator=random),
        "label_item": item,
        "regions": place % 2,
        "ids": torch.tensor([7, 2, 31, 11]),
        "head": Head(widths[0] + wider),
        "own_head": Head(widths[0]),
        "progress": 0.3,
    }
    return EXAMPLES[spec.name](made, seed) if spec.name in EXAMPLES else made


def rows_of(inputs: Batch, keep: Tensor) -> Batch:
    """The batch of these rows, all of one item, alone."""
    alone = {key: each(lambda x: x[keep], inputs[key]) for key in ("student", "teacher", "labels", "regions")}
    item = listed(inputs["item"])[0][keep]
    return inputs | alone | {
        "items": 1,
        "label_item": torch.zeros_like(item),
        "item": each(lambda x: torch.zeros_like(item), inputs["item"]),
        "teacher_item": each(lambda x: torch.zeros_like(item), inputs["item"]),
        "cell": each(lambda x: x[keep] % prod(GRID), inputs["cell"]),
        "ids": inputs["ids"][item[:1]] if len(item) else inputs["ids"][:1],
    }  # fmt: skip


def build(spec: LossSpec, inputs: Batch, **params: Any) -> nn.Module:
    """A loss's module, always with the same weights, whose biases and gains are not trivial."""
    torch.manual_seed(0)
    widths = [each(lambda x: x.shape[1], inputs[side]) for side in ("student", "teacher")]
    axes = [len(grid) for grid in inputs["grid"]] if spec.many else len(inputs["grid"])
    module = spec.make(*widths, axes, **SMALL.get(spec.name, {}) | params)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim < 2:
                parameter.add_(torch.linspace(-0.1, 0.2, parameter.numel()).reshape(parameter.shape))
    dtype = listed(inputs["student"])[0].dtype
    return module.to(dtype if dtype == torch.float64 else torch.float32)


def call(spec: LossSpec, inputs: Batch, module: nn.Module | None = None, **params: Any) -> Tensor:
    """The loss's values; a module is built first if none is given."""
    arguments = [inputs[name] for name in spec.inputs]
    if spec.is_module:
        out = (module or build(spec, inputs, **params))(*arguments)
    else:
        out = spec.fn(*arguments, **SMALL.get(spec.name, {}) | params)
    return out[0] if isinstance(out, tuple) else out


def oracle(spec: LossSpec, inputs: Batch, **params: Any) -> Tensor:
    """What the oracle says of the same rows, in float64; of a module, from its state before the call."""

    def array(x: Any) -> Any:
        if isinstance(x, Tensor):
            return (x.double() if x.is_floating_point() else x).numpy()
        return [array(y) for y in x] if isinstance(x, list) else x

    params = SMALL.get(spec.name, {}) | params
    more: dict[str, Any] = {}
    if spec.is_module:
        module = build(spec, inputs, **params)
        more["state"] = {key: array(value) for key, value in module.state_dict().items()}
        if hasattr(module, "drawn"):
            more["drawn"] = module.drawn().numpy()
        if hasattr(module, "kept"):  # torch's generator stands where it does when `call` has built the module
            more["keep"] = module.kept(
                *(len(listed(inputs["item"])[-1]), inputs["items"], listed(inputs["student"])[-1].shape[1])
            ).numpy()
    more |= {name: array(inputs[name]) for name in spec.inputs}
    return torch.from_numpy(np.asarray(ORACLES[spec.name](**params, **more)))


def gradient(spec: LossSpec, inputs: Batch, **params: Any) -> tuple[Tensor, list[Tensor]]:
    """Values, and the gradient of their sum at each of the student's signals."""
    student = each(lambda x: x.clone().requires_grad_(), inputs["student"])
    values = call(spec, inputs | {"student": student}, **params)
    return values.detach(), list(torch.autograd.grad(values.sum(), listed(student), materialize_grads=True))


# ---------------------------------------------------------------- through the objective


def term(spec: LossSpec, **params: Any) -> Term:
    """The loss on signals named as `signals` names them."""
    widths = SHAPES.get(spec.name, (SIGNALS.get(spec.name, (WIDTH, WIDTH)),) * 2)
    names = [[f"f{i}" for i in range(len(side))] for side in widths]
    on = {"student": names[0], "teacher": names[1]} if spec.many else "f0"
    params = SMALL.get(spec.name, {}) | params
    return Term(loss=spec.name, on=on, regions="regions", head="head", projector="none", params=params)  # type: ignore[arg-type]


def signals(spec: LossSpec, inputs: Batch, junk: float | None = None) -> tuple[Signals, Signals]:
    """The batch as signals: ragged rows, or where `junk` is given cells of a grid whose padding holds it."""
    item, cell = listed(inputs["item"])[0], listed(inputs["cell"])[0]
    n, total = len(item), inputs["items"] * prod(GRID)
    if junk is None:
        place, mask = torch.arange(n), torch.ones(n, dtype=torch.bool)
        layout = Layout("point", mask, item, inputs["items"])
    else:
        place, mask = cell, torch.zeros(total, dtype=torch.bool).index_fill(0, cell, True)
        layout = Layout(
            "point", mask, torch.arange(inputs["items"]).repeat_interleave(prod(GRID)), inputs["items"], GRID
        )
    said = []
    for side in ("student", "teacher"):
        out = Signals(inputs["ids"])
        for i, rows in enumerate(listed(inputs[side])):
            padded = rows.new_full((len(mask), rows.shape[1]), junk or 0.0).index_copy(0, place, rows)
            out.add(f"f{i}", padded, layout)
        for key in ("labels", "regions"):
            beside = inputs[key].new_full((len(mask), *inputs[key].shape[1:]), -100)
            out.add(key, beside.index_copy(0, place, inputs[key]), layout)
        said.append(out)
    for out, key in zip(said, ("own_head", "head"), strict=True):
        out.model = nn.ModuleDict({"head": _linear(inputs[key])})
    return said[0], said[1]


def _linear(head: Head) -> nn.Linear:
    linear = nn.Linear(head.weight.shape[1], head.weight.shape[0], bias=False, dtype=torch.float64)
    linear.weight.data = head.weight.clone()
    return linear
