"""The one door to Open3D: where it or a library that it needs is missing, one line says what to install."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

from xmodal_kd.runtime.errors import UserError

#: Parts of a loader's message, and the Debian package that holds what it missed.
PACKAGES = {
    "libusb": "libusb-1.0-0",
    "libGL": "libgl1",
    "libEGL": "libegl1",
    "libgomp": "libgomp1",
    "libX11": "libx11-6",
}


def load() -> ModuleType:
    """The module ``open3d``.

    Raises:
        UserError: it is not installed, or a system library that it links to is missing.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own dependencies, which nobody here can mend
            return importlib.import_module("open3d")
    except ModuleNotFoundError as error:
        raise UserError(f"Open3D is needed and {error.name} is missing: pip install 'xmodal-kd[points]'") from error
    except (ImportError, OSError) as error:
        package = next((package for part, package in PACKAGES.items() if part in str(error)), None)
        remedy = f"apt-get install {package}" if package else "install the system library that it names"
        raise UserError(f"Open3D cannot be loaded ({' '.join(str(error).split())}): {remedy}") from error
