"""What every scheme must keep to: it learns, resumes to the bit, leaves frozen roles alone, and is one thing on two
processes. One recipe each in `scheme_runs.EXAMPLES`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scheme_runs import EXAMPLES, content, engine, learnt, loaded, resumed, weights

from xmodal_kd.cli.main import call
from xmodal_kd.runtime.checkpoint import digest, read_json
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.schemes import SCHEMES

EACH = pytest.mark.parametrize("example", list(EXAMPLES))


#: Noise that is drawn for each micro-batch.
ATTACK = {"random_start": False}
#: What a scheme compares over a batch, switched off.
OVER_A_BATCH: dict[str, dict[str, Any]] = {
    "ddgsd": {"mmd": 0.0},
    "you": {"weight": 0.0},
    "ae_kd": {"cap": 1.0},
    "ard": ATTACK,
    "sskd": {"relations": 0.0},
    "rslad": ATTACK,
}


def test_every_scheme_has_an_example_and_says_where_it_is_from() -> None:
    assert {example.partition(" ")[0] for example in EXAMPLES} == set(SCHEMES)
    for name in SCHEMES:
        kind = SCHEMES[name]
        assert kind.paper and 2014 < kind.year < 2030 and kind.family and (kind.__doc__ or "").count("\n") > 3, name


@EACH
def test_learns_and_leaves_frozen_roles_alone(tmp_path: Path, example: str) -> None:
    built = engine(tmp_path, content(example))
    frozen = set(built.roles).difference(*(stage.trains for stage in built.method.stages()))
    before = {name: weights(built)[name] for name in built.roles}
    at = built.fit()
    after = weights(built)
    assert at.total == sum(stage.steps for stage in built.method.stages())
    for role in built.method.learners:
        assert after[role] != before[role], role
    for role in frozen:
        assert after[role] == before[role], role
        assert not built.roles[role].training and not any(p.requires_grad for p in built.roles[role].parameters())


@EACH
def test_resumes_to_the_bit_from_any_step(tmp_path: Path, example: str) -> None:
    made = content(example, accumulate=1 if example.startswith("tkd") else 2)
    made["student"] = {"model": "mlp", "params": {"width": 8, "dropout": 0.3, "batch_norm": True}}
    if SCHEMES[made["scheme"]["name"]].starts_taught:
        made["teacher"] = made["teacher"] | made["student"]
    whole = engine(tmp_path / "whole", made)
    whole.fit()
    for step in (1, 3):
        again = resumed(lambda step=step: engine(tmp_path / str(step), made), step)
        assert weights(again) == weights(whole), step


@EACH
def test_accumulation_gives_the_same_weights(tmp_path: Path, example: str) -> None:
    """But for what a scheme compares, or weighs its teachers by, over a batch."""
    if example in ("ae_kd", "you"):
        pytest.skip("one weight a teacher, or one draw of triplets, a micro-batch")
    if example.startswith("tkd"):
        pytest.skip("it refuses to")
    trained = []
    for accumulate in (1, 2):
        made = content(example, accumulate=accumulate)
        made["data"]["double"] = True
        if "old" in made["scheme"].get("params", {}):
            made["scheme"]["params"]["old"]["double"] = True
        if example in OVER_A_BATCH:
            made["scheme"]["params"] |= OVER_A_BATCH[example]
        built = engine(tmp_path / str(accumulate), made)
        built.fit()
        trained.append(learnt(built))
    for key, value in trained[0].items():
        torch.testing.assert_close(trained[1][key], value, rtol=1e-8, atol=1e-10, msg=key)


@EACH
def test_student_and_control_start_alike(tmp_path: Path, example: str) -> None:
    """And the control learns as it does without the scheme, where that changes no data."""
    from xmodal_kd.run.roles import build, make_adapter, role_plans
    from xmodal_kd.runtime.random_streams import Streams

    recipe = loaded(tmp_path, content(example))
    streams = Streams(3)
    adapter = make_adapter(recipe, streams)
    planned = {role_plan.role: role_plan for role_plan in role_plans(recipe, adapter)}
    made = {role: build(adapter, recipe, planned[role], streams) for role in ("control", "student")}
    assert digest(made["control"].state_dict().items()) == digest(made["student"].state_dict().items())
    assert not planned["control"].teachers and {term.loss for term in planned["control"].terms} == {"test_ce"}


@EACH
def test_whole_run(tmp_path: Path, example: str, capsys: pytest.CaptureFixture[str]) -> None:
    loaded(tmp_path, content(example, steps=2))
    out = tmp_path / "run"
    run = [
        "run",
        str(tmp_path / "recipe.yaml"),
        "--out",
        str(out),
        "--allow-import",
        "toy",
        "--device",
        "cpu",
        "--quiet",
    ]
    assert call(run) == 0, capsys.readouterr().err
    report = read_json(out / "report.json")
    assert {"control", "student"} <= report["roles"].keys()
    assert (out / "student" / "model.safetensors").exists() and (out / "report.md").exists()


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_recipes_that_do_not_suit_are_refused_in_a_line(tmp_path: Path, name: str) -> None:
    made = content(name)
    if SCHEMES[name].recipe_teacher == "needed":
        made = {key: value for key, value in made.items() if key not in ("teacher", "teachers")}
        reason = "it needs a teacher"
    elif SCHEMES[name].recipe_teacher == "none":
        made["teacher"] = {"model": "mlp", "train": {"steps": 1}}
        reason = "leave teacher out"
    else:
        made["objective"] = [{"loss": "test_ce"}]
        reason = "no term of the objective learns from a teacher"
    with pytest.raises(UserError, match=reason) as caught:
        engine(tmp_path, made)
    assert f"scheme {name}" in str(caught.value) and "\n" not in str(caught.value)


@EACH
def test_half_precision(tmp_path: Path, example: str) -> None:
    made = content(example, precision="bf16", steps=2)
    built = engine(tmp_path, made)
    built.fit()
    assert all(torch.isfinite(value).all() for value in learnt(built).values())


@pytest.mark.parametrize(
    "example", [example for example in EXAMPLES if not example.startswith(("cs_kd", "kdcl general", "tkd"))]
)
def test_scarce_labels(tmp_path: Path, example: str) -> None:
    """Samples without labels learn from whoever teaches."""
    built = engine(tmp_path, content(example) | {"labels": 4})
    seen: list[bool] = []
    losses = built.method.losses

    def watched(batch: Any, *more: Any) -> Any:
        seen.extend(batch["labelled"].tolist())
        return losses(batch, *more)

    built.method.losses = watched  # type: ignore[method-assign]
    built.fit()
    assert any(seen) and not all(seen)


@pytest.mark.parametrize("balance", ["uncertainty", "gradnorm"])
@pytest.mark.parametrize("example", ["okddip branches", "byot", "ps_kd"])
def test_learned_weights(tmp_path: Path, example: str, balance: str) -> None:
    made = content(example, accumulate=2) | {"balance": balance}
    whole = engine(tmp_path / "whole", made)
    whole.fit()
    again = resumed(lambda: engine(tmp_path / "stopped", made), 2)
    assert weights(again) == weights(whole)
