"""Any image that Pillow reads, brought to what a model sees."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps

from xmodal_kd.adapter.images.read import open_image
from xmodal_kd.adapter.images.stores import MOST, one_line
from xmodal_kd.runtime.bounded_files import read_bytes
from xmodal_kd.runtime.errors import UserError


def fitted(path: Path, mode: str) -> Image.Image:
    """An image upright, on white where it is transparent, in this mode. Raises `UserError` that names the file."""
    with open_image(read_bytes(path, MOST), str(path)) as image:
        try:
            upright = (ImageOps.exif_transpose(image) or image).convert("RGBA")
        except Exception as error:  # Pillow's readers raise whatever a broken file leads them to
            raise UserError(f"{path}: a broken image ({one_line(error)})") from error
    paper = Image.new("RGBA", upright.size, "white")
    paper.alpha_composite(upright)
    return paper.convert(mode)


__all__ = ["fitted"]
