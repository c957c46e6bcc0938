"""A saved student as a classifier of image files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from xmodal_kd.adapter.hub import fetched
from xmodal_kd.adapter.images.read import CHANNELS, Expected, read_image

from ..export.saved_folder import load_card, load_model
from .fitted import fitted


class ImageClassifier:
    """Classifies with what `save_model` left in a folder, and with nothing else.

    Args:
        device: that the model runs on.

    Raises:
        UserError: the folder is not a saved classifier.
    """

    def __init__(self, folder: Path | str, device: str = "cpu") -> None:
        self.card = load_card(Path(folder))
        self.model = load_model(Path(folder)).to(device)
        self.device = device

    @classmethod
    def from_pretrained(cls, name: Path | str, revision: str | None = None, *, device: str = "cpu") -> ImageClassifier:
        """Of a folder, or of a repository of the Hugging Face Hub (``owner/name``), which is fetched once and kept.

        Args:
            revision: a branch, a tag or a commit of the repository.
        """
        return cls(fetched(name, revision), device)

    @torch.no_grad()
    def classify(self, path: Path | str, *, fit: bool = False) -> dict[str, float]:
        """Probability of each class, the most probable first.

        Args:
            fit: bring an image of another size or other colours to the model's: it is resized, not cropped.

        Raises:
            UserError: it names the file and what is wrong with it.
        """
        path, (channels, height, width) = Path(path), self.card.shape
        mode = {count: name for name, count in CHANNELS.items()}[channels]
        box = Image.Resampling.BOX
        pixels = np.asarray(fitted(path, mode).resize((width, height), box)) if fit else self._as_it_is(path, mode)
        x = torch.from_numpy(pixels.astype(np.float32)).reshape(height, width, channels).permute(2, 0, 1)
        found = torch.softmax(self.model(x[None].to(self.device).div(127.5).sub(1))[0].double(), dim=0).cpu()
        order = found.argsort(descending=True, stable=True).tolist()
        return {self.card.classes[i]: float(found[i]) for i in order}

    def _as_it_is(self, path: Path, mode: str) -> np.ndarray:
        _, height, width = self.card.shape
        return read_image(path, Expected((height, width), mode, "by the classifier; --fit brings it to that"))


__all__ = ["ImageClassifier"]
