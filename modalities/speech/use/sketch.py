"""A recipe for a recogniser's folder and a folder of recordings: who hears what, writes what, at which frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xmodal_kd.adapter.sketch import Given, Looking, Noted, Sketch
from xmodal_kd.runtime.errors import UserError, with_page

from ..data.corpora import SPLITS
from ..data.found import HELP, Recordings, recordings
from ..data.pieces import given as given_pieces
from ..data.symbols import left_out, listed, match
from ..data.tokens import Tokens
from ..models import MODELS
from ..models.whisper import is_whisper
from .decoder_sketch import decoder_sections
from .heard import Heard, heard
from .intents_sketch import classifier_in, intents_sections

#: Hz beyond which features of speech gain nothing.
ENOUGH = 16_000
BATCH = 16
#: Students from small to large, and the teachers that are trained for them where there is none.
STUDENTS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("conv", {"width": 24, "lookahead": 4}),
    ("conv", {"width": 64, "lookahead": 4}),
    ("conformer", {"width": 96, "layers": 4}),
)
TEACHERS: tuple[Mapping[str, Any], ...] = (
    {"width": 96, "layers": 4, "dropout": 0.15},
    {"width": 144, "layers": 6, "dropout": 0.15},
    {"width": 192, "layers": 8, "dropout": 0.15},
)


def sketch(given: Given) -> Sketch:
    """The parts of a recipe, or what stands in its way."""
    looking, teacher, found, namer = Looking(), None, None, None
    decoder = given.teacher if given.teacher is not None and is_whisper(given.teacher) else None
    if given.teacher is not None and decoder is None:
        with looking.on():
            namer = classifier_in(given.teacher)
            teacher = None if namer is not None else heard(given.teacher)
    like = None if given.like is None else getattr(MODELS[given.like.model], "task", "ctc") == "intents"
    with looking.on():
        if given.data is None:
            raise UserError(_needed(teacher) if namer is None else f"--data is missing: {namer.needed}: {HELP}")
        found = recordings(given.data, like if given.teacher is None else namer is not None)
    if looking.problems or found is None:
        return Sketch(problems=tuple(looking.problems))
    try:
        if found.intents:
            sections = intents_sections(given, namer, found, looking)
            said = "a teacher that it trains itself" if namer is None else str(given.teacher)
            return Sketch(f"A classifier of {given.data}, taught by {said}.", sections, tuple(looking.notes))
        if decoder is not None:
            sections = decoder_sections(given, decoder, found, looking)
            return Sketch(f"A smaller Whisper of {given.data}, taught by {decoder}.", sections, tuple(looking.notes))
        teacher = None if teacher is None else teacher.beside(found)
        sections = _sections(given, teacher, found, looking)
    except UserError as error:
        return Sketch(problems=(with_page(error),))
    said = "a teacher that it trains itself" if teacher is None else str(teacher.folder)
    return Sketch(f"A compact recogniser of {given.data}, taught by {said}.", sections, tuple(looking.notes))


def _needed(teacher: Heard | None) -> str:
    told = "" if teacher is None else f" ({teacher.told})"
    return f"--data is missing: a folder of recordings with their words{told}: {HELP} says how it is laid out"


def _sections(given: Given, teacher: Heard | None, found: Recordings, looking: Looking) -> dict[str, Any]:
    tokens = _tokens(teacher, found, looking)
    same = teacher is None or teacher.vocabulary is None or _same(teacher, tokens)
    samples = len(found.parts["train"])
    batch = min(BATCH, samples)
    data: dict[str, Any] = dict(found.section)
    data["tokens"] = Noted(tokens.kind, _why_tokens(teacher, tokens, found))
    if teacher is not None and tokens.kind == "bpe":
        data["bpe"] = Noted({"model": str(teacher.folder)}, "the teacher's pieces")
    if teacher is not None and not same:
        data["vocabulary"] = Noted("by_name", "the teacher's symbols are not the texts': they are compared by name")
    if unknown := _unheard(tokens, found):
        data["unknown"] = Noted("keep", f"dev and test hold what training does not: {listed(unknown)}; it counts wrong")
    data["features"] = _features(teacher, found, looking)
    data["augment"] = _augment(teacher)
    roles = _roles(given, teacher, samples, batch)
    return {"data": data, **roles, **_training(given, _taught(teacher, same, roles["student"]), samples, batch)}


def _augment(teacher: Heard | None) -> Noted:
    masks = {"freq_masks": 2, "time_masks": 2}
    if teacher is not None and teacher.stored is not None:
        why = "masks are heard by those that learn; the logits are of the recordings as they are, at their own speed"
        return Noted(masks, why)
    why = "speed is heard by all roles, whose frames stay aligned; masks by those that learn"
    return Noted({"speed": [0.9, 1.1], **masks}, why)


def _tokens(teacher: Heard | None, found: Recordings, looking: Looking) -> Tokens:
    """What the student writes: the symbols of the training texts, of the teacher's kind."""
    texts = found.texts("train")
    if not texts:
        raise UserError("no training recording has a text: some are needed, to know what the student writes: " + HELP)
    kind = teacher.kind if teacher is not None else None
    if teacher is not None and kind == "bpe":
        tokens = Tokens.of_pieces(given_pieces(teacher.folder))
    else:
        tokens = Tokens.build(kind or ("words" if found.few_words else "characters"), texts)
    if teacher is None or teacher.vocabulary is None:
        return tokens
    match(tokens.symbols, teacher.vocabulary, teacher.who, partial=True)  # raises where they share next to nothing
    known = teacher.vocabulary.known
    if lacking := [symbol for symbol in tokens.symbols if symbol not in known]:
        if 2 * len(lacking) > len(tokens):
            raise UserError(
                f"{teacher.who} knows {len(tokens) - len(lacking)} of the {len(tokens)} {kind} that the training "
                "texts hold: leave --teacher out, and one is trained on them, or bring a teacher of such texts"
            )
        looking.notes.append(
            f"the teacher cannot write {listed(lacking)}, which the training texts hold: of these the student "
            "learns by its labels alone; write the texts in the teacher's symbols to change that"
        )
    if unused := left_out(tokens.symbols, teacher.vocabulary):
        looking.notes.append(f"the teacher also writes {listed(unused)}, which no training text holds: left out")
    return tokens


def _same(teacher: Heard, tokens: Tokens) -> bool:
    """Whether the teacher's answers can be read as scores of the student's symbols, one for one."""
    assert teacher.vocabulary is not None
    if teacher.features is not None:
        return teacher.vocabulary.names == tokens.symbols
    return set(tokens.symbols) <= teacher.vocabulary.known


def _why_tokens(teacher: Heard | None, tokens: Tokens, found: Recordings) -> str:
    count = f"{len(tokens)} symbols of {len(found.texts('train')):,} training texts, the blank among them"
    if teacher is not None and teacher.vocabulary is not None:
        return f"as the teacher writes ({teacher.where}); {count}"
    return f"{'few words, each often' if found.few_words else 'too many words for a class each'}; {count}"


def _unheard(tokens: Tokens, found: Recordings) -> list[str]:
    """Symbols of dev and test texts that no training text has."""
    if tokens.kind == "bpe":
        words = {word for split in SPLITS[1:] for text in found.texts(split) for word in tokens.normalise(text).split()}
        return sorted(word for word in words if not tokens.spells(word))
    held: set[str] = set()
    for split in SPLITS[1:]:
        try:
            held |= set(Tokens.build(tokens.kind, found.texts(split)).symbols)
        except UserError as error:
            raise UserError(f"{split}: {error}") from error
    return sorted(held - set(tokens.symbols))


def _features(teacher: Heard | None, found: Recordings, looking: Looking) -> Noted:
    rates = f"{', '.join(f'{rate:,}' for rate in found.rates)} Hz in the recordings' headers"
    if len(found.rates) > 1:
        looking.notes.append(f"recordings of {len(found.rates)} sample rates ({rates}): all are resampled to one")
    if teacher is not None and teacher.rate is not None and found.rate < teacher.rate:
        looking.notes.append(
            f"the teacher hears {teacher.rate:,} Hz ({teacher.where.parent}), the recordings have {found.rate:,} Hz: "
            "they are resampled, and it hears no highs: expect more errors of it than it was measured with"
        )
    if teacher is not None and teacher.features is not None and (teacher.rate or 0) <= found.rate:
        own = teacher.features.model_dump(mode="json", exclude_defaults=True) | {"sample_rate": teacher.rate}
        return Noted(own, f"the teacher's ({teacher.where}); {rates}")
    return Noted({"sample_rate": min(found.rate, ENOUGH), "mels": 40}, rates)


def _roles(given: Given, teacher: Heard | None, samples: int, batch: int) -> dict[str, Any]:
    model, params = STUDENTS[given.size.at]
    why = f"--{given.size.name}; a conv can stream, lookahead 0 is strictly causal"
    if given.like is not None:
        model, params, why = given.like.model, given.like.params, given.like.why
    if teacher is not None:
        taught: Any = {
            "path" if teacher.stored is None else "signals": Noted(str(teacher.folder), _why_teacher(teacher))
        }
        if any(teacher.lacking):
            train, others = teacher.lacking
            why = (
                f"no logits of {train:,} training recordings, which teach by their texts alone, and of {others:,} of "
                "dev and test, where the teacher's score then means nothing"
            )
            taught["on_missing"] = Noted("skip", why)
    else:
        steps = given.size.steps(samples, batch)
        taught = {
            "model": Noted("conformer", "no --teacher was given: one is trained here first"),
            "params": TEACHERS[given.size.at],
            "train": Noted(
                {"steps": steps, "batch_size": batch, "optimizer": {"lr": 1.5e-3, "weight_decay": 0.01},
                 "schedule": {"kind": "cosine", "warmup": 0.1}},
                given.size.why(samples, batch),
            ),
        }  # fmt: skip
    return {"teacher": taught, "student": {"model": Noted(model, why), "params": dict(params)}}


def _why_teacher(teacher: Heard) -> str:
    told = "as given by --teacher: " + ("logits" if teacher.rate is None else f"hears {teacher.rate:,} Hz")
    if teacher.frame is None:
        return told
    every = f"{1000 * float(teacher.frame):g} ms"
    return f"{told}, answers every {every}; brought to the student's frames, 40 ms (four of 10 ms)"


def _taught(teacher: Heard | None, same: bool, student: Mapping[str, Any]) -> Noted:
    """The term that the student learns from a teacher by."""
    if teacher is not None and teacher.vocabulary is None:
        config: Any = MODELS[str(student["model"].value)].Config.model_validate(student["params"])
        last = len(config.dilations) if hasattr(config, "dilations") else config.layers
        on = {"student": f"blocks.{last - 1}", "teacher": list(teacher.layers)}
        why = "heads on the student's last block predict the teacher's layers; choose the weight on dev, never on test"
        return Noted({"loss": "distilhubert", "on": on}, why)
    if same:
        by_frame = {"loss": "kd", "weight": 0.3, "params": {"temperature": 1.0}}
        return Noted(by_frame, "the teacher's frames; choose the weight on dev, never on test")
    return Noted({"loss": "uhc", "weight": 0.3}, "the teacher's frames, of the symbols that both know")


def _training(given: Given, term: Noted, samples: int, batch: int) -> dict[str, Any]:
    return {
        "objective": [Noted({"loss": "ctc"}, "the texts; also trains the control"), term],
        "train": {
            "steps": Noted(given.size.steps(samples, batch), given.size.why(samples, batch)),
            "batch_size": Noted(batch, "what an optimizer step sees; accumulate: 2 computes it in halves"),
            "optimizer": {"lr": 3e-3, "weight_decay": 0.01},
            "schedule": {"kind": "cosine", "warmup": 0.05},
        },
    }


__all__ = ["sketch"]
