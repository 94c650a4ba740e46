"""Reasoning and content are told apart, whoever opens the reasoning and however the marks are cut."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoder_service.engine import TokenDrawn, TokenLogprob
from decoder_service.output.detokenizer import TokenBytes
from decoder_service.output.pipeline import Delta, Output
from decoder_service.output.reasoning import Marks, Reasoning
from tests.checkpoints import make_tokenizer

AS_TEXT = Marks(None, None)
TOKENIZER = make_tokenizer()  # its marks are tokens, and ordinary ones
TOKENS = TokenBytes(TOKENIZER)
MARKS = Marks.of(TOKENIZER)
HALF = TOKENIZER.encode("😀").ids[:-1]


def split(pieces: list[str], *, opened: bool) -> tuple[str, str]:
    """Reasoning and content of text that comes in these pieces, where marks are text."""
    parser = Reasoning(AS_TEXT, opened=opened)
    told = [*map(parser.push, pieces), parser.flush()]
    return "".join(part.reasoning for part in told), "".join(part.content for part in told)


CASES = [
    # the template has opened the reasoning
    (True, "I look.\n</think>\n\nOn the left.", "I look.", "On the left."),
    (True, "I look.</think>On the left.", "I look.", "On the left."),
    (True, "\n\nI\n\nlook.\n\n\n</think>\n\n\nOn\n\nthe left.\n", "I\n\nlook.", "On\n\nthe left.\n"),
    (True, "I look and", "I look and", ""),  # cut by length
    (True, "I look\n</thi", "I look\n</thi", ""),
    (True, "I look\n\n", "I look", ""),
    (True, "</think>\n\nOn the left.", "", "On the left."),
    (True, "\n\n</think>\n\n", "", ""),
    (True, "a<b</c>< /think></thin</think>d", "a<b</c>< /think></thin", "d"),
    (True, "<think>a</think>b", "<think>a", "b"),
    (True, "a</think>b</think>c", "a", "b</think>c"),
    (True, "a</think>b<think>c</think>d", "a", "b<think>c</think>d"),
    (True, "", "", ""),
    # the model opens it itself
    (False, "<think>\nI look.\n</think>\n\nOn the left.", "I look.", "On the left."),
    (False, "\n <think>a</think>b", "a", "b"),
    (False, "<think>never closed", "never closed", ""),
    (False, "<think>", "", ""),
    # or nobody does
    (False, "On the left.", "", "On the left."),
    (False, "\n\nOn the left.", "", "\n\nOn the left."),
    (False, "On the left. <think>a</think>b", "", "On the left. <think>a</think>b"),
    (False, "a</think>b", "", "a</think>b"),
    (False, "</think>b", "", "</think>b"),
    (False, "<thin", "", "<thin"),
    (False, "<thought>a", "", "<thought>a"),
    (False, "  ", "", "  "),
]


@pytest.mark.parametrize(("opened", "text", "reasoning", "content"), CASES)
def test_marks_in_the_text(opened: bool, text: str, reasoning: str, content: str) -> None:
    """Whole and letter by letter."""
    assert split([text], opened=opened) == (reasoning, content)
    assert split(list(text), opened=opened) == (reasoning, content)


@given(
    text=st.lists(st.sampled_from(["<think>", "</think>", "\n", " ", "<", "/think>", "a", "b"]), max_size=9).map(
        "".join
    ),
    cuts=st.lists(st.integers(0, 60)),
    opened=st.booleans(),
)
def test_how_text_is_cut_changes_nothing(text: str, cuts: list[int], opened: bool) -> None:
    """In any pieces it is what the whole text would be split into."""
    edges = sorted({0, len(text), *(cut for cut in cuts if cut <= len(text))})
    assert split([text[a:b] for a, b in itertools.pairwise(edges)], opened=opened) == whole(text, opened=opened)


def whole(text: str, *, opened: bool) -> tuple[str, str]:
    """Reasoning and content of a whole answer."""
    if not opened:
        mark = re.match(r"\s*<think>", text)
        if mark is None:
            return "", text
        text = text[mark.end() :]
    reasoning, _, content = text.partition("</think>")
    return reasoning.strip("\n"), content.lstrip("\n")


def answer(token_ids: list[int], *, opened: bool, stop: tuple[str, ...] = (), logprobs: bool = False) -> list[Delta]:
    """All deltas of an answer of these tokens, and one that counts the tokens of its reasoning."""
    parser = Reasoning(MARKS, opened=opened)
    output = Output(TOKENS, end_tokens={TOKENIZER.token_to_id("<|im_end|>")}, stop=stop, reasoning=parser)
    deltas: list[Delta] = []
    for token in token_ids:
        drawn = TokenDrawn(token, -1.0, (TokenLogprob(token, -1.0),)) if logprobs else TokenDrawn(token)
        deltas += output.push(drawn)
        if output.ended:
            break
    deltas += output.finish()
    return [*deltas, Delta("", (output.reasoning_tokens,))]


def ids(text: str) -> list[int]:
    """Token ids, marks as their own tokens."""
    return TOKENIZER.encode(text).ids


def spelled(text: str) -> list[int]:
    """Token ids, marks as ordinary text."""
    return [token for letter in text for token in TOKENIZER.encode(letter).ids]


def told(deltas: list[Delta]) -> tuple[str, str, int]:
    """Reasoning, content, and how many tokens were counted as reasoning."""
    *deltas, count = deltas
    reasoning = "".join(delta.reasoning for delta in deltas)
    return reasoning, "".join(delta.text for delta in deltas), count.token_ids[0]


@pytest.mark.parametrize(("opened", "text", "reasoning", "content"), CASES)
def test_marks_that_are_tokens(opened: bool, text: str, reasoning: str, content: str) -> None:
    """The same with a vocabulary that has marks, in which a mark is a token and not its letters."""
    counted = told(answer(ids(text), opened=opened))
    assert counted[:2] == (reasoning, content)
    assert counted[2] <= len(ids(text))


def test_letters_of_a_mark_are_text() -> None:
    """A model that quotes `</think>` in ordinary tokens goes on thinking; one that begins with `<think>` answers."""
    assert told(answer([*spelled("a</think>b"), *ids("</think>c")], opened=True))[:2] == ("a</think>b", "c")
    assert told(answer(spelled("<think>a"), opened=False))[:2] == ("", "<think>a")


def test_special_tokens_are_marks_too() -> None:
    """Special tokens have no text of their own; as marks they are found all the same."""
    marks = Marks(TOKENIZER.token_to_id("<|box_start|>"), TOKENIZER.token_to_id("<|box_end|>"))
    output = Output(TOKENS, end_tokens=(), stop=(), reasoning=Reasoning(marks, opened=False))
    deltas = [delta for token in ids("<|box_start|>\na\n<|box_end|>\n\nb") for delta in output.push(TokenDrawn(token))]
    assert ("".join(d.reasoning for d in deltas), "".join(d.text for d in deltas)) == ("a", "b")


@pytest.mark.parametrize(
    ("opened", "text", "tokens"),
    [
        (True, "abc</think>de", 4),
        (True, "abc", 3),
        (True, "abc<|im_end|>", 4),
        (True, "</think>", 1),
        (False, "<think>abc</think>de", 5),
        (False, "\n<think>abc</think>de", 6),
        (False, "abc", 0),
    ],
)
def test_tokens_of_the_reasoning_are_counted(opened: bool, text: str, tokens: int) -> None:
    """All that come before the content, marks among them; every token is told once, with its log probability."""
    token_ids = [token for piece in (text,) for token in ids(piece)]
    assert len(ids("abc")) == 3
    *deltas, count = answer(token_ids, opened=opened, logprobs=True)
    assert count.token_ids == (tokens,)
    assert [token for delta in deltas for token in delta.token_ids] == token_ids
    scored = [position.chosen.token_id for delta in deltas for position in delta.logprobs]
    assert scored == token_ids


@pytest.mark.parametrize("opened", [True, False])
def test_a_stop_string_ends_content_and_not_reasoning(opened: bool) -> None:
    """It may stand in the reasoning, also over its end; in the content none of it is shown."""
    head = "" if opened else "<think>"
    deltas = answer(ids(head + "my STOP is\nST</think>OP\nthe STOP end"), opened=opened, stop=("STOP",))
    assert told(deltas)[:2] == ("my STOP is\nST", "OP\nthe ")


def test_half_a_character_does_not_cross_a_mark() -> None:
    """What the reasoning leaves of a character is its own, and the content begins with whole ones."""
    deltas = answer([*HALF, *ids("</think>b")], opened=True)
    assert told(deltas)[:2] == ("\ufffd", "b")
    assert told(answer(HALF, opened=True)) == ("\ufffd", "", len(HALF))
    assert told(answer([*HALF, *ids("<think>b")], opened=False)) == ("", "\ufffdb", 0)


def test_a_model_that_does_not_think_writes_marks_as_text() -> None:
    """Without a parser all is content."""
    output = Output(TOKENS, end_tokens=(), stop=())
    deltas = [delta for token in ids("<think>a</think>b") for delta in output.push(TokenDrawn(token))]
    assert "".join(delta.text for delta in deltas) == "<think>a</think>b"
    assert not any(delta.reasoning for delta in deltas)
    assert output.reasoning_tokens == 0
