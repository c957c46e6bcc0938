"""A cache that is cut, flipped or exchanged is named; it neither ends the process nor teaches."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import lmdb
import pytest

from xmodal_kd.runtime.errors import UserError
from xmodal_kd.teacher_cache.manifest import Manifest
from xmodal_kd.teacher_cache.store import DATA, Store, _check_size

ITEMS = [(f"key {i:03d}".encode(), bytes([i]) * 3000) for i in range(64)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = Store(tmp_path, rank=0)
    store.put(ITEMS)
    assert store.get([ITEMS[5][0]]) == [ITEMS[5][1]]
    store.close()
    return tmp_path


def data(folder: Path) -> Path:
    return folder / "rank-0" / DATA


@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize("left", [8192, 20_000, -4096, -1])
def test_a_cut_store_is_named(folder: Path, left: int, writes: bool) -> None:
    size = data(folder).stat().st_size
    os.truncate(data(folder), left if left > 0 else size + left)
    store = Store(folder, rank=0 if writes else None)
    with pytest.raises(UserError, match=rf"cache {folder}: .* is cut short: .*delete the cache"):
        store.get([ITEMS[5][0]])


def test_a_store_that_is_none_is_named(folder: Path) -> None:
    data(folder).write_bytes(b"x" * 20_000)
    with pytest.raises(UserError, match=r"is damaged: delete the cache"):
        Store(folder).get([ITEMS[0][0]])
    data(folder).unlink()
    data(folder).mkdir()
    with pytest.raises(UserError, match="is a folder"):
        _check_size(data(folder))


def test_a_flipped_byte_of_an_entry_is_named(folder: Path) -> None:
    content = bytearray(data(folder).read_bytes())
    place = content.index(ITEMS[5][1][:2000])
    content[place + 700] ^= 4
    data(folder).write_bytes(content)
    store = Store(folder)
    assert store.get([ITEMS[6][0]]) == [ITEMS[6][1]]
    with pytest.raises(UserError, match=rf"cache {folder}: an entry of it is damaged"):
        store.get([ITEMS[5][0]])


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"signals": {"logits": 3}}', "{", '{"signals": []}'])
def test_a_damaged_manifest_is_one_line(content: str, tmp_path: Path) -> None:
    manifest = Manifest("net 1", {}, "fp32")
    text = json.loads(content) if content != "{" else content
    if isinstance(text, dict):
        text = {**manifest.identity(), **text}
    (tmp_path / "manifest.json").write_text(text if isinstance(text, str) else json.dumps(text))
    with pytest.raises(UserError, match=r"manifest\.json"):
        manifest.adopt(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_a_full_disk_is_called_so(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise lmdb.Error(f"mdb_env_open: {os.strerror(number)}")

    monkeypatch.setattr(lmdb, "open", full)
    with pytest.raises(UserError, match=rf"cache {tmp_path}: .*the disk is full"):
        Store(tmp_path, rank=0).put(ITEMS)
