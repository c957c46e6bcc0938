"""The teachers of the quickstart, trained anew by its recipes.

    python assets/make_teachers.py [MODALITY...]        (default: all; `make assets` calls it in the repository's root)

Each takes one to four minutes on an idle CPU thread. Runs go to runs/assets, where a killed one is resumed; the
finished teacher replaces the one in assets/teachers, with a card that says how it was made.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from xmodal_kd.cli.main import call
from xmodal_kd.recipe.recipe import load
from xmodal_kd.report.model_cards import README
from xmodal_kd.run.roles import make_adapter
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.teacher_cache.content import Contents

MODALITIES = ("diffusion", "points", "speech")
ROOT = Path(__file__).parent / "teachers"


def make(modality: str) -> int:
    """Train one teacher and put it in its place; the exit status of the training."""
    run = Path("runs/assets") / modality
    command = ["run", f"quickstart/{modality}", "--set", "teacher.path=null", "--only", "teacher", "--out", str(run)]
    if status := call([*command, "--resume", "--quiet"]):
        return status
    shutil.rmtree(ROOT / modality, ignore_errors=True)
    shutil.copytree(run / "teacher", ROOT / modality)
    with (ROOT / modality / README).open("a", encoding="utf-8") as card:
        card.write(
            f"\n## How to make it again\n\n```sh\nxmodal-kd {' '.join(command)}\n```\n\n"
            f"SHA-256, cut to 16 bytes, of what it saw of the training samples in their order: `{digest(modality)}`\n"
        )
    return 0


def digest(modality: str) -> str:
    """Of what the teacher sees of every training sample of the quickstart, clean."""
    loaded = load(f"quickstart/{modality}")
    adapter = make_adapter(loaded, Streams(loaded.recipe.seed))
    train, contents = adapter.data("train"), Contents()
    seen = [contents.digest(adapter.teacher_sees(train.sample(i, 0))) for i in range(len(train))]
    return contents.digest(seen).hex()


if __name__ == "__main__":
    sys.exit(max([make(modality) for modality in sys.argv[1:] or MODALITIES]))
