"""Arrays whose headers promise what is not there, or what no memory holds."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from xmodal_kd.runtime.bounded_arrays import check_member, names_in, read_npz
from xmodal_kd.runtime.errors import UserError


def member(kind: str, shape: str, content: bytes) -> bytes:
    head = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head) + 1) + head + b"\n" + content


@pytest.mark.parametrize("how", [np.savez, np.savez_compressed])
def test_plain_arrays_are_read_as_numpy_does(how: object, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "x": rng.normal(size=(3, 4, 2)), "fortran": np.asfortranarray(rng.normal(size=(3, 4))),
        "none": np.zeros((0, 3)),
        "words": np.array(["a", "bc"]), "one": np.array(7), "flags": np.array([True, False]),
    }  # fmt: skip
    assert callable(how)
    how(tmp_path / "a.npz", **arrays)
    found = read_npz(tmp_path / "a.npz")
    assert found.keys() == arrays.keys() == set(names_in(tmp_path / "a.npz"))
    for name, array in arrays.items():
        assert np.array_equal(found[name], array) and found[name].dtype == array.dtype
    found["x"] += 1  # they are the caller's own
    assert read_npz(tmp_path / "a.npz", ["words"]).keys() == {"words"}


@pytest.mark.parametrize(
    ("kind", "shape", "content"),
    [
        ("'<f4'", "(1000000000000, 3)", bytes(24)),
        ("'<f4'", "(-1, 3)", bytes(24)),
        ("'<f4'", "(3, 3)", bytes(24)),
        ("'|O'", "(3,)", bytes(24)),
        ("'<f4'", f"({'9' * 400},)", bytes(24)),
        ("__import__('os').system('id')", "(3,)", b""),
        ("'zz'", "(3,)", b""),
    ],
)
def test_what_a_header_makes_up(kind: str, shape: str, content: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("x.npy", member(kind, shape, content))
    with pytest.raises(UserError, match=r"a\.npz cannot be read: plain arrays") as refused:
        read_npz(tmp_path / "a.npz")
    assert "\n" not in str(refused.value)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x.npy", member("'u1'", "(67108864,)", bytes(1 << 26)))
        info = file.getinfo("x.npy")
    assert info.file_size > 900 * info.compress_size
    info.compress_size //= 2
    with pytest.raises(UserError, match="not what people pack"):
        check_member(tmp_path / "a.npz", info, 1 << 40)
    with pytest.raises(UserError, match="unpacks to 67,"):
        check_member(tmp_path / "a.npz", info, 1 << 20)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"PK\x05\x06" + bytes(10)])
def test_what_is_no_zip(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.npz is not an \.npz file"):
        read_npz(tmp_path / "a.npz")
