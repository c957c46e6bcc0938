"""Comparisons: which runs they take, how these are run, reused and judged, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cells_inside import SHORT, Ended, Inside, pool
from toy import RECIPE

from xmodal_kd.cli.main import call
from xmodal_kd.compare import Plan, Pool, Search, compare
from xmodal_kd.recipe.recipe import On, load
from xmodal_kd.run.roles import make_adapter, role_plans
from xmodal_kd.runtime.checkpoint import read_json, read_tensors
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.registry import allowed_imports
from xmodal_kd.training.method import METHODS, Distil

Capture = pytest.CaptureFixture[str]


pytestmark = pytest.mark.usefixtures("toy_allowed")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Inside]:
    """Two losses by three seeds, finished."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "toy.yaml").write_text(RECIPE)
    allowed_imports.add("toy")
    launch = Inside()
    plan = Plan(str(folder / "toy.yaml"), SHORT, methods="kd,hint@body", seeds=3)
    return folder, compare(plan, pool(folder / "out", launch)), launch


# ---------------------------------------------------------------- arms


def objective(plan: Plan, arm: int = 0) -> list[tuple[str, Any, float]]:
    terms = load(plan.recipe, [*plan.sets, *plan.arms[arm].sets]).recipe.objective
    return [(t.loss, t.on.model_dump() if isinstance(t.on, On) else t.on, t.weight) for t in terms]


@pytest.mark.parametrize(
    ("name", "term"),
    [
        ("kd", ("kd", "logits", 1.0)),
        ("kd=0.3", ("kd", "logits", 0.3)),
        ("hint", ("hint", "body", 1.0)),  # the recipe's own place
        ("cka", ("cka", "body", 1.0)),  # the recipe's place of features
        ("hint@head=2", ("hint", "head", 2.0)),
        ("at@body.0+body", ("at", ("body.0", "body"), 1.0)),
        ("cka@body.0/body", ("cka", {"student": "body.0", "teacher": "body"}, 1.0)),
    ],
)
def test_a_loss_takes_the_place_of_all_that_need_the_teacher(name: str, term: Any, recipe: str) -> None:
    plan = Plan(recipe, methods=name)
    assert objective(plan) == [("test_ce", "logits", 1.0), term]
    assert (plan.arms[0].name, plan.arms[0].term) == (name, 1)


class Frugal(Distil):
    """A method whose control is the teacher within the student's budget."""

    control = "teacher"


def test_the_recipe_as_it_is_and_a_method_by_name(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [t[0] for t in objective(Plan(recipe, methods="recipe"))] == ["test_ce", "kd", "hint"]
    monkeypatch.setitem(METHODS._items, "frugal", Frugal)
    plan = Plan(recipe, methods="kd,frugal", seeds=1)
    assert [plan.cell(arm, 3).loaded.recipe.method.name for arm in plan.arms] == ["distil", "frugal"]
    controls = [plan.control(arm, 3) for arm in plan.arms]
    assert controls[0] is not None and controls[1] is None, "the teacher is the latter's control: it is not trained"
    assert [plan.cell(arm, 3).loaded.recipe.control for arm in plan.arms] == [False, True], "but measured in its run"


def test_axes_multiply(recipe: str) -> None:
    plan = Plan(recipe, methods="kd,dist", axes=["train.ema=0.5,null", "objective.1.weight=0.1,1"])
    assert len(plan.arms) == 8
    assert plan.arms[1].name == "kd train.ema=0.5 objective.1.weight=1"
    assert {arm.name: plan.cell(arm, 3).loaded.recipe.train.ema for arm in plan.arms}[plan.arms[2].name] is None
    reference = plan.reference(plan.arms[5])
    assert reference is plan.arms[1], "kd with the same axes"
    assert plan.reference(plan.arms[0]) is None
    only = Plan(recipe, axes=["train.optimizer.betas=[0.9, 0.99],[0.8, 0.99]"])
    assert [only.cell(a, 3).loaded.recipe.train.optimizer.betas[0] for a in only.arms] == [0.9, 0.8]
    assert only.reference(only.arms[0]) is None
    assert only.reference(only.arms[1], only.arms[0].name) is only.arms[0]


def test_seeds_count_from_the_recipes(recipe: str) -> None:
    plan = Plan(recipe, methods="kd", seeds=2)
    assert plan.seeds == [3, 4]
    assert [plan.cell(plan.arms[0], seed).loaded.recipe.seed for seed in plan.seeds] == [3, 4]


def test_teacher_and_control_are_shared_by_content(recipe: str) -> None:
    plan = Plan(recipe, methods="kd,dist", axes=["objective.1.weight=0.1,1"])
    assert len({plan.control(a, 3).key for a in plan.arms}) == 1  # type: ignore[union-attr]
    assert len({plan.teacher(a, s).key for a in plan.arms for s in plan.seeds}) == 1  # type: ignore[union-attr]
    beside = plan.teacher(plan.arms[0], 3)
    assert beside is not None and beside.loaded.recipe.student == load(recipe).recipe.student, "it sees what that sees"
    per_seed = Plan(recipe, methods="kd,dist", teacher_per_seed=True)
    assert len({per_seed.teacher(a, s).key for a in per_seed.arms for s in per_seed.seeds}) == 3  # type: ignore[union-attr]
    wider = Plan(recipe, methods="kd", axes=["student.params.width=8,12", "teacher.params.width=24,32"])
    assert len({wider.control(a, 3).key for a in wider.arms}) == 2, "a control has its arm's width"  # type: ignore[union-attr]
    assert len({wider.teacher(a, 3).key for a in wider.arms}) == 2  # type: ignore[union-attr]


def test_a_key_is_of_content(recipe: str) -> None:
    plan = Plan(recipe, methods="kd,kd=0.5")
    kd, half = (plan.cell(arm, 3) for arm in plan.arms)
    again = Plan(recipe, ["trackers=[]", "out=elsewhere"], axes=["objective=[{loss: test_ce}, {loss: kd}]"])
    assert again.cell(again.arms[0], 3).key == kd.key != half.key
    other = Plan(recipe, ["teacher.params.width=32"], methods="kd")
    assert other.cell(other.arms[0], 3).key != kd.key, "another teacher is another cell"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--methods", "kd,hnit@body"], "'hnit' is no loss (nearest: hint"),
        (["--methods", "kd,disst"], "unknown arm 'disst' (nearest: dist"),
        (["--methods", "kd,control"], "the control is always an arm"),
        (["--methods", "kd,test_ce"], "test_ce needs no teacher"),
        (["--methods", "kd,kd"], "--methods: 'kd' is given twice"),
        (["--methods", "kd,kd=1.0"], "the arms 'kd' and 'kd=1.0' are the same run"),
        (["--methods", "kd,"], "nothing between two commas"),
        (["--methods", "kd=-1"], "a weight is above 0"),
        (["--methods", "kd=much"], "'much' is no weight"),
        (["--methods", "kd,hint@bodies"], "hint@bodies: objective, teacher: no module 'bodies' in Net (nearest: body"),
        (["--methods", "distil,recipe"], "the arms 'distil' and 'recipe' are the same run"),
        (["--methods", "at", "--set", "objective=[{loss: test_ce}, {loss: kd}]"], "as in at@encoder.3"),
        (["--methods", "kd", "--set", "teacher=null"], "the recipe has no teacher"),
        ([], "give --methods kd,dist or --axis"),
        (["--axis", "train.emma=0.5,0.9"], "unknown key 'train.emma' (nearest: ema"),
        (["--axis", "train.ema"], "write key=value,value"),
        (["--axis", "train.ema=0.5,2"], "train.ema: Input should be less than 1"),
        (["--axis", "seed=1,2"], "--seeds says how often"),
        (["--axis", "objective.1.params.temprature=1,2"], "objective.1.params.temprature=1: "),
        (["--methods", "kd", "--reference", "dk"], "--reference 'dk' is no arm (nearest: kd"),
        (["--methods", "kd", "--search", "temperature=1,2"], "write weight=0.1,0.3,1.0"),
        (["--methods", "kd", "--search", "weight=0,1"], "each above 0"),
        (["--methods", "kd", "--search", "weight=1,1.0"], "a weight is given twice"),
        (["--methods", "kd", "--search", "weight=1,2", "--search-seed", "4"], "is one of the measured seeds [3, 4, 5]"),
        (["--methods", "recipe", "--search", "weight=1,2"], "there is no weight to search"),
        (["--methods", "kd", "--search-steps", "4"], "need --search"),
        (["--methods", "kd", "--seeds", "0"], "--seeds"),
        (["--methods", "kd", "--device", "gpu"], "choose one of auto, cpu, cuda, mps"),
    ],
)
def test_refused_before_anything_is_trained(
    arguments: list[str], expected: str, recipe: str, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr("xmodal_kd.compare.command.Pool", lambda settings: Pool(settings, lambda *_: Ended(1)))
    status = call(["compare", recipe, "--out", str(out), "--allow-import", "toy", "--quiet", *arguments])
    captured = capfd.readouterr()
    assert status == 2 and captured.out == "" and not out.exists()
    [line] = captured.err.splitlines()
    assert line.startswith("error: ") and expected in line


# ---------------------------------------------------------------- whole


def test_what_is_trained(compared: tuple[Path, dict[str, Any], Inside]) -> None:
    """The teacher once, the control and each arm once a seed, each with the recipe's threads."""
    folder, found, launch = compared
    names = [Path(words[words.index("--out") + 1]).name.rpartition("-")[0] for words in launch.commands]
    arms = [f"{arm}-seed-{seed}" for seed in (3, 4, 5) for arm in ("control", "kd", "hint-body")]
    assert names == ["teacher-seed-3", *arms]
    assert {cell["status"] for cell in found["cells"]} == {"done"} and len(found["cells"]) == 10
    assert all(env["OMP_NUM_THREADS"] == "1" for env in launch.environments)
    logs = sorted((folder / "out" / "cells").glob("*.log"))
    assert all(path.read_text().startswith("$ xmodal-kd run ") for path in logs) and len(logs) == 10


def test_equal_exposure_and_one_teacher(compared: tuple[Path, dict[str, Any], Inside]) -> None:
    folder, found, _ = compared
    reports = [read_json(folder / "out" / c["folder"] / "report.json") for c in found["cells"] if c["name"][0] != "t"]
    assert {(r["cost"]["student"]["samples"], r["cost"]["student"]["steps"]) for r in reports} == {(18, 3)}
    [teacher] = (folder / "out" / "cells").glob("teacher*/teacher")
    with_teacher = [r for r in reports if "teacher" in r["roles"]]
    assert len(with_teacher) == 6 and len({r["roles"]["teacher"]["metrics"]["error"] for r in with_teacher}) == 1
    assert all(Path(r["overrides"]["teacher"]["path"]) == teacher for r in with_teacher)


def test_students_are_saved_and_one_is_exported_by_its_command(
    compared: tuple[Path, dict[str, Any], Inside], recipe: str, tmp_path: Path, capfd: Capture
) -> None:
    folder, found, _ = compared
    cells = [folder / "out" / cell["folder"] for cell in found["cells"] if cell["name"][0] != "t"]
    assert all(read_json(cell / "report.json")["export"] == {} for cell in cells)
    assert not [*folder.rglob("exported.safetensors")] and (cells[0] / "student" / "model.safetensors").is_file()
    assert call(["export", str(cells[0]), "--allow-import", "toy", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["exported.safetensors"]["bytes"] > 0
    again = [
        "compare",
        str(folder / "toy.yaml"),
        *(w for one in SHORT for w in ("--set", one)),
        "--methods",
        "kd,hint@body",
    ]
    assert call([*again, "--out", str(folder / "out"), "--allow-import", "toy", "--device", "cpu", "--export"]) == 0
    assert "9 finished cell(s) were not exported and are not now" in capfd.readouterr().err
    command = ["compare", recipe, "--methods", "kd", "--seeds", "1", "--dry-run", "cells"]
    printed = []
    for more in ([], ["--export"]):
        assert call([*command, "--out", str(tmp_path / "out"), *more]) == 0
        printed.append(capfd.readouterr().out.splitlines())
    assert [["--no-export" in line for line in lines] for lines in printed] == [[False, True, True, False], [False] * 4]
    assert "--export" in printed[1][-1], "as the comparison that follows the cells"


def test_a_scheme_prepares_teacher_and_control_of_its_arms(recipe: str) -> None:
    """LwF's old model learns the old task, a robust teacher and its student's control are attacked."""
    lwf = "scheme={name: lwf, params: {old: {train: 12, dev: 4, test: 8}}}"
    plan = Plan(recipe, [lwf], methods="kd,gjsd")
    [one, other] = [plan.teacher(arm, 1) for arm in plan.arms]
    assert one is not None and other is not None and one.key == other.key
    [teacher] = [p for p in role_plans(one.loaded, make_adapter(one.loaded, Streams(1))) if p.role == "teacher"]
    assert teacher.data is not None and teacher.data[0] == "old"
    robust = Plan(recipe, axes=["scheme={name: ard, params: {robust_teacher: true}},tfkd_self"])
    kept = [robust.teacher(arm, 1) for arm in robust.arms]
    assert [cell and cell.loaded.recipe.scheme is not None for cell in kept][:1] == [True]
    assert [robust.inside(arm) for arm in robust.arms] == [True, False]


def test_the_control_is_the_runs_own(compared: tuple[Path, dict[str, Any], Inside], tmp_path: Path) -> None:
    """Without dropout, whose noise is addressed by role, it equals bit for bit the control of a plain run."""
    folder = compared[0]
    plain = [*SHORT, "student.params.dropout=0.0"]
    sets = [word for item in plain for word in ("--set", item)]
    run = ["run", str(folder / "toy.yaml"), "--out", str(tmp_path / "run"), "--allow-import", "toy", "--quiet"]
    assert call([*run, *sets]) == 0
    plan = Plan(str(folder / "toy.yaml"), plain, methods="kd", seeds=1)
    mine, cell = pool(tmp_path / "out", Inside()), plan.control(plan.arms[0], 3)
    assert cell is not None
    mine.run([cell])
    theirs = read_tensors(tmp_path / "run" / "control" / "model.safetensors")
    ours = read_tensors(mine.folder(cell) / "student" / "model.safetensors")
    assert theirs.keys() == ours.keys() and all(theirs[name].equal(ours[name]) for name in theirs)


def test_the_numbers_are_those_of_the_runs(compared: tuple[Path, dict[str, Any], Inside]) -> None:
    folder, found, _ = compared
    assert found == read_json(folder / "out" / "compare.json")
    by_name = {c["name"]: folder / "out" / c["folder"] for c in found["cells"]}
    kd, hint = found["arms"]
    for arm in (kd, hint):
        for seed in (3, 4, 5):
            report = read_json(by_name[f"{arm['name']}, seed {seed}"] / "report.json")
            assert arm["by_seed"][str(seed)] == report["roles"]["student"]["metrics"]["error"]
    [against] = found["against_reference"]
    assert (against["arm"], against["against"], against["seeds"]) == ("hint@body", "kd", [3, 4, 5])
    expected = [hint["by_seed"][s] - kd["by_seed"][s] for s in ("3", "4", "5")]
    assert against["differences"] == expected
    assert [c["arm"] for c in found["against_control"]] == ["kd", "hint@body"]
    assert against["verdict"] in ("better", "worse", "not distinguishable") or against["reason"]
    assert against["over_items"]["units"] == 24 and against["over_groups"] is None
    assert kd["cost"]["flops_per_step"] < hint["cost"]["flops_per_step"] and kd["cost"]["parameters"] == 108
    assert found["controls"][0]["cost"]["flops_per_step"] < kd["cost"]["flops_per_step"]
    assert found["teachers"][0]["cost"]["seconds"] > 0


def test_the_page_and_the_picture(compared: tuple[Path, dict[str, Any], Inside]) -> None:
    folder = compared[0] / "out"
    text = (folder / "compare.md").read_text()
    assert "| arm | error (95 %) | against kd | against control |" in text and "Holm" in text
    assert "![Metric of every arm](compare.png)" in text
    assert (folder / "compare.png").read_bytes()[1:4] == b"PNG"


def test_what_is_finished_is_reused_and_what_is_lost_is_run(compared: tuple[Path, dict[str, Any], Inside]) -> None:
    folder, found, _ = compared
    again = Inside()
    plan = Plan(str(folder / "toy.yaml"), SHORT, methods="kd,hint@body", seeds=2)
    smaller = compare(plan, pool(folder / "out", again))
    assert not again.commands and "--resume" not in str(again.commands)
    assert smaller["arms"][0]["by_seed"] == {s: found["arms"][0]["by_seed"][s] for s in ("3", "4")}
    assert {c["verdict"] for c in smaller["against_control"]} == {None}
    assert "a verdict needs 3" in smaller["against_control"][0]["reason"]
    text = (folder / "out" / "compare.md").read_text()
    assert "No verdicts: 2 seed(s)" in text
    compare(Plan(str(folder / "toy.yaml"), SHORT, methods="kd,hint@body", seeds=3), pool(folder / "out", again))
    assert not again.commands, "and the page is as before"


def test_an_arm_whose_first_teacher_is_the_control_has_it_in_its_own_run(recipe: str, tmp_path: Path) -> None:
    sets = (*SHORT[::2], "teacher=null", "objective=[{loss: test_ce}, {loss: kd}]")
    plan = Plan(recipe, sets, axes=["scheme=tfkd_self,{name: born_again, params: {generations: 1}}"], seeds=2)
    found = compare(plan, pool(tmp_path / "out", Inside()))
    assert [len(control["by_seed"]) for control in found["controls"]] == [2, 2]
    assert len({control["name"] for control in found["controls"]}) == 2 and len(found["cells"]) == 4
    first, second = found["controls"]
    assert first["by_seed"] == second["by_seed"], "it is the same control"
    assert [one["arm"] for one in found["against_control"]] == [arm["name"] for arm in found["arms"]]


def test_help_teaches_the_syntax(capfd: Capture) -> None:
    assert call(["compare", "--help"]) == 0
    text = " ".join(capfd.readouterr().out.replace("│", " ").split())
    assert "LOSS@MODULE=WEIGHT" in text and "xmodal-kd compare speech/fsdd --methods kd,dist" in text


def test_the_command(compared: tuple[Path, dict[str, Any], Inside], capfd: Capture) -> None:
    """On cells that are there: nothing is started, the table and the JSON are shown."""
    folder, found, _ = compared
    words = ["compare", str(folder / "toy.yaml"), "--methods", "kd,hint@body", "--out", str(folder / "out")]
    words += ["--allow-import", "toy", *(w for item in SHORT for w in ("--set", item))]
    assert call([*words, "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == found
    assert call(words) == 0
    captured = capfd.readouterr()
    assert "hint@body" in captured.out and "10 of 10 cells are there already" in captured.err


def test_without_matplotlib_there_is_no_picture(
    compared: tuple[Path, dict[str, Any], Inside], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    from xmodal_kd.compare import write

    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    write(tmp_path, compared[1])
    assert not (tmp_path / "compare.png").exists() and "](compare.png)" not in (tmp_path / "compare.md").read_text()
    assert "needs matplotlib" in capfd.readouterr().err


def test_the_weight_is_chosen_on_dev_by_a_seed_of_its_own(recipe: str, tmp_path: Path) -> None:
    launch = Inside()
    plan = Plan(recipe, SHORT, methods="kd,recipe", seeds=1)
    found = compare(plan, pool(tmp_path / "out", launch), search=Search((0.1, 30.0), steps=2))
    search = found["search"]
    assert (search["seed"], search["steps"], list(search["arms"])) == (1003, 2, ["kd"])
    dev = search["arms"]["kd"]["dev"]
    assert search["arms"]["kd"]["chosen"] == min((0.1, 30.0), key=lambda weight: dev[str(weight)])
    tried = [load(words[1], [words[i + 1] for i, w in enumerate(words) if w == "--set"]).recipe
             for words in launch.commands if "/search-" in words[3]]  # fmt: skip
    assert [(t.seed, t.train.steps, t.objective[1].weight) for t in tried] == [(1003, 2, 0.1), (1003, 2, 30.0)]
    chosen = next(c for c in found["cells"] if c["name"] == "kd, seed 3")
    recipe_ = load(str(tmp_path / "out" / chosen["folder"] / "recipe.yaml")).recipe
    assert recipe_.objective[1].weight == search["arms"]["kd"]["chosen"] and recipe_.train.steps == 3
    assert "## Weight search" in (tmp_path / "out" / "compare.md").read_text()
