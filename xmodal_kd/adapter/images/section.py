"""What every data section of images says: where they lie, which of them are dev and test, how they must be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ..packed.packing import KINDS as PACKED
from ..packed.shards import split_patterns
from ..source import DataSection
from .stores import split_folders

Side = Annotated[int, Field(ge=1, le=1 << 14)]
Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
#: Test samples that are split off where the recipe names neither their number nor a test_path.
TEST = 500


class ImageSection(DataSection):
    """Which images there are and how they are split.

    Splits are a fixed function of the number of samples, not of the recipe's seed: every seed is measured on the same
    test samples. A modality narrows `sources` to what it reads.
    """

    #: Those of `sources` that come with the program, and have no files.
    made: ClassVar[frozenset[str]] = frozenset({"digits"})

    sources: str
    #: A folder, an EDM zip, shards (also as a pattern: ``shards/{000..099}.tar``, ``a/*.tar::b/*.tar``), or what else
    #: `sources` reads; digits come with scikit-learn.
    path: Path | None = None
    #: Test samples of their own, of the same kind as `path`; without it they are split off from it.
    test_path: Path | None = None
    #: Samples split off for dev.
    dev: int = Field(default=297, ge=1)
    #: Samples split off for test, 500 unless said; of a test_path, all unless said.
    test: int | None = Field(default=None, ge=1)
    #: Height and width that every image must have, or one number for both; the first image's unless said.
    size: Side | tuple[Side, Side] | None = None
    #: 8-bit grey or 8-bit colour; the first image's unless said.
    mode: Literal["L", "RGB"] | None = None
    #: Of the data, which models made from it inherit: stands on their cards, as Hugging Face names it (cc-by-4.0).
    license: str | None = None
    #: Mirror every second training image, left to right.
    flip: bool = False

    @property
    def sides(self) -> tuple[int, int] | None:
        """Height and width, where the recipe says them."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @model_validator(mode="before")
    @classmethod
    def _split_folders(cls, given: Any) -> Any:
        """A folder of train and test (or val) is both paths; of three, dev images are still split off train."""
        path = given.get("path") if isinstance(given, dict) and given.get("test_path") is None else None
        if not isinstance(path, str | Path):
            return given
        found = apart(str(given.get("sources")), Path(path).expanduser())
        return given if found is None else {**given, "path": found[0], "test_path": found[1]}

    @model_validator(mode="after")
    def _check_source(self) -> ImageSection:
        if self.sources in self.made:
            if self.path is not None or self.test_path is not None:
                come = "come with scikit-learn" if self.sources in ("digits", "photos") else "are made here"
                raise ValueError(f"path and test_path: the {self.sources} {come}: leave both out")
        elif self.path is None:
            raise ValueError(f"path: sources: {self.sources} needs the path of the samples")
        if self.sources == "digits" and (self.size not in (None, 8, (8, 8)) or self.mode not in (None, "L")):
            raise ValueError("size and mode: the digits are 8x8 and L (8-bit grey): leave both out")
        return self

    @model_validator(mode="after")
    def _check_apart(self) -> ImageSection:
        """The test samples must not be among those of `path`."""
        if self.path is None or self.test_path is None:
            return self
        train, test = self.path.expanduser().resolve(), self.test_path.expanduser().resolve()
        if test.is_relative_to(train) or train.is_relative_to(test):
            raise ValueError(f"test_path: {self.test_path} and path {self.path} overlap: test would be trained on")
        return self


def apart(sources: str, place: Path) -> tuple[Path, Path] | None:
    """What to train on and what to test on, where a folder holds both; None for any other."""
    if sources not in ("folder", *PACKED):
        return None
    return split_folders(place) or (split_patterns(place) if sources == "webdataset" and place.is_dir() else None)


__all__ = ["SPLITS", "TEST", "ImageSection", "Split", "apart"]
