"""The data section of a diffusion recipe: what is learnt from, and the process and sampler of the teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from xmodal_kd.adapter.source import DataSection, Strict

from .stores import split_folders

Side = Annotated[int, Field(ge=1, le=1 << 14)]
SourceName = Literal["digits", "folder", "edm", "arrays"]
Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
#: Test samples that are split off where the recipe names neither their number nor a test_path.
TEST = 500
#: Samples, generated or real, below which density and coverage (five neighbours) are not defined.
FEWEST = 6


class ProcessConfig(Strict):
    """The forward process and what a teacher trained by the recipe predicts; a loaded teacher brings its own."""

    #: Of betas, or EDM's (Karras et al., 2022), or flow matching.
    schedule: Literal["cosine", "linear", "edm", "flow"] = "cosine"
    #: T. A power of two, so that every halving of the sampling steps falls on whole timesteps.
    steps: int = Field(default=1024, ge=2, le=1 << 20)
    #: v unless said; networks of EDM and flow matching predict what these prescribe.
    prediction: Literal["v_prediction", "epsilon", "sample"] | None = None

    @model_validator(mode="after")
    def _check(self) -> ProcessConfig:
        if self.schedule in ("edm", "flow"):
            if self.prediction is not None:
                raise ValueError(f"prediction: {self.schedule} prescribes what is predicted: leave it out")
            if self.steps & (self.steps - 1):
                raise ValueError(f"steps: {self.steps}: a power of two suits {self.schedule}: leave it out")
        return self


class SamplingConfig(Strict):
    """How the teacher is sampled."""

    solver: Literal["ddim", "heun", "dpmpp_2m"] = "ddim"
    steps: int = Field(default=64, ge=1)


class DiffusionData(DataSection):
    """Which samples there are, how they are split, and how generated ones are judged.

    Splits are a fixed function of the number of samples, not of the recipe's seed: every seed is measured on the same
    test samples.
    """

    sources: SourceName
    #: A folder, an EDM zip or an .npz; digits come with scikit-learn.
    path: Path | None = None
    #: Test samples of their own, of the same kind as `path`; without it they are split off from it.
    test_path: Path | None = None
    #: Samples split off for dev.
    dev: int = Field(default=297, ge=1)
    #: Samples split off for test, 500 unless said; of a test_path, all unless said.
    test: int | None = Field(default=None, ge=1)
    #: Class-conditional models: every sample needs a label.
    conditional: bool = False
    #: Height and width that every image must have, or one number for both; the first image's unless said.
    size: Side | tuple[Side, Side] | None = None
    #: 8-bit grey or 8-bit colour; the first image's unless said.
    mode: Literal["L", "RGB"] | None = None
    #: Samples are latents of an autoencoder: they may lie beyond [-1, 1], are not clamped, and a zip holds .npy arrays.
    latents: bool = False
    #: Of the data, which models made from it inherit: stands on their cards, as Hugging Face names it (cc-by-4.0).
    license: str | None = None
    #: Mirror every second training image, left to right.
    flip: bool = False
    #: Images generated for each evaluation.
    samples: int = Field(default=1000, ge=FEWEST, le=10_000_000)
    #: Repetitions of an evaluation on test, for intervals.
    draws: int = Field(default=3, ge=1, le=10_000)
    #: Images sampled at once.
    batch: int = Field(default=500, ge=1, le=1_000_000)
    process: ProcessConfig = ProcessConfig()
    sampling: SamplingConfig = SamplingConfig()

    @model_validator(mode="before")
    @classmethod
    def _split_folders(cls, given: Any) -> Any:
        """A folder of train/ and test/ (or val/) is both paths; of three, dev images are still split off train/."""
        if not isinstance(given, dict) or given.get("sources") != "folder" or given.get("test_path") is not None:
            return given
        path = given.get("path")
        found = split_folders(Path(path).expanduser()) if isinstance(path, str | Path) else None
        return given if found is None else {**given, "path": found[0], "test_path": found[1]}

    @model_validator(mode="after")
    def _check_source(self) -> DiffusionData:
        if self.sources == "digits":
            if self.path is not None or self.test_path is not None:
                raise ValueError("path and test_path: the digits come with scikit-learn: leave both out")
            if self.size not in (None, 8, (8, 8)) or self.mode not in (None, "L"):
                raise ValueError("size and mode: the digits are 8x8 and L (8-bit grey): leave both out")
        elif self.path is None:
            raise ValueError(f"path: sources: {self.sources} needs the path of the samples")
        if self.sources == "arrays":
            for key in ("size", "mode", "flip"):
                if getattr(self, key):
                    raise ValueError(f"{key}: is for images; arrays are taken as they are: leave it out")
        if self.latents and (self.sources in ("digits", "folder") or self.size or self.mode or self.flip):
            raise ValueError("latents: are of sources arrays (.npz) or edm (a zip of .npy), without size, mode, flip")
        return self

    @model_validator(mode="after")
    def _check_apart(self) -> DiffusionData:
        """The test samples must not be among those of `path`."""
        if self.path is None or self.test_path is None:
            return self
        train, test = self.path.expanduser().resolve(), self.test_path.expanduser().resolve()
        if test.is_relative_to(train) or train.is_relative_to(test):
            raise ValueError(f"test_path: {self.test_path} and path {self.path} overlap: test would be trained on")
        return self

    @model_validator(mode="after")
    def _check_steps(self) -> DiffusionData:
        if self.sampling.steps > self.process.steps:
            raise ValueError(f"sampling.steps: {self.sampling.steps} is more than process.steps ({self.process.steps})")
        return self
