"""MiniLLM: its gradient against the paper's and the release's, what texts are drawn from, and that a run resumes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import killed_runs
import numpy as np
import pytest
import torch
from oracles import minillm_by_another as oracle
from pretrained_small import write_whisper
from seq2seq_small import adapter_of, arguments, begun, context, record

from xmodal_kd.cli.main import call
from xmodal_kd.modalities.speech.methods.minillm import Drawn, MiniLLM, MiniLLMParams, policy_gradient
from xmodal_kd.modalities.speech.models.seq2seq import encoder_of
from xmodal_kd.modalities.speech.models.whisper import Beside, drawn
from xmodal_kd.recipe.recipe import Term
from xmodal_kd.runtime.errors import UserError

pytest.importorskip("transformers", exc_type=ImportError)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_whisper(tmp_path_factory.mktemp("teacher"), decoder_layers=4, chunk=3)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("recordings"))


def parts(d: dict[str, Any], **params: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Both sums, and the student's scores."""
    student = torch.tensor(d["student"], requires_grad=True)
    tokens = torch.tensor(np.where(d["mask"], d["tokens"], -1))
    old = torch.tensor(oracle.rollout(d)[0])
    said = torch.tensor(d["teacher"]).log_softmax(dim=-1).gather(-1, torch.tensor(d["tokens"])[..., None])[..., 0]
    then = Drawn(old, said * torch.tensor(d["mask"]))
    after, step = policy_gradient(student, torch.tensor(d["teacher"]), tokens, then, MiniLLMParams(**params))
    return after.sum(), step.sum(), student


# ---------------------------------------------------------------- the gradient


@pytest.mark.parametrize("seed, clip", oracle.RELEASE)
def test_as_released(seed: int, clip: float) -> None:
    d = oracle.inputs(seed)
    *values, size = oracle.RELEASE[seed, clip]
    assert oracle.release(d, cliprange=clip) == pytest.approx(values, rel=1e-9)
    after, step, student = parts(d, released=True, clip=clip)
    count = d["mask"].sum()
    assert [after.item() / count, step.item() / count] == pytest.approx(values, rel=1e-6)
    ((after + step) / count).backward()
    assert student.grad is not None and student.grad.abs().sum().item() == pytest.approx(size, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_gradient_is_the_papers(seed: int) -> None:
    """Of a text that was drawn now, unclipped: by central differences of the oracle's scalar."""
    d = oracle.inputs(seed)
    d["student"] = d["old"].copy()
    after, step, student = parts(d, clip=None)
    (after + step).backward()
    assert student.grad is not None
    for at in np.ndindex(student.shape):
        sides = []
        for sign in (1, -1):
            moved = {**d, "student": d["student"].copy()}
            moved["student"][at] += sign * 1e-5
            sides.append(oracle.paper(moved))
        assert student.grad[at].item() == pytest.approx((sides[0] - sides[1]) / 2e-5, abs=1e-6)


def test_what_is_far_from_what_it_was_drawn_with_is_clipped() -> None:
    d = oracle.inputs(0)
    d["student"] = d["old"] + 3 * np.eye(6)[d["tokens"]]  # each token is far more probable than it was
    with_clip, without = (parts(d, clip=clip) for clip in (0.2, None))
    gradients = [torch.autograd.grad(after, student)[0] for after, _, student in (with_clip, without)]
    gains = torch.tensor(oracle.rollout(d)[1]) > 0
    assert not torch.equal(*gradients) and gains.any()
    reached = gradients[0].abs().sum(dim=-1) > 0
    assert reached.sum() < (gradients[1].abs().sum(dim=-1) > 0).sum()


# ---------------------------------------------------------------- texts


def test_tokens_are_drawn_from_both(teacher: Path, recordings: Path, tmp_path: Path) -> None:
    """The first of 4,000 texts and the second behind one of these: of what both say, without what is suppressed."""
    other = write_whisper(tmp_path / "other", decoder_layers=1, chunk=3)
    adapter = adapter_of(recordings, teacher)
    model, beside, made = adapter.load("teacher", teacher), adapter.load("teacher", other), adapter.processor
    source = adapter.data("train")
    heard = adapter._heard(source.collate([source.sample(0, 0)]), "clean")
    with torch.no_grad():
        states = [encoder_of(one)(heard).last_hidden_state for one in (model, beside)]
    torch.manual_seed(3)
    many = [one.expand(4000, -1, -1) for one in states]
    texts = drawn(model, made, many[0], 2.0, 2, Beside(beside, many[1], 0.4, 2.0))
    first = max({text[0] for text in texts} - {made.end}, key=[text[0] for text in texts].count)
    for prefix, seen in (
        (made.prefix, [text[0] for text in texts]),
        ([*made.prefix, first], [text[1] for text in texts if text[0] == first]),
    ):
        mixture = torch.zeros(made.classes)
        for one, state, share in zip((model, beside), states, (0.6, 0.4), strict=True):
            with torch.no_grad():
                said = one(encoder_outputs=(state,), decoder_input_ids=torch.tensor([prefix])).logits[0, -1] / 2.0
            said[made.generation.suppress_tokens] = -torch.inf
            mixture += share * said.softmax(dim=0)
        found = torch.bincount(torch.tensor(seen), minlength=made.classes) / len(seen)
        assert len(seen) > 100 and (found - mixture).abs().max() < 4 * 0.5 / len(seen) ** 0.5


def test_a_step_is_the_papers_on_what_was_drawn_beside_the_terms(teacher: Path, recordings: Path) -> None:
    made, roles, batch = begun(MiniLLM, recordings, teacher, [Term(loss="ce")], longest=6)
    out = made.loss("student", roles, batch, context(1))
    assert set(out.parts) == {"ce", "minillm", "minillm_step"}
    own, then = made.own("student", roles, batch, context(1))
    begins = made.adapter.begins
    assert own["targets"][:, :begins].tolist() == [made.adapter.processor.prefix[1:]] * len(own["ids"])
    tokens = own["targets"][:, begins:].numpy()
    d = {
        "tokens": np.where(tokens < 0, 0, tokens),
        "mask": (tokens >= 0).astype(int),
        "lens": (tokens >= 0).sum(axis=1),
    }
    for name, role in (("student", "student"), ("old", "student"), ("teacher", "teacher")):
        d[name] = made.scores(role, roles, own).detach().double().numpy()
    old, _, w = oracle.rollout(d)
    np.testing.assert_allclose(then.old, old, atol=1e-5)
    assert out.parts["minillm_step"].count == d["mask"].sum()
    exact = 0.0
    for b, t in np.ndindex(w.shape):
        q, p = (oracle.log_softmax(d[name][b, t]) for name in ("student", "teacher"))
        exact += d["mask"][b, t] * w[b, t] * (np.exp(q) * (q - p)).sum()
    assert out.parts["minillm_step"].total.item() == pytest.approx(exact, rel=1e-4)
    out.value().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in roles["student"].parameters())


def test_texts_are_used_as_often_as_asked(teacher: Path, recordings: Path) -> None:
    made, roles, batch = begun(MiniLLM, recordings, teacher, [Term(loss="ce")], longest=6, uses=3)
    own = [made.own("student", roles, batch, context(step)) for step in range(4)]
    for again, then in own[1:3]:
        assert torch.equal(again["targets"], own[0][0]["targets"]) and again["texts"] == own[0][0]["texts"]
        assert all(torch.equal(a, b) for a, b in zip(then, own[0][1], strict=True))
    assert not torch.equal(own[3][0]["targets"], own[0][0]["targets"])
    other, _, _ = begun(MiniLLM, recordings, teacher, [Term(loss="ce")], uses=3)
    other.load_state_dict(json.loads(json.dumps(made.state_dict())))
    assert other.kept == made.kept and set(made.kept) == set(batch["ids"].tolist())
    alone, _, _ = begun(MiniLLM, recordings, teacher, [Term(loss="ce")], longest=6)
    alone.own("student", roles, batch, context(0))
    assert not alone.kept


# ---------------------------------------------------------------- runs


@pytest.mark.full
@pytest.mark.parametrize("params", ["{longest: 6}", "{longest: 6, uses: 2, released: true}"])
def test_a_killed_run_goes_on_to_the_same_student(params: str, recordings: Path, teacher: Path, tmp_path: Path) -> None:
    """And its control is the one of a run without it."""
    more = [f"method={{name: minillm, params: {params}}}", "objective=[{loss: ce}]", "train.batch_size=2"]
    assert call(arguments(tmp_path / "whole", recordings, teacher, *more)) == 0
    assert call(arguments(tmp_path / "plain", recordings, teacher, *more[1:])) == 0
    given = arguments(tmp_path / "killed", recordings, teacher, *more)
    assert killed_runs.run(given, killed_runs.kill_with, tmp_path / "killed" / "checkpoints" / "student") < 0
    assert call([*given, "--resume"]) == 0
    files = {run: tmp_path / run / "student/model.safetensors" for run in ("whole", "killed", "plain")}
    assert files["whole"].read_bytes() == files["killed"].read_bytes() != files["plain"].read_bytes()
    controls = [(tmp_path / run / "control/model.safetensors").read_bytes() for run in files]
    assert len(set(controls)) == 1


def test_what_does_not_suit_is_refused(recordings: Path, teacher: Path, tmp_path: Path) -> None:
    made, roles, batch = begun(MiniLLM, recordings, teacher, [Term(loss="ce")], uses=2)
    two: Any = SimpleNamespace(world=2)
    with pytest.raises(UserError, match=r"method\.params\.uses: a process knows its own texts alone"):
        made.own("student", roles, batch, replace(context(0), ranks=two))
    other = write_whisper(tmp_path / "other", chunk=3, letters="abcdefghijklmnopqrstuvwxyz'")
    adapter = adapter_of(recordings, other, f"data.processor={teacher}")
    made.adapter = adapter
    with pytest.raises(UserError, match=r"method minillm: .* writes another vocabulary than .*: take one tokenizer"):
        made.check(roles)
