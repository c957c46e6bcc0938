"""The doctor: what works, what does not, and what the machine is; with packages that end the process they are in."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.specifiers import SpecifierSet
from stand_ins import Install, stand_in

from xmodal_kd.cli.main import call
from xmodal_kd.doctor import checks as doctor
from xmodal_kd.doctor import hardware, kernels
from xmodal_kd.doctor.checks import Check
from xmodal_kd.doctor.kernels import KERNELS, Answer, Kernel, probe
from xmodal_kd.runtime import installed
from xmodal_kd.runtime import isolated as apart
from xmodal_kd.runtime.installed import Asked, Wanted
from xmodal_kd.runtime.isolated import Ended, ask

__all__ = ["stand_in"]  # a fixture

ROOT = Path(__file__).parents[2]
BY_NAME: Mapping[str, Kernel] = {kernel.project: kernel for kernel in KERNELS}
Capture = pytest.CaptureFixture[str]


# Calls of compiled packages


@pytest.mark.parametrize("project", [name for name in BY_NAME if name != "xformers"])
def test_what_is_installed_here_works(project: str) -> None:
    if installed.version(project) is None:
        pytest.skip(f"{project} is not installed")
    works, found = kernels.call(project)
    assert works and found, found


def test_in_processes_of_their_own_too() -> None:
    answers = probe([BY_NAME["onnxruntime"], BY_NAME["soundfile"]])
    assert [(a.project, a.works, a.found) for a in answers] == [
        ("onnxruntime", True, "a session"), ("soundfile", True, "a wave, written and read"),
    ]  # fmt: skip
    assert all(answer.seconds > 0 for answer in answers)


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGILL", "SIGKILL"])
def test_a_package_that_ends_its_process_is_a_line(name: str, stand_in: Install) -> None:
    source = f"import os, signal\ndef write(*_, **__): os.kill(os.getpid(), signal.{name})"
    stand_in("soundfile", "9.9", source)
    works, fails = probe([BY_NAME["onnx"], BY_NAME["soundfile"]])
    assert works.works and fails.works is False and "\n" not in fails.found
    assert fails.found.startswith(f"soundfile 9.9 was ended by {name}: ")
    advice = {"SIGILL": "this CPU lacks an instruction", "SIGKILL": "want of memory"}
    assert advice.get(name, "pip install --force-reinstall soundfile") in fails.found


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("raise OSError('libsndfile.so: cannot open shared object file')", "apt-get install libsndfile1"),
        ("import sys; print('oops', file=sys.stderr); sys.exit(3)",
         "soundfile 9.9 ended its process with status 3 (oops): pip"),
        ("def write(*_, **__): pass\ndef read(_): return [0.0, 0.5, -0.5, 0.0], 8000",
         "a wave that was written gives [0.0, 0.5, -0.5, 0.0, 8000.0] in the place of [0.0, 0.5, -0.5, 0.25, 8000.0]"),
        ("def write(*_, **__): raise RuntimeError('no such\\noperator')",
         "soundfile 9.9 cannot be loaded (no such operator)"),
    ],
)  # fmt: skip
def test_whatever_else_can_go_wrong_is_a_line(source: str, line: str, stand_in: Install) -> None:
    stand_in("soundfile", "9.9", source)
    [answer] = probe([BY_NAME["soundfile"]])
    assert answer.works is False and line in answer.found and "\n" not in answer.found, answer.found


def test_what_a_package_prints_does_not_hide_the_answer(stand_in: Install) -> None:
    source = (
        "import atexit\nprint('hello', end='')\natexit.register(print, 'bye')\n"
        "def write(*_, **__): print('answer?')\ndef read(_): return [0.0, 0.5, -0.5, 0.25], 8000"
    )
    stand_in("soundfile", "9.9", source)
    [answer] = probe([BY_NAME["soundfile"]])
    assert answer.works, answer.found


def test_one_that_takes_for_ever_is_stopped(stand_in: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "LONGEST", 1.0)
    stand_in("soundfile", "9.9", "import time; time.sleep(60)")
    [answer] = probe([BY_NAME["soundfile"]])
    assert answer.works is False and answer.found.startswith("soundfile 9.9 gave no answer within 1 s: ")


def test_what_is_not_installed_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "version", lambda project: None if project in ("onnx", "soundfile") else "1.0")
    assert probe([BY_NAME["soundfile"], BY_NAME["onnxruntime"]]) == [
        Answer("onnxruntime", None, "not tried, for want of onnx")
    ]


def test_a_full_gpu_is_no_fault_of_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    class OutOfMemoryError(RuntimeError): ...

    def full() -> str:
        raise OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(kernels, "KERNELS", (Kernel("torchaudio", "torchaudio", full),))
    assert kernels.call("torchaudio") == (None, "not tried: the GPU has no memory free")


# Lines


def test_attention_says_what_was_chosen_and_why() -> None:
    cuda = [
        ["xformers", True, "used", True],
        ["varlen", False, "no such kernel", False],
        ["torch", True, "rest", False],
    ]
    [line] = doctor.attentions({"cuda": cuda})
    assert line == Check("attention", "ok", "on cuda: xformers (used); not varlen (no such kernel); not torch (rest)")
    [line] = doctor.attentions(Ended(-11))
    assert line.status == "failed" and "was ended by SIGSEGV" in line.found


def test_attention_of_this_machine_is_known() -> None:
    found = doctor.attention_kernels()
    assert "cpu" in found and json.loads(json.dumps(found)).keys() == found.keys()
    assert all(any(status.chosen for status in those) for those in found.values())
    first, *_ = doctor.attentions(found)
    assert first.found.startswith("on cpu: torch (all attention on cpu); not xformers (")


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "idle_gpu", lambda: False)
    cpu, gpu = doctor.devices({"cuda": None, "devices": []})
    assert cpu.status == gpu.status == "ok" and "cores" in cpu.found and "none" in gpu.found
    _, first, full = doctor.devices(
        {"cuda": "13.0", "devices": [["cuda:0", "H1", 8e10, 9e10], ["cuda:1", "H2", 1e9, 9e10]]}
    )
    assert first == Check("cuda:0", "ok", "H1: 80.0 GB of 90.0 GB free") and full.status == "warning"
    _, broken = doctor.devices(Ended(1, "ImportError: libtorch"))
    assert broken.status == "failed" and "ended its process with status 1 (ImportError: libtorch)" in broken.found
    monkeypatch.setattr(hardware, "idle_gpu", lambda: True)
    _, unseen = doctor.devices({"cuda": None, "devices": []})
    assert unseen.status == "warning" and "built without CUDA, does not see it" in unseen.found


def test_what_torch_sees_here_is_told() -> None:
    seen = hardware.accelerators()
    assert seen.keys() == {"cuda", "devices"} and hardware.kinds()[0] == "cpu"
    assert json.loads(json.dumps(seen)).keys() == seen.keys()


def test_cpus_by_what_linux_says_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: EPYC 7\nflags\t\t: sse avx2 fma\n\n")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)
    cpu = hardware.cpu(tmp_path / "cpuinfo")
    assert (cpu.model, cpu.instructions) == ("EPYC 7", ("avx2",)) and 1 <= cpu.threads <= 2
    (tmp_path / "memory.max").write_text("3000000000\n")
    (tmp_path / "memory.current").write_text("2500000000\n")
    assert hardware.memory() == (500_000_000, 3_000_000_000), "a container's limit, not the machine's"
    assert next(doctor.room(tmp_path)).status == "warning"
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert hardware.memory()[1] > 3_000_000_000 or hardware.memory()[0] > 0


@pytest.mark.parametrize(
    ("kind", "status"),
    [("ext4", "ok"), ("overlay", "ok"), ("nfs4", "warning"), ("fuse.sshfs", "warning"), ("tmpfs", "warning")],
)
def test_file_systems(kind: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = [("/", "xfs"), (str(tmp_path), "btrfs"), (str(tmp_path), kind), (str(tmp_path / "run" / "x"), "vfat")]
    parts = [SimpleNamespace(mountpoint=point, fstype=name) for point, name in mounts]
    monkeypatch.setattr(hardware.psutil, "disk_partitions", lambda all: parts)
    [line] = [check for check in doctor.room(tmp_path / "run" / "later") if check.check == "file system"]
    assert line.status == status and line.found.startswith(kind)


def test_the_run_folders_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "disk_usage", lambda _: SimpleNamespace(free=1_500_000_000))
    monkeypatch.setattr(hardware.os, "access", lambda *_: False)
    disk, folder = [check for check in doctor.room(tmp_path / "a" / "b") if check.check in ("disk", "run folder")]
    assert disk == Check("disk", "warning", f"1.5 GB free at {tmp_path}: make room, or give another --out")
    assert folder.status == "failed" and str(tmp_path) in folder.found


# Versions


def test_packages_by_extra(stand_in: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in("madeup", "1.5")
    stand_in("alsomadeup", "2.0+cu128")

    def asked(project: str, specifier: str, extra: str | None = None, here: bool = True) -> Asked:
        return Asked(project, SpecifierSet(specifier), extra, here)

    want = Wanted(SpecifierSet(">=3.11"), (
        asked("madeup", ">=1"), asked("alsomadeup", "==2.0", "speech"), asked("nosuch", "", "ray"),
        asked("madeup", ">=1", "points"), asked("nosuch", "", "points"), asked("elsewhere", "", "decode", False),
    ))  # fmt: skip
    monkeypatch.setattr(doctor, "wanted", lambda: want)
    monkeypatch.setattr(doctor, "locked", lambda: {"madeup": "1.5", "alsomadeup": "2.0+cpu"})
    found = {check.check: check for check in doctor.packages()}
    assert {check.status for check in found.values()} == {"ok"}, "what is not installed is no failure"
    assert found["core"].found == "madeup 1.5" and found["speech"].found.endswith(": alsomadeup 2.0+cu128")
    assert found["ray"].found.endswith(
        "Ray cluster (compare --launcher ray): nosuch not installed: pip install 'xmodal-kd[ray]'"
    )
    assert "madeup 1.5; nosuch not installed: pip install 'xmodal-kd[points]'" in found["points"].found
    assert "elsewhere: not for Python" in found["decode"].found and "as tested" in found["lock"].found

    other = Wanted(SpecifierSet("<3"), (asked("madeup", ">=2"), asked("nosuch", "")))
    monkeypatch.setattr(doctor, "wanted", lambda: other)
    monkeypatch.setattr(doctor, "locked", lambda: {"madeup": "2.1"})
    found = {check.check: check for check in doctor.packages()}
    assert found["python"].status == "failed" and "needs <3" in found["python"].found
    assert found["core"] == Check("core", "failed", "nosuch missing: pip install xmodal-kd")
    assert found["ranges"].status == "warning" and found["ranges"].found.endswith("madeup 1.5: pip install 'madeup>=2'")
    assert found["lock"].status == "warning" and "madeup 1.5 (2.1)" in found["lock"].found


def test_every_extra_says_what_it_gives() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = installed.wanted().extras()
    assert extras.keys() == project["optional-dependencies"].keys() - {"all"}, "all names others only"
    assert extras.keys() <= doctor.GIVES.keys()
    assert installed.extra_of("open3d") == "points" and installed.extra_of("torch") is None


def test_without_a_checkout_the_metadata_say_the_same(stand_in: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ("torch>=2", 'open3d>=0.20; extra == "points"', 'odd>=1; python_version < "3" and extra == "decode"',
             'xmodal-kd[points]; extra == "all"')  # fmt: skip
    stand_in("xmodal-kd", "0.1.0", requires=lines)
    monkeypatch.setattr(installed, "checkout", lambda: None)
    want = installed.wanted()
    assert [(one.project, str(one.specifier), one.extra, one.here) for one in want.packages] == [
        ("torch", ">=2", None, True), ("open3d", ">=0.20", "points", True), ("odd", ">=1", "decode", False),
    ]  # fmt: skip
    assert installed.locked() is None


def test_a_lock_is_read_for_this_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "requirements").mkdir()
    text = "# made by uv\nodd==1.0 ; python_full_version < '3'\nodd==2.0 ; python_full_version >= '3'\ntorch==2.14.1\n"
    (tmp_path / installed.LOCK).write_text(text)
    monkeypatch.setattr(installed, "checkout", lambda: tmp_path)
    assert installed.locked() == {"odd": "2.0", "torch": "2.14.1"}


# The command


GOOD, BAD = Answer("onnx", True, "a graph", 0.5), Answer("soundfile", False, "soundfile 1.0 is odd: mend it")


def test_kernels_alone_print_failures_and_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(doctor, "probe", lambda: [GOOD])
    assert call(["doctor", "--kernels"]) == 0
    assert capsys.readouterr().out == "1 of 1 compiled packages work here: onnx\n"
    monkeypatch.setattr(doctor, "probe", lambda: [GOOD, BAD])
    assert call(["doctor", "--kernels"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "failed   soundfile  soundfile 1.0 is odd: mend it",
        "1 of 2 compiled packages work here; not soundfile",
    ]


def test_all_of_it_in_words_and_for_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(doctor, "probe", lambda: [GOOD, BAD])
    monkeypatch.setattr(
        doctor, "ask", lambda function: Ended(-4) if "attention" in function else {"cuda": None, "devices": []}
    )
    assert call(["doctor", "--out", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert all(line.split()[0] in ("ok", "warning", "failed") for line in lines)
    assert any("a graph (0.5 s)" in line for line in lines) and any("ended by SIGILL" in line for line in lines)
    assert call(["doctor", "--out", str(tmp_path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["status"] == "failed" and len(found["checks"]) == len(lines)
    assert found["versions"]["torch"] == installed.version("torch")
    assert {"check": "soundfile", "status": "failed", "found": BAD.found} in found["checks"]


def test_it_imports_nothing_that_could_end_it() -> None:
    code = (
        "import sys; from pathlib import Path; from xmodal_kd.doctor import checks as doctor\n"
        "list(doctor.packages()); list(doctor.room(Path('.'))); doctor.probe([])\n"
        "print(sorted({'torch', 'numpy', 'onnx', 'open3d', 'soundfile'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


def test_a_question_is_answered_apart() -> None:
    assert ask("os.path:basename", "/a/b") == "b"
    ended = ask("os.path:basename")
    assert isinstance(ended, Ended) and ended.status == 1 and "TypeError" in ended.said
