"""What a folder, zip or array file of samples holds: images as every modality takes them, arrays and latents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from xmodal_kd.adapter.images.found import HERE, Found, found, found_zip, whole
from xmodal_kd.adapter.images.read import Images
from xmodal_kd.adapter.sketch import Noted
from xmodal_kd.runtime.errors import UserError

from .arrays import read_arrays, read_latents

HELP = "docs/own_data.md#diffusion-images-or-arrays"


def samples(path: Path) -> Found:
    """What `path` holds, which may be the name ``digits``.

    Raises:
        UserError: it is not there, or nothing that is read here, or too little; it says what to do.
    """
    readers = {".zip": _zip, ".npz": _arrays}
    return found(path, readers, who=None, what=f"a folder of images, an EDM zip, an .npz, or digits ({HELP})")


def _arrays(path: Path, place: Path) -> Found:
    arrays = read_arrays(place, conditional=False, latents=True)
    return _unlike_images("arrays", path, arrays, f"an .npz file with an array x of shape {arrays.x.shape}")


def _zip(path: Path, place: Path) -> Found:
    try:
        return found_zip(path, place, who=None)
    except UserError as error:
        if "data.latents" not in str(error):
            raise
        return _unlike_images("edm", path, read_latents(place, conditional=False), "a zip of .npy arrays")


def _unlike_images(sources: str, path: Path, arrays: Images, why: str) -> Found:
    section = {"sources": Noted(sources, why), "path": Noted(str(path), HERE)}
    low, high = float(np.min(arrays.x[:])), float(np.max(arrays.x[:]))
    if low < -1 or high > 1 or sources == "edm":
        section["latents"] = Noted(True, f"values from {low:.3g} to {high:.3g}: latents are neither scaled nor clamped")
    elif low >= 0:
        note = f"{path}: x lies in [{low:.3g}, {high:.3g}], half the range of images: of these save 2 * x - 1"
        return replace(whole(arrays, section), notes=(note,))
    return whole(arrays, section)


__all__ = ["HELP", "samples"]
