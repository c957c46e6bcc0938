"""Texts that a teacher writes of recordings, as a data set that a student learns from (Kim and Rush, 2016).

What is written is kept in a file by recording: a stopped command goes on, and other filters cost nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from xmodal_kd.adapter.saved_model import CARD
from xmodal_kd.runtime.binary_packages import loading
from xmodal_kd.runtime.checkpoint import write_json
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.progress import console, each
from xmodal_kd.runtime.saved_steps import file_digest

from ..data.corpora import SPLITS
from ..data.found import recordings
from ..data.manifests import Utterance
from ..data.tokens import Normaliser, Tokens
from ..models.whisper import LONGEST, Hypothesis, Whisper, is_whisper

#: What is kept of each recording: its hypotheses, a JSON object a line.
CACHE, FACTS = "hypotheses.jsonl", "pseudolabels.json"
Writer = Callable[[Utterance], list[Hypothesis]]


@dataclass(frozen=True)
class Filter:
    """Which texts are believed.

    Attributes:
        min_score: the least mean log-probability of a text's tokens, in nats.
        max_wer: the most word errors against a transcript, where there is one.
        max_apart: the most word errors between the texts of two teachers.
        digits: whether texts with digits are taken, which do not say how they are spoken.
    """

    min_score: float = float("-inf")
    max_wer: float = 0.1
    max_apart: float = 0.1
    digits: bool = False

    def against(self, text: str, score: float, transcript: str | None, other: str | None) -> str | None:
        """Why a normalised text is not believed; None where it is."""
        if not text:
            return "nothing was written"
        if not self.digits and any(character.isnumeric() for character in text):
            return "it has digits"
        if score < self.min_score:
            return "it is not sure enough"
        if other is not None and _wer(other, text) > self.max_apart:
            return "the two teachers differ"
        if transcript is not None and _wer(transcript, text) > self.max_wer:
            return "it differs from the transcript"
        return None


def pseudolabel(
    teacher: Path, data: Path, out: Path, *, n: int = 1, beam: int = 4, language: str | None = None,
    agree: Path | None = None, replace: bool = False, kept: Filter | None = None, normaliser: Normaliser = "plain",
    as_written: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Write `out` as `data`, with texts of `teacher` for training recordings that have none; what came of it.

    Args:
        n: hypotheses that are kept of each recording, of a beam of `beam`; the best becomes its text.
        agree: a second teacher, which must write nearly the same.
        replace: also where there is a transcript, which then only says whether the teacher is believed; a recording of
            which it is not is left out.
        kept: which texts are believed.
        as_written: keep case and punctuation of the texts, which are compared without.
    Raises:
        UserError: a folder is not what it should be, or no text is believed.
    """
    if out.resolve() == data.expanduser().resolve():
        raise UserError(f"--out {out}: it is the folder of the recordings: name another")
    try:
        found, kept = recordings(data), kept or Filter()
    except UserError as error:  # which names an option of other commands
        raise UserError(str(error).removeprefix("--data ")) from error
    plain = partial(Tokens("words", ("<blank>",), normaliser).normalise)
    train = found.parts["train"]
    wanted = [one for one in train if replace or one.text is None]
    if not wanted:
        raise UserError(f"{data}: every training recording has its text: say --replace to write texts in their place")
    out.mkdir(parents=True, exist_ok=True)
    unread: set[str] = set()
    best = _heard(teacher, wanted, out / CACHE, n, beam, language, unread)
    wanted = [one for one in wanted if one.key not in unread]
    others = {} if agree is None else _heard(agree, wanted, out / f"other.{CACHE}", 1, beam, language, unread)
    lines, why = [], Counter[str]()
    errors = [0.0, 0.0]
    for one in train:
        if one.key in unread:
            why["cannot be read"] += 1
            continue
        if one.text is not None and not replace:
            lines.append(_line(one, {"text": one.text}))
            continue
        hypothesis = best[one.key]
        text = plain(hypothesis.text)
        transcript = None if one.text is None else plain(one.text)
        if transcript:
            errors[0] += _wer(transcript, text) * len(transcript.split())
            errors[1] += len(transcript.split())
        reason = kept.against(text, hypothesis.score, transcript, plain(others[one.key].text) if others else None)
        if not text and one.seconds() > LONGEST:
            reason = f"longer than {LONGEST:g} s"
        why[reason or "taken"] += 1
        if reason is None:
            text = hypothesis.text if as_written else text
            lines.append(_line(one, {"text": text, "score": round(hypothesis.score, 4), "teacher": str(teacher)}))
    if not why["taken"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in why.most_common(3))
        raise UserError(f"{teacher}: none of its {why.total()} texts is believed ({reasons}): loosen what filters them")
    _write(out / "train.jsonl", lines)
    for split in SPLITS[1:]:
        _write(out / f"{split}.jsonl", [_line(one, {"text": one.text}) for one in found.parts[split]])
    facts = {
        "teacher": str(teacher), "recordings": len(train), "written": dict(why.most_common()),
        "wer_on_transcripts": errors[0] / errors[1] if errors[1] else None,
    }  # fmt: skip
    write_json(out / FACTS, facts)
    return facts


def _heard(
    teacher: Path, wanted: Sequence[Utterance], cache: Path, n: int, beam: int, language: str | None, unread: set[str]
) -> Mapping[str, Hypothesis]:
    """The best hypothesis of each recording by key, those of an earlier call from `cache`.

    One that cannot be read is said and put among `unread`; the others are worth their turn.
    """
    mark = {"teacher": _digest(teacher), "n": n, "beam": beam, "language": language}
    held = dict(_held(cache, mark))
    if lacking := [one for one in wanted if one.key not in held]:
        writer = _writer(teacher, n, beam, language)
        cut = cache.is_file() and cache.read_bytes()[-1:] not in (b"", b"\n")
        with cache.open("a", encoding="utf-8") as file:
            file.write("\n" * cut)
            for one in each(lacking, "writing", console):
                try:
                    found = writer(one) if one.seconds() <= LONGEST else []
                except UserError as error:
                    console.print(str(error), style="red", soft_wrap=True, markup=False, highlight=False)
                    unread.add(one.key)
                    continue
                held[one.key] = found[0] if found else Hypothesis("", 0.0)
                line = {**mark, "key": one.key, "hypotheses": [h._asdict() for h in found]}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                file.flush()
    return held


def _held(cache: Path, mark: Mapping[str, Any]) -> Iterator[tuple[str, Hypothesis]]:
    """What earlier calls of the same teacher and search wrote; a line that was cut is written again."""
    for line in cache.read_text(encoding="utf-8").splitlines() if cache.is_file() else ():
        try:
            record = json.loads(line)
            found = [Hypothesis(str(one["text"]), float(one["score"])) for one in record["hypotheses"]]
            if all(record[key] == value for key, value in mark.items()):
                yield str(record["key"]), found[0] if found else Hypothesis("", 0.0)
        except (ValueError, KeyError, TypeError):
            continue


def _writer(teacher: Path, n: int, beam: int, language: str | None) -> Writer:
    """A Whisper, or a recogniser that was saved here."""
    if (teacher / CARD).is_file() and not is_whisper(teacher):
        return _recogniser(teacher)
    if not is_whisper(teacher):
        raise UserError(
            f"{teacher}: neither a Whisper as transformers saves it nor a recogniser that was saved here ({CARD}): a "
            "CTC model teaches by its frames, as teacher.path"
        )
    whisper = Whisper(teacher, language)
    return lambda one: whisper(one.wave(whisper.rate), n, beam)


def _recogniser(folder: Path) -> Writer:
    """Greedy texts, and how sure it is: the mean log-probability of a frame of CTC, of a transducer's symbol."""
    from .kinds import recogniser_of

    recogniser = recogniser_of(folder)(folder, backend="torch")

    def write(one: Utterance) -> list[Hypothesis]:
        ids, score = recogniser.hypothesis(torch.from_numpy(one.wave(recogniser.rate)))
        return [Hypothesis(recogniser.tokens.decode(ids), score)]

    return write


def _digest(folder: Path) -> str:
    """Of the weights and of what says how they are read."""
    files = sorted(path for path in folder.glob("*") if path.suffix in (".safetensors", ".json"))
    return "-".join(file_digest(path)[:8] for path in files)


def _line(one: Utterance, more: Mapping[str, Any]) -> dict[str, Any]:
    """A line of a manifest, whose path holds wherever it lies."""
    where = {} if one.offset is None else {"offset": one.offset}
    return {"audio_filepath": one.file, "duration": one.seconds(), **where, "speaker": one.speaker, **more}


def _write(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def _wer(reference: str, hypothesis: str) -> float:
    with loading("jiwer"):
        import jiwer
    return float(jiwer.wer(reference, hypothesis)) if reference else float(bool(hypothesis))


__all__ = ["Filter", "pseudolabel"]
