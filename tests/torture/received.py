"""What anybody may hand to a command: saved models, scans, recordings in which something is not as it should be."""

from __future__ import annotations

import random
import shutil
import struct
import wave
import zipfile
from collections.abc import Callable
from pathlib import Path

from .hostile import WAYS
from .processes import command

ROOT = Path(__file__).parents[2]
TEACHERS = ROOT / "assets" / "teachers"


def received(draw: random.Random, folder: Path) -> tuple[str, str | None]:
    """One such file, and what fell short when a command was given it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    what, words = draw.choice(MAKERS)(draw, folder)
    said = command([*words, "--json"], seconds=200)
    short = said.short()
    return what, f"{short} | {said.errors[-200:]}" if short else None


def _model(draw: random.Random, folder: Path) -> tuple[str, list[str]]:
    """A damaged saved model."""
    kind = draw.choice(sorted(path.name for path in TEACHERS.iterdir() if path.is_dir()))
    model = folder / "model"
    shutil.copytree(TEACHERS / kind, model)
    file = draw.choice(
        sorted(path for path in model.rglob("*") if path.is_file() and path.suffix in (".json", ".safetensors"))
    )
    way = draw.choice(WAYS)
    way(draw, file)
    what = f"{kind} teacher: {file.relative_to(model)} {way.__name__.strip('_')}"
    if kind == "speech":
        return what, ["transcribe", str(model), str(_sound(folder / "a.wav", 8000, 4000))]
    if kind == "points":
        return what, ["segment", str(model), str(_scan(folder / "a.bin", 64)), "--out", str(folder / "out")]
    return what, ["sample", str(model), "-n", "2", "--out", str(folder / "out")]


def _audio(draw: random.Random, folder: Path) -> tuple[str, list[str]]:
    path = _sound(folder / "a.wav", draw.choice([1, 8000, 2**31 - 1]), draw.choice([0, 1, 4000]))
    content = bytearray(path.read_bytes())
    for place in draw.sample(range(len(content) if draw.random() < 0.2 else 44), 4):
        content[place] = draw.choice([0, 1, 127, 255])
    path.write_bytes(content[: draw.choice([len(content), 20, 43, 46])])
    return "a recording with another header", ["transcribe", str(TEACHERS / "speech"), str(path)]


def _cloud(draw: random.Random, folder: Path) -> tuple[str, list[str]]:
    kind = draw.choice(sorted(CLOUDS))
    path = folder / f"a.{kind.partition(' ')[0]}"
    content = bytearray(CLOUDS[kind])
    if draw.random() < 0.5 and content:
        for _ in range(3):
            content[draw.randrange(len(content))] = draw.choice(b"0123456789 \n\x00\xff-.")
    path.write_bytes(content)
    return f"a cloud: {kind}", ["segment", str(TEACHERS / "points"), str(path), "--out", str(folder / "out")]


def _npz(draw: random.Random, folder: Path) -> tuple[str, list[str]]:
    """An array that says it is larger than it is, or packed a thousandfold."""
    path = folder / "a.npz"
    shape = draw.choice(
        ["(1000000000000, 3)", "(-1, 3)", "(2, 3)", "()", "(3,)", "(2**40, 3)", "(" + "9" * 400 + ", 3)"]
    )
    kind = draw.choice(["<f4", "|O", "<f8", "|V9", "<U9", "<c16", "(3,)<f4"])
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    body = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head) + 1) + head + b"\n" + bytes(draw.choice([0, 24, 1 << 26]))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("xyz.npy", body)
    return f"arrays {kind} {shape:.20}", ["segment", str(TEACHERS / "points"), str(path), "--out", str(folder / "out")]


def _sound(path: Path, rate: int, samples: int) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(bytes(2 * samples))
    return path


def _scan(path: Path, points: int) -> Path:
    draw = random.Random(0)
    path.write_bytes(
        b"".join(struct.pack("<4f", *(draw.uniform(-20, 20) for _ in range(3)), 0.5) for _ in range(points))
    )
    return path


_PLY = b"ply\nformat %s 1.0\nelement vertex %s\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
_PCD = b"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT %s\nWIDTH 2\nHEIGHT 1\nPOINTS %s\nDATA %s\n"
CLOUDS: dict[str, bytes] = {
    "ply huge": _PLY % (b"binary_little_endian", b"999999999999") + bytes(24),
    "ply digits": _PLY % (b"ascii", b"9" * 5000) + b"1 2 3\n",
    "ply superscript": _PLY % (b"ascii", "²".encode()) + b"1 2 3\n",
    "ply negative": _PLY % (b"ascii", b"-2") + b"1 2 3\n",
    "ply nan": _PLY % (b"ascii", b"2") + b"1 nan 3\n1 inf 1e999\n",
    "ply none": b"", "ply head": b"ply\n", "ply zeros": bytes(100),
    "pcd huge": _PCD % (b"1 1 1", b"999999999999", b"binary") + bytes(24),
    "pcd many": _PCD % (b"1 1 999999999", b"2", b"binary") + bytes(24),
    "pcd packed": _PCD % (b"1 1 1", b"2", b"binary_compressed") + struct.pack("<II", 4, 24) + b"\xff\xff\xff\xff",
    "pcd digits": _PCD % (b"1 1 1", b"9" * 5000, b"ascii") + b"1 2 3\n",
    "pcd text": _PCD % (b"1 1 1", b"2", b"ascii") + b"a b c\nd e f\n",
    "bin odd": bytes(17), "bin nan": struct.pack("<4f", float("nan"), 1, 1, 1) * 3, "bin none": b"",
    "bin far": struct.pack("<4f", 1e38, -1e38, 1e38, 1) * 40, "bin same": struct.pack("<4f", 1, 1, 1, 1) * 40,
    "npz none": b"PK\x05\x06" + bytes(18), "npz text": b"x" * 100,
}  # fmt: skip

Maker = Callable[[random.Random, Path], tuple[str, list[str]]]
MAKERS: tuple[Maker, ...] = (_model, _model, _model, _audio, _cloud, _cloud, _npz)
