"""Students that learn on texts of their own: what is drawn, what is compared on it, and that a run of it resumes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import killed_runs
import numpy as np
import pytest
import torch
from oracles import own_texts_by_another as oracle
from pretrained_small import write_whisper
from seq2seq_small import adapter_of, arguments, begun, context, record

from xmodal_kd.cli.main import call
from xmodal_kd.modalities.speech.methods import GKD, ContrastivePair
from xmodal_kd.modalities.speech.models import whisper
from xmodal_kd.modalities.speech.models.seq2seq import encoder_of
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term, Train
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.signals.signals import Layout, Signals

transformers = pytest.importorskip("transformers", exc_type=ImportError)

PAIR = [Term(loss="skew_kl", weights="by_text"), Term(loss="skew_rkl", weights="by_text", params={"held": True})]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_whisper(tmp_path_factory.mktemp("teacher"), decoder_layers=4, chunk=3)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("recordings"))


# ---------------------------------------------------------------- what is drawn


def test_a_text_ends_with_its_first_end(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.random.RandomState(0).randint(0, 4, (8, 7))
    monkeypatch.setattr(transformers.GenerationMixin, "generate", lambda *_, **__: torch.from_numpy(tokens))
    made: Any = SimpleNamespace(prefix=[0, 0, 0], end=3, limit=7)
    ours = whisper.drawn(torch.nn.Linear(1, 1), made, torch.zeros(8, 2, 1), 1.0, 4)
    theirs = oracle.sampled(tokens, 3, 3)
    assert ours == [row[row >= 0].tolist() for row in theirs] and len(set(map(len, ours))) > 1


def test_tokens_are_drawn_from_what_the_model_says(teacher: Path, recordings: Path) -> None:
    """The first one of 4,000 texts, at a temperature, without what is suppressed; near temperature 0 greedily."""
    adapter = adapter_of(recordings, teacher)
    model, made = adapter.load("teacher", teacher), adapter.processor
    source = adapter.data("train")
    heard = adapter._heard(source.collate([source.sample(0, 0)]), "clean")
    with torch.no_grad():
        states = encoder_of(model)(heard).last_hidden_state
        said = model(encoder_outputs=(states,), decoder_input_ids=torch.tensor([made.prefix])).logits[0, -1] / 2.0
    said[made.generation.suppress_tokens] = -torch.inf
    torch.manual_seed(3)
    texts = whisper.drawn(model, made, states.expand(4000, -1, -1), 2.0, 1)
    assert {len(text) for text in texts} == {1}
    found = torch.bincount(torch.tensor(texts).flatten(), minlength=made.classes) / 4000
    assert (found - said.softmax(dim=0)).abs().max() < 4 * 0.5 / 4000**0.5
    [cold] = whisper.drawn(model, made, states, 1e-4, 10)
    [greedy] = whisper.greedy(model, made, heard)
    assert cold[: len(greedy)] == greedy


def test_they_are_a_function_of_step_and_micro_batch(teacher: Path, recordings: Path) -> None:
    """Drawn in eval mode without gradient; modes, and the streams that all else draws from, are as before."""
    made, roles, batch = begun(GKD, recordings, teacher, [Term(loss="gjsd")], share=1.0, longest=6)
    student, before = roles["student"], torch.get_rng_state()
    modes = {name: module.training for name, module in student.named_modules()}
    seen = list[bool]()
    student.model.decoder.register_forward_hook(lambda module, *_: seen.append(module.training))
    one, again = (made.drawn("student", roles, batch, context(2)) for _ in range(2))
    others = [made.drawn("student", roles, batch, context(*at)) for at in ((3, 4, 0), (2, 4, 1))]
    assert torch.equal(one["targets"], again["targets"]) and not any(seen)
    assert all(one["texts"] != other["texts"] for other in others)
    assert modes == {name: module.training for name, module in student.named_modules()}
    assert torch.equal(before, torch.get_rng_state())
    forced = len(made.adapter.processor.prefix) - 1
    assert int(one["target_lengths"].max()) <= forced + 6
    layout = made.forward_role("student", roles, one).layout("logits")
    assert torch.equal(layout.mask.reshape(one["targets"].shape), one["targets"] >= 0)


# ---------------------------------------------------------------- GKD


def test_a_share_of_the_steps_is_on_own_texts(teacher: Path, recordings: Path) -> None:
    made, _, _ = begun(GKD, recordings, teacher, [Term(loss="gjsd")], share=0.3)
    own = [made.is_own(context(step, 1000), made.share("student", {}, context(step, 1000))) for step in range(1000)]
    draws = [float(Streams(1).numpy("whose texts", "student", step).random()) for step in range(1000)]
    assert own == [oracle.source_of(u, 0.3, False) == "student" for u in draws]
    assert 0.25 < np.mean(own) < 0.35
    assert made.is_own(context(1, 1000, 3), 0.3) == own[1]


def test_a_share_rises_as_the_loss_on_dev_does(teacher: Path, recordings: Path) -> None:
    """As in DistiLLM's release: by a tenth where dev is worse by so much than at the last rise, and no further."""
    made, roles, _ = begun(GKD, recordings, teacher, [Term(loss="gjsd")], share=0.2, rising=0.1)
    source, student = made.adapter.data("dev"), roles["student"]
    losses = []
    for i in range(len(source)):
        batch = source.collate([source.sample(i, 0)])
        heard = made.adapter._heard(batch, "clean")
        with torch.no_grad():
            said = student.eval()(heard, labels=batch["targets"])  # starts by its own start token, as ours do
        losses.append((float(said.loss) * batch["targets"].shape[1], batch["targets"].shape[1]))
    found = made.on_dev("student", roles, context(0))
    assert found == pytest.approx(sum(a for a, _ in losses) / sum(b for _, b in losses), rel=1e-5)
    told = [2.0, 2.05, 1.5, 2.11, 2.15, 2.3, 9.0]
    made.on_dev = lambda *_: told.pop(0)
    shares = []
    for step in range(14):
        shares.append(made.share("student", roles, context(step, 20)))
        assert shares[-1] == made.share("student", roles, context(step, 20, 1))
    assert shares[::2] == pytest.approx([0, 0, 0, 0.1, 0.1, 0.2, 0.2]) and shares[1::2] == shares[::2]
    other, _, _ = begun(GKD, recordings, teacher, [Term(loss="gjsd")], share=0.2, rising=0.1)
    assert json.loads(json.dumps(other.state_dict()))["level"] is None
    other.load_state_dict(json.loads(json.dumps(other.state_dict())))
    other.load_state_dict(json.loads(json.dumps(made.state_dict())))
    assert other.state_dict() == made.state_dict() and other.state_dict()["level"] == 9.0


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_an_own_step_compares_tokens_that_the_student_drew(teacher: Path, recordings: Path, beta: float) -> None:
    terms = [Term(loss="ce"), Term(loss="gjsd", params={"beta": beta})]
    made, roles, batch = begun(GKD, recordings, teacher, terms, share=1.0)
    out = made.loss("student", roles, batch, context(1))
    assert set(out.parts) == {"gjsd"}  # no label is of such a text
    drawn = made.drawn("student", roles, batch, context(1))
    shape = (*drawn["targets"].shape, made.adapter.processor.classes)
    said = [made.forward_role(role, roles, drawn).rows("logits").detach().double() for role in ("student", "teacher")]
    labels = np.pad(np.where(drawn["targets"] < 0, -100, drawn["targets"]), ((0, 0), (1, 0)))
    rows = [np.pad(one.reshape(shape).numpy(), ((0, 0), (0, 1), (0, 0))) for one in said]
    assert out.value().item() == pytest.approx(oracle.gkd(*rows, labels, beta), rel=1e-4)
    out.value().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in roles["student"].parameters())


def test_texts_are_used_again_the_more_the_later(teacher: Path, recordings: Path) -> None:
    """What is known of them is JSON, and for an utterance without one all are drawn anew."""
    made, roles, batch = begun(GKD, recordings, teacher, [Term(loss="gjsd")], share=1.0, replay=True, longest=6)
    made.train = Train(steps=100, batch_size=3)
    steps = [context(step, 100) for step in range(0, 100, 5)]
    again = [Streams(1).numpy("replay", "student", ctx.step).random() < ctx.step / 100 for ctx in steps]
    assert not again[0] and 5 < sum(again) < 15
    texts = list[Any]()
    for ctx, same in zip(steps, again, strict=True):
        own = made.own("student", roles, batch, ctx)
        drawn = made.drawn("student", roles, batch, ctx)
        expected = texts[-1] if same else drawn
        assert torch.equal(own["targets"], expected["targets"]) and own["texts"] == expected["texts"]
        assert torch.equal(own["target_lengths"], expected["target_lengths"])
        texts.append(own)
    other, _, _ = begun(GKD, recordings, teacher, [Term(loss="gjsd")], replay=True)
    other.load_state_dict(json.loads(json.dumps(made.state_dict())))
    assert other.kept == made.kept and set(made.kept) == set(batch["ids"].tolist())
    late = steps[max(i for i, same in enumerate(again) if same)]
    made.kept.pop(0)
    assert torch.equal(
        made.own("student", roles, batch, late)["targets"], made.drawn("student", roles, batch, late)["targets"]
    )


def test_other_steps_are_on_the_data_or_on_the_teachers_texts(teacher: Path, recordings: Path) -> None:
    terms = [Term(loss="ce"), Term(loss="gjsd")]
    made, roles, batch = begun(GKD, recordings, teacher, terms, share=0.0)
    seen = list[Any]()
    signals = made.adapter.signals
    made.adapter.signals = lambda role, model, batch, *more: (
        seen.append(batch["targets"]) or signals(role, model, batch, *more)
    )
    assert set(made.loss("student", roles, batch, context(1)).parts) == {"ce", "gjsd"}
    assert all(torch.equal(one, batch["targets"]) for one in seen) and len(seen) == 2
    made.params = GKD.Params(share=0.0, teacher_texts=True, temperature=1e-4, longest=12)
    assert set(made.loss("student", roles, batch, context(1)).parts) == {"ce", "gjsd"}
    heard = made.adapter._heard(batch, "clean")
    greedy = whisper.greedy(roles["teacher"], made.adapter.processor, heard)
    assert [one[one >= 0].tolist()[1:][:10] for one in seen[-1]] == [
        [*text, *([made.adapter.processor.end] if len(text) < 10 else [])][:10] for text in greedy
    ]


# ---------------------------------------------------------------- DistiLLM-2


class Written:
    """An adapter whose roles say what the oracle's do, of a batch of the teacher's texts or of the student's."""

    method = "distillm2"

    def other_tokens(self, role: str, signal: str) -> None:
        """Both write the same."""

    def __init__(self, seed: int) -> None:
        s, t, y = (torch.from_numpy(one) for one in oracle.inputs(seed))
        self.said = {"student": s.requires_grad_(), "teacher": t}
        self.tokens, self.there = y[:, 1:], y[:, 1:] != -100

    def own_texts(self, role: str, model: Any, batch: Any, *how: Any) -> dict[str, Any]:
        return {"texts": slice(2, 4)}

    def signals(self, role: str, model: Any, batch: Any, features: Any) -> Signals:
        there = self.there[batch["texts"]]
        item = torch.arange(2).repeat_interleave(there.shape[1])
        layout = Layout("token", there.flatten(), item, 2)
        out = Signals().add("logits", self.said[role][batch["texts"], :-1].flatten(0, 1), layout)
        out.add("tokens", self.tokens[batch["texts"]].flatten(), layout)
        return out.add("by_text", (1 / there.sum(dim=1))[item], layout)


@pytest.mark.parametrize("seed, step", oracle.RELEASE_PAIRS)
def test_a_pair_is_the_releases(seed: int, step: int | None) -> None:
    adapter: Any = Written(seed)
    params = ContrastivePair.Params(gradual=step is not None)
    train = Train(steps=100, batch_size=2)
    made = ContrastivePair(adapter, Objective(PAIR, steps=100), train, Streams(1), params=params)
    roles: Any = {role: torch.nn.Linear(1, 1) for role in ("student", "teacher")}
    made.check(roles)
    out = made.loss("student", roles, {"texts": slice(0, 2)}, context(step or 0, 100))
    value, size, some = oracle.RELEASE_PAIRS[seed, step]
    beta = 1.0 if step is None else oracle.beta_at(step, 100)
    assert out.value().item() == pytest.approx(value, rel=1e-9)
    assert oracle.pairs(*oracle.inputs(seed), beta=beta) == pytest.approx(value, rel=1e-9)
    out.value().backward()
    grad = adapter.said["student"].grad
    assert grad.abs().sum().item() == pytest.approx(size, rel=1e-9)
    assert grad[-1, 0, :2].tolist() == pytest.approx(some, rel=1e-9)
    assert len({part.unit for part in out.parts.values()}) == 2


@pytest.mark.parametrize("seed, first", oracle.RELEASE_PACED)
def test_the_curriculum_of_alpha_is_the_releases(seed: int, first: float) -> None:
    """Of given m; without one the first batch has the fixed alpha, and leaves its mean distance behind."""
    adapter: Any = Written(seed)
    given = {
        "teacher": (slice(0, 2), "distillm2_skl", "skew_kl"),
        "student": (slice(2, 4), "distillm2_srkl", "skew_rkl"),
    }
    for released, (texts, name, plain) in zip(oracle.RELEASE_PACED[seed, first], given.values(), strict=True):
        student, teacher = (adapter.signals(role, None, {"texts": texts}, ()) for role in ("student", "teacher"))
        objective = Objective([Term(loss=name, labels="tokens")]).build(student, teacher, Streams(1))
        module: Any = next(iter(objective)).module
        fixed = Objective([Term(loss=plain, weights="by_text")])(student, teacher).value().item()
        assert objective(student, teacher).value().item() == pytest.approx(fixed, rel=1e-10)
        assert module.first.isfinite()
        module.first.fill_(first)
        assert objective(student, teacher).value().item() == pytest.approx(sum(released) / 2, rel=1e-9)
        assert module.first.item() == pytest.approx(first)


# ---------------------------------------------------------------- runs


METHODS: Mapping[str, tuple[str, str]] = {
    "gkd": ("{name: gkd, params: {share: 0.5, longest: 6}}", "[{loss: ce}, {loss: gjsd}]"),
    "replay": (
        "{name: gkd, params: {share: 1.0, replay: true, longest: 6}}",
        "[{loss: ce}, {loss: skew_kl}, {loss: skew_rkl}]",
    ),
    "rising": (
        "{name: gkd, params: {share: 1.0, rising: 0.0, longest: 6}}",
        "[{loss: ce}, {loss: skew_kl}]",
    ),
    "distillm2": (
        "{name: distillm2, params: {longest: 6, own: [distillm2_srkl]}}",
        "[{loss: ce}, {loss: distillm2_skl, labels: tokens}, {loss: distillm2_srkl, labels: tokens}]",
    ),
}


@pytest.mark.full
@pytest.mark.parametrize("name", METHODS)
def test_a_killed_run_goes_on_to_the_same_student(name: str, recordings: Path, teacher: Path, tmp_path: Path) -> None:
    """And its control is the one of a run on the data's texts alone."""
    method, objective = METHODS[name]
    more = [f"method={method}", f"objective={objective}"]
    assert call(arguments(tmp_path / "whole", recordings, teacher, *more, "train.accumulate=3")) == 0
    assert call(arguments(tmp_path / "plain", recordings, teacher, more[1], "train.accumulate=3")) == 0
    given = arguments(tmp_path / "killed", recordings, teacher, *more, "train.accumulate=3")
    assert killed_runs.run(given, killed_runs.kill_with, tmp_path / "killed" / "checkpoints" / "student") < 0
    assert not (tmp_path / "killed/report.json").exists()
    assert call([*given, "--resume"]) == 0
    files = {run: tmp_path / run / "student/model.safetensors" for run in ("whole", "killed", "plain")}
    assert files["whole"].read_bytes() == files["killed"].read_bytes()
    # the loss on dev falls in four steps, so that a share that rises stays 0
    assert (files["whole"].read_bytes() == files["plain"].read_bytes()) == (name == "rising")
    state = read_json(tmp_path / "killed/checkpoints/student/step-00000004/state.json")["method"]
    assert name != "rising" or (state["looked"] == 2 and state["level"] > 0)
    controls = [(tmp_path / run / "control/model.safetensors").read_bytes() for run in ("whole", "killed", "plain")]
    assert len(set(controls)) == 1
    assert read_json(tmp_path / "whole/report.json")["roles"]["student"]["parameters"] > 0


@pytest.mark.parametrize(
    "kind, terms, params, why",
    [
        (GKD, [Term(loss="ce"), Term(loss="dkd")], {}, "no term with a teacher does without labels"),
        (ContrastivePair, [Term(loss="skew_kl")], {}, r"method\.params\.own: no term is called 'skew_rkl'.*skew_kl"),
        (ContrastivePair, PAIR[1:], {}, "no term with a teacher is on the data's texts"),
        (ContrastivePair, [*PAIR, Term(loss="ce")], {"own": ["ce"]}, "term 'ce' reads labels, which own texts lack"),
    ],
)
def test_terms_that_do_not_suit_are_refused(
    recordings: Path, teacher: Path, kind: Any, terms: list[Term], params: Any, why: str
) -> None:
    with pytest.raises(UserError, match=why):
        begun(kind, recordings, teacher, terms, **params)


def test_recipes_that_do_not_suit_are_refused(
    recordings: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["run", "smoke/speech", "--out", str(tmp_path / "run"), "--quiet", "--set", "method=gkd"]
    assert call(given) == 2
    assert "method gkd learns on texts that the student writes: it needs data.task seq2seq" in capsys.readouterr().err
    more = ["method=gkd", "objective=[{loss: ce}, {loss: gjsd}]", "balance=uncertainty"]
    assert call(arguments(tmp_path / "other", recordings, teacher, *more)) == 2
    assert "balance uncertainty knows one text an utterance: leave it out" in capsys.readouterr().err
