"""The one door to packages whose compiled libraries must fit torch, the system or each other.

Such a package can be installed and still not load: wheels are built for some releases of torch, link to system
libraries, and want a C library of their time. What comes out then is a loader's message about a symbol; here it
becomes one line that names both versions and the command that mends it. torch itself is not imported for it.
"""

from __future__ import annotations

import importlib
import platform
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from .errors import RunError, UserError
from .installed import extra_of, fits_here, needs, version

#: What is loaded through this door and no other.
PACKAGES = frozenset({
    "torchaudio", "torchvision", "xformers", "open3d", "onnx", "onnxscript", "onnxruntime", "soundfile", "flashlight",
    "sentencepiece", "pyarrow", "laspy", "lazrs",
})  # fmt: skip
#: What a library that does not fit makes a loader say.
FAULTS = re.compile(
    r"undefined symbol|Symbol not found|cannot open shared object|Could not load this library|' not found \(required"
    r"|operator \w+::\w+ does not exist|library not found|DLL load failed"
)
#: The parts of it that say most.
TELLING = (
    r"undefined symbol: \S+", r"Symbol not found: \S+", r"\S+: cannot open shared object file",
    r"operator \S+ does not exist",
)  # fmt: skip
#: Modules whose project has another name.
PROJECTS = {"flashlight": "flashlight-text"}
#: Those that are compiled against torch.
TORCHS = ("torchaudio", "torchvision", "xformers")
#: Releases whose libraries need another torch than their metadata say.
TRULY = {
    ("torchaudio", "2.11.1"): ">=2.13",  # torch_exception_get_what_without_backtrace came with torch 2.13
}
#: Parts of a loader's message, and the Debian package that holds what it missed.
LIBRARIES = {
    "libusb": "libusb-1.0-0",
    "libGL": "libgl1",
    "libEGL": "libegl1",
    "libgomp": "libgomp1",
    "libX11": "libx11-6",
    "sndfile": "libsndfile1",
}
#: Libraries that torch's wheels bring: one that is not found is of another torch, or of another CUDA.
OF_TORCH = ("libtorch", "libc10", "libcu", "libnv", "libshm")
#: Where to read what goes without a package that this Python or system has no release of.
ELSEWHERE = "docs/installing.md says what goes without it"
#: Characters of a loader's message that a line has room for.
SHOWN = 240


def load(module: str, extra: str | None = None) -> Any:
    """Import `module` (``torchaudio.functional``) at the time of the call.

    Args:
        extra: the extra of this package that installs what is missing; by default the first one that does.

    Raises:
        UserError: it is missing, or cannot be loaded here; the line says what to install.
    """
    with loading(module, extra):
        importlib.import_module(module.partition(".")[0])  # a part that is there already would do without its whole
        return importlib.import_module(module)


# docs/decisions/016-compiled-packages.md
@contextmanager
def loading(module: str, extra: str | None = None) -> Iterator[None]:
    """As `load`, round import statements, or a first call, of one package and nothing else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own dependencies, which nobody here can mend
            yield
    except (UserError, RunError):
        raise
    except Exception as error:  # an import raises what it likes: a missing operator is a RuntimeError
        raise UserError(explain(module, error, extra)) from error


def beneath(error: BaseException) -> str | None:
    """The line for a package that did not load when another one imported it; None for an error of any other kind.

    diffusers and transformers import what they find, and fail in words of their own when it does not load.
    """
    for one in reversed(list(_chain(error))):
        if not FAULTS.search(str(one)):
            continue
        frames = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(one.__traceback__)]
        named = re.search(r"operator (\w+)::", str(one))
        packages = [name.partition(".")[0] for name in (*frames, *(named.groups() if named else ()))]
        if known := [package for package in packages if package in PACKAGES]:
            return explain(known[-1], error)
    return None


def explain(module: str, error: BaseException, extra: str | None = None) -> str:
    """One line: what cannot be loaded and why, the versions that do not fit, and the command that mends it."""
    package = module.partition(".")[0]
    project = PROJECTS.get(package, package)
    chain = list(_chain(error))
    missing = [e.name for e in _chain(error, handled=False) if isinstance(e, ModuleNotFoundError) and e.name]
    if missing and (found := _missing(project, package, missing[0], extra)):
        return found
    texts = [" ".join(str(e).split()) or type(e).__name__ for e in chain]
    whole, said = " ".join(texts), _telling(texts)
    named = _named(project)
    if asked := re.search(r"`(GLIBC|GLIBCXX|CXXABI)_([\d.]+)' not found", whole):
        return f"{named} cannot be loaded: {_system(asked[1], asked[2])}"
    if library := next((package for part, package in LIBRARIES.items() if part in whole), None):
        return f"{named} cannot be loaded ({said}): apt-get install {library}"
    lost = re.search(r"(lib[\w+.-]+): cannot open shared object file", whole)
    if lost and not lost[1].startswith(OF_TORCH):
        return f"{named} cannot be loaded ({said}): install the system library that it names"
    if re.search(r"numpy\.(_?core|dtype)|_ARRAY_API|NumPy 1", whole):
        pair = f"{named} cannot be loaded beside {_named('numpy')} ({said})"
        return f"{pair}: pip install --upgrade numpy {project}"
    if project in TORCHS and version("torch") is not None:
        return f"{named} cannot be loaded beside {_named('torch')} ({said}): {_pair(project)}"
    return f"{named} cannot be loaded ({said}): pip install --force-reinstall {_exactly(project)}"


def _chain(error: BaseException, *, handled: bool = True) -> Iterator[BaseException]:
    """An error and what it came from, as a loader's message often hides behind a package's own.

    Args:
        handled: also errors that were being dealt with when it was raised.
    """
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        yield current
        current = current.__cause__ or (current.__context__ if handled else None)


def _telling(texts: list[str]) -> str:
    """The part of the messages that says most: a symbol, a library, else the first message."""
    for pattern in TELLING:
        if found := re.search(pattern, " ".join(texts)):
            return found[0].rstrip(",.")
    return texts[0] if len(texts[0]) <= SHOWN else texts[0][:SHOWN] + " ..."


def _named(project: str) -> str:
    return f"{project} {version(project) or '(of unknown version)'}"


def _exactly(project: str) -> str:
    """For pip: the release that is installed, without the mark of its build."""
    found = version(project)
    return f"{project}=={Version(found).public}" if found else project


def _missing(project: str, package: str, missing: str, extra: str | None) -> str | None:
    """The line where a module is not there; None where it is a part of what is installed."""
    extra = extra or extra_of(project)
    remedy = f"pip install 'xmodal-kd[{extra}]'" if extra else f"pip install {project}"
    if version(project) is None:
        if not fits_here(project):  # its extra is empty here
            return (
                f"{project} has no release for Python {platform.python_version()} on {platform.system()}: {ELSEWHERE}"
            )
        other = "" if missing.partition(".")[0] == package else f"{package} is needed and "
        return f"{other}{project if not other else missing} is missing: {remedy}"
    if missing.partition(".")[0] != package:
        return f"{_named(project)} needs {missing}, which is missing: {remedy}"
    return None


def _system(library: str, asked: str) -> str:
    if library == "GLIBC":
        have = platform.libc_ver()[1] or "an older one"
        return f"it needs glibc {asked} and this system has {have}: take a newer one (Debian 12, Ubuntu 22.04 or later)"
    return f"it needs a libstdc++ that has {library}_{asked}: apt-get install libstdc++6, or take a newer system"


def _pair(project: str) -> str:
    """What a package that is compiled against torch needs, and the commands that bring the two together."""
    mine, torch = version(project) or "", Version(version("torch") or "0")
    truly = TRULY.get((project, Version(mine).public)) if mine else None
    need = SpecifierSet(truly) if truly else needs(project, "torch")
    partner = _partner(project, torch)
    if need and not need.contains(torch, prereleases=True):
        why = f"it needs torch {_spaced(need)}"
        ways = [_torch_for(need, project), f"pip install '{partner}'" if partner else None]
    else:
        why = "they were built for different releases"
        ways = [_torch_for(SpecifierSet(), project), f"pip install --force-reinstall '{partner}'" if partner else None]
    return f"{why}: {' or '.join(way for way in ways if way)}"


def _spaced(need: SpecifierSet) -> str:
    """``>=2.13`` as ``>= 2.13``."""
    return ", ".join(re.sub(r"^([<>=!~]+)", r"\1 ", str(one)) for one in need)


def _torch_for(need: SpecifierSet, project: str) -> str:
    """The command that changes torch, and with it all that is compiled against it."""
    others = [other for other in TORCHS if version(other) is not None and other != project]
    exact = next((one.version.removesuffix(".*") for one in need if one.operator == "=="), None)
    if exact is None:
        return f"pip install --upgrade 'torch{need}' {' '.join([project, *others])}"
    pinned = [_partner(other, Version(exact)) or other for other in others]
    return "pip install " + " ".join(f"'{each}'" for each in (f"torch{need}", *pinned))


def _partner(project: str, torch: Version) -> str | None:
    """The releases that go with a torch; None where none does, or where it is not known."""
    if torch.major != 2:
        return None
    if project == "torchvision":
        return f"torchvision==0.{torch.minor + 15}.*"
    if project == "torchaudio":  # whose numbers stop at 2.11 while torch's go on
        if torch.minor < 11:
            return f"torchaudio==2.{torch.minor}.*"
        return "torchaudio==2.11.0" if torch.minor < 13 else "torchaudio>=2.11.1"
    return None


__all__ = ["PACKAGES", "beneath", "explain", "load", "loading"]
