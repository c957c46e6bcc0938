"""YAML as recipes are written in it: strict, with the line of every key."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

from ..runtime.errors import UserError

Path_ = tuple[str | int, ...]


class Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice and reads ``on`` and ``1e-3`` as YAML 1.2 does.

    YAML 1.1 takes the key ``on`` of a term for the boolean true, and 1e-3 for text.
    """


def _unique_mapping(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    written: set[str] = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key is a word, not a list", key_node.start_mark)
        if key_node.value in written:
            problem = f"key {key_node.value!r} is written twice"
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        written.add(key_node.value)
    loader.flatten_mapping(node)  # after that a key may stand twice: merged by <<, then overridden
    return {loader.construct_object(k): loader.construct_object(v, deep=True) for k, v in node.value}


Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if not tag.endswith((":bool", ":float"))]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


#: Characters of a recipe, levels in one another, and values once aliases are written out; ours have a few hundred.
MOST, DEEPEST, VALUES = 1 << 20, 32, 50_000


def read_yaml(text: str) -> tuple[Any, yaml.Node | None]:
    """The content of a YAML text and its nodes, bounded before anything is made of it.

    Raises:
        yaml.MarkedYAMLError: it is not YAML, too large, nested too deeply, or its aliases refer to each other or stand
            for too much.
        ValueError: a value of it is none: the 31st of February, a number of 5,000 digits.
    """
    if len(text) > MOST:
        raise yaml.MarkedYAMLError(problem=f"{len(text):,} characters, more than {MOST:,}")
    depth = 0
    for event in yaml.parse(text, Loader=Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            mark: Any = event.start_mark
            raise yaml.MarkedYAMLError(problem=f"nested in more than {DEEPEST} levels", problem_mark=mark)
    node = yaml.compose(text, Loader=Loader)
    if node is not None:
        _weigh(node, {})
    try:
        return yaml.load(text, Loader=Loader), node
    except (TypeError, AttributeError, OverflowError, KeyError) as error:
        raise ValueError(str(error)) from error


def _weigh(node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Values in `node`, and levels, with its aliases written out."""
    if id(node) in known:
        if (found := known[id(node)]) is None:
            raise yaml.MarkedYAMLError(problem="an alias refers to what it is in", problem_mark=node.start_mark)
        return found
    known[id(node)] = None
    parts = [part for one in _parts(node) for part in (one if isinstance(one, tuple) else (one,))]
    weights = [_weigh(part, known) for part in parts]
    size, depth = 1 + sum(size for size, _ in weights), 1 + max((depth for _, depth in weights), default=0)
    if size > VALUES or depth > DEEPEST + 1:
        told = f"more than {VALUES:,} values" if size > VALUES else f"more than {DEEPEST} levels"
        raise yaml.MarkedYAMLError(problem=f"its aliases stand for {told}", problem_mark=node.start_mark)
    known[id(node)] = size, depth
    return size, depth


def _parts(node: yaml.Node) -> list[Any]:
    return node.value if isinstance(node, yaml.CollectionNode) else []


def marks(node: yaml.Node, path: Path_ = ()) -> Iterator[tuple[Path_, int]]:
    """Line of every key and list entry."""
    yield path, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from marks(value, (*path, key.value))
            yield (*path, key.value), key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield from marks(value, (*path, i))


def override(content: dict[str, Any], text: str) -> tuple[str, Any]:
    """Put ``a.b=value`` into `content`; returns key and value. Raises `UserError` for what cannot be set."""
    key, equals, wanted = text.partition("=")
    if not equals or not key:
        raise UserError(f"--set {text!r}: write key=value, for example train.steps=500")
    try:
        value, _ = read_yaml(wanted)
    except (yaml.YAMLError, ValueError):
        raise UserError(f"--set {text[:200]!r}: {wanted[:100]!r} is not a YAML value") from None
    path: list[Any] = [int(part) if part.isdecimal() and len(part) < 10 else part for part in key.split(".")]
    if len(path) > DEEPEST:
        raise UserError(f"--set {text[:200]!r}: more than {DEEPEST} keys in one another")
    *parents, last = path
    place: Any = content
    for part in parents:
        try:
            place = place[part] if isinstance(place, list) else place.setdefault(part, {})
        except (IndexError, TypeError, AttributeError):
            raise UserError(f"--set {text!r}: there is no {part!r} to go into") from None
    try:
        place[last] = value
    except (IndexError, TypeError):
        raise UserError(f"--set {text!r}: there is no {last!r} to set") from None
    return key, value


def flat(content: Any, at: str = "", *, lists: bool = False) -> dict[str, Any]:
    """Nested mappings as one, from dotted paths to values.

    Args:
        lists: whether lists are gone into as well: ``objective.0.loss``.
    """
    if isinstance(content, Mapping) and content:
        pairs: Iterable[tuple[Any, Any]] = content.items()
    elif lists and isinstance(content, list):
        pairs = enumerate(content)
    else:
        return {at: content}
    return {k: v for key, one in pairs for k, v in flat(one, f"{at}.{key}".lstrip("."), lists=lists).items()}
