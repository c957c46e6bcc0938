"""What a ``panels.json`` may hold: a run folder may come from others, and its page is made of it."""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

#: Characters of a text, bytes of what is embedded, and things of a kind, at most.
TEXT, EMBEDDED, MANY = 20_000, 1 << 25, 1000
#: Pixels of an image that a browser is asked to draw.
PIXELS = 100_000_000
PNG, WAV = "data:image/png;base64,", "data:audio/wav;base64,"
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def check_png(data: bytes) -> None:
    """Raises `ValueError` for bytes that are no PNG by their head, or one of more than `PIXELS`."""
    if not data.startswith(SIGNATURE) or data[12:16] != b"IHDR" or len(data) < 24:
        raise ValueError("not a PNG")
    width, height = struct.unpack(">II", data[16:24])
    if not 0 < width * height <= PIXELS:
        raise ValueError(f"a picture of {width} x {height} pixels")


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError("not base64") from error


def _png(address: str) -> str:
    if not address.startswith(PNG):
        raise ValueError("an embedded PNG is expected")
    check_png(_bytes(address[len(PNG) :]))
    return address


def _wav(address: str) -> str:
    if not address.startswith(WAV) or _bytes(address[len(WAV) :])[:4] != b"RIFF":
        raise ValueError("an embedded WAV is expected")
    return address


def _base64(text: str) -> str:
    _bytes(text)
    return text


Text = Annotated[str, Field(max_length=TEXT)]
Picture = Annotated[str, Field(max_length=EMBEDDED), AfterValidator(_png)]
Sound = Annotated[str, Field(max_length=EMBEDDED), AfterValidator(_wav)]
Packed = Annotated[str, Field(max_length=EMBEDDED), AfterValidator(_base64)]
Count = Annotated[int, Field(ge=0, lt=1 << 40)]
Channel = Annotated[int, Field(ge=0, le=255)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class View(_Strict):
    name: Text
    labels: Packed
    errors: tuple[Count, Count] | None


class Clouds(_Strict):
    points: Count
    of: Count
    scale: float
    xyz: Packed
    views: list[View] = Field(max_length=MANY)
    reference: Text | None
    classes: list[Text] = Field(max_length=MANY)
    colours: list[tuple[Channel, Channel, Channel]] = Field(max_length=MANY)


class Trace(_Strict):
    frame: float = Field(ge=0, le=1e6)
    height: list[float] = Field(max_length=1_000_000)
    marks: list[tuple[Count, Text]] = Field(max_length=100_000)

    @model_validator(mode="after")
    def _inside(self) -> Trace:
        if any(frame >= len(self.height) for frame, _ in self.marks):
            raise ValueError("a mark behind the last frame")
        return self


class Sequence(_Strict):
    key: Text
    reference: Text
    said: dict[Text, Text] = Field(max_length=MANY)
    about: Text
    seconds: float | None = Field(ge=0, le=1e6)
    sound: Sound | None
    heat: Picture | None
    traces: dict[Text, Trace] = Field(max_length=MANY)


class Sequences(_Strict):
    items: list[Sequence] = Field(max_length=MANY)


class Row(_Strict):
    name: Text
    cells: dict[Text, tuple[Picture, Text]] = Field(max_length=MANY)


class Gallery(_Strict):
    columns: list[Text] = Field(max_length=MANY)
    rows: list[Row] = Field(max_length=MANY)


KINDS: Mapping[str, type[_Strict]] = {"clouds": Clouds, "sequences": Sequences, "gallery": Gallery}


class One(_Strict):
    """A panel before its content is looked at."""

    kind: Text
    title: Text
    content: dict[str, Any]
    note: Text = ""
    replaces: list[Text] = Field(default=[], max_length=MANY)


class All(_Strict):
    panels: list[One] = Field(max_length=MANY)


def checked(content: Any) -> list[dict[str, Any]]:
    """The panels of a ``panels.json``, as `panels.Panel` takes them. Raises `ValueError` of one line."""
    try:
        found = [one.model_dump() for one in All.model_validate(content).panels]
        for one in found:
            if one["kind"] not in KINDS:
                raise ValueError(f"a panel of kind {one['kind']!r:.60} (known: {', '.join(KINDS)})")
            one["content"] = KINDS[one["kind"]].model_validate(one["content"]).model_dump(mode="json")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return found


__all__ = ["check_png", "checked"]
