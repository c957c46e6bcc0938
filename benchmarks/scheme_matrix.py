"""Every scheme in every modality, for a few steps: which pairs run to a report, and which are refused with what reason.

    python benchmarks/scheme_matrix.py                  all pairs, about a quarter of an hour on an idle CPU
    python benchmarks/scheme_matrix.py --only byot dml --rooms points

It shows that a scheme works with an adapter, not what it is worth: models and steps are as small as they can be.
Written to ``benchmarks/results/scheme_matrix.json``; what was not asked for stays as it was there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp
from time import perf_counter
from typing import Any

import yaml

from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.schemes import SCHEMES

HERE = Path(__file__).parent
Content = dict[str, Any]

SPEECH: Content = {
    "modality": "speech",
    "data": {
        "sources": "fsdd", "path": str(HERE.parent / "assets" / "digits"), "tokens": "words",
        "train_speakers": ["anna", "brian"], "dev_speakers": ["duncan"], "test_speakers": ["edith"],
        "features": {"sample_rate": 8000, "mels": 40},
        "compose": {"utterances": {"train": 32, "dev": 4, "test": 4}, "clips": [1, 2]},
    },
    "student": {"model": "conv", "params": {"width": 8, "dilations": [1, 2]}},
    "objective": [{"loss": "ctc"}, {"loss": "kd", "params": {"temperature": 1.0}}],
}  # fmt: skip
POINTS: Content = {
    "modality": "points",
    "data": {
        "sources": "simulator", "sensor": "hdl64e", "scenes": {"train": 8, "dev": 2, "test": 2},
        "teacher": {"sees": "range", "beams": 16, "columns": 64}, "augment": {"jitter": 0.02},
        "student": {"sees": "range", "beams": 16, "columns": 64},
    },
    "student": {"model": "range_unet", "params": {"width": 4, "levels": 2}},
    "objective": [{"loss": "ce"}, {"loss": "kd", "params": {"temperature": 2.0}}],
}  # fmt: skip
DIFFUSION: Content = {
    "modality": "diffusion",
    "data": {
        "sources": "digits", "dev": 20, "test": 20, "samples": 12, "draws": 2,
        "sampling": {"solver": "ddim", "steps": 2},
    },
    "student": {"model": "unet", "params": {"channels": [8, 16]}},
    "objective": [{"loss": "denoising", "on": "prediction"}, {"loss": "logit_mse", "on": "prediction"}],
}  # fmt: skip
GRAPHS: Content = {
    "modality": "graphs",
    "data": {
        "sources": "simulator", "simulator": {"nodes": 120, "classes": 3, "degree": 4.0, "features": 5},
        "split": {"per_class": 4, "dev": 20, "test": 30},
    },
    "student": {"model": "sage", "params": {"width": 8}},
    "objective": [{"loss": "ce"}, {"loss": "kd", "params": {"temperature": 1.0}}],
}  # fmt: skip
ROOMS = {"speech": SPEECH, "points": POINTS, "diffusion": DIFFUSION, "graphs": GRAPHS}
#: Of each room, modules of its student: the last features, what branches share, what an exit follows.
PLACES = {
    "speech": ("norm", ["subsample", "blocks.0"], "blocks.0"),
    "points": ("features", ["encoder"], "decoder.0"),
    "graphs": ("layers.1", ["layers.0"], "layers.0"),
    "diffusion": ("net.mid_block", ["net.time_embedding"], "net.conv_in"),
}


def recipe(room: str, scheme: str) -> Content:
    """The smallest recipe of a scheme in a room."""
    base = ROOMS[room]
    last, trunk, middle = PLACES[room]
    teacher = {**base["student"], "train": {"steps": 2, "batch_size": 4}}
    params: dict[str, Content] = {
        "assistants": {"assistants": [base["student"]]},
        "born_again": {"generations": 1},
        "you": {"on": last, "teachers": last},
        "one": {"on": last, "shared": trunk},
        "okddip": {"on": last, "peers": 2},
        "byot": {"exits": [middle], "feature": last},
        "ddgsd": {"on": last},
        "lwf": {"old": base["data"]},
        "pdr": {"old": base["data"], "exemplars": 4},
    }
    made = {
        **base, "seed": 1, "scheme": {"name": scheme, "params": params.get(scheme, {})},
        "train": {"steps": 4, "batch_size": 8, "optimizer": {"lr": 5e-3}, "eval_every": 4}, "trackers": [],
    }  # fmt: skip
    kind = SCHEMES[scheme]
    if kind.recipe_teacher == "needed":
        made["teacher"] = teacher
    if kind.several:
        made["teachers"] = {"other": teacher}
    if scheme == "uhc":
        made["objective"] = [*base["objective"][:1], {"loss": "uhc"}]
    return made


def tried(room: str, scheme: str, folder: Path) -> Content:
    """What became of one pair."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(room, scheme)))
    command = ["run", str(folder / "recipe.yaml"), "--out", str(folder / "run"), "--quiet", "--device", "cpu"]
    began = perf_counter()
    done = subprocess.run([sys.executable, "-m", "xmodal_kd", *command], capture_output=True, text=True, check=False)
    found: Content = {"modality": room, "scheme": scheme, "seconds": round(perf_counter() - began, 1)}
    if done.returncode == 0:
        report = read_json(folder / "run" / "report.json")
        return found | {"status": "runs", "roles": list(report["roles"])}
    line = (done.stderr.strip().splitlines() or ["no word"])[-1].removeprefix("error: ")
    return found | {"status": "refused" if done.returncode == 2 else "failed", "reason": line}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(SCHEMES))
    parser.add_argument("--rooms", nargs="*", default=list(ROOMS))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "scheme_matrix.json")
    asked = parser.parse_args()
    held = json.loads(asked.out.read_text()) if asked.out.exists() else []
    results = {(row["modality"], row["scheme"]): row for row in held}
    work = Path(mkdtemp(prefix="schemes-"))
    for room in asked.rooms:
        for scheme in asked.only:
            row = results[room, scheme] = tried(room, scheme, work / room / scheme)
            print(f"{room:10}{scheme:14}{row['status']:9}{row['seconds']:7.1f} s  {row.get('reason', '')}", flush=True)
            asked.out.write_text(json.dumps([results[key] for key in sorted(results)], indent=1) + "\n")
    if any(row["status"] == "failed" for row in results.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
