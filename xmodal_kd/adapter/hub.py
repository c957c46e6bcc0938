"""A saved model on the Hugging Face Hub: what lies in its folder, how it gets there, and how it is loaded from there.

``huggingface_hub`` is imported when something is pushed or fetched; where it asks, as whom, and where it keeps what it
has fetched is said as for every other program that uses it (``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HOME``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..runtime.bounded_files import read_text
from ..runtime.errors import RunError, UserError
from ..runtime.whole_files import read_object, write_json
from .saved_model import student_of

CONFIG, README, INDEX, CARD = "config.json", "README.md", "model_index.json", "card.json"
LIBRARY = "xmodal-kd"
#: What is pushed, and what is fetched: weights that hold no code, what builds them again, what people read.
KINDS = (".safetensors", ".json", ".onnx", ".onnx.data", ".npz", ".md", ".txt", ".png")
#: Weights that run code where they are loaded.
CODE = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth", ".py")
#: A program that a run leaves beside a model for people to call: pushed, and not fetched, for nothing here runs it.
PROGRAM = "transcribe.py"
#: ``owner/name`` as the Hub takes it.
REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
#: How a card says that it is loaded from where it lies.
HERE = '"path/to/this/folder"'


def write_config(folder: Path) -> None:
    """``config.json`` beside ``card.json``, which says the same to whoever looks for a model by the Hub's names.

    A diffusers pipeline has the configurations of its parts, and what `transformers` builds a model by stays.
    """
    theirs = (folder / CONFIG).is_file() and read_object(folder / CONFIG).get("library_name") != LIBRARY
    if (folder / CARD).is_file() and not (folder / INDEX).is_file() and not theirs:
        card = read_object(folder / CARD)
        kept = {key: card[key] for key in ("modality", "model", "params") if key in card}
        kind = "-".join([LIBRARY, *([str(card["modality"])] if "modality" in card else [])])
        write_json(folder / CONFIG, {"library_name": LIBRARY, "model_type": kind, **kept})


def fetched(name: Path | str, revision: str | None = None) -> Path:
    """The folder of a saved model: one that is there, or a repository of the Hub, which is fetched and kept.

    Args:
        name: a path, or ``owner/name``.
        revision: a branch, a tag or a commit of the repository.

    Raises:
        UserError: there is no such folder, and no such repository can be fetched.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if not REPO.fullmatch(str(name)):
        raise UserError(f"{name}: no such folder, and not a name that a repository could have (owner/name)")
    from huggingface_hub import snapshot_download

    with _told(f"{name}: no such folder, and it cannot be fetched"):
        patterns = [f"*{kind}" for kind in KINDS]
        return Path(snapshot_download(str(name), revision=revision, allow_patterns=patterns))


def files(folder: Path) -> dict[str, Path]:
    """What of a saved student is pushed, by its name in the repository. A model in a folder of its own is another one.

    Raises:
        UserError: it lacks a card, weights or a configuration, or holds weights that run code.
    """
    if (student := student_of(folder)) is not None:
        raise UserError(f"{folder} is a run: push its student: {student}")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    others = {path.parent for name in (INDEX, CARD) for path in folder.rglob(name)} - {folder}
    found = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not others & {*path.parents} and not _hidden(path.relative_to(folder))
    }
    if outside := next((name for name, path in found.items() if not _inside(path, folder)), None):
        raise UserError(f"{folder / outside} links to a file elsewhere: copy what is to be pushed")
    if code := next((name for name in found if name.lower().endswith(CODE) and name != PROGRAM), None):
        raise UserError(f"{folder / code}: runs code where it is loaded: save the weights as safetensors")
    for name, what in ((README, "card"), (CONFIG, "configuration")):
        if name not in found and not (name == CONFIG and INDEX in found):
            raise UserError(f"{folder}: has no {what} ({name}): write it with: xmodal-kd export RUN")
    if not any(name.endswith(".safetensors") for name in found):
        raise UserError(f"{folder}: has no weights (*.safetensors)")
    return {name: path for name, path in found.items() if name.endswith(KINDS) or name == PROGRAM}


def push(found: Mapping[str, Path], repo: str, *, private: bool) -> str:
    """Put files into a repository, which is made where it is not there, as one commit; returns its address.

    The card that is pushed says that the model is loaded from `repo`.

    Raises:
        UserError: nobody is logged in, or who is may not write there.
        RunError: the Hub did not take them.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    def content(name: str, path: Path) -> Any:
        return read_text(path).replace(HERE, f'"{repo}"').encode() if name == README else str(path)

    with _told(f"{repo}: cannot be pushed to"):
        hub = HfApi(library_name="xmodal-kd")
        address = hub.create_repo(repo, private=private, exist_ok=True)
        operations = [CommitOperationAdd(name, content(name, path)) for name, path in found.items()]
        hub.create_commit(repo, operations, commit_message="A student of xmodal-kd")
    return str(address)


def check_name(repo: str) -> None:
    """Raises `UserError` for what is no name of a repository."""
    if not REPO.fullmatch(repo):
        raise UserError(f"{repo!r} is no name of a repository: owner/name of letters, digits, - _ and . is expected")


@contextmanager
def _told(what: str) -> Iterator[None]:
    """What the Hub answers is one line: of a missing token or right what to do, else that it failed."""
    from huggingface_hub import errors

    try:
        yield
    except errors.LocalTokenNotFoundError:
        raise UserError(f"{what}: nobody is logged in: hf auth login, or set HF_TOKEN") from None
    except (errors.HfHubHTTPError, errors.HFValidationError, errors.LocalEntryNotFoundError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        told = " ".join(str(error).split())[:300]
        if status in (401, 403):
            raise UserError(f"{what}: not allowed ({status}): hf auth login with a token that may ({told})") from None
        if status == 404 or isinstance(error, errors.HFValidationError | errors.LocalEntryNotFoundError):
            raise UserError(f"{what}: {told}") from None
        raise RunError(f"{what}: {told}") from None
    except (OSError, getattr(errors, "HTTPError", OSError)) as error:  # of the network
        raise RunError(f"{what}: {' '.join(str(error).split())[:300]}") from None


def _hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts)


def _inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


__all__ = ["CONFIG", "check_name", "fetched", "files", "push", "write_config"]
