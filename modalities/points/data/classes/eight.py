"""The eight classes of the simulator, which hold where a recipe names no others, and SemanticKITTI's ids of them."""

from __future__ import annotations

from ..frame import CLASSES, UNLABELLED
from .classes import Classes

#: The data set's ids of each class; its own names in the comments.
IDS = {
    "ground": (40, 44, 49, 60, 72),  # road, parking, other ground, lane marking, terrain
    "pavement": (48,),  # sidewalk
    "car": (10,),
    "truck": (13, 18),  # bus, truck
    "building": (50,),
    "pole": (80,),
    "tree": (70, 71),  # vegetation, trunk
    "person": (30, 31, 32),  # person, bicyclist, motorcyclist
}
#: Known ids without a class of ours: unlabelled, outlier, two-wheelers, on rails, other vehicle, fence, other
#: structure, traffic sign, other object.
OTHERS = (0, 1, 11, 15, 16, 20, 51, 52, 81, 99)
#: What moves has an id of its own: car, bicyclist, person, motorcyclist, on rails, bus, truck, other vehicle.
MOVING = {252: 10, 253: 31, 254: 30, 255: 32, 256: 16, 257: 13, 258: 18, 259: 20}
#: Of classes that are several of the data set's, the id that is written: the commonest, or the one of the name.
WRITTEN = {name: ids[0] for name, ids in IDS.items()} | {"truck": 18}


def _table() -> dict[int, int]:
    still = dict.fromkeys(OTHERS, UNLABELLED) | {id_: CLASSES.index(name) for name in IDS for id_ in IDS[name]}
    return still | {moving: still[id_] for moving, id_ in MOVING.items()}


EIGHT = Classes(CLASSES, _table(), tuple(WRITTEN[name] for name in CLASSES), "SemanticKITTI")

__all__ = ["EIGHT", "IDS", "MOVING"]
