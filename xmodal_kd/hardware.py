"""What a run would stand on: cores, memory, disk, the file system of its folder; and GPUs, of which torch can tell."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage

import psutil

#: File systems that other machines serve: slow to sync, and maps of memory and locks are not sure on them.
NETWORK = frozenset({
    "nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "afs", "ceph", "lustre", "gpfs", "beegfs", "glusterfs", "9p",
    "ncpfs", "orangefs", "pvfs2", "davfs", "webdav", "afpfs", "panfs", "fuse",
})  # fmt: skip
#: Those that are in memory: gone with the machine's next start, and taken from what models have.
VOLATILE = frozenset({"tmpfs", "ramfs"})
#: Instructions that decide how quick, and with int8 how exact, a CPU is; as Linux calls them.
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "sve")
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Cpu:
    model: str
    cores: int
    """Physical ones of the machine."""
    threads: int
    """That this process may use at once: fewer than the machine has where it is bound to some, or in a container."""
    instructions: tuple[str, ...]


def cpu(info: Path = Path("/proc/cpuinfo")) -> Cpu:
    model, flags = platform.processor() or platform.machine(), set[str]()
    if info.is_file():
        facts = dict(_pair(line) for line in info.read_text(errors="replace").splitlines() if ":" in line)
        model = facts.get("model name", model)
        flags = {*facts.get("flags", "").split(), *facts.get("Features", "").split()}
    elif platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        model = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or model
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    usable = min(threads, _quota() or threads)
    return Cpu(model, psutil.cpu_count(logical=False) or threads, usable, tuple(f for f in INSTRUCTIONS if f in flags))


def _pair(line: str) -> tuple[str, str]:
    key, _, value = line.partition(":")
    return key.strip(), value.strip()


def _quota() -> int | None:
    """Cores that a container may use, rounded up."""
    found = _read(CGROUP / "cpu.max").split()
    if len(found) != 2 or found[0] == "max":
        return None
    return -(-int(found[0]) // int(found[1]))


def memory() -> tuple[int, int]:
    """Bytes that are free, or can be freed, and bytes in all; of the container where that has a limit."""
    now = psutil.virtual_memory()
    limit, used = _read(CGROUP / "memory.max"), _read(CGROUP / "memory.current")
    if limit.isdigit() and used.isdigit():
        return min(now.available, max(0, int(limit) - int(used))), min(now.total, int(limit))
    return now.available, now.total


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def standing(folder: Path) -> Path:
    """`folder` itself, or of the folders that it would be in, the nearest that is there."""
    path = folder.absolute()
    return next(p for p in (path, *path.parents) if p.is_dir())


@dataclass(frozen=True)
class Disk:
    folder: Path
    free: int
    """Bytes."""
    kind: str
    """Of the file system: ``ext4``; empty where it is not known."""
    writable: bool

    @property
    def network(self) -> bool:
        return self.kind in NETWORK or self.kind.startswith("fuse.")

    @property
    def volatile(self) -> bool:
        return self.kind in VOLATILE


def disk(folder: Path) -> Disk:
    """Of the place where `folder` lies or would lie."""
    here = standing(folder)
    return Disk(here, disk_usage(here).free, _kind(here.resolve()), os.access(here, os.W_OK | os.X_OK))


def _kind(folder: Path) -> str:
    """Of the innermost mount; of several on one place the last, which hides the others."""
    mounts = [m for m in psutil.disk_partitions(all=True) if folder.is_relative_to(m.mountpoint)]
    depth = max((len(Path(m.mountpoint).parts) for m in mounts), default=0)
    return next((m.fstype for m in reversed(mounts) if len(Path(m.mountpoint).parts) == depth), "")


def idle_gpu() -> bool:
    """Whether the machine has an NVIDIA GPU with its driver, whatever torch makes of it."""
    return Path("/dev/nvidia0").exists() or Path("/proc/driver/nvidia/version").exists()


def kinds() -> tuple[str, ...]:
    """The kinds of device that torch can compute on here, ``cpu`` first. Imports torch."""
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return tuple(kind for kind, here in there.items() if here)


def accelerators() -> dict[str, object]:
    """What torch sees: the CUDA of its build, None without; of each GPU ``[device, name, bytes free, bytes in all]``.

    Imports torch, so ask for it apart.
    """
    import torch

    found: list[tuple[str, str, int, int]] = []
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(i)
        major, minor = torch.cuda.get_device_capability(i)
        found.append((f"cuda:{i}", f"{torch.cuda.get_device_name(i)}, capability {major}.{minor}", free, total))
    if torch.backends.mps.is_available():
        most = torch.mps.recommended_max_memory()
        found.append(("mps", platform.processor(), most - torch.mps.driver_allocated_memory(), most))
    return {"cuda": torch.version.cuda, "devices": found}


__all__ = ["Cpu", "Disk", "accelerators", "cpu", "disk", "idle_gpu", "kinds", "memory", "standing"]
