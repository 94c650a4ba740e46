"""Text as it comes: whole characters."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decoder_service.output.detokenizer import Detokenizer, TokenBytes
from decoder_service.request.prompt import PromptBuilder
from serving.bundle import Bundle


@pytest.fixture(scope="module")
def tokens(prompts: PromptBuilder) -> TokenBytes:
    """Bytes of the small tokenizer, in which every character beyond ASCII takes several tokens."""
    return TokenBytes(prompts.tokenizer.backend_tokenizer)


@settings(deadline=None)
@given(text=st.text(st.characters(codec="utf-8")))
def test_pieces_join_to_the_text(prompts: PromptBuilder, tokens: TokenBytes, text: str) -> None:
    """What is pushed comes out again, and no piece holds half a character."""
    ids = prompts.tokenizer.encode(text, add_special_tokens=False)
    detokenizer = Detokenizer(tokens)
    pieces = [detokenizer.push(token) for token in ids] + [detokenizer.flush()]
    assert "".join(pieces) == prompts.tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    "text", ["👩\u200d👧\u200d👦", "你好世界", "e\u0301\u0323", "🇩🇪🏴\U000e0067\U000e007f", "a\U0001f600b"]
)
def test_characters_are_whole(prompts: PromptBuilder, tokens: TokenBytes, text: str) -> None:
    """A character of several tokens comes with the last of them, and nothing stands for it before."""
    ids = prompts.tokenizer.encode(text, add_special_tokens=False)
    detokenizer = Detokenizer(tokens)
    pieces = [detokenizer.push(token) for token in ids]
    assert len(ids) > len(text)
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) == prompts.tokenizer.backend_tokenizer.normalizer.normalize_str(text)
    assert detokenizer.flush() == ""


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 319), max_size=40))
def test_any_ids_decode_as_the_tokenizer_does(prompts: PromptBuilder, tokens: TokenBytes, ids: list[int]) -> None:
    """Also broken UTF-8, special tokens and ids beyond the vocabulary give the text that the tokenizer gives."""
    detokenizer = Detokenizer(tokens)
    text = "".join(detokenizer.push(token) for token in ids) + detokenizer.flush()
    assert text == prompts.tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=True)


def test_a_character_that_never_ends_is_shown_as_such(prompts: PromptBuilder, tokens: TokenBytes) -> None:
    """Bytes that wait for more when the answer ends become one replacement character."""
    ids = prompts.tokenizer.encode("😀", add_special_tokens=False)
    detokenizer = Detokenizer(tokens)
    assert [detokenizer.push(token) for token in ids[:-1]] == [""] * (len(ids) - 1)
    assert detokenizer.flush() == "\ufffd"


def test_special_tokens_are_silent(bundle: Bundle, tokens: TokenBytes) -> None:
    """Control tokens have no text; markup tokens that are not special have theirs."""
    tool_call = tokens._tokenizer.token_to_id("<tool_call>")
    assert tokens[bundle.tokens.eos[0]] == b""
    assert tokens[tool_call] == b"<tool_call>"
