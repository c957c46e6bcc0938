"""What ``compare --dry-run`` prints is what would run, in that order: tried by a shell that stands in."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from toy import RECIPE

from xmodal_kd.cli.main import call

#: Stands in for Slurm's: notes its options, runs all tasks of the array at once, and gives its job a number.
SBATCH = """#!/bin/bash
echo "$@" >> options
script=$(cat)
last=$(sed -n 's/.*--array=0-\\([0-9]*\\).*/\\1/p' <<< "$*")
for SLURM_ARRAY_TASK_ID in $(seq 0 "$last"); do export SLURM_ARRAY_TASK_ID; bash -c "$script"; done
wc -l < options
"""


@pytest.fixture
def printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    (tmp_path / "my toy.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)

    def run(kind: str, *more: str) -> tuple[int, str, str]:
        words = ["compare", "my toy.yaml", "--methods", "kd", "--seeds", "2", "--out", "out", "--allow-import", "toy"]
        status = call([*words, "--set", "trackers=[]", "--dry-run", kind, *more])
        return (status, *capfd.readouterr())

    return run


def commands(text: str) -> list[list[str]]:
    return [shlex.split(line) for line in text.splitlines()]


def test_cells_are_commands(printed, tmp_path: Path) -> None:
    """Each with its own folder; the teacher first, the comparison itself last."""
    status, out, _ = printed("cells")
    found = commands(out)
    assert status == 0 and not (tmp_path / "out").exists(), "nothing is run, nothing is made"
    assert [words[:2] for words in found] == [["xmodal-kd", "run"]] * 5 + [["xmodal-kd", "compare"]]
    assert "--only" in found[0] and not any("--only" in words for words in found[1:])
    folders = [words[words.index("--out") + 1] for words in found]
    assert len(set(folders)) == 6 and all("--resume" in words for words in found[:5])
    teacher = f'{{"path": "{tmp_path / folders[0] / "teacher"}"}}'
    assert [f"teacher={teacher}" in words for words in found] == [False, False, True, False, True, False]


def test_slurm_runs_them_in_order(printed, tmp_path: Path) -> None:
    status, script, _ = printed("slurm", "--device", "cpu")
    assert status == 0
    place = tmp_path / "bin"
    place.mkdir()
    for name, content in (("sbatch", SBATCH), ("xmodal-kd", '#!/bin/bash\necho "$@" >> ran\n')):
        (place / name).write_text(content)
        (place / name).chmod(0o755)
    subprocess.run(["bash", "-c", script], check=True, env={**os.environ, "PATH": f"{place}:{os.environ['PATH']}"})
    ran = (tmp_path / "ran").read_text().splitlines()
    assert [line.split()[0] for line in ran] == ["run"] * 5 + ["compare"]
    assert "--only teacher" in ran[0] and "my toy.yaml" in ran[0]
    options = (tmp_path / "options").read_text().splitlines()
    assert ["--array=0-0" in options[0], "--array=0-3" in options[1], "--array=0-0" in options[2]] == [True] * 3
    assert "--dependency" not in options[0] and "--gpus" not in options[1]
    assert "--dependency=afterok:" in options[1] and "--dependency=afterany:" in options[2]


def test_kubernetes_jobs_hold_the_same_commands(printed) -> None:
    _, plain, _ = printed("cells", "--device", "cpu")
    status, text, _ = printed("kubernetes", "--device", "cpu")
    teachers, cells = yaml.safe_load_all(text)
    assert status == 0 and [teachers["metadata"]["name"], cells["metadata"]["name"]] == ["out-teachers", "out-cells"]
    assert [job["spec"]["completions"] for job in (teachers, cells)] == [1, 4]
    assert not teachers["spec"]["suspend"] and cells["spec"]["suspend"], "until the teachers are there"
    ran = []
    for job in (teachers, cells):
        shell, flag, script = job["spec"]["template"]["spec"]["containers"][0]["command"]
        for index in range(job["spec"]["completions"]):
            told = script.replace('exec bash -c "', 'echo "')
            done = subprocess.run([shell, flag, told], env={**os.environ, "JOB_COMPLETION_INDEX": str(index)},
                                  capture_output=True, text=True, check=True)  # fmt: skip
            ran.append(shlex.split(done.stdout))
    assert ran == commands(plain)[:5]


@pytest.mark.parametrize(("more", "message"), [
    (("--search", "weight=0.1,1"), "--dry-run: with --search or --equal time cells follow"),
    (("--dry-run", "pbs"), "--dry-run 'pbs': choose one of cells, slurm, kubernetes"),
])  # fmt: skip
def test_what_cannot_be_told_before(printed, more: tuple[str, ...], message: str) -> None:
    status, _, error = printed("cells", *more)
    assert status == 2 and message in error
