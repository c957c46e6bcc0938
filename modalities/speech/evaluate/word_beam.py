"""Beam search over the words of a lexicon, with an n-gram language model or without, by flashlight-text."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from xmodal_kd.runtime.binary_packages import load, loading
from xmodal_kd.runtime.bounded_files import read_text
from xmodal_kd.runtime.errors import UserError

from ..data.tokens import SPACE, Tokens
from .decode import log_add
from .ngram import UNKNOWN, Ngram

#: Prefixes that are kept where the recipe or the command says nothing.
SIZE = 32
#: Symbols that are tried in a frame, the most probable ones, where a word is asked for after each.
LIKELY = 24
#: Log-probability of what is never said.
NEVER = -1e4


#: A language model's context, and the symbols of a word that has begun.
State = tuple[tuple[str, ...], tuple[int, ...]]


class Said(NamedTuple):
    """A hypothesis: its words, its score and its symbols.

    The score of a `WordBeam` is ``log P(symbols) + lm_weight log P(words) + word_score * words``, in nats.
    """

    text: str
    score: float
    ids: list[int]


class WordBeam:
    """Decodes into words of a list, spelled as the student spells them.

    Args:
        lm: an ARPA file. Its case does not matter where the student's texts have none.
        lexicon: a file with a word a line (spellings behind them are not read); None: the words of `lm`.
        size: prefixes kept.
        lm_weight: of the language model's log-probability, in nats as the recogniser's is.
        word_score: added for each word; above 0 for more words.
    Raises:
        UserError: flashlight-text is not installed, neither file is given, or no word can be spelled.
    """

    def __init__(
        self, tokens: Tokens, lm: Path | None, lexicon: Path | None, *, size: int = SIZE, lm_weight: float = 1.0,
        word_score: float = 0.0,
    ) -> None:  # fmt: skip
        if lm is None and lexicon is None:
            raise UserError("a beam over words needs a language model or a lexicon: give --lm FILE or --lexicon FILE")
        self.tokens = tokens
        self.ngram = None if lm is None else Ngram(lm)
        if lexicon is not None:
            listed = [line.split()[0] for line in read_text(lexicon).removeprefix("\ufeff").split("\n") if line.split()]
        else:
            assert self.ngram is not None
            listed = self.ngram.words
        self.words = _spelled(tokens, listed, lexicon or lm)
        #: Whether words are told apart by a symbol of their own, which then ends each of them.
        self.gap = tokens.kind == "characters" and SPACE in tokens.symbols
        self._decoder = self._built(size, lm_weight, word_score)

    def __call__(self, logits: Float[Tensor, "b t c"], lengths: Int[Tensor, " b"]) -> list[list[Said]]:
        """For each utterance its hypotheses, the best first, none twice."""
        log_p = F.log_softmax(logits.detach().float(), dim=-1).cpu()
        return [self._one(rows[:n]) for rows, n in zip(log_p, lengths.tolist(), strict=True)]

    def _one(self, log_p: Tensor) -> list[Said]:
        if self.gap:  # the last word ends like the others, in a frame of its own that costs nothing
            last = torch.full_like(log_p[:1], NEVER)
            last[0, self.tokens.symbols.index(SPACE)] = 0.0
            log_p = torch.cat([log_p, last])
        [found] = self._decoder(log_p[None].contiguous(), torch.tensor([len(log_p)]))
        best: dict[str, float] = {}
        for one in found:
            text = " ".join(one.words) if self.gap else self.tokens.decode(one.tokens.tolist())
            if one.score > NEVER / 2:
                best[text] = log_add(best.get(text, -math.inf), float(one.score))
        ordered = sorted(best.items(), key=lambda pair: -pair[1]) or [("", 0.0)]
        return [Said(text, score, self.tokens.encode(text)) for text, score in ordered]

    def _built(self, size: int, lm_weight: float, word_score: float) -> Any:
        """flashlight's search in a lexicon where a symbol ends each word, else the one that asks after each symbol.

        The former lets a word's last symbol stand in one frame only, unless that is the silence between words.
        """
        load("flashlight.lib.text.decoder")
        with loading("torchaudio"):
            from torchaudio.models.decoder import ctc_decoder as build
        names = [str(k) for k in range(len(self.tokens))]
        given = {"tokens": names, "nbest": size, "beam_size": size, "beam_threshold": 1e4, "log_add": True}
        if not self.gap:
            speller = Speller(self.tokens, self.words, self.ngram, lm_weight, word_score)
            lm = asked(speller.start, speller.step, speller.end)
            tried = min(len(names), LIKELY)
            return build(
                lexicon=None, lm=lm, lm_weight=1.0, blank_token=names[0], sil_token=names[0], beam_size_token=tried,
                **given,
            )  # fmt: skip
        silence = names[self.tokens.symbols.index(SPACE)]
        with tempfile.TemporaryDirectory() as folder:
            lexicon, words = Path(folder) / "lexicon", Path(folder) / "words"
            spelled = ((word, " ".join(names[k] for k in self.tokens.encode(word))) for word in self.words)
            lexicon.write_text("".join(f"{word}\t{symbols} {silence}\n" for word, symbols in spelled), encoding="utf-8")
            words.write_text("".join(f"{word}\n" for word in (*self.words, UNKNOWN)), encoding="utf-8")
            return build(
                lexicon=str(lexicon), lm=self._of_words(), lm_dict=str(words), lm_weight=lm_weight,
                word_score=word_score, blank_token=names[0], sil_token=silence, **given,
            )  # fmt: skip

    def _of_words(self) -> Any:
        """The language model by the number of a word; None where there is none."""
        if (ngram := self.ngram) is None:
            return None
        known = [*self.words.values(), UNKNOWN]
        return asked(ngram.start, lambda context, k: ngram.score(context, known[min(k, len(known) - 1)]), ngram.end)


def _spelled(tokens: Tokens, listed: Iterable[str], where: Path | None) -> Mapping[str, str]:
    """Words as the student writes them, and what each is called in the list."""
    found: dict[str, str] = {}
    for word in listed:
        plain = tokens.normalise(word)
        if plain and " " not in plain and tokens.spells(plain):
            found.setdefault(plain, word)
    if not found:
        raise UserError(f"{where}: the student can spell none of its words: give a list in its own symbols")
    return found


class Speller:
    """Words by their symbols, one after another, for vocabularies in which no symbol stands between words.

    A state is the language model's context and the symbols of the word that has begun. A word counts when nothing can
    make it longer, or when the next one begins.
    """

    def __init__(
        self, tokens: Tokens, words: Mapping[str, str], ngram: Ngram | None, lm_weight: float, word_score: float
    ) -> None:
        self.ngram, self.lm_weight, self.word_score = ngram, lm_weight, word_score
        self.words = {tuple(tokens.encode(word)): name for word, name in words.items()}
        prefixes = Counter(ids[:n] for ids in self.words for n in range(1, len(ids) + 1))
        self.prefixes = frozenset(prefixes)
        #: Words that begin no other.
        self.final = frozenset(ids for ids in self.words if prefixes[ids] == 1)

    def start(self) -> State:
        return (self.ngram.start() if self.ngram else ()), ()

    def step(self, state: State, symbol: int) -> tuple[State, float]:
        """The state behind `symbol`, and what it adds to the score."""
        context, begun, added = *state, 0.0
        longer = (*begun, symbol)
        if longer not in self.prefixes and begun:  # what has begun must be a word, and another begins
            context, added = self._said(context, begun)
            longer = (symbol,)
        if longer not in self.prefixes:
            return (context, ()), NEVER
        if longer in self.final:
            context, more = self._said(context, longer)
            return (context, ()), added + more
        return (context, longer), added

    def end(self, state: State) -> float:
        context, begun = state
        context, added = self._said(context, begun) if begun else (context, 0.0)
        return added + (self.lm_weight * self.ngram.end(context) if self.ngram else 0.0)

    def _said(self, context: tuple[str, ...], ids: tuple[int, ...]) -> tuple[tuple[str, ...], float]:
        if ids not in self.words:
            return context, NEVER
        context, p = self.ngram.score(context, self.words[ids]) if self.ngram else (context, 0.0)
        return context, self.lm_weight * p + self.word_score


def asked(start: Callable[[], Any], step: Callable[[Any, int], tuple[Any, float]], end: Callable[[Any], float]) -> Any:
    """A language model as flashlight asks one: by numbers, with states that it hands out and is given back."""
    from torchaudio.models.decoder import CTCDecoderLM, CTCDecoderLMState

    class Model(CTCDecoderLM):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.held: dict[Any, Any] = {}

        def start(self, start_with_nothing: bool) -> Any:
            state = CTCDecoderLMState()
            self.held = {state: start()}
            return state

        def score(self, state: Any, usr_token_idx: int) -> tuple[Any, float]:
            after = state.child(usr_token_idx)
            self.held[after], score = step(self.held[state], usr_token_idx)
            return after, score

        def finish(self, state: Any) -> tuple[Any, float]:
            return state, end(self.held[state])

    return Model()


__all__ = ["SIZE", "Said", "WordBeam"]
