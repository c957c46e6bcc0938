"""A saved classifier of utterances at work on audio files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import torch
from pydantic import ValidationError
from torch import Tensor

from xmodal_kd.adapter.hub import fetched
from xmodal_kd.adapter.saved_model import CARD, explain
from xmodal_kd.models import onnx
from xmodal_kd.runtime.errors import UserError

from ..data.audio import duration, read, resample
from ..data.features import Features, Frontend
from ..export.onnx import EXTRA, FP32, INT8
from ..export.saved_folder import load_card, load_model
from ..models.classifier import Classifier
from .transcribe import Precision

#: Seconds of a recording: an utterance is a command or a sentence.
LONGEST = 60.0


class UtteranceClassifier:
    """Classifies with what a run of ``data.task: intents`` left in a folder, and with nothing else: by ONNX Runtime
    where its file is there.

    Args:
        precision: ``int8`` needs ``model.int8.onnx``.
    Raises:
        UserError: the folder lacks what is asked for, or is no such student.
    """

    def __init__(self, folder: Path | str, precision: Precision = "fp32") -> None:
        self.card, path = load_card(folder, "intents"), Path(folder) / (INT8 if precision == "int8" else FP32)
        try:
            self.frontend = Frontend(Features.model_validate(self.card.features))
        except ValidationError as error:
            raise UserError(f"{Path(folder) / CARD}: {explain(error, 'features')}") from error
        self.classes: tuple[str, ...] = tuple(self.card.tokens["symbols"])
        if precision == "int8" and not path.is_file():
            raise UserError(f"{folder}: {path.name} is missing: export the student to ONNX, or use fp32")
        if path.is_file():
            run = partial(onnx.run, onnx.session(path, extra=EXTRA))
            self.model: Callable[[Tensor, Tensor], Tensor] = lambda x, lengths: run(x, lengths)[0]
        else:
            self.model = cast(Classifier, load_model(folder, "intents")[0])

    @classmethod
    def from_pretrained(
        cls, name: Path | str, revision: str | None = None, *, precision: Precision = "fp32"
    ) -> UtteranceClassifier:
        """Of a folder, or of a repository of the Hugging Face Hub (``owner/name``), which is fetched once and kept.

        Args:
            revision: a branch, a tag or a commit of the repository.
        """
        return cls(fetched(name, revision), precision)

    @torch.no_grad()
    def classify(self, path: Path | str) -> dict[str, float]:
        """Probability of each class, the most probable first.

        Raises:
            UserError: the file cannot be read as audio, or is too long for an utterance.
        """
        if (seconds := duration(Path(path))) > LONGEST:
            raise UserError(f"{path}: {seconds:.0f} s: an utterance lasts {LONGEST:g} s at most: cut it into pieces")
        wave, rate = read(Path(path))
        x = self.frontend(torch.from_numpy(resample(wave, rate, self.frontend.config.sample_rate)))
        logits = self.model(x[None], torch.tensor([len(x)]))[0]
        found = torch.softmax(logits.double(), dim=0)
        order = found.argsort(descending=True, stable=True).tolist()
        return {self.classes[i]: float(found[i]) for i in order}


__all__ = ["LONGEST", "UtteranceClassifier"]
