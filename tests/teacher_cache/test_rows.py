"""How cached rows are written, and how they find their places in another batch."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from xmodal_kd.runtime.errors import UserError
from xmodal_kd.signals.signals import Layout, Signals
from xmodal_kd.teacher_cache.codecs import Basis, Half, Int8, TopK, codec_of, row_bytes, settings, shared
from xmodal_kd.teacher_cache.content import Contents
from xmodal_kd.teacher_cache.entries import StoredSignal, packed, restored, written

WIDTH = 5


def through(codec: Half | TopK | Int8 | Basis, rows: Tensor) -> Tensor:
    fields = codec.encode(rows)
    assert [field.shape for field in fields] == [(len(rows), width) for _, width in codec.fields]
    assert [field.dtype for field in fields] == [np.dtype(kind) for kind, _ in codec.fields]
    assert sum(field.nbytes for field in fields) == len(rows) * row_bytes(codec)
    again = codec_of(codec.describe())
    wide = [f.astype(np.int64) if f.dtype.kind == "u" else f for f in fields]
    return again.decode([torch.from_numpy(field) for field in wide])


@pytest.mark.parametrize(("width", "k"), [(11, 3), (300, 12), (70_000, 2)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_top_k_keeps_the_highest_and_the_mass_of_the_rest(width: int, k: int, temperature: float) -> None:
    """At its temperature: probability of each kept class, and of all others together; the others share theirs."""
    rows = 3 * torch.randn(7, width, generator=torch.Generator().manual_seed(1)) + 40
    back = through(TopK(width, k, temperature), rows)
    p, q = (torch.softmax(z.double() / temperature, dim=-1) for z in (rows, back))
    kept = rows.topk(k).indices
    torch.testing.assert_close(q.gather(1, kept), p.gather(1, kept), rtol=5e-3, atol=1e-7)
    rest = torch.ones_like(p).scatter_(1, kept, 0.0)
    torch.testing.assert_close((q * rest).sum(1), (p * rest).sum(1), rtol=5e-3, atol=1e-7)
    for row, mask in zip(q, rest.bool(), strict=True):
        assert row[mask].max() == row[mask].min()
    torch.testing.assert_close(back.gather(1, kept), rows.gather(1, kept), rtol=1e-3, atol=0.0)


def test_masked_classes_and_empty_batches_survive() -> None:
    rows = torch.tensor([[2.0, -torch.inf, 1.0, -torch.inf], [0.0, 1.0, -torch.inf, -torch.inf]])
    for codec in (Half(4), TopK(4, 2)):
        back = through(codec, rows)
        assert bool(torch.isfinite(back).all())
        torch.testing.assert_close(torch.softmax(back.float(), -1), torch.softmax(rows, -1), rtol=2e-3, atol=1e-6)
        assert through(codec, rows[:0]).shape == (0, 4)


def test_int8_is_right_to_half_a_step_of_each_channel() -> None:
    rows = torch.randn(200, 3, generator=torch.Generator().manual_seed(2)) * torch.tensor([1e-3, 1.0, 50.0])
    codec = Int8.fitted(rows)
    assert ((through(codec, rows) - rows).abs() <= codec.scale / 2 * 1.001).all()
    assert codec.cut == 0
    back = through(codec, 3 * rows[:1])
    codec.encode(2 * rows)
    assert codec.cut > 0 and bool((back.abs() <= 127.01 * codec.scale).all())


def headed(rows: int, width: int, rank: int, seed: int = 5) -> tuple[Tensor, Tensor]:
    """Scores of a head that is fed with `rank` numbers, of which the first vary most: to fit to, and others."""
    draw = torch.Generator().manual_seed(seed)
    head, size = torch.randn(rank, width, generator=draw), 2.0 / torch.arange(1, rank + 1) ** 0.5
    z = (torch.randn(2 * rows, rank, generator=draw) * size) @ head + torch.randn(width, generator=draw)
    return z[:rows], z[rows:]


@pytest.mark.parametrize(("width", "budget"), [(24, 6), (24, 5), (40, 1), (12, 30)])
def test_a_basis_is_read_as_its_formula_says(width: int, budget: int) -> None:
    """Number by number, from the description and the bytes alone."""
    fit, rows = headed(60, width, 9)
    codec = Basis.fitted(fit, budget)
    assert row_bytes(codec) <= budget
    told, [written_] = codec.describe(), codec.encode(rows[:4])
    held = np.frombuffer(base64.b64decode(told["basis"]), "<f4").reshape(-1, width).astype(np.float64)
    mean, scaled = held[0], held[1:]
    for z, back, row in zip(rows.double().numpy(), through(codec, rows[:4]), written_, strict=False):
        made, stream = mean.copy(), "".join(f"{byte:08b}"[::-1] for byte in row)
        for direction, bits in zip(scaled, told["bits"], strict=True):
            exact = sum((z[j] - mean[j]) * direction[j] for j in range(width)) / sum(d * d for d in direction)
            most = (2**bits - 1) / 2
            q, stream = int(stream[:bits][::-1], 2) - most, stream[bits:]
            assert abs(q - min(max(exact, -most), most)) <= 0.501
            made += q * direction
        assert set(stream) <= {"0"} and len(stream) < 8
        np.testing.assert_allclose(back.numpy(), made, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [1, 4, 7])
def test_bits_go_where_they_take_most_error_away(bits: int) -> None:
    """No other way of sharing them leaves less, where each further bit is worth less than the one before."""
    size = np.random.default_rng(bits).uniform(0.1, 10.0, 4)
    left = [[s * 4.0**-b for b in range(4)] for s in size]
    given = shared(left, bits)

    def error(ways: Sequence[int]) -> float:
        return sum(one[b] for one, b in zip(left, ways, strict=True))

    ways = [way for way in product(range(4), repeat=4) if sum(way) <= bits]
    assert sum(given) == bits and error(given) == pytest.approx(min(map(error, ways)))


def test_a_basis_keeps_a_head_of_low_rank_at_any_temperature() -> None:
    """Eight times smaller than fp16: the loss at temperature 4 within 1 %, where the highest scores alone miss it."""
    fit, rows = headed(600, 128, 24)
    student = rows + torch.randn(len(rows), 128, generator=torch.Generator().manual_seed(6))
    basis, top = Basis.fitted(fit, 32), TopK(128, 10, 4.0)
    assert row_bytes(basis) <= row_bytes(top) == 32 == row_bytes(Half(128)) / 8

    def loss(teacher: Tensor) -> float:
        p, q = (torch.log_softmax(z.double() / 4, -1) for z in (teacher, student))
        return float((p.exp() * (p - q)).sum(-1).mean())

    whole = loss(rows)
    assert abs(loss(through(basis, rows)) / whole - 1) < 0.01 < abs(loss(through(top, rows)) / whole - 1)
    assert basis.seen and basis.cut < 0.01 * basis.seen
    basis.encode(50 * rows)
    assert basis.cut > 0


def test_a_basis_of_few_or_strange_rows() -> None:
    for rows in (torch.zeros(1, 6), torch.zeros(0, 6), torch.full((3, 6), torch.nan), torch.eye(6)[:2]):
        codec = Basis.fitted(rows, 3)
        back = through(codec, rows.nan_to_num()[:2])
        torch.testing.assert_close(back, rows.nan_to_num()[:2], rtol=0.0, atol=0.02)
        assert settings(codec_of(codec.describe())) == {"codec": "basis", "width": 6, "size": 3}
        assert through(codec, rows[:0]).shape == (0, 6)
    with pytest.raises(OverflowError, match="use top_k"):
        codec.encode(torch.tensor([[0.0, -torch.inf, 0.0, 0.0, 0.0, 0.0]]))


def test_what_fp16_cannot_hold_is_said() -> None:
    with pytest.raises(OverflowError, match="beyond fp16"):
        Half(1).encode(torch.tensor([[1e6]]))
    with pytest.raises(OverflowError, match="beyond fp16"):
        TopK(2, 1).encode(torch.tensor([[1e6, 0.0]]))


# ---------------------------------------------------------------- places


def layouts(kind: str, mask_seed: int = 0) -> Layout:
    """Five items, one of them without rows where that can be."""
    draw = torch.Generator().manual_seed(mask_seed)
    if kind == "samples":
        return Layout.samples(5)
    if kind == "maps":
        return Layout.dense("pixel", 5, (2, 3))
    if kind == "padded":
        return Layout.padded("frame", torch.tensor([3, 0, 5, 1, 2]), 7)
    item = torch.tensor([0, 0, 2, 2, 2, 3, 4, 4])
    if kind == "mixed":
        item = item[torch.randperm(len(item), generator=draw)]
    if kind in ("ragged", "mixed"):
        return Layout.ragged("point", item, 5)
    mask = torch.rand(len(item), generator=draw) > 0.4
    return Layout("point", mask, item, 5)


def picked(layout: Layout, rows: Tensor, items: list[int]) -> tuple[Layout, Tensor]:
    """The batch of these items alone, and no more padding than they need."""
    chosen = [layout.item == i for i in items]
    item = torch.cat([torch.full((int(c.sum()),), n) for n, c in enumerate(chosen)])
    mask = torch.cat([layout.mask[c] for c in chosen])
    out = Layout(layout.kind, mask, item, len(items), None, layout.full)
    return out, torch.cat([rows[c] for c in chosen])


@pytest.mark.parametrize("kind", ["samples", "maps", "padded", "ragged", "mixed", "masked"])
@pytest.mark.parametrize("alone", [False, True])
def test_items_find_their_places_in_another_batch(kind: str, alone: bool) -> None:
    """Other order, other company, with and without signals of the student of their kind."""
    layout = layouts(kind, 3)
    rows = torch.randn(len(layout), WIDTH, generator=torch.Generator().manual_seed(4))
    rows[~layout.mask] = torch.nan
    said = Signals().add("logits", rows, layout)
    kept = StoredSignal("logits", 0, layout.kind, False, Half(WIDTH))
    entries = written(kept, said["logits"], list("abcde"))
    items = [4, 2, 1, 0]
    batch, expected = picked(layout, rows, items)
    if layout.grid is not None:
        batch = Layout(batch.kind, batch.mask, batch.item, batch.items, layout.grid, batch.full)
    beside = Signals(torch.tensor(items))
    if not alone or kind == "masked":  # whose rows in between only the student's layout knows
        beside.add("other", torch.zeros(len(batch), 2), batch)
    found = restored({"logits": kept}, {"logits": packed(kept, [entries[i] for i in items])}, beside)
    back, its = found["logits"]
    assert torch.equal(found.ids if found.ids is not None else torch.tensor([]), torch.tensor(items))
    assert torch.equal(its.item[its.mask], batch.item[batch.mask])
    torch.testing.assert_close(back[its.mask].float(), expected[batch.mask], rtol=1e-3, atol=1e-4)
    if "other" in beside:
        assert its.same_rows(batch) and torch.equal(its.mask, batch.mask)


def test_of_two_layouts_of_a_kind_that_of_as_many_rows_is_taken() -> None:
    coarse, fine = Layout.padded("frame", torch.tensor([2, 1]), 3), Layout.padded("frame", torch.tensor([4, 3]), 6)
    kept = StoredSignal("body", 0, "frame", False, Half(1))
    entries = written(kept, Signals().add("body", torch.arange(12.0).unsqueeze(1), fine)["body"], ["a", "b"])
    beside = Signals().add("a", torch.zeros(6, 1), coarse).add("b", torch.zeros(12, 1), fine)
    found = restored({"body": kept}, {"body": packed(kept, entries)}, beside)
    assert found.layout("body") is fine
    assert found.rows("body")[fine.mask].squeeze(1).tolist() == [0, 1, 2, 3, 6, 7, 8]


def test_single_numbers_a_row() -> None:
    layout = Layout.ragged("point", torch.tensor([0, 1, 1]), 2)
    kept = StoredSignal("weight", 0, "point", True, Half(1))
    entries = written(kept, Signals().add("weight", torch.tensor([1.0, 2.0, 3.0]), layout)["weight"], ["a", "b"])
    found = restored({"weight": kept}, {"weight": packed(kept, entries[::-1])}, Signals())
    assert found.rows("weight").tolist() == [2.0, 3.0, 1.0]


def test_nan_is_named() -> None:
    rows = torch.zeros(3, WIDTH)
    rows[2, 1] = torch.nan
    kept = StoredSignal("body", 0, "sample", False, Half(WIDTH))
    with pytest.raises(UserError, match="sample c: the teacher's 'body' hold NaN or Inf"):
        written(kept, Signals().add("body", rows, Layout.samples(3))["body"], list("abc"))


# ---------------------------------------------------------------- contents


@dataclass
class Thing:
    x: Tensor
    name: str
    where: Path


def test_content_is_of_values_types_and_shapes() -> None:
    contents, x = Contents(), torch.arange(6.0)
    digests = [
        contents.digest(value)
        for value in (
            x, x.reshape(2, 3), x.double(), x + 1e-6, x.numpy(), [x], [x, x], {"a": x}, {"b": x}, 1, 1.0, "1", None,
            True, Thing(x, "a", Path("a")), Thing(x, "b", Path("a")), ["ab", "c"], ["a", "bc"],
        )
    ]  # fmt: skip
    assert len(set(digests)) == len(digests) and all(len(d) == 16 for d in digests)
    assert contents.digest(Thing(x.clone(), "a", Path("a"))) == contents.digest(Thing(x, "a", Path("a")))
    before = contents.digest(x)
    x[0] = 9
    assert contents.digest(x) != before, "changed in place"
    with pytest.raises(TypeError, match="object has no content"):
        contents.digest(object())
