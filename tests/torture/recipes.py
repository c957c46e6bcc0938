"""Malformed recipes: shipped ones, with all their defaults, in which something is not what it should be."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from toy import RECIPE

from xmodal_kd.recipe.recipe import load
from xmodal_kd.recipe.yaml_reader import Loader
from xmodal_kd.run.resolved_recipe import resolved
from xmodal_kd.runtime.registry import allowed_imports

Path_ = tuple[str | int, ...]

#: What may stand at any key in the place of what should.
VALUES: tuple[Any, ...] = (
    None, [], {}, "", " ", 0, -1, 1, 2, 0.5, -0.5, 1e300, -1e300, 1e-300, float("nan"), float("inf"), 10**30, -(10**30),
    10**9, 2**31, 2**63, 2**64, True, False, "true", "none", "auto", "☃", "a" * 5000, "a\nb", "\x00"[:0] + "../..", "/",
    "/dev/null", "/dev/zero", "/etc", ".", "~nobody/x", [None], [[]], [1, 2], [1, "a", None], ["a", "a"],
    {"a": 1}, {"": None}, {"loss": "kd"}, {"model": None}, {"name": []}, {"path": "nowhere"}, [{}], "kd",
    "*", "**", "body.*", "{}", "0", "1e999", "-1", "10%", "1000%", "-5%", "0%", "x:y", "os:system", "2001-12-14",
    "!!python/object:os.system",
)  # fmt: skip

#: Texts that are no recipe, or one that no one should open.
BOMB = "\n".join([
    "a0: &a0 [x, x, x, x, x, x, x, x, x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9))
])  # fmt: skip
CHAIN = "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 3000))])
TEXTS: tuple[bytes, ...] = (
    b"", b"\n", b"#\n", b"null", b"[]", b"3", b"a", b"{", b"a: [", b"a: b: c", b"\t- x", b"%YAML 9.9\n---\n", 
    b"--- a\n--- b",
    b"\xff\xfe\x00", b"a: \xc3\x28", b"a: \x00", b"\xef\xbb\xbfmodality: speech", b"? [a, b]\n: c", b"1: 2", b"null: 2",
    b"<<: 3", b"<<: [1]", b"a: *b", b"a: &a [*a]", b"a: &a {b: *a}", b"!!python/object/apply:os.system [id]",
    b"a: !!binary x", b"a: !!set {a, b}", b"a: !!timestamp 2001-99-99", b"a: 2001-99-99", b"a: 1:99:99", b"a: 0x",
    b"a: 0b2",
    b"seed: " + b"9" * 5000, b"a: " + b"[" * 3000, b"a: " + b"{a: " * 3000, b"- " * 3000, BOMB.encode(), CHAIN.encode(),
    b"modality: speech\n" * 2, b"x" * (3 << 20), b"a: |\n" + b"  x\n" * 500_000,
)  # fmt: skip


@dataclass(frozen=True)
class Malformed:
    """A recipe's text and what was done to it; `sets` go with it on the command line."""

    what: str
    text: bytes
    sets: tuple[str, ...] = ()
    full: bool = True
    """Whether a run of it ends by itself in seconds; else it is stopped by the clock."""


def bases(names: tuple[str, ...], folder: Any) -> dict[str, dict[str, Any]]:
    """Recipes with all their defaults, by name."""
    allowed_imports.add("toy")
    (folder / "toy.yaml").write_text(RECIPE)
    found = {"toy": resolved(load(str(folder / "toy.yaml")))}
    for name in names:
        found[name] = resolved(load(name))
    return {name: yaml.load(yaml.safe_dump(content), Loader=Loader) for name, content in found.items()}


def paths(content: Any, at: Path_ = ()) -> Iterator[Path_]:
    """Every key and entry."""
    if at:
        yield at
    pairs: Any = (
        content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    )
    for key, value in pairs:
        yield from paths(value, (*at, key))


def malformed(draw: random.Random, found: dict[str, dict[str, Any]]) -> Malformed:
    """The next one."""
    way = draw.choices(WAYS, [weight for _, weight in WEIGHTS])[0]
    name = draw.choices(list(found), [3 if one == "toy" else 1 for one in found])[0]
    return way(draw, name, copy.deepcopy(found[name]))


def _dumped(name: str, what: str, content: Any, sets: tuple[str, ...] = ()) -> Malformed:
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return Malformed(f"{name}: {what}", text.encode("utf-8", "surrogatepass"), sets, full=name == "toy")


def _value(draw: random.Random, name: str, content: Any) -> Malformed:
    at, value = draw.choice(list(paths(content))), draw.choice(VALUES)
    _put(content, at, value)
    return _dumped(name, f"{_told(at)} = {value!r:.60}", content)


def _set(draw: random.Random, name: str, content: Any) -> Malformed:
    at, value = draw.choice(list(paths(content))), draw.choice(VALUES)
    shown = yaml.safe_dump(value, default_flow_style=True).partition("\n...")[0].strip()
    text = draw.choice(
        [f"{_told(at)}={shown}", f"{_told(at)}.deeper={shown}", f"{_told(at)}.0={shown}", _told(at), "=", "=1"]
    )
    return _dumped(name, f"--set {text:.60}", content, (text,))


def _remove(draw: random.Random, name: str, content: Any) -> Malformed:
    at = draw.choice(list(paths(content)))
    del _place(content, at)[at[-1]]
    return _dumped(name, f"without {_told(at)}", content)


def _rename(draw: random.Random, name: str, content: Any) -> Malformed:
    at = draw.choice([one for one in paths(content) if isinstance(one[-1], str)])
    place = _place(content, at)
    other: Any = draw.choice([str(at[-1])[::-1], f"{at[-1]}s", str(at[-1]).upper(), 7, None, True, "", 1.5])
    place[other] = place.pop(at[-1])
    return _dumped(name, f"{_told(at)} is called {other!r}", content)


def _swap(draw: random.Random, name: str, content: Any) -> Malformed:
    """Two sections, or a section and a value, stand in each other's place."""
    one, other = draw.sample(list(paths(content)), 2)
    if one[: len(other)] == other or other[: len(one)] == one:
        return _value(draw, name, content)
    a, b = copy.deepcopy(_get(content, one)), copy.deepcopy(_get(content, other))
    _put(content, one, b)
    _put(content, other, a)
    return _dumped(name, f"{_told(one)} and {_told(other)} exchanged", content)


def _foreign(draw: random.Random, name: str, content: Any) -> Malformed:
    """A key that another section knows."""
    sections = [at for at in paths(content) if isinstance(_get(content, at), dict)]
    at, key = draw.choice(sections), draw.choice([str(one[-1]) for one in paths(content)])
    _get(content, at)[key] = draw.choice(VALUES)
    return _dumped(name, f"{_told(at)} has {key}", content)


def _bytes(draw: random.Random, name: str, content: Any) -> Malformed:
    text = bytearray(_dumped(name, "", content).text)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(text))
        if draw.random() < 0.5:
            text[place] = draw.randrange(256)
        else:
            del text[place : place + draw.randint(1, 40)]
    if draw.random() < 0.3:
        text = text[: draw.randrange(len(text) + 1)]
    return Malformed(f"{name}: bytes", bytes(text), full=name == "toy")


def _text(draw: random.Random, name: str, content: Any) -> Malformed:
    text = draw.choice(TEXTS)
    return Malformed(f"text {text[:30]!r}", text)


def _doubled(draw: random.Random, name: str, content: Any) -> Malformed:
    """A list with its last entry twice, or a value in a list."""
    at = draw.choice(list(paths(content)))
    value = _get(content, at)
    _put(content, at, [*value, *value[-1:]] if isinstance(value, list) else [value, value])
    return _dumped(name, f"{_told(at)} twice", content)


Way = Callable[[random.Random, str, Any], Malformed]
WEIGHTS: tuple[tuple[Way, int], ...] = (
    (_value, 12), (_set, 4), (_remove, 3), (_rename, 3), (_swap, 4), (_foreign, 4), (_bytes, 4), (_text, 4),
    (_doubled, 2),
)  # fmt: skip
WAYS = [way for way, _ in WEIGHTS]


def _place(content: Any, at: Path_) -> Any:
    for key in at[:-1]:
        content = content[key]
    return content


def _get(content: Any, at: Path_) -> Any:
    return _place(content, at)[at[-1]]


def _put(content: Any, at: Path_, value: Any) -> None:
    _place(content, at)[at[-1]] = value


def _told(at: Path_) -> str:
    return ".".join(map(str, at))
