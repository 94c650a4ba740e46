"""From tokens to deltas: every token is told once, and no text past the end of the answer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from decoder_service.engine import TokenDrawn
from decoder_service.output.detokenizer import TokenBytes
from decoder_service.output.pipeline import Delta, Output
from decoder_service.request.prompt import PromptBuilder


def shown(prompts: PromptBuilder, token_ids: Sequence[int], *, stop: Sequence[str] = (), end: int = -1) -> list[Delta]:
    """All deltas of an answer of these tokens."""
    output = Output(TokenBytes(prompts.tokenizer.backend_tokenizer), end_tokens={end}, stop=stop)
    deltas: list[Delta] = []
    for token in token_ids:
        deltas += output.push(TokenDrawn(token))
        if output.ended:
            break
    return [*deltas, *output.finish()]


@pytest.mark.parametrize(
    ("stop", "text", "told"),
    [
        ((), "hello 😀!", "hello 😀!"),
        (("lo",), "hello!", "hel"),
        (("lon",), "hello", "hello"),  # what was held back comes at the end
    ],
)
def test_tokens_become_text(prompts: PromptBuilder, stop: tuple[str, ...], text: str, told: str) -> None:
    """Each token that was pushed is in one delta, and the texts join to what may be shown."""
    ids = prompts.tokenizer.encode(text, add_special_tokens=False)
    deltas = shown(prompts, ids, stop=stop)
    assert "".join(delta.text for delta in deltas) == told
    pushed = [token for delta in deltas for token in delta.token_ids]
    assert pushed == ids[: len(pushed)]
    assert (pushed == ids) == (told == text)


def test_a_character_that_never_ends_may_complete_a_stop_string(prompts: PromptBuilder) -> None:
    """What the detokenizer held back passes the stop strings, too."""
    half = prompts.tokenizer.encode("😀", add_special_tokens=False)[:-1]
    assert "".join(delta.text for delta in shown(prompts, half)) == "\ufffd"
    assert "".join(delta.text for delta in shown(prompts, half, stop=["\ufffd"])) == ""


def test_the_end_of_the_turn_is_no_text(prompts: PromptBuilder) -> None:
    """Its token is told, and has no text even where the tokenizer has one for it."""
    (letter,) = prompts.tokenizer.encode("a", add_special_tokens=False)
    assert shown(prompts, [letter, letter], end=letter) == [Delta("", (letter,))] * 2
    assert shown(prompts, [letter]) == [Delta("a", (letter,))]
