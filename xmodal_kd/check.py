"""Pre-flight: what is wrong with a recipe, found on real batches before money is spent."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from .adapter import Adapter, Batch
from .checkpoint import digest
from .errors import UserError
from .loader import steps
from .method import Method, probe
from .objective import Objective, safe
from .optim import named_parameters
from .recipe import Loaded
from .runner import build, make_adapter, make_method
from .setup import make_accelerator
from .streams import Streams

Status = Literal["pass", "warn", "fail"]
#: Steps on one repeated batch within which every term should fall.
REPEATS = 30


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    check: str
    status: Status
    found: str
    advice: str = ""

    def to_json(self) -> dict[str, str]:
        return asdict(self)


@dataclass
class Subject:
    """What is checked: the roles of the student's training on one real batch."""

    adapter: Adapter
    method: Method
    objective: Objective
    roles: dict[str, nn.Module]
    batch: Batch
    streams: Streams
    lr: float

    @property
    def student(self) -> nn.Module:
        return self.roles["student"]

    @property
    def device(self) -> torch.device:
        return next(self.student.parameters()).device


def prepare(loaded: Loaded, device: str) -> Subject:
    """Build the roles as a run would; a teacher that the recipe would train is checked with its initial weights."""
    recipe, streams = loaded.recipe, Streams(loaded.recipe.seed)
    torch.set_num_threads(recipe.threads)
    accelerator = make_accelerator(device, recipe.train.precision)
    adapter = make_adapter(loaded, streams)
    roles: dict[str, nn.Module] = {}
    if recipe.teacher is not None:
        path = recipe.teacher.path
        roles["teacher"] = adapter.load("teacher", path) if path else build(adapter, loaded, "teacher", streams)
        roles["teacher"].eval().requires_grad_(False)
    roles["student"] = build(adapter, loaded, "student", streams).train()
    for model in roles.values():
        model.to(accelerator.device)
    [batch] = next(steps(adapter.data("train")))
    method = make_method(loaded, adapter, recipe.train, recipe.objective, streams)
    objective = method.modules().get("objective", Objective(()))
    assert isinstance(objective, Objective)
    return Subject(
        adapter, method, objective, roles, send_to_device(batch, accelerator.device), streams, recipe.train.optimizer.lr
    )


def check(loaded: Loaded, device: str = "auto") -> list[Finding]:
    """All checks in order; one that cannot even start is a failure with its reason."""
    try:
        subject = prepare(loaded, device)
    except UserError as error:
        return [Finding("build", "fail", str(error))]
    findings = [Finding("build", "pass", ", ".join(f"{k} {_size(m)}" for k, m in subject.roles.items()))]
    for one in CHECKS:
        try:
            findings.extend(one(subject))
        except UserError as error:
            findings.append(Finding(one.__name__.replace("_", " "), "fail", str(error)))
            break  # what follows would fail for the same reason
    return findings


def signals(subject: Subject) -> Iterator[Finding]:
    """Shapes, masks and classes of what the roles say."""
    with torch.no_grad(), subject.streams.forked("check"):
        said = {
            role: subject.adapter.signals(role, model, subject.batch, subject.objective.features(role))
            for role, model in subject.roles.items()
        }
    for role, found in said.items():
        for name in found:
            rows, layout = found[name]
            share = float(layout.mask.float().mean())
            bad = not bool(torch.isfinite(rows[layout.mask].float()).all())
            shape = f"{role}.{name}: {tuple(rows.shape)} {layout.kind} rows, {100 * share:.0f} % valid"
            if bad:
                yield Finding(
                    "signals", "fail", f"{shape}, NaN or Inf in valid rows", "look at the data or the weights"
                )
            elif share == 0:
                yield Finding("signals", "fail", f"{shape}", "the mask leaves nothing to learn from")
            else:
                yield Finding("signals", "pass", shape)
    subject.method.begin(subject.method.stages()[0], subject.roles, subject.batch)
    if {"teacher", "student"} <= said.keys():
        output = subject.adapter.output
        yield _classes(said["teacher"].rows(output), said["student"].rows(output))


def _classes(teacher: Tensor, student: Tensor) -> Finding:
    if teacher.shape[-1] != student.shape[-1]:
        return Finding(
            "classes", "fail", f"teacher {teacher.shape[-1]} classes, student {student.shape[-1]}",
            "train both on one vocabulary, or give the adapter a class map",
        )  # fmt: skip
    return Finding("classes", "pass", f"{teacher.shape[-1]} on both sides")


def class_order(subject: Subject) -> Iterator[Finding]:
    """Class i means the same for teacher and student: equal numbers of classes alone do not say so."""
    if "teacher" not in subject.roles:
        return
    mine, theirs = subject.adapter.class_names("student"), subject.adapter.class_names("teacher")
    if mine == theirs:
        yield Finding("class order", "pass", f"{len(mine)} classes, {mine[0]} first")
    else:
        at = next(
            (i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(len(mine), len(theirs))
        )
        yield Finding(
            "class order", "fail",
            f"class {at} is {theirs[at : at + 1]} for the teacher, {mine[at : at + 1]} for the student",
            "use a teacher of this vocabulary",
        )  # fmt: skip


def frozen_teacher(subject: Subject) -> Iterator[Finding]:
    """Two steps leave the teacher to the bit as it was, in eval mode, without gradients, in no optimizer."""
    if "teacher" not in subject.roles:
        return
    teacher = subject.roles["teacher"]
    before = digest(teacher.state_dict().items())
    optimizers = subject.method.begin(subject.method.stages()[0], subject.roles, subject.batch)
    state = copy.deepcopy(subject.student.state_dict())
    for _ in range(2):
        probe(subject.method, subject.roles, subject.batch, subject.streams)
        for optimizer in optimizers.values():
            optimizer.step()
    subject.student.load_state_dict(state)
    owned = {id(p) for o in optimizers.values() for group in o.param_groups for p in group["params"]}
    problems = [
        text
        for bad, text in (
            (digest(teacher.state_dict().items()) != before, "its weights or buffers moved"),
            (any(module.training for module in teacher.modules()), "a module of it is in training mode"),
            (any(p.grad is not None for p in teacher.parameters()), "it received a gradient"),
            (any(id(p) in owned for p in teacher.parameters()), "an optimizer holds its parameters"),
        )
        if bad
    ]
    _clear(subject)
    if problems:
        yield Finding(
            "frozen teacher", "fail", "; ".join(problems), "the adapter must not train or touch a frozen role"
        )
    else:
        yield Finding("frozen teacher", "pass", "identical to the bit after two steps")


def gradients(subject: Subject) -> Iterator[Finding]:
    """Every trainable parameter, projectors included, gets a gradient and sits in exactly one optimizer."""
    optimizers = subject.method.begin(subject.method.stages()[0], subject.roles, subject.batch)
    counts: dict[int, int] = {}
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                counts[id(parameter)] = counts.get(id(parameter), 0) + 1
    _clear(subject)
    out = probe(subject.method, subject.roles, subject.batch, subject.streams)
    trained = dict(named_parameters({"student": subject.student, **subject.method.modules()}))
    without = [name for name, p in trained.items() if p.grad is None or not bool((p.grad != 0).any())]
    outside = [name for name, p in trained.items() if counts.get(id(p), 0) != 1]
    _clear(subject)
    if outside:
        yield Finding(
            "optimizers", "fail", f"{outside[0]} is in {counts.get(id(trained[outside[0]]), 0)} optimizers, not 1"
        )
    if without:
        yield Finding(
            "gradients", "fail", f"{len(without)} of {len(trained)} parameters get none, the first is {without[0]}",
            "is the layer used, and is a term connected to it?",
        )  # fmt: skip
    else:
        yield Finding("gradients", "pass", f"reach all {len(trained)} trainable parameters")
    for parts in out.values():
        for name, part in parts.parts.items():
            if float(part.count) == 0:
                yield Finding("counts", "warn", f"term {name} counted nothing on this batch", "is its mask empty?")


def overfit(subject: Subject) -> Iterator[Finding]:
    """Trained alone on one repeated batch, every term falls."""
    start = {name: copy.deepcopy(module.state_dict()) for name, module in _learning(subject).items()}
    found = probe(subject.method, subject.roles, subject.batch, subject.streams)
    _clear(subject)
    terms = [name for out in found.values() for name in out.parts]
    for silent in (term.name for term in subject.objective if subject.objective.built and term.name not in terms):
        yield Finding("overfit", "warn", f"{silent}: its weight is 0 at the first step, so it was not tried")
    for term in terms:
        for name, module in _learning(subject).items():
            module.load_state_dict(start[name])
        first, last = _repeat(subject, term)
        if last < first or last < 1e-6:
            yield Finding("overfit", "pass", f"{term}: {first:.4g} to {last:.4g} in {REPEATS} steps")
        else:
            yield Finding(
                "overfit", "fail", f"{term}: {first:.4g} to {last:.4g} in {REPEATS} steps",
                "is its gradient right, and the learning rate not far too high?",
            )  # fmt: skip
    for name, module in _learning(subject).items():
        module.load_state_dict(start[name])


def _repeat(subject: Subject, term: str) -> tuple[float, float]:
    """A term's value at the first and after the last step, dropout held still."""
    parameters = [p for _, p in named_parameters(_learning(subject))]
    optimizer = torch.optim.Adam(parameters, lr=subject.lr)
    values = []
    for _ in range(REPEATS + 1):
        optimizer.zero_grad(set_to_none=True)
        with subject.streams.forked("overfit"):
            losses = subject.method.losses(subject.batch, subject.roles, _context(subject))
            part = next(out.parts[term] for _, out in losses if term in out.parts)
        value = part.total / safe(part.count)
        values.append(float(value.detach()))
        if value.requires_grad:
            value.backward()
            optimizer.step()
    _clear(subject)
    return values[0], values[-1]


def padding(subject: Subject) -> Iterator[Finding]:
    """What a role says about the shortest sample of a batch does not depend on how far the batch pads it."""
    source = subject.adapter.data("train")
    samples = [source.sample(index, 0) for index in source.plan(0)[0]]
    batch = send_to_device(source.collate(samples), subject.device)
    for role, model in subject.roles.items():
        model.eval()
        together = _say(subject, role, batch)
        counts = torch.bincount(together.item, minlength=len(samples))
        shortest = int(torch.where(counts > 0, counts, len(together.rows)).argmin())
        alone = _say(subject, role, send_to_device(source.collate([samples[shortest]]), subject.device))
        mine = together.rows[together.item == shortest]
        if mine.shape != alone.rows.shape:
            found = f"{role}: a sample has {len(mine)} rows in a batch and {len(alone.rows)} alone"
            yield Finding("padding", "fail", found, "the mask must follow from the sample's own length")
        elif not torch.allclose(mine, alone.rows, rtol=1e-3, atol=1e-3 * float(alone.rows.abs().max())):
            moved = float((mine - alone.rows).abs().max())
            found = f"{role}: a sample's {subject.adapter.output} move by {moved:.2g} with its batch"
            yield Finding("padding", "fail", found, "mask what the model sees, or leave BatchNorm in eval mode")
        else:
            yield Finding("padding", "pass", f"{role}: a sample says the same alone and in a batch")
    subject.student.train()


class _Said(NamedTuple):
    rows: Tensor
    item: Tensor


def _say(subject: Subject, role: str, batch: Batch) -> _Said:
    """Valid rows of a role's output, and whose they are."""
    with torch.no_grad(), subject.streams.forked("check"):
        rows, layout = subject.adapter.signals(role, subject.roles[role], batch)[subject.adapter.output]
    return _Said(rows[layout.mask].float(), layout.item[layout.mask])


def left_out(subject: Subject) -> Iterator[Finding]:
    """Samples that cannot be used, by split."""
    for split, entry in subject.adapter.describe().items():
        if not isinstance(entry, Mapping) or "left_out" not in entry:
            continue
        total = entry["left_out"] + entry.get("utterances", entry.get("samples", 0))
        status: Status = "warn" if entry["left_out"] > 0.01 * max(total, 1) else "pass"
        yield Finding("left out", status, f"{split}: {entry['left_out']} of {total} samples cannot be used")


CHECKS: tuple[Callable[[Subject], Iterator[Finding]], ...] = (
    signals, class_order, padding, frozen_teacher, gradients, overfit, left_out,
)  # fmt: skip


def _context(subject: Subject) -> Any:
    from .clock import Clock
    from .method import Context
    from .ranks import Ranks

    return Context(subject.method.stages()[0], 0, 0, subject.streams, Clock(subject.device), Ranks())


def _learning(subject: Subject) -> dict[str, nn.Module]:
    return {"student": subject.student, **subject.method.modules()}


def _clear(subject: Subject) -> None:
    for model in (*subject.roles.values(), *subject.method.modules().values()):
        model.zero_grad(set_to_none=True)


def _size(model: nn.Module) -> str:
    return f"{sum(p.numel() for p in model.parameters()):,} parameters"
