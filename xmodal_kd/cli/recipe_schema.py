"""JSON Schema of recipes, so that an editor completes their keys, explains them and marks what is misspelt.

It is made of the pydantic models that read a recipe. Which keys ``data`` and the several ``params`` have depends on a
name that stands beside them (modality, model, loss, method): each name is an ``if`` with its ``then``.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from ..compress.known import COMPRESSIONS
from ..losses import LOSSES
from ..objective.objective import spec_of
from ..recipe.recipe import CompressSpec, MethodSpec, ModelSpec, Recipe, SchemeSpec, Teacher, Term
from ..runtime.discovery import modality, modality_names
from ..runtime.registry import Registry
from ..schemes import SCHEMES
from ..training.method import METHODS
from .catalogue import adapters, first_line

Json = dict[str, Any]
#: An object of one's own, which --allow-import lets a recipe name; what parameters it takes is not known here.
IMPORT = {"type": "string", "pattern": r"^[\w.]+:\w+$", "description": "package.module:name, with --allow-import"}


class _Explained(GenerateJsonSchema):
    """Adds what the source says of each field; leaves out titles that only repeat a key."""

    def model_schema(self, schema: Any) -> Json:
        made = super().model_schema(schema)
        if "description" in made:  # an example in Python helps nobody who writes YAML
            made["description"] = made["description"].partition(">>>")[0].rstrip()
        notes = _notes(schema["cls"])
        for key, field in made.get("properties", {}).items():
            if key in notes:
                field.setdefault("description", notes[key])
        return made

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def recipe_schema() -> Json:
    """The schema (JSON Schema 2020-12) of the recipes that this installation reads.

    Modalities whose packages are missing are left out, as in ``list``: their sections are then not looked into.
    """
    rooms = dict(adapters())  # first of all: a modality registers losses and methods of its own
    losses = {name: spec_of(Term(loss=name)) for name in LOSSES}
    kinds: list[type[BaseModel]] = [Recipe, Teacher, ModelSpec, MethodSpec, Term]
    kinds += [spec.params for spec in losses.values()] + [METHODS[name].Params for name in METHODS]
    kinds += [SchemeSpec, CompressSpec, *(SCHEMES[name].Params for name in SCHEMES)]
    kinds += [COMPRESSIONS[name].Params for name in COMPRESSIONS]
    for room in rooms.values():
        kinds += [room.Data, *(room.models[name].Config for name in room.models)]
    references, found = models_json_schema(
        [(kind, "validation") for kind in dict.fromkeys(kinds)], schema_generator=_Explained
    )
    refs: dict[type[BaseModel], Json] = {kind: dict(ref) for (kind, _), ref in references.items()}  # type: ignore[misc]
    parts: Json = found["$defs"]

    def part(kind: type[BaseModel]) -> Json:
        made: Json = parts[refs[kind]["$ref"].rpartition("/")[2]]
        return made

    term, method, recipe = part(Term), part(MethodSpec), part(Recipe)
    named = _names(LOSSES, {name: spec.describe()["summary"] for name, spec in losses.items()})
    term["properties"]["loss"] |= {"anyOf": named}
    term["allOf"] = [_when("loss", name, spec.params, refs) for name, spec in losses.items()]
    named = _names(METHODS, {name: first_line(METHODS[name]) for name in METHODS})
    method["properties"]["name"] |= {"anyOf": named}
    method["allOf"] = [_when("name", name, METHODS[name].Params, refs) for name in METHODS]
    recipe["properties"]["method"] |= {"anyOf": [*named, refs[MethodSpec]]}
    recipe["properties"]["method"].pop("$ref", None)
    for key, kinds_, spec in (("scheme", SCHEMES, SchemeSpec), ("compress", COMPRESSIONS, CompressSpec)):
        named = _names(kinds_, {name: first_line(kinds_[name]) for name in kinds_})
        part(spec)["properties"]["name"] |= {"anyOf": named}
        part(spec)["allOf"] = [_when("name", name, kinds_[name].Params, refs) for name in kinds_]
        one = [*named, refs[spec]]
        recipe["properties"][key] = {
            "description": recipe["properties"][key]["description"],
            "anyOf": [*one, {"type": "null"}]
            if key == "scheme"
            else [*one, {"type": "array", "items": {"anyOf": one}}],
        }
    summaries = {name: first_line(modality(name)) for name in modality_names()}
    recipe["properties"]["modality"] |= {"anyOf": [*_constants(summaries), IMPORT]}
    recipe["allOf"] = []
    for name, room in rooms.items():
        parts[f"{name} model"] = _models(room.models, refs)
        model = {"$ref": f"#/$defs/{name} model"}
        inside = {"data": refs[room.Data], "student": model, "teacher": model}
        recipe["allOf"].append(_if("modality", name, {"properties": inside}))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Recipe of xmodal-kd",
        **refs[Recipe],
        "$defs": parts,
    }


def _models(registry: Registry[Any], refs: Mapping[type[BaseModel], Json]) -> Json:
    """What a modality adds to a role: the names of its models, and each one's parameters."""
    named = _names(registry, {name: first_line(registry[name]) for name in registry})
    return {
        "properties": {"model": {"anyOf": [*named, {"type": "null"}]}},  # null: a teacher with a path
        "allOf": [_when("model", name, registry[name].Config, refs) for name in registry],
    }


def _names(registry: Registry[Any], summaries: Mapping[str, str]) -> list[Json]:
    """The names that stand in a registry, those of entry points, and import paths."""
    group = f"xmodal_kd.{registry.kind.replace(' ', '_')}"
    added = {entry.name: entry.value for entry in entry_points(group=group)}
    return [*_constants({**added, **summaries}), IMPORT]


def _constants(summaries: Mapping[str, str]) -> list[Json]:
    return [{"const": name, "description": text} for name, text in summaries.items()]


def _when(key: str, name: str, params: type[BaseModel], refs: Mapping[type[BaseModel], Json]) -> Json:
    """Where `key` is `name`, ``params`` are those of `params`, and must be there if one of them has no default."""
    needed = any(field.is_required() for field in params.model_fields.values())
    return _if(key, name, {"properties": {"params": refs[params]}} | ({"required": ["params"]} if needed else {}))


def _if(key: str, name: str, then: Json) -> Json:
    return {"if": {"properties": {key: {"const": name}}, "required": [key]}, "then": then}


def _notes(kind: type[BaseModel]) -> dict[str, str]:
    """What the source says of each field: a string below it, or ``#:`` lines above it; inherited fields included."""
    notes: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if base is not BaseModel and issubclass(base, BaseModel):
            try:
                source = textwrap.dedent(inspect.getsource(base))
            except (OSError, TypeError):  # made at run time, as the parameters of losses are
                continue
            notes |= _notes_of(source)
    return notes


def _notes_of(source: str) -> dict[str, str]:
    lines, notes = source.splitlines(), {}
    [body] = (node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    for node, after in zip(body, [*body[1:], None], strict=True):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            text = inspect.cleandoc(after.value.value)
        else:
            text = " ".join(_comment_above(lines, node.lineno - 1))
        if text:
            notes[node.target.id] = re.sub(r"\s*\n\s*", " ", text).replace("`", "")
    return notes


def _comment_above(lines: list[str], at: int) -> Iterable[str]:
    first = at
    while first and lines[first - 1].strip().startswith("#:"):
        first -= 1
    return (line.strip().removeprefix("#:").strip() for line in lines[first:at])
