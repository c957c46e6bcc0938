"""Pieces of words by byte-pair encoding (Sennrich et al., 2016), through SentencePiece."""

from __future__ import annotations

import io
from base64 import b64decode
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field

from xmodal_kd.adapter.saved_model import CARD
from xmodal_kd.adapter.source import Strict
from xmodal_kd.runtime.binary_packages import loading
from xmodal_kd.runtime.bounded_files import read_bytes
from xmodal_kd.runtime.checkpoint import read_object
from xmodal_kd.runtime.errors import UserError

#: Bytes of a model: published ones have a few hundred thousand.
LARGEST = 1 << 25


class Pieces(Strict):
    """What ``tokens: bpe`` writes."""

    #: Pieces that are made of the training texts, their characters among them.
    size: int = Field(default=128, ge=2)
    #: A SentencePiece ``.model``, or the folder of a saved recogniser, whose pieces are taken instead.
    model: Path | None = None


def trained(texts: Iterable[str], size: int) -> bytes:
    """A model of `size` pieces, the same for the same texts in any order.

    Raises `UserError` where they have fewer pieces, or more characters.
    """
    sp = _package()
    made = io.BytesIO()
    try:
        sp.SentencePieceTrainer.train(
            sentence_iterator=iter(sorted(texts)), model_writer=made, model_type="bpe", vocab_size=size + 1, unk_id=0,
            bos_id=-1, eos_id=-1, pad_id=-1, character_coverage=1.0, normalization_rule_name="identity",
            num_threads=1, minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        said = str(error)
        if "Vocabulary size too high" in said:  # it counts the unknown piece
            most = int("".join(c for c in said.rpartition("<=")[2] if c.isdigit())) - 1
            raise UserError(
                f"data.bpe.size: {size} pieces are more than the training texts have: at most {most}"
            ) from None
        if "smaller than required_chars" in said:
            least = int(said.partition(" vs ")[2].partition(".")[0]) - 1
            raise UserError(
                f"data.bpe.size: {size} pieces are fewer than the characters of the texts: at least {least}"
            ) from None
        raise UserError(f"data.bpe: SentencePiece cannot make pieces of the training texts ({said[:120]})") from None
    return made.getvalue()


def given(path: Path) -> bytes:
    """The model in a file, or in the card of a saved recogniser. Raises `UserError` for what holds none."""
    if (path / CARD).is_file():
        held = read_object(path / CARD).get("tokens", {}).get("model")
        if not isinstance(held, str):
            raise UserError(f"data.bpe.model: {path} is a recogniser that does not write pieces (tokens: bpe)")
        return b64decode(held)
    if not path.is_file():
        raise UserError(
            f"data.bpe.model: {path}: no such file, nor a saved recogniser: a SentencePiece .model is expected"
        )
    held = read_bytes(path, LARGEST)
    try:
        processor(held)
    except UserError:
        raise UserError(f"data.bpe.model: {path} is no SentencePiece model") from None
    return held


@lru_cache(maxsize=8)
def processor(model: bytes) -> Any:
    """What splits texts by a model. Raises `UserError` for what is none."""
    sp = _package()
    try:
        return sp.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise UserError("tokens: its model is no SentencePiece model") from error


def names(model: bytes) -> list[str]:
    """The pieces of a model that are said, in its order: without those that stand for start, end and the unknown."""
    made = processor(model)
    count = range(made.get_piece_size())
    return [made.id_to_piece(i) for i in count if not (made.is_unknown(i) or made.is_control(i) or made.is_unused(i))]


def _package() -> Any:
    with loading("sentencepiece"):
        import sentencepiece
    return sentencepiece


__all__ = ["Pieces", "given", "names", "processor", "trained"]
