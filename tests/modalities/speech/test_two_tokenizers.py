"""Teachers that write other tokens than their students: who is forced over what, what is compared, what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import killed_runs
import numpy as np
import pytest
import torch
from oracles import dual_space_by_another as oracle
from pretrained_small import write_whisper
from seq2seq_small import TEXTS, adapter_of, listed, record, sets

from xmodal_kd.cli.main import call
from xmodal_kd.modalities.speech.methods import GKD
from xmodal_kd.modalities.speech.tasks.seq2seq import TABLE, Seq2SeqAdapter
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term, Train
from xmodal_kd.runtime.checkpoint import read_json, read_tensors
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.signals.signals import Signals
from xmodal_kd.training.method import Distil

pytest.importorskip("transformers", exc_type=ImportError)

LAST = "model.decoder.layer_norm"
CMA = "{loss: dskd_cma, on: [logits, model.decoder.layer_norm, model.decoder.embed_tokens], head: proj_out}"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of letters and one language."""
    return write_whisper(tmp_path_factory.mktemp("ours"), decoder_layers=2, chunk=3)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two languages, wider, and pairs of letters are tokens, too."""
    return write_whisper(
        tmp_path_factory.mktemp("theirs"), decoder_layers=2, chunk=3, many=True, letters="abcdefghijklmnopqrstuvwxyz'",
        pieces=["ye", "no", "it", "qu", "may"[:2]], d_model=24,
    )  # fmt: skip


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("recordings"))


def told(ours: Path, *more: str) -> list[str]:
    return [
        f"data.processor={ours}", "data.language=en", "compress=[]", "student.params={decoder_layers: 1}",
        "objective=[{loss: ce}, {loss: uld, weight: 1.5}]", *more,
    ]  # fmt: skip


def made(recordings: Path, ours: Path, theirs: Path) -> tuple[Seq2SeqAdapter, dict[str, Any], Any]:
    """Adapter, roles, and a batch of all six texts."""
    adapter = adapter_of(recordings, theirs, *told(ours))
    torch.manual_seed(1)
    roles = {"student": adapter.build("student", "whisper", {"decoder_layers": 1}).train()}
    roles["teacher"] = adapter.load("teacher", theirs).requires_grad_(False)
    source = adapter.data("train")
    return adapter, roles, source.collate([source.sample(i, 0) for i in range(len(source))])


# ---------------------------------------------------------------- rows


def test_each_is_forced_over_its_own_tokens_and_texts_begin_in_one_row(
    recordings: Path, ours: Path, theirs: Path
) -> None:
    adapter, roles, batch = made(recordings, ours, theirs)
    own, other = adapter.processor, adapter.others["teacher"].processor
    assert len(own.prefix) == 2 and len(other.prefix) == 4
    said = {role: adapter.signals(role, model, batch) for role, model in roles.items()}
    student, teacher = (said[role].layout("logits") for role in ("student", "teacher"))
    assert student.same_rows(teacher) and not torch.equal(student.mask, teacher.mask)
    width = student.grid[0]  # type: ignore[index]
    for i, text in enumerate(TEXTS):
        for role, processor in (("student", own), ("teacher", other)):
            tokens = processor.tokenizer(" " + text, add_special_tokens=False).input_ids
            rows = said[role].rows("labels").view(-1, width)[i]
            assert rows[1 : len(tokens) + 2].tolist() == [*tokens, processor.end]
            assert said[role].layout("labels").mask.view(-1, width)[i].sum() == len(tokens) + 2
            forced = torch.tensor([[*processor.prefix, *tokens]])
            heard = adapter._heard({key: batch[key][i : i + 1] for key in ("clean", "lengths")}, "clean")
            with torch.no_grad():
                alone = roles[role].eval()(heard, decoder_input_ids=forced).logits[0, len(processor.prefix) - 1 :]
            there = said[role].rows("logits").view(-1, width, alone.shape[1])[i, 1 : len(tokens) + 2]
            torch.testing.assert_close(there, alone, rtol=1e-4, atol=1e-5)
    assert adapter.class_names("teacher") == other.names and adapter.class_names("student") == own.names


def test_losses_compare_what_the_papers_say(recordings: Path, ours: Path, theirs: Path) -> None:
    """`uld` position by position up to the shorter text, `dskd_cma` all of one with all of the other."""
    adapter, roles, batch = made(recordings, ours, theirs)
    terms = [Term(loss="uld"), Term(loss="dskd_cma", on=("logits", LAST, TABLE), head="proj_out")]
    method = Distil(adapter, Objective(terms), Train(steps=4, batch_size=6), Streams(1))
    method.check(roles)
    said = {role: method.forward_role(role, roles, batch) for role in roles}
    objective = method.objective.build(said["student"], said["teacher"], Streams(1))
    out = objective(said["student"], said["teacher"])

    def rows(role: str, name: str, i: int) -> Any:
        signal = said[role][name]
        return signal.rows[signal.layout.mask & (signal.layout.item == i)].detach().double().numpy()

    total, count = 0.0, 0
    for i in range(6):
        p, q = (np.sort(_softmax(rows(role, "logits", i)))[:, ::-1] for role in ("student", "teacher"))
        shorter = min(len(p), len(q))
        p, q = (np.pad(x[:shorter], ((0, 0), (0, 40 - x.shape[1]))) for x in (p, q))
        total, count = total + np.abs(p - q).sum(), count + shorter
    assert out.parts["uld"].total.item() == pytest.approx(total, rel=1e-5) and out.parts["uld"].count == count
    sides = [
        [np.concatenate([rows(role, name, i) for i in range(6)]) for name in ("logits", LAST, TABLE)]
        for role in ("student", "teacher")
    ]
    items = [np.repeat(np.arange(6), [len(rows(role, "labels", i)) for i in range(6)]) for role in roles]
    state = {key: value.double().numpy() for key, value in next(reversed(list(objective))).module.state_dict().items()}
    heads = [
        lambda x, m=roles[role].proj_out: m.weight.detach().double().numpy() @ x for role in ("teacher", "student")
    ]
    labels = np.concatenate([rows("student", "labels", i) for i in range(6)]).astype(int)
    value = oracle.dskd_cma(*sides, labels, [items[0]], [items[1]], 6, *heads, state=state).sum()
    part = out.parts["dskd_cma"]
    assert part.total.item() == pytest.approx(value, rel=1e-4) and part.count == len(labels)
    assert sides[0][2].shape[1] == 2 * 16 and not said["student"].rows(TABLE).requires_grad
    out.value().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in roles["student"].parameters())


def _softmax(z: Any) -> Any:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_texts_that_one_draws_are_split_anew_for_the_other(recordings: Path, ours: Path, theirs: Path) -> None:
    adapter, roles, batch = made(recordings, ours, theirs)
    for role, other in (("student", "teacher"), ("teacher", "student")):
        torch.manual_seed(5)
        drawn = adapter.own_texts(role, roles[role], batch, 1.0, 6)
        said: dict[str, Signals] = {name: adapter.signals(name, model, drawn) for name, model in roles.items()}
        for i, text in enumerate(drawn["texts"]):
            for name in (role, other):
                rows = said[name]["tokens"]
                tokens = rows.rows[rows.layout.mask & (rows.layout.item == i)].tolist()
                processor = adapter._made(name)
                assert processor.decode(tokens) == text and len(tokens) <= processor.limit
        ends = [
            [int(adapter._made(name).end in said[name].rows("tokens").view(6, -1)[i].tolist()) for i in range(6)]
            for name in (role, other)
        ]
        assert ends[0] == ends[1]
    method = GKD(
        adapter, Objective([Term(loss="ce"), Term(loss="uld")]), Train(steps=4, batch_size=6), Streams(1),
        params=GKD.Params(share=1.0, longest=6),
    )  # fmt: skip
    method.check(roles)


# ---------------------------------------------------------------- refusals and runs


@pytest.mark.parametrize(
    "change, why",
    [
        (
            "objective=[{loss: ce}, {loss: kd}]",
            r"term 'kd': .*: its teacher writes another vocabulary than .*: token 0 is 'a' there, 'e' here: row i must "
            r"mean the same token, .*: dskd_cma, multilevel_ot, uld",
        ),
        ("objective=[{loss: ce}, {loss: hint, on: model.decoder.layers.0}]", "term 'hint': .*another vocabulary"),
        ("student.params={processor: OURS}", r"student\.params\.processor: the student writes by data\.processor"),
        ("compress={name: layer_copy}", "widths must agree, .* layer_copy's leave"),
    ],
)
def test_what_takes_other_tokens_for_its_own_is_refused(
    recordings: Path, ours: Path, theirs: Path, tmp_path: Path, change: str, why: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    given = listed(sets(recordings, theirs, *told(ours, change.replace("OURS", str(ours)))))
    assert call(["run", "speech/whisper", "--out", str(tmp_path / "run"), "--device", "cpu", "--quiet", *given]) == 2
    assert re.search(why, " ".join(capsys.readouterr().err.split()))


def test_a_text_too_long_for_the_teacher_is_named(recordings: Path, ours: Path, tmp_path: Path) -> None:
    short = write_whisper(tmp_path / "short", letters="abcdefghijklmnopqrstuvwxyz'", chunk=3, max_target_positions=6)
    with pytest.raises(Exception, match=r"teacher: train utterance .*: its text needs \d+ positions .* has 6"):
        adapter_of(recordings, short, f"data.processor={ours}").data("train")


def test_check_takes_it(recordings: Path, ours: Path, theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = listed(sets(recordings, theirs, *told(ours)))
    assert call(["check", "speech/whisper", "--device", "cpu", "--json", *given]) == 0
    assert "its terms compare two vocabularies" in capsys.readouterr().out


def arguments(out: Path, recordings: Path, ours: Path, theirs: Path, *more: str) -> list[str]:
    given = sets(recordings, theirs, *told(ours), "train.steps=4", "train.checkpoint_every=2", *more)
    return ["run", "speech/whisper", "--out", str(out), "--device", "cpu", "--quiet", *listed(given)]


def test_a_cached_teacher_teaches_the_same(recordings: Path, ours: Path, theirs: Path, tmp_path: Path) -> None:
    """By what it said of its own tokens; and terms on the encoder are as of one tokenizer."""
    hint = "{loss: hint, weight: 0.1, on: model.encoder.layer_norm, projector: linear}"
    more = [f"objective=[{{loss: ce}}, {{loss: uld, weight: 1.5}}, {hint}]", "control=false"]
    assert call(arguments(tmp_path / "live", recordings, ours, theirs, *more)) == 0
    assert call(arguments(tmp_path / "cached", recordings, ours, theirs, *more, "cache={}")) == 0
    one, other = (read_tensors(tmp_path / run / "student/model.safetensors") for run in ("live", "cached"))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=2e-3)
    facts = read_json(tmp_path / "cached/report.json")["cost"]["student"]["cache"]
    assert facts["computed"] == 6 and max(facts["loss_error"].values()) < 1e-2


@pytest.mark.full
@pytest.mark.parametrize("method", ["distil", "{name: gkd, params: {share: 0.5, longest: 6}}"])
def test_a_killed_run_goes_on_to_the_same_student(
    method: str, recordings: Path, ours: Path, theirs: Path, tmp_path: Path
) -> None:
    given = [f"objective=[{{loss: ce}}, {{loss: multilevel_ot}}, {CMA}]", f"method={method}"]
    given[0] = given[0] if method == "distil" else "objective=[{loss: ce}, {loss: uld}]"
    assert call(arguments(tmp_path / "whole", recordings, ours, theirs, *given)) == 0
    killed = arguments(tmp_path / "killed", recordings, ours, theirs, *given)
    assert killed_runs.run(killed, killed_runs.kill_with, tmp_path / "killed" / "checkpoints" / "student") < 0
    assert call([*killed, "--resume"]) == 0
    one, other = ((tmp_path / run / "student/model.safetensors").read_bytes() for run in ("whole", "killed"))
    assert one == other
