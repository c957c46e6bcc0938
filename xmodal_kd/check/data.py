"""Checks of what the data and the models say: splits, signals, classes, labels, padding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..adapter.adapter import Batch, is_teacher
from ..run.roles import find_all, labelled_by
from ..signals.signals import OUTPUTS
from .subject import Finding, Subject

SPLITS = ("train", "dev", "test")
#: More than this share of samples left out is worth a look at the data.
FEW = 0.01


def modules(subject: Subject) -> Iterator[Finding]:
    """Every module path of the objective names one module of each role that it is asked of."""
    for role, model in subject.roles.items():
        find_all(role, model, subject.objective)
    paths = sorted({path for role in subject.roles for path in subject.objective.features(role)})
    yield Finding("modules", "pass", ", ".join(paths) or "the objective names none")


def splits(subject: Subject) -> Iterator[Finding]:
    """The first batch of each split can be read."""
    counts = []
    for split in SPLITS:
        source = subject.adapter.data(split)
        source.collate([source.sample(index, 0) for index in source.plan(0)[0]])
        known = labelled_by(source, subject.recipe, "student") if split == "train" else source
        counts.append(f"{split} {len(source):,}" + (f" ({len(known):,} labelled)" if len(known) < len(source) else ""))
    yield Finding("splits", "pass", f"{', '.join(counts)} samples, {len(subject.batch['ids'])} in the first batch")


def signals(subject: Subject) -> Iterator[Finding]:
    """Shapes and masks of what the roles say, and no NaN in valid rows."""
    for role, said in subject.said.items():
        for name in said:
            rows, layout = said[name]
            share = float(layout.mask.float().mean())
            shape = f"{role}.{name}: {tuple(rows.shape)} {layout.kind} rows, {100 * share:.0f} % valid"
            values = rows[layout.mask].float()
            if is_teacher(role) and name in OUTPUTS:  # the score of a class that it does not know
                values = values.masked_fill(values == -torch.inf, 0.0)
            if not bool(torch.isfinite(values).all()):
                found = f"{shape}, NaN or Inf in valid rows"
                yield Finding("signals", "fail", found, "look at the data or the weights")
                return
            if share == 0:
                yield Finding("signals", "fail", shape, "the mask leaves nothing to learn from")
                return
            yield Finding("signals", "pass", shape)


def classes(subject: Subject) -> Iterator[Finding]:
    """Teacher and student answer in equally many numbers, and as many as there are names of classes."""
    adapter, output = subject.adapter, subject.adapter.output
    widths = {role: said.rows(output).shape[-1] for role, said in subject.said.items() if output in said}
    alike = {
        width
        for role, width in widths.items()
        if role not in adapter.elsewhere and not adapter.other_tokens(role, output)
    }
    if len(alike) > 1:
        found = ", ".join(f"{role} {width} classes" for role, width in widths.items())
        yield Finding(
            "classes", "fail", found, "train both on one vocabulary, or give the adapter a class map"
        )  # fmt: skip
        return
    if output == "logits":
        for role, width in widths.items():
            if (names := len(subject.adapter.class_names(role))) != width:
                found = f"{role}: {width} outputs and {names} names of classes"
                yield Finding("classes", "fail", found, "the model was built for another vocabulary")
                return
    yield Finding("classes", "pass", " and ".join(f"{role} {width}" for role, width in widths.items()))


def class_order(subject: Subject) -> Iterator[Finding]:
    """Class i means the same for teacher and student: equal numbers of classes alone do not say so."""
    if "teacher" not in subject.roles or "teacher" in subject.adapter.elsewhere:
        return
    if differ := subject.adapter.other_tokens("teacher", subject.adapter.output):
        yield Finding("class order", "pass", f"{differ}; its terms compare two vocabularies")
        return
    mine, theirs = subject.adapter.class_names("student"), subject.adapter.class_names("teacher")
    if mine == theirs:
        yield Finding("class order", "pass", f"{len(mine)} classes, {mine[0]} first")
        return
    pairs = zip(mine, theirs, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(mine), len(theirs)))
    found = f"class {at} is {theirs[at : at + 1]} for the teacher, {mine[at : at + 1]} for the student"
    yield Finding("class order", "fail", found, "use a teacher of this vocabulary")


def labels(subject: Subject) -> Iterator[Finding]:
    """Labels that are classes lie within the student's classes; those of a regression are not looked at."""
    said = subject.said["student"]
    if "labels" not in said or said.rows("labels").is_floating_point():
        return
    rows, layout = said["labels"]
    mask = layout.mask if said.labelled is None else layout.mask & said.labelled[layout.item]
    valid, count = rows[mask], said.rows(subject.adapter.output).shape[-1]
    if not len(valid) and subject.recipe.method.name != "distil":
        return  # inputs that are made have none
    if bool(((valid < 0) | (valid >= count)).any()):
        found = f"labels from {int(valid.min())} to {int(valid.max())}, the student's classes are 0 to {count - 1}"
        yield Finding("labels", "fail", found, "mask what is no label, or give the model all classes")
        return
    seen = len(valid.unique())
    yield Finding("labels", "pass", f"{int(valid.min())} to {int(valid.max())} of {count} classes, {seen} seen")


def blank(subject: Subject) -> Iterator[Finding]:
    """Every term with a blank means the adapter's, and no label is the blank."""
    expected = subject.adapter.blank
    blanks = {t.name: t.params["blank"] for t in subject.objective if "blank" in t.params}
    if expected is None:
        for name, value in blanks.items():
            found = f"{name}: class {value} is the blank, and this modality has none"
            yield Finding("blank", "fail", found, "choose a loss without a blank")
        return
    said = subject.said["student"]
    rows, layout = said["labels"]
    mask = layout.mask if said.labelled is None else layout.mask & said.labelled[layout.item]
    if wrong := [f"{name}: blank {value}" for name, value in blanks.items() if value != expected]:
        found = f"{', '.join(wrong)}, where class {expected} is the blank"
        yield Finding("blank", "fail", found, f"set params.blank to {expected}")
    elif bool((rows[mask] == expected).any()):
        yield Finding("blank", "fail", f"a label of this batch is the blank, class {expected}", "shift the labels")
    else:
        yield Finding("blank", "pass", f"class {expected}, and no label is it")


def padding(subject: Subject) -> Iterator[Finding]:
    """What a role says about the shortest sample of a batch does not depend on how far the batch pads it."""
    source = subject.adapter.data("train")
    samples = [source.sample(index, 0) for index in source.plan(0)[0]]
    batch = subject.here(source.collate(samples))
    for role, model in subject.roles.items():
        model.eval()
        together = _say(subject, role, batch)
        counts = torch.bincount(together.item, minlength=len(samples))
        shortest = int(torch.where(counts > 0, counts, len(together.rows)).argmin())
        alone = _say(subject, role, subject.here(source.collate([samples[shortest]])))
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
    subject.put_back()


class _Said(NamedTuple):
    rows: Tensor
    item: Tensor


def _say(subject: Subject, role: str, batch: Batch) -> _Said:
    """Valid rows of a role's output (of its first layer that is compared, where it has none), and whose they are."""
    output, known = subject.adapter.output, subject.said[role]
    layers = [] if output in known else [name for name in known if name != "labels"][:1]
    with torch.no_grad(), subject.streams.forked("check"):
        said = subject.adapter.signals(role, subject.roles[role], batch, layers)
        rows, layout = said[layers[0] if layers else output]
    return _Said(rows[layout.mask].float(), layout.item[layout.mask])


def left_out(subject: Subject) -> Iterator[Finding]:
    """Samples that cannot be used, by split: in speech, utterances that CTC could not align, or that are too long."""
    for split, entry in subject.adapter.describe().items():
        if not isinstance(entry, Mapping) or "left_out" not in entry:
            continue
        lost, total = entry["left_out"], entry["left_out"] + entry.get("utterances", entry.get("samples", 0))
        text = f"{split}: {lost} of {total} samples ({100 * lost / max(total, 1):.1f} %) cannot be used"
        if lost <= FEW * total:
            yield Finding("left out", "pass", text)
            continue
        first = next((f", the first: {e['key']}: {e['reason']}" for e in entry.get("left_out_examples", [])), "")
        yield Finding("left out", "warn", text + first, "a student with a finer output grid, or other data")


def traps(subject: Subject) -> Iterator[Finding]:
    """Of the data, as only their modality knows them: in points, what of a scan falls into its picture."""
    for status, what, advice in subject.adapter.traps(subject.batch):
        yield Finding("data", status, what, advice)
