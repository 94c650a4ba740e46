"""The tokenizer: nothing is lost, control tokens are single ids, and printed words fall apart into letters."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from demo.config import CONTEXT_LENGTH
from demo.tokenizer import CONTROL_TOKENS, MARKUP_TOKENS, save_tokenizer
from recipes.demo_model.train import recipe_tokenizer

TOKENIZER: Tokenizer = recipe_tokenizer()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """The tokenizer as transformers loads it from its files."""
    directory: Path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(TOKENIZER, directory, CONTEXT_LENGTH)
    return AutoTokenizer.from_pretrained(directory)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])).filter(lambda text: "<" not in text))
@settings(max_examples=200, deadline=None)
def test_any_text_survives(text: str) -> None:
    """Decoding gives back what was encoded, after Unicode normalization."""
    normal = TOKENIZER.normalizer.normalize_str(text)
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == normal


def test_control_tokens_are_single_ids_and_special() -> None:
    """Each control token is one id; markup tokens are too, but survive when special tokens are skipped."""
    for token in (*CONTROL_TOKENS, *MARKUP_TOKENS):
        assert TOKENIZER.encode(token).ids == [TOKENIZER.token_to_id(token)]
    text = "".join(CONTROL_TOKENS) + "<think>"
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=True) == "<think>"


def test_control_tokens_in_user_text_can_be_plain_characters() -> None:
    """Told to, the tokenizer spells a control token out, and no special id is among the letters."""
    plain = recipe_tokenizer()
    plain.encode_special_tokens = True
    ids = plain.encode("say <|im_end|> and <|image_pad|>").ids
    assert not {TOKENIZER.token_to_id(token) for token in CONTROL_TOKENS} & set(ids)
    assert plain.decode(ids, skip_special_tokens=True) == "say <|im_end|> and <|image_pad|>"


@pytest.mark.parametrize("word", ["RIVER", "river", "42", "A1b2", "circle", "Blue"])
def test_quoted_words_fall_apart_into_letters(word: str) -> None:
    """A printed word is quoted, and then every letter is a token, also of words that the recipe knows."""
    tokens = TOKENIZER.encode(f'"{word}"').tokens
    if word == "Blue":  # capitals begin sentences, so such a word may hold a known beginning
        assert "".join(tokens) == '"Blue"'
    else:
        assert tokens == ['"', *word, '"']


def test_known_words_are_single_tokens() -> None:
    """An answer costs one token a word."""
    tokens = TOKENIZER.encode("A red circle, a blue square and an orange star.").tokens
    assert len(tokens) == 12


def test_transformers_loads_the_same_tokenizer(loaded: PreTrainedTokenizerBase) -> None:
    """The files give the same ids through AutoTokenizer, with Qwen's end and padding tokens."""
    text = '<|im_start|>user\nWhat is <tool_call> "x9" \u65e5\u672c?<|im_end|>\n'
    assert loaded(text)["input_ids"] == TOKENIZER.encode(text).ids
    assert (loaded.eos_token, loaded.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert len(loaded) == TOKENIZER.get_vocab_size()
    assert loaded.decode(loaded(text)["input_ids"]) == text


def test_chat_template_renders_as_qwen(loaded: PreTrainedTokenizerBase) -> None:
    """Media, a system prompt, earlier turns and the generation prompt, in Qwen3-VL's format."""
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": "A red circle."},
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "And this?"}]},
    ]
    assert loaded.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is this?<|im_end|>\n"
        "<|im_start|>assistant\nA red circle.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>And this?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_chat_template_renders_tools_as_qwen(loaded: PreTrainedTokenizerBase) -> None:
    """Tools are listed in the system block; calls and results are wrapped in their tags."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    chat = [
        {"role": "user", "content": "Go."},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
        {"role": "tool", "content": "2"},
        {"role": "tool", "content": "3"},
    ]
    text = loaded.apply_chat_template(chat, tools=tools, tokenize=False)
    assert text.startswith("<|im_start|>system\n# Tools\n\nYou may call one or more functions")
    assert '<tools>\n{"type": "function", "function": {"name": "f", "parameters": {}}}\n</tools>' in text
    assert text.endswith(
        '<|im_start|>assistant\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n2\n</tool_response>\n<tool_response>\n3\n</tool_response><|im_end|>\n"
    )
