"""Classes by name, and the ids of a data set that mean them: shipped, of a file, or written in the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import yaml
from jaxtyping import Int
from pydantic import BaseModel, ValidationError

from xmodal_kd.recipe.yaml_reader import read_yaml
from xmodal_kd.runtime.bounded_files import read_text
from xmodal_kd.runtime.errors import UserError, nearest

from ..frame import UNLABELLED

#: Maps that come along, by the name that a recipe calls them.
SHIPPED = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}
#: Ids above it are no class's: SemanticKITTI keeps an instance in the upper bits.
LARGEST = (1 << 16) - 1
#: A PLY holds a class as a signed byte.
MOST = 127
UNKNOWN = -2


@dataclass(frozen=True)
class Classes:
    """What a point can be labelled with.

    Attributes:
        names: of the classes, in the order of a model's outputs.
        table: the index in `names` of each id of a data set, or `UNLABELLED` of one that is not counted.
        written: the id that stands for each class where labels are written.
        origin: whose ids they are, for messages: others are errors; None: ids that `table` lacks are no labels.
    """

    names: tuple[str, ...]
    table: Mapping[int, int]
    written: tuple[int, ...]
    origin: str | None = None

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def _indexes(self) -> Int[np.ndarray, " ids"]:
        found = np.full(LARGEST + 1, UNLABELLED if self.origin is None else UNKNOWN, dtype=np.int64)
        found[list(self.table)] = list(self.table.values())
        return found

    def labels(self, ids: Int[np.ndarray, "*n"], path: Path) -> Int[np.ndarray, "*n"]:
        """The class of each id of a file, or `UNLABELLED`.

        Raises:
            UserError: an id that the data set does not have; it names `path`.
        """
        found: np.ndarray = self._indexes[ids]
        if (found == UNKNOWN).any():
            wrong = np.unique(ids[found == UNKNOWN])
            more = f" and {len(wrong) - 1} others" if len(wrong) > 1 else ""
            raise UserError(f"{path}: label id {wrong[0]}{more} is out of range: {self.origin} has no such class")
        return found


class _DataSet(BaseModel):
    """What is read of a data set's own file, in the shape of ``semantic-kitti.yaml``; other keys are passed over."""

    labels: dict[int, str]
    """The name of each id."""
    learning_map: dict[int, int]
    """The number of the class that each id is learnt as."""
    learning_map_inv: dict[int, int] = {}
    """The id that is written for each number; where there is none, the first of `learning_map`."""
    learning_ignore: dict[int, bool] = {0: True}
    """Which numbers are not counted."""
    labels_16: dict[int, str] = {}
    """Names of the numbers, where they are not those of the ids in `learning_map_inv`, as in nuScenes' files."""


def classes_of(spec: str | Mapping[str, tuple[int, ...]]) -> Classes:
    """The classes that a recipe means: a shipped map by name, a data set's file by its path, or ids by class.

    Raises:
        UserError: a name that is none, a file that is missing or of another shape, or ids that cannot be.
    """
    if not isinstance(spec, str):
        return _inline(spec)
    if spec in SHIPPED:
        return read_classes(SHIPPED[spec])
    path = Path(spec).expanduser()
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise UserError(
            f"no classes are called {spec!r}{nearest(spec, SHIPPED)}: give one of {', '.join(SHIPPED)}, the path of a "
            ".yaml in the shape of semantic-kitti.yaml, or {name: [ids], ...}"
        )
    return read_classes(path)


def read_classes(path: Path) -> Classes:
    """Of a file in the shape of ``semantic-kitti.yaml``. Raises `UserError` that names what is wrong in it."""
    try:
        content = read_yaml(read_text(path))[0]
        found = _DataSet.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "[key]") or "it"
        raise UserError(f"{path}: {where}: {first['msg']}: the shape of semantic-kitti.yaml is expected") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())[:160]}") from None
    return _learnt(found, path)


def _learnt(found: _DataSet, path: Path) -> Classes:
    numbers = [n for n in sorted(set(found.learning_map.values())) if not found.learning_ignore.get(n, False)]
    first = {number: id_ for id_, number in reversed(found.learning_map.items())} | found.learning_map_inv
    names = []
    for number in numbers:
        name = found.labels_16.get(number) or found.labels.get(first[number])
        if name is None:
            raise UserError(f"{path}: labels: no name for id {first[number]}, which learning_map_inv has for {number}")
        names.append(name)
    index = {number: i for i, number in enumerate(numbers)}
    table = {id_: index.get(number, UNLABELLED) for id_, number in found.learning_map.items()}
    return _checked(Classes(tuple(names), table, tuple(first[n] for n in numbers), path.stem), f"{path}: ")


def _inline(ids: Mapping[str, tuple[int, ...]]) -> Classes:
    table: dict[int, int] = {}
    for index, (name, mine) in enumerate(ids.items()):
        if not mine:
            raise UserError(f"class {name!r} has no ids: list at least one")
        if (twice := next((id_ for id_ in mine if id_ in table), None)) is not None:
            raise UserError(f"id {twice} is of {list(ids)[table[twice]]!r} and of {name!r}: give it to one")
        table |= dict.fromkeys(mine, index)
    return _checked(Classes(tuple(ids), table, tuple(mine[0] for mine in ids.values())), "")


def _checked(classes: Classes, where: str) -> Classes:
    if not 2 <= len(classes) <= MOST:
        raise UserError(f"{where}{len(classes)} classes: give 2 to {MOST}")
    if len(set(classes.names)) < len(classes):
        twice = next(name for name in classes.names if classes.names.count(name) > 1)
        raise UserError(f"{where}two classes are called {twice!r}")
    if (
        wrong := next((id_ for id_ in (*classes.table, *classes.written) if not 0 <= id_ <= LARGEST), None)
    ) is not None:
        raise UserError(f"{where}id {wrong} is out of range (0 to {LARGEST})")
    return classes


__all__ = ["LARGEST", "SHIPPED", "Classes", "classes_of", "read_classes"]
