"""The card of a saved model: ``README.md`` with Hugging Face's front matter, written once its metrics are known.

A model inherits the licences of what it learned from: those of its own data, and those that its teacher's card names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..adapter import hub
from ..adapter.roles import is_teacher
from ..adapter.saved_model import CARD, About, folder_of
from ..recipe.yaml_reader import read_yaml
from ..runtime.bounded_files import read_bytes
from ..runtime.errors import UserError
from ..runtime.whole_files import read_object, write_bytes, write_json
from .html import short
from .markdown import exported, gap, result_row, table

README = "README.md"
#: Bytes of a card.
MOST = 1 << 24


def write(
    folder: Path, role: str, about: About, content: Mapping[str, Any], data: Mapping[str, Any], teachers: Sequence[Path]
) -> None:
    """Write the card of the model in `folder`; ``card.json``, where there is one, gets metrics and licences too.

    Args:
        content: of ``report.json``, or as much of it as is known: the ``roles`` that were measured.
        data: the recipe's ``data`` section; its ``license`` is that of what the model learned from.
        teachers: folders of the run's saved teachers; a teacher's own card does not look at them.
    """
    inherited = [] if is_teacher(role) else [name for teacher in teachers for name in licences(teacher)]
    own = [str(data["license"])] if data.get("license") else []
    every = list(dict.fromkeys([*own, *inherited]))
    files = exported(content.get("export", {}), content["metric"]["name"]) if role == "student" else ""
    parts = [
        _front(about, content, every, role, data),
        f"# {about.title}",
        about.what,
        f"## How to use it\n\n{about.use}" if about.use else "",
        "## What it reaches\n\n" + _reached(content, role),
        "## Its files\n\n" + files if files else "",
        "## How it was made\n\n" + _made(content, role, data),
        "## Licences\n\n" + _licences(own, inherited, role),
        "## Versions\n\n" + ", ".join(f"{package} {number}" for package, number in content["versions"].items()),
    ]
    write_bytes(folder / README, ("\n\n".join(part for part in parts if part) + "\n").encode())
    if (folder / CARD).is_file():
        facts = {"metrics": reached(content, role), "license": every, "recipe": short(str(content["recipe"]))}
        write_json(folder / CARD, read_object(folder / CARD) | facts)
        hub.write_config(folder)


def reached(content: Mapping[str, Any], role: str) -> dict[str, Any]:
    """The main metric of `role` on test, and its interval: what ``check --gate`` measures again."""
    name, metrics = content["metric"]["name"], content["roles"][role]["metrics"]
    return {key: metrics[key] for key in (name, f"{name}_interval") if key in metrics}


# docs/decisions/010-pages-and-cards.md
def licences(folder: Path) -> list[str]:
    """The licences that the card of a saved model names, by its front matter; none where there is no card."""
    found = front(folder).get("license") or []
    several = found if isinstance(found, list) else [found]
    if any(isinstance(one, dict | list) for one in several):
        raise UserError(f"{folder / README}: license: a name, or a list of names, is expected: mend the card")
    return [str(one) for one in several]


def front(folder: Path) -> dict[str, Any]:
    """The front matter of a model's card, ``{}`` where it has none.

    Raises:
        UserError: it has one that cannot be read: what it says of licences would be lost without a word.
    """
    path = folder_of(folder) / README
    if not path.is_file():
        return {}
    try:
        text = read_bytes(path, MOST).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as UTF-8 text ({type(error).__name__}): mend the card") from None
    if not re.match(r"---[ \t]*\n", text):
        return {}
    _, matter, *rest = re.split(r"^---[ \t]*\n", f"{text}\n", flags=re.MULTILINE)
    advice = "mend it (its license is handed down to the student), or remove the lines between the ---"
    if not rest:
        raise UserError(f"{path}: its front matter has no end (a line of ---): {advice}")
    try:
        found = read_yaml(matter)[0]
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none is a ValueError
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 2}" if mark else ""
        why = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UserError(f"{path}{line}: its front matter is not YAML ({why}): {advice}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise UserError(f"{path}: its front matter is no mapping of keys: {advice}")
    return found


def _front(about: About, content: Mapping[str, Any], every: Sequence[str], role: str, data: Mapping[str, Any]) -> str:
    name = content["metric"]["name"]
    tags = ["knowledge-distillation", "xmodal-kd", *about.front.get("tags", ())]
    found: dict[str, Any] = {"library_name": "xmodal-kd", **about.front, "tags": tags, "metrics": [name]}
    found["model-index"] = [{"name": about.title, "results": [{
        "task": {"type": about.front.get("pipeline_tag", "other")},
        "dataset": {"name": _sources(data), "type": _sources(data), "split": "test"},
        "metrics": [{"type": name, "name": f"{name} on test", "value": content["roles"][role]["metrics"][name]}],
    }]}]  # fmt: skip
    if every:
        found["license"] = every[0] if len(every) == 1 else list(every)
    return f"---\n{yaml.safe_dump(found, sort_keys=False)}---"


def _reached(content: Mapping[str, Any], role: str) -> str:
    name, better = content["metric"]["name"], "less" if content["metric"]["lower_is_better"] else "more"
    head = ["role", "parameters", f"{name} (test)", "95 % interval", f"{name} (dev)", "GFLOPs a sample"]
    rows = [result_row(key, entry, name) for key, entry in content["roles"].items()]  # times are the report's
    said = [table(head, rows), f"This is the {role}. Of {name}, {better} is better."]
    if role == "student" and "gap_closed" in content:
        said.append(gap(content))
    return "\n\n".join(said)


def _made(content: Mapping[str, Any], role: str, data: Mapping[str, Any]) -> str:
    lines = [
        f"- **recipe**: `{short(str(content['recipe']))}`"
        + "".join(f", `{key}={'null' if value is None else value}`" for key, value in content["overrides"].items()),
        f"- **method**: {content['method'] if role == 'student' else 'its own labels, without a teacher'}",
        f"- **data**: {_sources(data)}",
        f"- **seed**: {content['seed']}",
    ]
    sizes = [f"{entry['parameters']:,} parameters" for name, entry in content["roles"].items() if is_teacher(name)]
    if sizes and not is_teacher(role):
        lines.insert(2, f"- **teacher**: {', '.join(sizes)}")
    return "\n".join(lines)


def _sources(data: Mapping[str, Any]) -> str:
    sources = data.get("sources", "of its modality")
    return ", ".join(sources) if isinstance(sources, list | tuple) else str(sources)


def _licences(own: Sequence[str], inherited: Sequence[str], role: str) -> str:
    said = [f"- of the data it learned from: {', '.join(own) or 'not stated (`data.license` in the recipe)'}"]
    if not is_teacher(role):
        said.append(f"- inherited from its teacher: {', '.join(inherited) or 'the card of its teacher names none'}")
    return "\n".join(said)


__all__ = ["README", "front", "licences", "reached", "write"]
