"""A saved student as a restorer of image files."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from xmodal_kd.adapter.hub import fetched
from xmodal_kd.adapter.images.read import CHANNELS, Expected, read_image
from xmodal_kd.adapter.images.stores import Folder
from xmodal_kd.runtime.allocation import room
from xmodal_kd.runtime.errors import UserError

from ..data.restoration.degraded import as_bytes, as_seen
from ..export.restoration_folder import load_card, load_model
from ..models.restoration import TILE, restored
from .fitted import fitted

#: Bytes of memory that a pixel takes for each channel, of the input and of what is made: floats twice, and 8 bits.
BYTES = 9


class ImageRestorer:
    """Restores with what `save_model` left in a folder, and with nothing else.

    Args:
        device: that the model runs on.
        tile: side of the part of an image that the model sees at once, in pixels; what it makes does not hang on it.

    Raises:
        UserError: the folder is not a saved restorer.
    """

    def __init__(self, folder: Path | str, device: str = "cpu", tile: int = TILE) -> None:
        self.card = load_card(Path(folder))
        self.model = load_model(Path(folder)).to(device)
        self.tile = tile

    @classmethod
    def from_pretrained(cls, name: Path | str, revision: str | None = None, *, device: str = "cpu") -> ImageRestorer:
        """Of a folder, or of a repository of the Hugging Face Hub (``owner/name``), which is fetched once and kept.

        Args:
            revision: a branch, a tag or a commit of the repository.
        """
        return cls(fetched(name, revision), device)

    def restore(self, path: Path | str, *, fit: bool = False) -> Image.Image:
        """The restored image, of any size, upright.

        Args:
            fit: bring an image of other colours to the model's, on white where it is transparent.

        Raises:
            UserError: it names the file and what is wrong with it.
        """
        path, channels = Path(path), self.card.shape[0]
        mode = {count: name for name, count in CHANNELS.items()}[channels]
        expected = Expected(None, mode, "by the restorer; --fit brings it to that")
        pixels = np.asarray(fitted(path, mode)) if fit else read_image(path, expected)
        height, width = pixels.shape[:2]
        if channels * height * width * (1 + self.card.scale**2) * BYTES > room():
            raise UserError(f"{path}: {width}x{height} pixels: there is too little memory for it: cut it into parts")
        x = as_seen(pixels.reshape(height, width, channels).transpose(2, 0, 1))
        made = as_bytes(restored(self.model, x, self.tile)).transpose(1, 2, 0)
        return Image.fromarray(made[:, :, 0] if channels == 1 else np.ascontiguousarray(made))


def placed(images: Iterable[Path], out: Path) -> dict[Path, Path | UserError]:
    """Where the restored image of each goes that is named or lies in a folder that is: a PNG file in `out`, of those of
    a folder where they lie in it. Or why it cannot go there."""
    found, taken = dict[Path, Path | UserError](), dict[Path, Path]()
    for given in images:
        try:
            named = [(given / name, out / name) for name in Folder(given).names] if given.is_dir() else []
        except UserError:  # whoever goes through the images says so
            continue
        for path, place in named or [(given, out / given.name)]:
            place = place.with_suffix(".png")
            found[path] = place
            if (other := taken.setdefault(place, path)) != path:
                found[path] = UserError(f"{path}: {place} is that of {other}: give it another --out")
            elif place.absolute() == path.absolute():
                found[path] = UserError(f"{path}: it would be written over: give another --out")
    return found


def as_png(image: Image.Image) -> bytes:
    """An image as the content of a PNG file."""
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()


__all__ = ["ImageRestorer", "as_png", "placed"]
