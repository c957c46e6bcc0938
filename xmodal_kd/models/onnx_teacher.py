"""A network in an ONNX file, of whatever trained and exported it, as a teacher by its answers.

``teacher.path`` is the file, or a folder with an ``onnx.json`` that names it. What the graph does not say (what it is
given, what its outputs mean) stands in ``onnx.json`` beside it, or in the recipe's ``teacher.params``, which win.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import ValidationError

from ..adapter.saved_model import CARD, ONNX, explain, folder_of
from ..adapter.source import Strict
from ..runtime.binary_packages import load
from ..runtime.errors import UserError
from ..runtime.saved_steps import file_digest
from ..runtime.whole_files import read_object
from . import onnx

ABOUT = "onnx.json"


class OnnxAbout(Strict):
    """What ``onnx.json`` says; a modality adds what its graphs need."""

    #: The file, in this folder.
    model: str = "model.onnx"


A = TypeVar("A", bound=OnnxAbout)


def is_onnx(path: Path) -> bool:
    """Whether a teacher's path is an ONNX file, there or not, or a folder that describes one."""
    return path.suffix == ONNX or (path / ABOUT).is_file()


def said_of(teacher: Any) -> Mapping[str, Any]:
    """What a recipe's teacher says of its file: its ``params``, where they are of no model to be trained."""
    return teacher.params if teacher is not None and teacher.model is None else {}


def described(kind: type[A], path: Path, said: Mapping[str, Any]) -> tuple[Path, A]:
    """The ONNX file of a teacher's path, and what is known of it.

    Args:
        said: by the recipe.

    Raises:
        UserError: a key is wrong, of ``onnx.json`` or of ``teacher.params``; they describe another file, or one that is
            not there.
    """
    folder = folder_of(path)
    written = read_object(folder / ABOUT) if (folder / ABOUT).is_file() else {}
    try:
        about = kind.model_validate({**written, **said})
    except ValidationError as error:
        first = str((*error.errors()[0]["loc"], "")[0])
        where = "teacher.params" if first in said or not written else folder / ABOUT
        raise UserError(f"{where}: {explain(error)}") from error
    if path.suffix != ONNX:
        path = path / about.model
    elif "model" in about.model_fields_set and about.model != path.name:
        raise UserError(f"{folder / ABOUT}: it describes {about.model}: name {path.name} there as model, or no model")
    if not path.is_file():
        raise UserError(f"{path}: no such file: name it as model in {ABOUT}, or as teacher.path")
    return path, about


class Graph:
    """A graph, run as it stands by ONNX Runtime on the CPU, on the threads of torch. A copy of it is itself.

    Attributes:
        floats, whole: its inputs of real and of whole numbers by name, each with its axes: a size, or the name of one
            that is free.

    Raises:
        UserError: onnxruntime is missing, or the file is none that it reads.
    """

    def __init__(self, path: Path, extra: str) -> None:
        self.path = path
        self.session = onnx.session(path, threads=torch.get_num_threads(), extra=extra)
        inputs = self.session.get_inputs()
        self._kinds = {one.name: one.type.removeprefix("tensor(").removesuffix(")") for one in inputs}
        axes = {one.name: tuple(one.shape) for one in inputs}
        self.floats, self.whole = (
            {name: axes[name] for name, kind in self._kinds.items() if kind in some} for some in (FLOATS, WHOLE)
        )
        self.inputs = ", ".join(f"{n} {kind} ({', '.join(map(str, axes[n]))})" for n, kind in self._kinds.items())

    def __deepcopy__(self, memo: Any) -> Graph:
        return self

    def run(self, given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Its outputs of real numbers, in its order, in float32. Raises `UserError` where it fails on what is given."""
        kinds = FLOATS | WHOLE
        try:
            found = self.session.run(None, {name: x.astype(kinds[self._kinds[name]]) for name, x in given.items()})
        except Exception as error:  # its exceptions share no base class
            first = (str(error).splitlines() or [type(error).__name__])[0]
            shapes = ", ".join(f"{name} {value.shape}" for name, value in given.items())
            raise UserError(f"{self.path}: it takes {self.inputs}, and fails on {shapes}: {first}") from error
        return [one.astype(np.float32) for one in found if np.issubdtype(one.dtype, np.floating)]

    def digest(self, about: OnnxAbout | None = None, more: Sequence[str] = ()) -> bytes:
        """Of the file, its weights and what is said of it: by this a cache knows whose answers it holds.

        Args:
            more: what else decides what its answers mean, as the names of its columns in a file of their own.
        """
        parts = [file_digest(path) for path in (self.path, onnx.weights_of(self.path)) if path.is_file()]
        told = "" if about is None else about.model_dump_json(exclude={"model"})
        return blake2b("\0".join([*parts, told, *more]).encode(), digest_size=16).digest()

    def parameters(self) -> int | None:
        """How many numbers it holds, constants included; None where the package that reads them is missing."""
        if importlib.util.find_spec("onnx") is None:
            return None
        held = load("onnx").load(self.path, load_external_data=False).graph.initializer
        return int(sum(prod(one.dims) for one in held))


#: Kinds of numbers that graphs take here, and how NumPy calls them.
FLOATS = {"float": "float32", "float16": "float16", "double": "float64"}
WHOLE = {"int32": "int32", "int64": "int64"}


def files(path: Path) -> list[Path]:
    """An ONNX file, its weights where they lie apart, and what describes it."""
    folder = folder_of(path)
    return [one for one in (path, onnx.weights_of(path), folder / ABOUT, folder / CARD) if one.is_file()]


def shapes_of(arrays: Iterable[np.ndarray]) -> str:
    """What a graph answered, for messages."""
    return ", ".join(str(one.shape) for one in arrays) or "nothing of real numbers"


__all__ = ["ABOUT", "Graph", "OnnxAbout", "described", "files", "is_onnx", "said_of", "shapes_of"]
