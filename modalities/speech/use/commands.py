"""The speech modality's own commands. Nothing heavy is imported before one runs."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.progress import console, each, named

from ..data.suffixes import CONVERT, SUFFIXES, UNREAD, is_sound

if TYPE_CHECKING:
    from .decoder import DecoderRecogniser
    from .transcribe import Recogniser

STDIN = Path("-")


def transcribe(
    student: Annotated[
        Path, typer.Argument(help="Folder of an exported student: it holds card.json and its weights or ONNX files.")
    ],
    audio: Annotated[
        list[Path],
        typer.Argument(
            help="Audio files of any sample rate and length, and folders, which are searched for "
            f"{', '.join('*' + suffix for suffix in SUFFIXES)} at any depth; or - for standard input, whose words are "
            "written as soon as they are final."
        ),
    ],
    json_: Annotated[
        bool, typer.Option("--json", help="One JSON object a line: path, text, words with times, duration, rtf.")
    ] = False,
    format_: Annotated[
        Literal["text", "json", "srt", "vtt"],
        typer.Option(
            "--format", help="json is --json; srt and vtt are subtitles, which take --into for several files."
        ),
    ] = "text",
    into: Annotated[
        Path | None,
        typer.Option(
            help="Write a file for each recording into this folder, named after it and below the same subfolders, "
            "instead of printing."
        ),
    ] = None,
    precision: Annotated[
        Literal["fp32", "int8"], typer.Option(help="int8 is smaller and needs model.int8.onnx in the folder.")
    ] = "fp32",
    beam: Annotated[
        int,
        typer.Option(
            min=0,
            help="Hypotheses kept by beam search; 0 takes the best token of each frame, which is faster and seldom "
            "worse. Needs pip install 'xmodal-kd\\[decode]'.",
        ),
    ] = 0,
    lm: Annotated[
        Path | None,
        typer.Option(help="An n-gram language model (ARPA, or .arpa.gz) that the beam weighs words by."),
    ] = None,
    lexicon: Annotated[
        Path | None,
        typer.Option(help="The words that may be said, one a line; without it those of --lm."),
    ] = None,
    lm_weight: Annotated[
        float, typer.Option(help="Of --lm, in nats; choose it on recordings that are not your test.")
    ] = 1.0,
    word_score: Annotated[float, typer.Option(help="Added for each word of a beam over words.")] = 0.0,
    nbest: Annotated[
        int, typer.Option(min=0, help="With --json and a beam: so many hypotheses with their scores, as nbest.")
    ] = 0,
    raw: Annotated[
        int | None,
        typer.Option(help="Hz of standard input without a header, 16-bit little-endian mono; else it is a WAV."),
    ] = None,
) -> None:
    """Write what is said in audio files, as "path<TAB>text" lines.

    A file that cannot be read is named on standard error, the rest are transcribed, and the exit status is 2.

    From a microphone: arecord -f S16_LE -r 16000 | xmodal-kd transcribe STUDENT - --raw 16000
    """
    from ..evaluate.word_beam import SIZE
    from ..export.decoder_folder import is_decoder
    from .decoder import DecoderRecogniser
    from .kinds import recogniser_of
    from .transcribe import Recogniser

    kind_of = recogniser_of(student)
    if raw is not None and STDIN not in audio:
        raise UserError("--raw: it is the sample rate of standard input, which is given as -")
    if STDIN in audio:
        if len(audio) > 1 or into is not None or beam or lm or lexicon or nbest or format_ in ("srt", "vtt"):
            raise UserError(
                "-: standard input is heard alone, as text or --json, without --into, --beam, --lm, --lexicon, --nbest"
            )
        if is_decoder(student):
            raise UserError(f"{student}: it writes by a decoder, which hears whole recordings: give files instead of -")
        return _listen(kind_of(student, precision), raw, json_ or format_ == "json")
    kind = "json" if json_ else format_
    recogniser: Recogniser | DecoderRecogniser
    if is_decoder(student):
        if precision != "fp32" or beam or lm or lexicon or nbest or kind in ("srt", "vtt"):
            raise UserError(
                f"{student}: it writes by a decoder, greedily, in float32, and tells no times: leave out --precision, "
                "--beam, --lm, --lexicon, --nbest, and --format but for text or json"
            )
        recogniser = DecoderRecogniser(student)
    else:
        recogniser = kind_of(student, precision)
    words = None
    if (lm is not None or lexicon is not None) and isinstance(recogniser, Recogniser):
        words = recogniser.words_of(lm, lexicon, size=beam or SIZE, lm_weight=lm_weight, word_score=word_score)
    if nbest and (kind != "json" or not (beam or words)):
        raise UserError("--nbest: hypotheses are given by a search, as JSON: add --json, and --beam N or --lm FILE")
    found = list(_files(audio))
    unreadable = [one for one, _ in found if isinstance(one, UserError)]
    if unreadable and len(unreadable) == len(found):
        raise unreadable[0]
    if kind in ("srt", "vtt") and into is None and len(found) > 1:
        raise UserError(f"--format {kind}: {len(found)} recordings: name a folder for their files by --into")
    if into is not None:
        _check_apart(found, into, kind)
    heard = partial(recogniser.transcribe, beam_size=beam, words=words, n_best=nbest)
    for path, below, result in _heard(found, "transcribing", heard):
        text = _written(kind, path, result)
        typer.echo(text) if into is None else _keep(text, into / _name(path, below, kind), kind)


def _heard(
    found: Sequence[tuple[Path | UserError, Path]], doing: str, hear: Callable[[Path], Any]
) -> Iterator[tuple[Path, Path, Any]]:
    """Each file that can be heard, the folder of its text, and what is heard. A file that cannot is named on standard
    error; the exit status is 2 then, when the rest had their turn."""
    failed = False
    for path, below in each(found, doing, console):
        try:
            if isinstance(path, UserError):
                raise path
            result = hear(path)
        except Exception as error:  # whatever a file makes its reader say: the rest are worth their turn
            if "pip install" in str(error):  # no file is to blame
                raise
            text = str(error) if isinstance(path, UserError) else named(path, error)
            console.print(text, style="red", soft_wrap=True, markup=False, highlight=False)
            failed = True
            continue
        yield path, below, result
    if failed:
        raise typer.Exit(2)


def classify_audio(
    student: Annotated[
        Path, typer.Argument(help="Folder of a student of data.task intents: it holds card.json and its weights.")
    ],
    audio: Annotated[
        list[Path],
        typer.Argument(
            metavar="AUDIO...", help="Audio files of any sample rate, and folders, which are searched at any depth."
        ),
    ],
    top: Annotated[int, typer.Option(min=1, help="Classes named of each file, the most probable first.")] = 1,
    json_: Annotated[
        bool, typer.Option("--json", help="One JSON object a line: path, class, probability, probabilities.")
    ] = False,
    precision: Annotated[
        Literal["fp32", "int8"], typer.Option(help="int8 is smaller and needs model.int8.onnx in the folder.")
    ] = "fp32",
) -> None:
    """Name the class of utterances, as "path<TAB>class<TAB>probability" lines.

    A file that cannot be read is named on standard error, the rest are classified, and the exit status is 2.

    Example: xmodal-kd classify-audio runs/smoke-intents/student recordings/ --top 3
    """
    from .classify import UtteranceClassifier

    classifier, found = UtteranceClassifier(student, precision), list(_files(audio))
    for path, _, said in _heard(found, "classifying", classifier.classify):
        ranked = list(said.items())
        if json_:
            content = {"path": str(path), "class": ranked[0][0], "probability": ranked[0][1], "probabilities": said}
            typer.echo(json.dumps(content, ensure_ascii=False))
        else:
            typer.echo("\t".join([str(path), *(f"{name}\t{p:.3f}" for name, p in ranked[:top])]))


def _listen(recogniser: Recogniser, raw: int | None, as_json: bool) -> None:
    """Words of standard input, each when it is final: on one line, or a JSON object a line."""
    from .live import heard, words

    waves, rate = heard(sys.stdin.buffer, raw)
    for said, word in enumerate(words(recogniser, waves, rate)):
        text = json.dumps(word, ensure_ascii=False) + "\n" if as_json else f"{' ' if said else ''}{word['word']}"
        sys.stdout.write(text)
        sys.stdout.flush()
    if not as_json:
        typer.echo("")


def _written(kind: str, path: Path, result: dict[str, Any]) -> str:
    """What is given of a recording in the format asked for."""
    from ..evaluate.subtitles import srt, vtt

    if kind == "json":
        return json.dumps({"path": str(path)} | result, ensure_ascii=False)
    if kind == "text":
        return f"{path}\t{result['text']}"
    return (srt if kind == "srt" else vtt)(result["words"])


def _keep(text: str, file: Path, kind: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    content = text.partition("\t")[2] if kind == "text" else text
    file.write_text(content + "\n", encoding="utf-8")


def _name(path: Path, below: Path, kind: str) -> Path:
    """Of the file of a recording, within the folder of all."""
    return below / f"{path.name}.{'txt' if kind == 'text' else kind}"


def _check_apart(found: Iterable[tuple[Path | UserError, Path]], into: Path, kind: str) -> None:
    """No two recordings may be written to one file."""
    number = Counter(_name(path, below, kind) for path, below in found if isinstance(path, Path))
    if twice := next((name for name, count in number.items() if count > 1), None):
        raise UserError(f"--into: {number[twice]} recordings would be written to {into / twice}: transcribe them apart")


def _files(audio: Sequence[Path]) -> Iterator[tuple[Path | UserError, Path]]:
    """The files named, and those in the folders named, in order, each with the folder of its text below ``--into``.
    A missing one is left for the reader to complain.
    """
    several = sum(path.is_dir() for path in audio) > 1
    for path in audio:
        if not path.is_dir():
            yield path, Path()
            continue
        top = Path(path.resolve().name) if several else Path()
        every = sorted(path.rglob("*"))
        found, unread = list(filter(is_sound, every)), [one for one in every if one.suffix.lower() in UNREAD]
        if unread:
            line = f"{path}: {len(unread)} recordings are not read here, as {unread[0].name}: {CONVERT}"
            yield UserError(line), top
        elif not found:
            yield UserError(f"{path}: no audio in this folder (looked for {', '.join(SUFFIXES)})"), top
        yield from ((file, top / file.relative_to(path).parent) for file in found)


def pseudolabel(
    teacher: Annotated[
        Path, typer.Argument(help="Folder of a Whisper as transformers saves it, or of a recogniser saved here.")
    ],
    data: Annotated[Path, typer.Argument(help="Folder of recordings, with train.jsonl or in another layout.")],
    out: Annotated[Path, typer.Option(help="Folder for the manifests with the teacher's texts.")],
    nbest: Annotated[int, typer.Option(min=1, help="Hypotheses kept of each recording.")] = 1,
    beam: Annotated[int, typer.Option(min=2, help="Of the teacher's search.")] = 4,
    language: Annotated[str | None, typer.Option(help="Of a multilingual model; else it guesses.")] = None,
    agree: Annotated[Path | None, typer.Option(help="A second teacher, which must write nearly the same.")] = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Also where there is a transcript, which then says whether it is believed."),
    ] = False,
    max_wer: Annotated[float, typer.Option(min=0, help="Word errors against a transcript that are believed.")] = 0.1,
    max_apart: Annotated[float, typer.Option(min=0, help="Word errors between two teachers that are believed.")] = 0.1,
    min_score: Annotated[
        float, typer.Option(max=0, help="Least mean log-probability of a text's tokens, in nats.")
    ] = float("-inf"),
    keep_digits: Annotated[
        bool, typer.Option("--keep-digits", help="Take texts with digits, which do not say how they are spoken.")
    ] = False,
    as_written: Annotated[
        bool,
        typer.Option(
            "--as-written",
            help="Write texts with their case and punctuation, for students that write by a decoder; they are still "
            "compared without.",
        ),
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="What came of it, as JSON.")] = False,
) -> None:
    """Write a data set whose training recordings have a teacher's texts: run a recipe on it with data.path=OUT.

    A recording that cannot be read is named on standard error and left out, and the exit status is 2.

    What the teacher writes is kept in OUT/hypotheses.jsonl, so that a stopped command goes on where it was, and other
    filters cost nothing.
    """
    from .pseudolabel import Filter, pseudolabel

    kept = Filter(min_score, max_wer, max_apart, keep_digits)
    facts = pseudolabel(
        teacher,
        data,
        out,
        n=nbest,
        beam=beam,
        language=language,
        agree=agree,
        replace=replace,
        kept=kept,
        as_written=as_written,
    )
    written = ", ".join(f"{count} {what}" for what, count in facts["written"].items())
    typer.echo(json.dumps(facts) if json_ else f"{out}: {written}")
    if facts["wer_on_transcripts"] is not None and not json_:
        typer.echo(f"WER of the teacher where there are transcripts: {100 * facts['wer_on_transcripts']:.1f} %")
    if "cannot be read" in facts["written"]:
        raise typer.Exit(2)


COMMANDS: dict[str, Callable[..., Any]] = {
    "transcribe": transcribe, "classify-audio": classify_audio, "pseudolabel": pseudolabel
}  # fmt: skip
