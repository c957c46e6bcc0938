"""Packages that are installed and do not load: one line names the versions and the command that mends it."""

from __future__ import annotations

import ast
import importlib
import re
import sys
import warnings
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from source_files import ADAPTER_FILES, CORE_FILES, ids
from stand_ins import Install, stand_in

from xmodal_kd.cli import catalogue
from xmodal_kd.cli.main import call
from xmodal_kd.runtime import binary_packages as binary
from xmodal_kd.runtime import installed
from xmodal_kd.runtime.binary_packages import load, loading
from xmodal_kd.runtime.errors import RunError, UserError
from xmodal_kd.runtime.installed import Asked, Wanted

__all__ = ["stand_in"]  # a fixture

SYMBOL = "torch_exception_get_what_without_backtrace"
#: As torchaudio 2.11.1 fails beside torch 2.11: torch hides the loader's message behind its own.
NO_SYMBOL = f"""
try:
    raise OSError("/site-packages/torchaudio/lib/libtorchaudio.so: undefined symbol: {SYMBOL}")
except OSError as error:
    raise OSError("Could not load this library: /site-packages/torchaudio/lib/libtorchaudio.so") from error
"""


def told(module: str, extra: str | None = None) -> str:
    """The line for a module that cannot be imported."""
    with pytest.raises(UserError) as caught:
        load(module, extra)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def without(monkeypatch: pytest.MonkeyPatch, *projects: str) -> None:
    """As if these were not installed, by their metadata."""
    real = installed.version
    monkeypatch.setattr(binary, "version", lambda project: None if project in projects else real(project))


# Pairs with torch


def test_the_release_whose_metadata_promise_too_much(stand_in: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "torchvision", "xformers")
    stand_in("torch", "2.11.0+cu128")
    stand_in("torchaudio", "2.11.1", NO_SYMBOL, requires=("torch>=2.11",))
    assert told("torchaudio.functional") == (
        f"torchaudio 2.11.1 cannot be loaded beside torch 2.11.0+cu128 (undefined symbol: {SYMBOL}): it needs torch >= "
        "2.13: pip install --upgrade 'torch>=2.13' torchaudio or pip install 'torchaudio==2.11.0'"
    )


@pytest.mark.parametrize(
    ("source", "said"),
    [(NO_SYMBOL, f"undefined symbol: {SYMBOL}"),
     ("raise RuntimeError('operator torchaudio::odd does not exist')", "operator torchaudio::odd does not exist")],
)  # fmt: skip
def test_a_command_ends_in_that_line_when_another_package_imports_it(
    source: str, said: str, stand_in: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As transformers does, in whose words it was: Failed to import transformers.x (look up to see its traceback)."""
    stand_in("torch", "2.11.0")
    stand_in("torchaudio", "2.11.1", source, requires=("torch>=2.11",))
    guest = "try:\n    import torchaudio\nexcept Exception as e:\n    raise RuntimeError('Failed to import') from e"
    stand_in("madeup", "1.0", guest)
    monkeypatch.setattr(catalogue, "catalogue", lambda *_: importlib.import_module("madeup"))
    assert call(["list", "models"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"error: torchaudio 2.11.1 cannot be loaded beside torch 2.11.0 ({said}): it needs torch >= 2"
    )


def test_other_errors_are_left_as_they_are(stand_in: Install) -> None:
    assert binary.beneath(OSError("x.so: undefined symbol: mine")) is None, "of nobody that is known"
    stand_in("open3d", "1.0", "def fail(): raise ValueError('a bad mesh')")
    with pytest.raises(ValueError) as caught:
        importlib.import_module("open3d").fail()
    assert binary.beneath(caught.value) is None


@pytest.mark.parametrize(
    ("torch", "project", "version", "requires", "commands"),
    [
        ("2.11.0", "torchaudio", "2.10.0", "torch==2.10.0",
         ["it needs torch == 2.10.0: ", "pip install 'torch==2.10.0' 'torchvision==0.25.*'",
          "or pip install 'torchaudio==2.11.0'"]),
        ("2.9.1", "torchaudio", "2.11.1", "torch>=2.11",
         ["it needs torch >= 2.13: ", "'torch>=2.13' torchaudio torchvision", "or pip install 'torchaudio==2.9.*'"]),
        ("2.14.1", "torchaudio", "2.9.1", "torch==2.9.1",
         ["it needs torch == 2.9.1: ", "'torch==2.9.1' 'torchvision==0.24.*'", "or pip install 'torchaudio>=2.11.1'"]),
        ("2.14.1", "torchvision", "0.26.0", "torch (==2.11.0)",
         ["it needs torch == 2.11.0: ", "'torch==2.11.0' 'torchaudio==2.11.0'",
          "or pip install 'torchvision==0.29.*'"]),
        ("2.14.1", "torchvision", "0.29.1", "torch>=2.14.0",
         ["built for different releases: pip install --upgrade 'torch' torchvision torchaudio",
          "or pip install --force-reinstall 'torchvision==0.29.*'"]),
        ("2.14.1", "xformers", "0.0.30", "torch==2.7.0",
         ["it needs torch == 2.7.0: pip install 'torch==2.7.0' 'torchaudio==2.7.*' 'torchvision==0.22.*'"]),
        ("2.12.0", "torchaudio", "2.11.1", "torch>=2.11",
         ["'torch>=2.13' torchaudio torchvision or pip install 'torchaudio==2.11.0'"]),
    ],
)  # fmt: skip
def test_both_ways_to_a_pair_that_fits(
    torch: str, project: str, version: str, requires: str, commands: list[str],
    stand_in: Install, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    without(monkeypatch, *({"xformers"} - {project}))
    stand_in("torch", torch)
    stand_in(project, version, "raise RuntimeError('operator torchvision::nms does not exist')", requires=(requires,))
    line = told(project)
    start = f"{project} {version} cannot be loaded beside torch {torch} (operator torchvision::nms does not exist): "
    assert line.startswith(start) and all(command in line for command in commands), line
    assert ("xformers" in line) == (project == "xformers"), "what is not installed need not be changed"


def test_a_library_of_another_cuda_is_torchs(stand_in: Install) -> None:
    stand_in("torch", "2.14.1+cpu")
    source = "raise OSError('libcudart.so.12: cannot open shared object file: No such file or directory')"
    stand_in("torchvision", "0.29.1", source)
    line = told("torchvision")
    assert "beside torch 2.14.1+cpu (libcudart.so.12: cannot open shared object file): they were built for" in line


# The system


@pytest.mark.parametrize(
    ("project", "error", "remedy"),
    [
        ("open3d", "ImportError('libusb-1.0.so.0: cannot open shared object file')", "apt-get install libusb-1.0-0"),
        ("open3d", "OSError('libGL.so.1: cannot open shared object file')", "apt-get install libgl1"),
        ("open3d", "OSError('libgomp.so.1: cannot open shared object file')", "apt-get install libgomp1"),
        ("open3d", "OSError('libodd.so.1:\\ncannot open shared object file')",
         r"libodd\.so\.1: cannot open.*install the system lib"),
        ("soundfile", "OSError('sndfile library not found using ctypes.util.find_library')", "install libsndfile1$"),
        ("open3d", "ImportError(\"/lib/libm.so.6: version `GLIBC_2.35' not found (required by x.so)\")",
         r"needs glibc 2\.35 and this system has \d\.\d+: take a newer one"),
        ("open3d", "ImportError(\"libstdc++.so.6: version `GLIBCXX_3.4.30' not found\")",
         r"apt-get install libstdc\+\+6"),
        ("onnxruntime", "ImportError('numpy.core.multiarray failed to import')",
         r"beside numpy \d\S+ \(numpy\.core.*pip install --upgrade numpy onnxruntime"),
        ("onnxruntime", "ImportError('x.so: undefined symbol: PyOdd')", "reinstall onnxruntime==9.8.7$"),
        ("onnxruntime", "ImportError()", r"\(ImportError\): pip install --force-reinstall onnxruntime==9.8.7$"),
    ],
)  # fmt: skip
def test_what_the_system_lacks_is_named(project: str, error: str, remedy: str, stand_in: Install) -> None:
    stand_in(project, "9.8.7", f"raise {error}")
    line = told(project)
    assert line.startswith(f"{project} 9.8.7 cannot be loaded") and re.search(remedy, line), line


def test_a_long_message_is_cut(stand_in: Install) -> None:
    stand_in("onnxruntime", "1.0", f"raise ImportError({'a tale ' * 200!r})")
    assert len(told("onnxruntime")) < 400


# What is missing


def test_what_is_missing_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told("nosuchpackage", "points") == "nosuchpackage is missing: pip install 'xmodal-kd[points]'"
    assert told("nosuchpackage.part") == "nosuchpackage is missing: pip install nosuchpackage"
    for module, project, extra in (("open3d", "open3d", "points"), ("flashlight", "flashlight-text", "decode")):
        monkeypatch.setitem(sys.modules, module, None)
        without(monkeypatch, project)
        assert told(module) == f"{project} is missing: pip install 'xmodal-kd[{extra}]'"


def test_what_has_no_release_for_this_python_is_not_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashlight", None)
    without(monkeypatch, "flashlight-text")
    monkeypatch.setattr(binary, "fits_here", lambda project: project != "flashlight-text")
    line = told("flashlight")
    assert line.startswith("flashlight-text has no release for Python ") and line.endswith(binary.ELSEWHERE)


def test_a_marker_says_what_fits_here(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = Asked("flashlight-text", SpecifierSet(), "decode", here=False)
    monkeypatch.setattr(installed, "wanted", lambda: Wanted(SpecifierSet(), (elsewhere,)))
    assert not installed.fits_here("flashlight-text") and installed.fits_here("another")


def test_what_a_package_needs_in_turn_is_named(stand_in: Install) -> None:
    stand_in("open3d", "0.20.0", "import nosuchpackage")
    assert told("open3d") == "open3d 0.20.0 needs nosuchpackage, which is missing: pip install 'xmodal-kd[points]'"


def test_a_package_that_is_half_there_is_installed_again(stand_in: Install) -> None:
    stand_in("open3d", "0.20.0", "import open3d.pybind")
    line = told("open3d")
    assert line.endswith("(No module named 'open3d.pybind'): pip install --force-reinstall open3d==0.20.0")


# The door


def test_it_lets_through_what_is_no_fault_of_the_package(stand_in: Install) -> None:
    stand_in("open3d", "1.0", "import warnings; warnings.warn('of no use to anybody'); there = True")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load("open3d").there, "its warnings are kept to itself"
    for error in (UserError("mine"), RunError("mine")):
        with pytest.raises(type(error), match=r"^mine$"), loading("open3d"):
            raise error


#: A program that is copied into folders of students: it may import nothing of the project, the door neither.
ALONE = "standalone.py"


@pytest.mark.parametrize("path", [path for path in CORE_FILES + ADAPTER_FILES if path.name != ALONE], ids=ids)
def test_there_is_no_other_door(path: Path) -> None:
    tree = ast.parse(path.read_text())
    inside = {
        statement
        for node in ast.walk(tree)
        if isinstance(node, ast.With) and "loading(" in ast.unparse(node.items[0])
        for statement in node.body
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found = {str(node.module).partition(".")[0]}
        else:
            continue
        assert not found & binary.PACKAGES or node in inside, f"{ast.unparse(node)}: with loading(...), or load(...)"
