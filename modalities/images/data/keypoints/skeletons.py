"""Figures drawn here: limbs of a person that faces the viewer, among clutter and behind things, in clips that move.

All of a clip is a function of its split and number, not of the recipe's seed: every seed learns from the same figures
and is measured on the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi, sin
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from xmodal_kd.adapter.images.read import CHANNELS
from xmodal_kd.runtime.random_streams import Streams

from .figures import Figures, Skeleton

LIMBS = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
NAMES = ("head", "neck", *(f"{side}_{limb}" for limb in LIMBS for side in ("left", "right")))
AT = {name: i for i, name in enumerate(NAMES)}
BONES = (("shoulder", "elbow"), ("elbow", "wrist"), ("shoulder", "hip"), ("hip", "knee"), ("knee", "ankle"))
SKELETON = Skeleton(
    NAMES,
    (
        (AT["head"], AT["neck"]),
        *((AT["neck"], AT[f"{side}_shoulder"]) for side in ("left", "right")),
        *((AT[f"{side}_{a}"], AT[f"{side}_{b}"]) for side in ("left", "right") for a, b in BONES),
        (AT["left_hip"], AT["right_hip"]),
    ),
)
#: Lengths in heights of the figure.
TORSO, SHOULDERS, HIPS, HEAD = 0.3, 0.1, 0.065, 0.11
ARM, LEG = (0.17, 0.15), (0.23, 0.21)
#: Angles of a joint, from hanging straight down and outward: least, largest.
ANGLES = {
    "shoulder": (-0.3, 2.7),
    "elbow": (-0.3, 1.9),
    "hip": (-0.25, 0.8),
    "knee": (-0.9, 0.3),
    "lean": (-0.35, 0.35),
}
#: Largest swing of an angle in a clip, and turns a frame.
SWING, TURNS = 0.5, (0.02, 0.06)
#: How much larger pictures are drawn than they become.
FINER = 2
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class _Thing:
    """A shape of the clutter, or one that hides."""

    kind: str
    box: tuple[float, float, float, float]
    colour: Colour
    width: int


class _Clip:
    """One figure and what is around it: all that is drawn of it, before a frame is asked for."""

    def __init__(self, draw: np.random.Generator, height: int, width: int, frames: int) -> None:
        self.draw, self.height, self.width = draw, height, width
        side = min(height, width)
        self.tall = draw.uniform(0.6, 0.9) * side
        swings = SWING if frames > 1 else 0.0
        self.angles = {
            (joint, part): (draw.uniform(*ANGLES[joint]), draw.uniform(0, swings), draw.uniform(*TURNS), draw.random())
            for joint in ANGLES
            for part in (("left", "right") if joint != "lean" else ("",))
        }
        self.place = draw.uniform(0.42, 0.58, 2) * (width, height)
        self.speed = draw.uniform(-0.01, 0.01, 2) * side
        self.thick = draw.uniform(0.05, 0.08) * self.tall
        self.colours = [_colour(draw) for _ in range(6)]
        self.ground = _colour(draw), _colour(draw)
        self.clutter = [self._thing(0.25) for _ in range(draw.integers(3, 8))]
        self.hiding = [self._thing(0.16, solid=True) for _ in range(draw.integers(0, 3))]
        self.noise = draw.uniform(0, 12)

    def _thing(self, most: float, *, solid: bool = False) -> _Thing:
        draw = self.draw
        x, y = draw.uniform(0, 1, 2) * (self.width, self.height)
        w, h = draw.uniform(0.06, most, 2) * (self.width, self.height)
        kind = str(draw.choice(["ellipse", "rectangle"] if solid else ["ellipse", "rectangle", "line"]))
        return _Thing(kind, (x - w, y - h, x + w, y + h), _colour(draw), int(draw.uniform(0.02, 0.06) * self.height))

    def joints(self, frame: int) -> npt.NDArray[np.float64]:
        """``(j, 2)`` x and y at a frame."""

        def angle(joint: str, part: str) -> float:
            base, swing, turns, phase = self.angles[joint, part]
            return float(base + swing * sin(2 * pi * (turns * frame + phase)))

        lean, tall = angle("lean", ""), self.tall
        up, across = np.array([sin(lean), -cos(lean)]), np.array([cos(lean), sin(lean)])
        pelvis = self.place + frame * self.speed
        neck = pelvis + TORSO * tall * up
        found = {"neck": neck, "head": neck + HEAD * tall * up}
        for part, sign in (("left", 1), ("right", -1)):  # who faces the viewer has the left hand at the right
            for first, second, third, width, start, lengths in (
                ("shoulder", "elbow", "wrist", SHOULDERS, neck, ARM), ("hip", "knee", "ankle", HIPS, pelvis, LEG)
            ):  # fmt: skip
                at = start + sign * width * tall * across
                found[f"{part}_{first}"] = at
                turned = angle(first, part)
                for joint, length in ((second, lengths[0]), (third, lengths[1])):
                    at = at + length * tall * (sin(turned) * sign * across - cos(turned) * up)
                    found[f"{part}_{joint}"] = at
                    if joint == second:
                        turned += angle(second, part)
        return np.stack([found[name] for name in NAMES])

    def frame(self, number: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64], npt.NDArray[np.uint8]]:
        """``(h, w, 3)`` pixels, ``(j, 2)`` joints, ``(j,)`` how visible they are."""
        joints = self.joints(number)
        rows = np.linspace(0, 1, self.height * FINER)[:, None, None]
        slope = (1 - rows) * np.array(self.ground[0]) + rows * np.array(self.ground[1])
        canvas = Image.fromarray(np.repeat(slope, self.width * FINER, axis=1).astype(np.uint8))
        pen = ImageDraw.Draw(canvas)
        for thing in self.clutter:
            _put(pen, thing)
        self._figure(pen, joints)
        over = Image.new("L", canvas.size, 0)
        for thing in self.hiding:
            _put(pen, thing)
            _put(ImageDraw.Draw(over), thing, 255)
        hidden = np.asarray(over)[::FINER, ::FINER] > 0
        pixels = np.asarray(canvas.resize((self.width, self.height), Image.Resampling.BOX), dtype=np.float64)
        pixels = pixels + self.draw.normal(0, self.noise, pixels.shape)
        inside = ((joints >= 0) & (joints < (self.width, self.height))).all(axis=1)
        x, y = np.clip(joints, 0, (self.width - 1, self.height - 1)).astype(int).T
        visible = np.where(inside, np.where(hidden[y, x], 1, 2), 0).astype(np.uint8)
        return pixels.clip(0, 255).round().astype(np.uint8), joints, visible

    def _figure(self, pen: Any, joints: npt.NDArray[np.float64]) -> None:
        at = joints * FINER
        thick = self.thick * FINER
        legs, torso, arms = (
            [[f"{side}_{name}" for name in names] for side in ("right", "left")]
            for names in (("hip", "knee", "ankle"), ("shoulder", "hip"), ("shoulder", "elbow", "wrist"))
        )
        corners = [*torso[0], *torso[1][::-1]]
        for i, names in enumerate(legs):
            self._limb(pen, at, names, thick, self.colours[i])
        pen.polygon([tuple(at[AT[name]]) for name in corners], fill=self.colours[2])
        self._limb(pen, at, [*corners, corners[0]], thick, self.colours[2])
        self._limb(pen, at, ["neck", "head"], thick, self.colours[5])
        _disc(pen, at[AT["head"]], 0.075 * self.tall * FINER, self.colours[5])
        for i, names in enumerate(arms):
            self._limb(pen, at, names, 0.8 * thick, self.colours[3 + i])

    def _limb(self, pen: Any, at: npt.NDArray[np.float64], names: list[str], thick: float, colour: Colour) -> None:
        points = [tuple(at[AT[name]]) for name in names]
        pen.line(points, fill=colour, width=max(1, round(thick)))
        for name in names:
            _disc(pen, at[AT[name]], thick / 2, colour)


def _colour(draw: np.random.Generator) -> Colour:
    red, green, blue = draw.integers(20, 236, 3).tolist()
    return red, green, blue


def _disc(pen: Any, centre: npt.NDArray[np.float64], radius: float, colour: Colour) -> None:
    x, y = centre
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _put(pen: Any, thing: _Thing, fill: int | None = None) -> None:
    box = tuple(FINER * side for side in thing.box)
    colour = thing.colour if fill is None else fill
    if thing.kind == "line":
        pen.line(box, fill=colour, width=max(1, thing.width * FINER))
    else:
        getattr(pen, thing.kind)(box, fill=colour)


def draw_skeletons(split: str, clips: int, frames: int, height: int, width: int, mode: str) -> Figures:
    """The figures of a split, as many as `clips` times `frames`."""
    count, channels = clips * frames, CHANNELS[mode]
    x = np.empty((count, channels, height, width), np.uint8)
    joints, visible = np.empty((count, len(NAMES), 2), np.float32), np.empty((count, len(NAMES)), np.uint8)
    sizes, keys = np.empty(count, np.float32), list[str]()
    for number in range(clips):
        clip = _Clip(Streams(0).numpy("skeletons", split, number), height, width, frames)
        for frame in range(frames):
            pixels, at, seen = clip.frame(frame)
            i = number * frames + frame
            grey = pixels if mode == "RGB" else np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
            x[i], joints[i], visible[i] = grey.transpose(2, 0, 1), at, seen
            sizes[i] = np.ptp(at, axis=0).max()
            keys.append(f"{split}-{number:05d}" + (f"-{frame:03d}" if frames > 1 else ""))
    return Figures(x, joints, visible, sizes, keys, np.arange(clips).repeat(frames), SKELETON, frames)


__all__ = ["NAMES", "SKELETON", "draw_skeletons"]
