from __future__ import annotations

from itertools import groupby, product

import pytest

from xmodal_kd.modalities.speech.data.tokens import BLANK, Tokens, normalise
from xmodal_kd.runtime.errors import UserError


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Seven, EIGHT!", "seven eight"),
        ("  Red-Eye's   face. ", "red eye's face"),
        ("I was sick once -- typhoid.", "i was sick once typhoid"),
        ("It’s “quoted”", "it's quoted"),
        ("rock ' n ' roll", "rock n roll"),
        ("Grüße\tan\nalle", "grüße an alle"),
        ("7 of 9", "7 of 9"),
        ("...", ""),
    ],
)
def test_normalise(text, expected):
    assert normalise(text) == expected
    assert normalise(expected) == expected


def test_words_round_trip():
    tokens = Tokens.build("words", ["two one", "Nine, two!"])
    assert tokens.symbols == (BLANK, "nine", "one", "two") and len(tokens) == 4
    assert tokens.encode("Two one TWO") == [3, 2, 3]
    assert tokens.decode([3, 0, 2, 0, 0, 3]) == "two one two"


def test_characters_round_trip():
    tokens = Tokens.build("characters", ["It's a cab.", "Acid"])
    assert tokens.symbols == (BLANK, "'", "a", "b", "c", "d", "i", "s", "t", "|")
    assert tokens.decode(tokens.encode("It's   a cat!")) == "it's a cat"
    assert tokens.decode([*tokens.encode("a"), 9, 9, 0, 9, *tokens.encode("b"), 9]) == "a b"


def test_order_of_texts_does_not_matter():
    assert Tokens.build("characters", ["ab", "cd"]) == Tokens.build("characters", ["dc", "ba", "a"])


def test_unknown_symbols_are_named():
    with pytest.raises(UserError, match="unknown word 'ten' in 'one ten'"):
        Tokens.build("words", ["one two"]).encode("one ten")
    with pytest.raises(UserError, match="unknown character 'z'"):
        Tokens.build("characters", ["one two"]).encode("zone")


def test_digits_among_characters_are_an_error_of_the_text():
    with pytest.raises(UserError, match="'7' in 'route 7': characters need numbers written as words"):
        Tokens.build("characters", ["route 7"])
    assert "7" in Tokens.build("words", ["route 7"]).symbols


@pytest.mark.parametrize("kind", ["words", "characters"])
def test_json_round_trip(kind):
    tokens = Tokens.build(kind, ["Grüße, it's one two"])
    assert Tokens.from_json(tokens.to_json()) == tokens


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "words"}', '{"kind": "pictures", "symbols": ["<blank>"]}'])
def test_json_that_is_no_vocabulary(text):
    with pytest.raises(UserError, match="tokens: "):
        Tokens.from_json(text)


def test_a_vocabulary_without_blank_first_is_refused():
    with pytest.raises(UserError, match="symbol 0 must be '<blank>'"):
        Tokens("words", ("one", BLANK))
    with pytest.raises(UserError, match="twice"):
        Tokens("words", (BLANK, "one", "one"))


@pytest.mark.parametrize("ids", [[], [1], [1, 1], [1, 2, 2, 2], [2, 1, 2], [1, 1, 2, 2]])
def test_min_frames_is_the_shortest_path_that_collapses_to_the_text(ids):
    def collapses(path):
        return [symbol for symbol, _ in groupby(path) if symbol != 0] == ids

    shortest = next(n for n in range(9) if any(collapses(path) for path in product(range(3), repeat=n)))
    assert Tokens.min_frames(ids) == shortest


@pytest.mark.parametrize(
    "name, written",
    [
        ("plain", "red eye's no1 laughs cafe"),
        ("parted", "red eye's no 1 laughs cafe"),
        ("untagged", "red eye's no1 cafe"),
        ("none", "Red-Eye's no.1 [laughs] Cafe"),
    ],
)  # fmt: skip
def test_texts_are_written_by_a_named_normaliser(name, written):
    tokens = Tokens.build("words", ["Red-Eye's  no.1 [laughs] Cafe"], name)
    assert tokens.normalise("Red-Eye's  no.1 [laughs] Cafe") == written
    assert tokens.decode(tokens.encode("Red-Eye's  no.1 [laughs] Cafe")) == written
    assert Tokens.from_json(tokens.to_json()) == tokens


def test_unknown_symbols_may_be_left():
    tokens = Tokens.build("characters", ["abc"])
    assert tokens.decode(tokens.encode("axb", unknown_left=True)) == "ab"
    with pytest.raises(UserError, match="unknown character 'x'"):
        tokens.encode("axb")
    with pytest.raises(UserError, match="normaliser 'loud' is none of"):
        Tokens("words", ("<blank>", "a"), "loud")
