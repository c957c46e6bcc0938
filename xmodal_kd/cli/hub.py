"""The command that publishes a student, behind its options."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer


def push(
    student: Annotated[Path, typer.Argument(help="The folder of a saved student: RUN/student.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="owner/name on the Hugging Face Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Only for its owner, where it is made now.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be pushed, and push nothing.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Put a student on the Hugging Face Hub: its card, weights, configuration and ONNX files, as one commit.

    The repository is made where it is not there. Weights that run code where they are loaded are refused; hidden files
    and whatever is no part of a student stay here. Who is logged in (hf auth login, or HF_TOKEN) pushes. What is there
    is loaded by Recogniser.from_pretrained("owner/name") (speech), Segmenter.from_pretrained (points),
    ImageClassifier.from_pretrained (images) or DiffusionPipeline.from_pretrained (diffusion).

    Example: xmodal-kd push runs/fsdd/student me/digits --dry-run
    """
    from ..adapter import hub
    from ..report.model_cards import front

    hub.check_name(repo)
    found = hub.files(student)
    front(student)  # one that cannot be read would be refused there
    sizes = {name: path.stat().st_size for name, path in found.items()}
    address = None if dry_run else hub.push(found, repo, private=private)
    if json_:
        print(json.dumps({"repo": repo, "address": address, "files": sizes}))
        return
    for name, size in sizes.items():
        print(f"{size:>14,}  {name}")
    total = f"{len(sizes)} files, {sum(sizes.values()) / 2**20:.1f} MiB"
    print(f"{total} would go to {repo}" if address is None else f"{total} are at {address}")


#: By name; `cli` adds them to the program.
COMMANDS: Mapping[str, Callable[..., None]] = {"push": push}
