"""Does what is installed work here, and what does this machine offer? One line a check.

Nothing that could end this process is imported: torch and the compiled packages answer from processes of their own.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.text import Text

from ..runtime.installed import LOCK, PROJECT, Asked, checkout, locked, version, wanted
from ..runtime.isolated import Ended, ask
from . import hardware
from .kernels import Answer, probe

if TYPE_CHECKING:
    from ..models.attention import KernelStatus

Status = Literal["ok", "warning", "failed"]
COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}
#: What one has for an extra.
GIVES = {
    "images": "classifiers of images, and their export",
    "speech": "recognisers from recordings, and their export",
    "decode": "beam search with flashlight",
    "bpe": "pieces of words",
    "lora": "students of low-rank adapters",
    "diffusion": "few-step samplers from diffusers pipelines",
    "fid": "the Inception of the FID from torch-fidelity's weights",
    "points": "3D segmenters, the street simulator, and their export",
    "las": "scans in LAS and LAZ files",
    "timm": "encoders of photographs by timm's names",
    "graphs": "classifiers of the nodes of a graph, and their export",
    "gpu": "attention without padding on CUDA, by xformers",
    "datasets": "folders that Hugging Face's datasets has saved (sources: datasets)",
    "ray": "comparisons over a Ray cluster (compare --launcher ray)",
    "dev": "the checks of make test",
}
#: Bytes of memory, and of disk, below which a run is likely to stop half-way.
SCARCE = 2e9


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, how it stands, what was found and, where something is amiss, what to do."""

    check: str
    status: Status
    found: str


def examine(out: Path) -> list[Check]:
    """All checks.

    Args:
        out: the folder that runs would be written to; it need not be there.
    """
    with ThreadPoolExecutor() as pool:
        answers = pool.submit(probe)
        seen, attention = (
            pool.submit(ask, f"{hardware.__name__}:accelerators"),
            pool.submit(ask, f"{__name__}:attention_kernels"),
        )
        return [
            *packages(),
            *map(kernel, answers.result()),
            *attentions(attention.result()),
            *devices(seen.result()),
            *room(out),
        ]


def kernel(answer: Answer) -> Check:
    if not answer.works:
        return Check(answer.project, "ok" if answer.works is None else "failed", answer.found)
    return Check(answer.project, "ok", f"{version(answer.project)}: {answer.found} ({answer.seconds:.1f} s)")


# ---------------------------------------------------------------- what is installed


def packages() -> Iterator[Check]:
    want = wanted()
    here, python = platform.python_version(), f"{platform.python_version()} at {sys.executable}"
    fits = want.python.contains(here, prereleases=True)
    yield (
        Check("python", "ok", python)
        if fits
        else Check(
            "python", "failed", f"{python}: {PROJECT} needs {want.python}: make the environment with such a Python"
        )
    )
    yield Check(PROJECT, "ok", f"{version(PROJECT) or 'not installed, but run'} from {checkout() or 'its wheel'}")
    core = want.core()
    missing = [one.project for one in core if version(one.project) is None]
    yield (
        Check("core", "ok", _listed(core))
        if not missing
        else Check("core", "failed", f"{', '.join(missing)} missing: pip install {PROJECT}")
    )
    for extra, those in want.extras().items():
        yield Check(extra, "ok", _extra(extra, those))
    yield from _misfits(want.packages)
    yield from _lock(want.packages)


def _listed(those: Sequence[Asked]) -> str:
    return ", ".join(f"{one.project} {found}" for one in those if (found := version(one.project)) is not None)


def _extra(extra: str, those: Sequence[Asked]) -> str:
    gives = GIVES.get(extra, "what its project file says")
    missing = [one.project for one in those if version(one.project) is None and one.here]
    elsewhere = [one.project for one in those if not one.here]
    parts = [listed] if (listed := _listed(those)) else []
    parts += [f"{', '.join(missing)} not installed: pip install '{PROJECT}[{extra}]'"] if missing else []
    parts += [f"{', '.join(elsewhere)}: not for Python {platform.python_version()} here"] if elsewhere else []
    return f"for {gives}: {'; '.join(parts)}"


def _misfits(those: Sequence[Asked]) -> Iterator[Check]:
    """Packages outside the range that was asked for, each once."""
    pairs = [(one, version(one.project)) for one in {one.project: one for one in those if one.here}.values()]
    other = [(one, found) for one, found in pairs if found and not one.specifier.contains(found, prereleases=True)]
    if other:
        listed = ", ".join(f"{one.project} {found}" for one, found in other)
        wishes = " ".join(f"'{one.project}{one.specifier}'" for one, _ in other)
        yield Check("ranges", "warning", f"not of the versions that are asked for: {listed}: pip install {wishes}")


def _lock(those: Sequence[Asked]) -> Iterator[Check]:
    """What differs from the versions that were tested together, of those that are asked for by name."""
    lock = locked()
    if lock is None:
        return
    pairs = {one.project: (version(one.project), lock.get(one.project)) for one in those}
    other = {
        name: f"{name} {mine} ({tested})"
        for name, (mine, tested) in pairs.items()
        if mine is not None and tested is not None and mine.partition("+")[0] != tested.partition("+")[0]
    }
    if other:
        yield Check("lock", "warning", f"not as tested ({LOCK}): {', '.join(other.values())}: make install")
    else:
        yield Check("lock", "ok", f"as tested ({LOCK})")


# ---------------------------------------------------------------- what computes


def attention_kernels() -> dict[str, list[KernelStatus]]:
    """Attention's kernels by device. Imports torch, so ask for it apart."""
    import torch

    from ..models.attention import kernels

    return {device: kernels(torch.device(device)) for device in hardware.kinds()}


def attentions(found: Mapping[str, Sequence[Sequence[Any]]] | Ended) -> Iterator[Check]:
    """A line for each device: the kernels that are used, and why the others are not.

    Args:
        found: by device what `attention.KernelStatus` holds, in its order.
    """
    if isinstance(found, Ended):
        yield Check("attention", "failed", f"the trial of its kernels {found}: see the lines of torch and xformers")
        return
    for device, those in found.items():
        chosen = [f"{name} ({reason})" for name, _, reason, used in those if used]
        others = [f"not {name} ({reason})" for name, _, reason, used in those if not used]
        yield Check("attention", "ok", f"on {device}: {'; '.join(chosen + others)}")


def devices(seen: dict[str, Any] | Ended) -> Iterator[Check]:
    cpu = hardware.cpu()
    able = ", ".join(cpu.instructions) or "no instructions known"
    yield Check("cpu", "ok", f"{cpu.model}: {cpu.cores} cores, {cpu.threads} threads for this process; {able}")
    if isinstance(seen, Ended):
        yield Check("gpu", "failed", f"torch {version('torch')} {seen} when asked for devices: see its own line")
        return
    for device, name, free, total in seen["devices"]:
        status: Status = "ok" if free > SCARCE else "warning"
        yield Check(device, status, f"{name}: {_size(free)} of {_size(total)} free")
    if not seen["devices"] and hardware.idle_gpu():
        build = f"for CUDA {seen['cuda']}" if seen["cuda"] else "without CUDA"
        advice = "a newer driver, or the build for this one" if seen["cuda"] else "pip install the build with CUDA"
        yield Check("gpu", "warning", f"an NVIDIA GPU is here, and torch {version('torch')}, built {build}, does not "
                                      f"see it: {advice}")  # fmt: skip
    elif not seen["devices"]:
        yield Check("gpu", "ok", "none: everything runs on the CPU")


def room(out: Path) -> Iterator[Check]:
    free, total = hardware.memory()
    yield _enough("memory", free, f"{_size(free)} of {_size(total)} free", "end other programs, or lower batch_size")
    disk = hardware.disk(out)
    yield _enough("disk", disk.free, f"{_size(disk.free)} free at {disk.folder}", "make room, or give another --out")
    if not disk.writable:
        yield Check("run folder", "failed", f"{disk.folder} cannot be written to: give another --out")
    kind = disk.kind or "not known"
    if disk.network:
        text = f"{kind}, a network's: the teacher cache and checkpoints belong on a local disk: give another --out"
        yield Check("file system", "warning", text)
    elif disk.volatile:
        text = f"{kind}, in memory: gone with the next start: give another --out"
        yield Check("file system", "warning", text)
    else:
        yield Check("file system", "ok", kind)


def _enough(name: str, free: float, found: str, advice: str) -> Check:
    return Check(name, "ok", found) if free >= SCARCE else Check(name, "warning", f"{found}: {advice}")


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


# ---------------------------------------------------------------- what is printed


def summary(answers: Sequence[Answer]) -> str:
    """One line on calls of kernels."""
    works = [answer.project for answer in answers if answer.works]
    fails = [answer.project for answer in answers if answer.works is False]
    told = f"{len(works)} of {len(works) + len(fails)} compiled packages work here"
    return f"{told}; not {', '.join(fails)}" if fails else f"{told}: {', '.join(works)}"


def report(out: Path, *, only_kernels: bool, as_json: bool, say: Callable[[str], None] = print) -> bool:
    """Examine, print, and say whether everything that is installed works."""
    if only_kernels:
        answers = probe()
        checks, last = list(map(kernel, answers)), summary(answers)
    else:
        checks, last = examine(out), ""
    found = {check.status for check in checks}
    worst: Status = "failed" if "failed" in found else "warning" if "warning" in found else "ok"
    if as_json:
        names = [PROJECT, *(one.project for one in wanted().packages)]
        versions = {"python": platform.python_version()} | {n: v for n in names if (v := version(n)) is not None}
        say(json.dumps({"status": worst, "checks": [asdict(c) for c in checks], "versions": versions}))
    else:
        show([c for c in checks if c.status == "failed"] if only_kernels else checks)
        if last:
            say(last)
    return worst != "failed"


def show(checks: Sequence[Check]) -> None:
    console = Console()
    wide = max((len(c.check) for c in checks), default=0)
    for c in checks:
        line = Text.assemble((f"{c.status:8}", COLOURS[c.status]), f" {c.check:{wide}}  {c.found}")
        console.print(line, soft_wrap=True)


__all__ = ["Check", "Status", "attention_kernels", "examine", "report", "show", "summary"]
