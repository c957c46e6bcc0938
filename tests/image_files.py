"""Images and arrays written to disk for the tests of reading them."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xmodal_kd.modalities.diffusion.data.source import DiffusionData, load_split
from xmodal_kd.runtime.errors import UserError

SPLITS = ("train", "dev", "test")
#: What `grey` calls eight images.
NAMES = [f"{i:02d}.png" for i in range(8)]


def picture(i, mode="L", size=(8, 8)):
    """A picture of one value (in colour i, 2i, 3i), so that a test can tell which it is."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    return Image.new(mode, size, i if bands == 1 else tuple(k * i for k in range(1, bands + 1)))


def encoded(image, form="png"):
    out = io.BytesIO()
    image.save(out, {"tif": "tiff"}.get(form.lower(), form))
    return out.getvalue()


def folder(path, images):
    """Write {name: image or bytes} below `path`."""
    for name, image in images.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(image if isinstance(image, bytes) else encoded(image, Path(name).suffix[1:]))
    return path


def edm(path, images, labels="number", compression=zipfile.ZIP_STORED, **more):
    """Write {name: image or bytes} as a zip; labels are {name: class}, None, or classes by turns of three."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, image in images.items():
            file.writestr(name, image if isinstance(image, bytes) else encoded(image, Path(name).suffix[1:]))
        if labels == "number":
            labels = {name: i % 3 for i, name in enumerate(images)}
        content = {"labels": None if labels is None else [[name, label] for name, label in labels.items()], **more}
        file.writestr("dataset.json", json.dumps(content))
    return path


def grey(count, name="{:02d}.png", **how):
    return {name.format(i): picture(i, **how) for i in range(count)}


def read(sources, path, split="train", **more):
    return load_split(DiffusionData(**{"sources": sources, "path": path, "dev": 2, "test": 3, **more}), split)


def everything(*where, **more):
    """What all three splits hold, by name."""
    parts = [read(*where, split, **more) for split in SPLITS]
    return {key: (part.x[i], None if part.labels is None else int(part.labels[i]))
            for part in parts for i, key in enumerate(part.keys)}  # fmt: skip


def refused(*where, **more):
    """The one line that reading ends with."""
    with pytest.raises(UserError) as caught:
        read(*where, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def arrays(path, **held):
    np.savez(path, **{"x": np.linspace(-1, 1, 60).reshape(10, 3, 2), **held})
    return path
