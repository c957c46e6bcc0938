"""How many points of real frames fall into their pictures: what a wrong calibration does not hide from, for `check`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from ..data.frame import Camera, Frame
from ..data.readers.base import in_view

Trap = tuple[Literal["pass", "warn", "fail"], str, str]
#: Share of a sweep below which a picture shows suspiciously little; KITTI's photographs show 15 to 18 % of theirs.
FEW = 0.02
#: Of the picture's sides, how far from its edge the optical axis meets it at least.
EDGE = 0.25


def projected(frames: Sequence[Frame]) -> Iterator[Trap]:
    """What the first pictures of `frames` show of their scans: the camera that is used."""
    shown = {frame.key: in_view(frame.pictures[0].camera, frame.scan).mean() for frame in frames if frame.pictures}
    if not shown:
        return
    blind = [key for key, share in shown.items() if share == 0]
    least = min(shown, key=lambda key: shown[key])
    told = f"{100 * sum(shown.values()) / len(shown):.1f} % of the points of {len(shown)} frames fall into the picture"
    if blind:
        found = f"{blind[0]}: the camera sees none of the scan's points ({len(blind)} of {len(shown)} frames)"
        yield "fail", found, "is this its calibration, from the LiDAR's frame (x ahead, z up) to the camera's?"
    elif shown[least] < FEW:
        advice = "look at the points in the photograph: is the calibration another's?"
        yield "warn", f"{told}, of {least} {100 * shown[least]:.2f} %", advice
    else:
        yield "pass", f"{told}, at least {100 * shown[least]:.1f} % ({least})", ""
    yield from _off_centre(frames)


def _off_centre(frames: Sequence[Frame]) -> Iterator[Trap]:
    """A picture that was resized or cropped after its calibration has its optical axis elsewhere."""
    for frame in frames:
        if frame.pictures and not _centred(camera := frame.pictures[0].camera):
            x, y = camera.intrinsics[:2, 2]
            size = f"{camera.width} x {camera.height}"
            found = f"{frame.key}: the optical axis meets a picture of {size} at ({x:.0f}, {y:.0f})"
            yield (
                "warn",
                found,
                "was the picture resized or cropped after its calibration? Scale the intrinsics too",
            )
            return


def _centred(camera: Camera) -> bool:
    x, y = camera.intrinsics[0, 2] / camera.width, camera.intrinsics[1, 2] / camera.height
    return bool(EDGE <= x <= 1 - EDGE and EDGE <= y <= 1 - EDGE)


def warned(described: Mapping[str, Any]) -> Iterator[str]:
    """Everything that readers found odd, at any depth of what the splits say of themselves, each once."""
    told: dict[str, None] = {}
    for key, value in described.items():
        if isinstance(value, Mapping):
            told |= dict.fromkeys(warned(value))
        elif key == "warnings":
            told |= dict.fromkeys(value)
    yield from told


__all__ = ["projected", "warned"]
