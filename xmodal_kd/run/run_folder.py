"""A run folder: begun, or gone on with by one process at a time, which knows what the run was made from."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import yaml

from ..adapter.adapter import adapter_class
from ..recipe.recipe import Loaded
from ..recipe.yaml_reader import flat
from ..runtime.bounded_files import read_text
from ..runtime.checkpoint import disk_errors, read_json, write_bytes, write_json
from ..runtime.errors import UserError
from ..runtime.leftovers import clear
from ..runtime.run_lock import NAME, RunLock
from . import provenance
from .fingerprints import check_unchanged
from .resolved_recipe import resolved

STATE, RECIPE = "state.json", "recipe.yaml"
#: The recipe as it was written for this run, with its comments, where ``distil`` wrote it.
DRAFT = "draft.yaml"
#: What stands in a run folder before its state does: a kill may leave it alone.
FIRST = frozenset({RECIPE, DRAFT, f"{Path(DRAFT).stem}.bad.txt", NAME, provenance.FILE})
#: Keys of a recipe that decide nothing of the result, by their last part, or by their first.
FREE_ENDS, FREE_STARTS = (".workers", ".ahead"), ("trackers", "out", "on", "cache.path")


@dataclass(frozen=True)
class Opening:
    """How a run folder is opened.

    Attributes:
        resume: whether a run may be there.
        accept: go on though teachers, samples or finished roles have changed, and note it.
        hash_data: know the samples by their content however large they are.
        loaded: role and folder of each model that the recipe loads.
        threads_matter: whether the number of threads decides the last bits, as on a CPU.
        prints: by role, a hash of all of the recipe that decides it.
    """

    resume: bool
    accept: bool
    hash_data: bool
    loaded: Sequence[tuple[str, Path]]
    threads_matter: bool = True
    prints: Mapping[str, str] = field(default_factory=dict)


def read_state(out: Path) -> dict[str, Any]:
    """``state.json`` of a run. Raises `UserError` where it is none, or not what the run wrote."""
    path = out / STATE
    found = read_json(path)
    sound = isinstance(found, dict) and isinstance(found.get("fingerprint"), str)
    roles = found.get("roles") if sound else None
    if not isinstance(roles, dict) or not all(isinstance(entry, dict) for entry in roles.values()):
        raise UserError(f"{path} is not a run's state, or damaged: restore it, or start another run with --out")
    if ("digest" in found or "id" in found) and found.pop("digest", None) != _digest(found):
        raise UserError(f"{path} is not what the run wrote: restore it, or start another run with --out")
    for role, entry in roles.items():
        if (key := _wrong(entry)) is not None:
            raise UserError(f"{path}: roles.{role}.{key} is missing or damaged: restore it, or start another run")
    return found  # type: ignore[no-any-return]


def _wrong(entry: Mapping[str, Any]) -> str | None:
    """The first key of a role's entry that every run writes and that is not of its type."""
    kinds = {"parameters": int, "metrics": dict, "dev_metrics": dict, "examples": list, "scores": list}
    wrong = next((key for key, kind in kinds.items() if not isinstance(entry.get(key), kind)), None)
    scored = {"item", "group", "errors", "units"}
    if wrong is None and not all(isinstance(one, dict) and one.keys() == scored for one in entry["scores"]):
        return "scores"
    return wrong


def write_state(out: Path, state: Mapping[str, Any]) -> None:
    """Whole or not at all, with its own digest."""
    plain = json.loads(json.dumps(state))  # as it will be read: JSON has no tuples
    write_json(out / STATE, {**plain, "digest": _digest(plain)})


def _digest(state: Mapping[str, Any]) -> str:
    return blake2b(json.dumps(state, sort_keys=True).encode(), digest_size=16).hexdigest()


def open_run(out: Path, loaded: Loaded, how: Opening) -> tuple[dict[str, Any], RunLock]:
    """The state of the run in `out`, which is begun or gone on with, and the lock that keeps others away.

    Raises:
        UserError: somebody is at work there; it holds something else, a run that is not to go on, one of another
            recipe, or one whose teachers, samples or finished roles are not what they were.
    """
    refuse_folder(out, how)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    lock = RunLock(out)
    try:
        refuse_folder(out, how)  # another process may have been quicker
        clear(out, below=True, ours=True)
        state = _go_on(out, loaded, how) if (out / STATE).exists() else _begin(out, loaded, how)
    except BaseException:
        lock.release()
        raise
    return state, lock


def refuse_folder(out: Path, how: Opening) -> None:
    """Raises `UserError` where `out` holds something else, or a run that is not to go on."""
    if (out / STATE).exists():
        if not how.resume:
            raise UserError(f"{out} holds a run already: --resume goes on with it, --out starts another")
        return
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"--out {out} is no folder: choose another")
    with disk_errors(out):
        rest = [found for found in out.iterdir() if found.name not in FIRST and found.suffix != ".tmp"]
    if rest:
        raise UserError(f"{out} is not empty and not a run: choose another --out")


def _begin(out: Path, loaded: Loaded, how: Opening) -> dict[str, Any]:
    """The recipe is written first: a folder that holds no state is a run that was killed at its start."""
    write_bytes(out / RECIPE, yaml.safe_dump(resolved(loaded), sort_keys=False).encode())
    provenance.write(out, _origins(out, loaded, how))
    state = {
        "fingerprint": loaded.recipe.fingerprint(), "prints": dict(how.prints), "id": secrets.token_hex(8),
        "changes": [], "roles": {},
    }  # fmt: skip
    write_state(out, state)
    return state


def _go_on(out: Path, loaded: Loaded, how: Opening) -> dict[str, Any]:
    state, before = read_state(out), provenance.read(out)
    content = any(known[2] for known in before["samples"].values()) if before else False
    now = _origins(out, loaded, how, content)
    moved = state["fingerprint"] != loaded.recipe.fingerprint()
    if moved and (decisive := _decisive(out, loaded, how, before, now)):
        check_unchanged(out, state, how.prints, decisive)
        state.pop("overview", None)  # measured of all roles together
    found = provenance.differences(before, now, state["roles"], out)
    if found and not how.accept:
        raise UserError(
            f"{out} was made from something else: {provenance.told(found)}: restore it, start another run with --out, "
            "or say --accept-changes, which goes on and is told in the report"
        )
    for entry, role in ((entry, role) for role, entry in state["roles"].items() if found and "files" in entry):
        entry["files"] = provenance.model_files(out / role)
    if found:
        state["changes"] = [*state.get("changes", []), *found]
    if found or moved or not before:
        provenance.write(out, now)
        write_bytes(out / RECIPE, yaml.safe_dump(resolved(loaded), sort_keys=False).encode())
        state |= {"fingerprint": loaded.recipe.fingerprint(), "prints": dict(how.prints)}
        write_state(out, state)
    return state


def _origins(out: Path, loaded: Loaded, how: Opening, content: bool = False) -> dict[str, Any]:
    kind = adapter_class(loaded.recipe.modality)
    data = loaded.validate(kind.Data, loaded.recipe.data, ("data",))
    files = provenance.sample_files(kind, data, out)
    return provenance.origins(how.loaded, provenance.noted(files, content or how.hash_data))


def _decisive(out: Path, loaded: Loaded, how: Opening, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first key in which the recipe differs that may decide a result, with both values; "" where none does."""
    same_samples = bool(before) and bool(before["samples"])  # those that differ are named by `differences`
    for key, was, now_ in changed(out / RECIPE, loaded):
        path = key.rpartition(".")[2] == "path" or key.endswith("_path")
        moved = path and (
            (same_samples and key.startswith("data."))
            or (bool(before) and key.startswith(("teacher.", "teachers.")) and bool(before["loaded"]))
        )
        free = key.endswith(FREE_ENDS) or key.startswith(FREE_STARTS)
        if not (moved or free or (key == "threads" and not how.threads_matter)):
            return f"{key} was {was!r}, is {now_!r}"
    return ""


def changed(written: Path, loaded: Loaded) -> Iterable[tuple[str, Any, Any]]:
    """The keys in which the recipe that a run was started with, as `written`, differs from this one: before, now."""
    try:
        content = yaml.safe_load(read_text(written))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{written} is damaged: {' '.join(str(error).split())}: restore it") from None
    before, now = flat(content, lists=True), flat(resolved(loaded), lists=True)
    return [
        (key, before.get(key), now.get(key))
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


__all__ = ["DRAFT", "RECIPE", "STATE", "Opening", "open_run", "read_state", "refuse_folder", "write_state"]
