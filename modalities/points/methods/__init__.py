"""Methods of detection: a teacher's confident boxes beside the labels, features of labels, the ground where things are.

May import ``losses``, ``models``, ``views`` and ``data``, beside the core. Public are the names of methods in recipes.
"""

from .affinity import MonoDistill, MonoDistillParams
from .false_positives import DistillBevFP, DistillBevFPParams
from .from_labels import LabelDistill, LabelDistillParams, LabelKD, LabelKDParams, drawn, joined, masked_square
from .on_things import BevDistill, BevDistillParams, UniDistill, UniDistillParams

__all__ = [
    "BevDistill",
    "BevDistillParams",
    "DistillBevFP",
    "DistillBevFPParams",
    "LabelDistill",
    "LabelDistillParams",
    "LabelKD",
    "LabelKDParams",
    "MonoDistill",
    "MonoDistillParams",
    "UniDistill",
    "UniDistillParams",
    "drawn",
    "joined",
    "masked_square",
]
