"""Signals that travel: a store becomes a folder and a store again, in parts, and what does not fit is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filled_stores import content, fill, filler
from toy import NAMES, ToyAdapter, adapter

from xmodal_kd.adapter.adapter import CACHED
from xmodal_kd.objective.resample import pair, resample_rows
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.signals.signals import Layout, Signals
from xmodal_kd.teacher_cache.codecs import Half
from xmodal_kd.teacher_cache.entries import Item, StoredSignal, closed, opened, packed, restored, written
from xmodal_kd.teacher_cache.exported import export
from xmodal_kd.teacher_cache.fill import Filled, Filler
from xmodal_kd.teacher_cache.folder import Shards, SignalFolder, arrays_of, item_of, merge
from xmodal_kd.teacher_cache.imported import Imported
from xmodal_kd.teacher_cache.manifest import Manifest
from xmodal_kd.teacher_cache.source import CachedSource
from xmodal_kd.teacher_cache.store import Store
from xmodal_kd.training.loader import steps


def manifest_of(made: Filler) -> Manifest:
    return Manifest.of(made.teacher, {"path": "toy"}, "fp32")


def exported(folder: Path, part: tuple[int, int] = (0, 1), toy: ToyAdapter | None = None, **settings: Any) -> Path:
    """A folder of what a teacher said of a part of the toy's samples."""
    made = filler(toy or adapter(noise=0.0), **settings)
    made.part, manifest = part, manifest_of(made)
    kept, _ = fill(made, folder / f"store{part[0]}")
    export(made, kept, manifest, Store(folder / f"store{part[0]}"), folder / f"part{part[0]}")
    return folder / f"part{part[0]}"


def imported(folder: Path, store: Path, toy: ToyAdapter | None = None, **settings: Any) -> tuple[Filler, Any, Filled]:
    made = filler(toy or adapter(noise=0.0), signals=folder, **settings)
    made.imported = Imported(made.spec, manifest_of(made), made.adapter)
    return made, *fill(made, store)


# ---------------------------------------------------------------- there and back


@pytest.mark.parametrize(
    "settings", [{}, {"top_k": 1}, {"smaller": 2}, {"features": "int8"}, {"view": "replay", "epochs": 2}]
)
def test_a_store_becomes_a_folder_and_the_same_store(tmp_path: Path, settings: dict[str, Any]) -> None:
    toy = adapter(noise=0.1 if "view" in settings else 0.0)
    exported(tmp_path, toy=toy, total=8, **settings)
    made, _, filled = imported(tmp_path / "part0", tmp_path / "again", toy, total=8, **settings)
    samples = 48 if "view" in settings else 24
    assert filled[:2] == (0, samples), "the teacher did not run"
    assert content(tmp_path / "again") == content(tmp_path / "store0")
    about = read_json(tmp_path / "part0" / "signals.json")
    assert about["signals"]["logits"]["codec"] == {"top_k": "top_k", "smaller": "basis"}.get(
        next(iter(settings), ""), "fp16"
    )
    assert about["signals"]["body"]["kind"] == "frame" and made.adapter.class_names("teacher") == NAMES
    assert len(read_json(tmp_path / "part0" / "index.json")) == samples


@pytest.mark.parametrize("settings", [{}, {"smaller": 2}])
def test_several_processes_fill_parts_that_merge_to_the_whole(tmp_path: Path, settings: dict[str, Any]) -> None:
    """A basis is fitted to the same rows by each, and travels with each."""
    parts = [exported(tmp_path, (i, 2), **settings) for i in range(2)]
    assert [len(SignalFolder(part).index) for part in parts] == [12, 12]
    facts = merge(parts, tmp_path / "all")
    assert (facts["samples"], facts["shards"]) == (24, 2)
    assert merge(parts, tmp_path / "all") == facts, "once more changes nothing"
    _, _, filled = imported(tmp_path / "all", tmp_path / "again", **settings)
    assert filled[:2] == (0, 24)
    fill(filler(adapter(noise=0.0), **settings), tmp_path / "alone")
    assert content(tmp_path / "again") == content(tmp_path / "alone")


def test_a_killed_import_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = exported(tmp_path)
    entries, read = Imported.entries, list[str]()

    def dies(self: Imported, kept: Any, key: str, seen: bytes) -> Any:
        read.append(key)
        if len(read) == 15:
            raise KeyboardInterrupt
        return entries(self, kept, key, seen)

    monkeypatch.setattr("xmodal_kd.teacher_cache.fill.SECONDS", 0.0)
    monkeypatch.setattr(Imported, "entries", dies)
    with pytest.raises(KeyboardInterrupt):
        imported(folder, tmp_path / "again")
    imported(folder, tmp_path / "again")
    assert len(read) == 15 + 12, "two micro-batches of six were there"
    assert content(tmp_path / "again") == content(tmp_path / "store0")


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("grid", [(), (2, 3), (6,)])
def test_any_entry_is_arrays_and_the_same_entry(full: bool, grid: tuple[int, ...]) -> None:
    kept = StoredSignal("body", 0, "pixel", False, Half(3))
    place = np.arange(6) if full else np.array([0, 2, 5])
    item = Item([np.ones((len(place), 3), np.float16)], place, 6, exact=not grid, full=full, grid=grid if full else ())
    entry = closed(item)
    assert closed(opened(kept.codec, entry)) == entry
    assert closed(item_of(kept, arrays_of(kept, opened(kept.codec, entry)))) == entry


# ---------------------------------------------------------------- what is missing


def without(folder: Path, *keys: str) -> Path:
    """The folder with holes."""
    index = read_json(folder / "index.json")
    (folder / "index.json").write_text(json.dumps({k: v for k, v in index.items() if k not in keys}))
    return folder


def test_what_is_missing_is_an_error_computed_or_no_row(tmp_path: Path) -> None:
    folder = without(exported(tmp_path), "toy-3", "toy-7")
    with pytest.raises(UserError, match=r"holds nothing of 'toy-\d': add it, or say cache.on_missing=skip, or compute"):
        imported(folder, tmp_path / "error")
    _, _, filled = imported(folder, tmp_path / "compute", on_missing="compute")
    assert filled[:2] == (2, 22)
    assert content(tmp_path / "compute") == content(tmp_path / "store0"), (
        "in the very batches that it would have been in"
    )
    made, kept, filled = imported(folder, tmp_path / "skip", on_missing="skip")
    assert filled[:2] == (0, 24)
    toy = adapter(noise=0.0)
    source = CachedSource(toy.data("train"), made.spec, 1, toy, Store(tmp_path / "skip"), kept)
    stream = steps(source)
    for _ in range(4):
        [batch] = next(stream)
        said = restored(kept, batch[CACHED], toy.signals("student", made.teacher, batch))
        layout = said.layout("logits")
        rows = torch.bincount(layout.item[layout.mask], minlength=6)
        assert (rows == 0).tolist() == [int(i) in (3, 7) for i in batch["ids"]]


# ---------------------------------------------------------------- logits that somebody else wrote


def test_plain_files_of_scores_fill_a_store(tmp_path: Path) -> None:
    """No signals.json, a file a sample, float32: kept as the recipe says."""
    made = filler(adapter(noise=0.0), total=4)
    made.objective = type(made.objective)([term.term for term in made.objective if term.name in ("test_ce", "kd")])
    toy, folder = adapter(noise=0.0), tmp_path / "mine"
    folder.mkdir()
    for index in range(24):
        batch = toy.data("train").collate([toy.data("train").sample(index, 0)])
        np.savez(
            folder / f"toy-{index}.npz", logits=toy.signals("teacher", made.teacher, batch).rows("logits").detach()
        )
    made.spec = made.spec.model_copy(update={"signals": folder})
    made.imported = Imported(made.spec, manifest_of(made), toy)
    kept, filled = fill(made, tmp_path / "store")
    assert list(kept) == ["logits"] and filled[:2] == (0, 24)
    source = CachedSource(toy.data("train"), made.spec, 1, toy, Store(tmp_path / "store"), kept)
    [batch] = next(steps(source))
    live = toy.signals("teacher", made.teacher, batch)
    said = restored(kept, batch[CACHED], live)
    assert torch.equal(said.layout("logits").mask, live.layout("logits").mask)
    mask = live.layout("logits").mask
    torch.testing.assert_close(said.rows("logits")[mask].float(), live.rows("logits")[mask], rtol=1e-3, atol=1e-3)
    np.savez(folder / "toy-5.npz", logits=np.zeros((3, 7), np.float32))
    with pytest.raises(UserError, match=r"toy-5.npz: 'toy-5': logits of shape \(3, 7\): \(rows, 4\) is expected"):
        fill(made, tmp_path / "other")
    np.savez(folder / "toy-5.npz", logits=np.full((3, 4), 0.25, np.float32))
    with pytest.raises(UserError, match="these are probabilities, not logits"):
        fill(made, tmp_path / "other")


# ---------------------------------------------------------------- what is refused, by name


def changed(folder: Path, what: str) -> None:
    about = read_json(folder / "signals.json")
    shard = folder / next(iter(about["shards"]))
    if what == "bit":
        held = bytearray(shard.read_bytes())
        held[-1] ^= 1
        shard.write_bytes(held)
    if what == "gone":
        shard.unlink()
    if what == "classes":
        (folder / "vocab.json").write_text(json.dumps(["red", "blue", "green", "black"]))
    if what == "teacher":
        about["from"]["teacher"] = "Net 00"
    if what == "data":
        about["from"]["data"]["crop"] = 3
    if what == "width":
        about["signals"]["body"]["width"] = 5
    if what == "signal":
        del about["signals"]["body"]
    (folder / "signals.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    "what, said",
    [
        ("bit", "is not what was written (its hash differs): copy it again"),
        ("gone", "is missing: copy it again, or export its part again"),
        ("classes", "class 1 is 'blue', the teacher's here 'green'"),
        ("teacher", "teacher was 'Net 00' where it was made, is 'Net "),
        ("data", "data.crop was 3 where it was made, is None"),
        ("width", "its 'body' are 5 wide, a row a frame; the teacher's here 24, a row a frame"),
        ("signal", "holds no 'body', which the objective compares: it holds logits"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(tmp_path: Path, what: str, said: str) -> None:
    folder = exported(tmp_path)
    changed(folder, what)
    with pytest.raises(UserError) as found:
        imported(folder, tmp_path / "again")
    assert said in str(found.value) and "\n" not in str(found.value)


def test_a_sample_that_was_another_one_there_is_refused_unless_names_are_enough(tmp_path: Path) -> None:
    folder = exported(tmp_path, toy=adapter(noise=0.2), view="replay")
    with pytest.raises(UserError, match=r"was another one there .* say cache.match=name"):
        imported(folder, tmp_path / "again", adapter(noise=0.1), view="replay")
    _, _, filled = imported(folder, tmp_path / "named", adapter(noise=0.1), view="replay", match="name")
    assert filled[:2] == (0, 24)


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    parts = [exported(tmp_path, (i, 2)) for i in range(2)]
    changed(parts[1], "teacher")
    with pytest.raises(UserError, match="says another 'from' than"):
        merge(parts, tmp_path / "all")
    parts = [exported(tmp_path / "basis", (i, 2), smaller=2) for i in range(2)]
    about = read_json(parts[1] / "signals.json")
    about["signals"]["logits"]["basis"] = "A" * len(about["signals"]["logits"]["basis"])
    (parts[1] / "signals.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="says another 'signals' than"):
        merge(parts, tmp_path / "all")
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, value in ((one, 1.0), (other, 2.0)):
        shards = Shards(folder, {"signals": {}}, (int(value), 3))
        shards.add("a", {"logits": np.full((1, 4), value, np.float16)})
        shards.close()
    with pytest.raises(UserError, match="says something else of 'a' than"):
        merge([one, other], tmp_path / "both")
    shutil.rmtree(other)
    with pytest.raises(UserError, match=r"cache merge: .*other: no such folder"):
        merge([one, other], tmp_path / "both")
    with pytest.raises(UserError, match="two samples are called 'a'"):
        shards.add("a", {})


# ---------------------------------------------------------------- rows that a term resamples


@pytest.mark.parametrize("way", ["average", "linear", "nearest"])
@pytest.mark.parametrize("finer", [2, 3])
def test_rows_that_a_term_resamples_stay_the_teachers(way: Any, finer: int) -> None:
    """Values that fp16 holds: what is resampled of the cache equals what is of the teacher, whatever the batch."""
    lengths, rng = torch.tensor([3, 5, 2, 4]), torch.Generator().manual_seed(0)
    theirs = Layout.padded("frame", finer * lengths, finer * 5)
    rows = torch.randint(-8, 9, (len(theirs), 3), generator=rng).float()
    kept = StoredSignal("body", 0, "frame", False, Half(3))
    entries = written(kept, Signals().add("body", rows, theirs)["body"], [""] * 4)
    some = [2, 0, 3]
    mine = Signals().add("body", torch.zeros(12, 3), Layout.padded("frame", lengths[some], 4))
    found = restored({"body": kept}, {"body": packed(kept, [entries[i] for i in some])}, mine, own={"body"})
    live = rows.reshape(4, -1, 3)[some].reshape(-1, 3)
    live_signals = Signals().add("body", live, Layout.padded("frame", finer * lengths[some], finer * 5))
    outputs = [
        resample_rows("hint", way, pair(mine["body"], teacher["body"], mine, teacher))
        for teacher in (found, live_signals)
    ]
    mask = outputs[1].layout.mask
    assert torch.equal(outputs[0].layout.mask, mask) and int(mask.sum()) == int(lengths[some].sum())
    assert torch.equal(outputs[0].rows[mask], outputs[1].rows[mask])
