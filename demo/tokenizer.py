"""The tokenizer: byte-level BPE with Qwen's pre-tokenizer and control tokens, and about a thousand tokens.

Its merges are built, not counted: every word of the recipe becomes one token, grown letter by letter from its leading
space (or its capital letter). So known words are cheap, and a printed word in quotes, which has no space before it,
falls apart into single letters, as reading needs. Any other text falls back to bytes.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

# In Qwen's order; the first is also the padding token.
CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Tokens of one id each that are ordinary text to a reader (not "special").
MARKUP_TOKENS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
# Qwen's pre-tokenizer: contractions, words with one leading mark or space, single digits, marks, white space.
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPACE = "Ġ"  # how byte-level BPE writes a leading space
_TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def build_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A tokenizer in which every word that the texts hold in running text is one token."""
    words = Counter[str]()
    for text in texts:
        words.update(re.findall(r"(?<![^ ]) ?[A-Za-z]+", text))
        # Lower-case questions begin with a word that the texts know only with a capital.
        words.update(f" {word.lower()}" for word in re.findall(r"[A-Za-z]+", text))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: index for index, letter in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []

    def grow(start: str, letters: str) -> None:
        for letter in letters:
            if start + letter not in vocab:
                vocab[start + letter] = len(vocab)
                merges.append((start, letter))
            start += letter

    # The chat format's own long word, grown from a pair of letters that few words hold.
    for left, right in (("s", "s"), ("a", "ss"), ("ass", "i"), ("assi", "s"), ("assis", "t")):
        vocab[left + right] = len(vocab)
        merges.append((left, right))
    grow("assist", "ant")
    for word, _ in sorted(words.items(), key=lambda item: (-item[1], item[0])):
        if word[0] == " ":
            grow(_SPACE, word[1:])
        elif word[0].isupper():
            grow(word[0], word[1:])
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([_added(token, special=True) for token in CONTROL_TOKENS])
    tokenizer.add_tokens([_added(token, special=False) for token in MARKUP_TOKENS])
    return tokenizer


def _added(token: str, *, special: bool) -> AddedToken:
    return AddedToken(token, special=special, normalized=False, lstrip=False, rstrip=False, single_word=False)


def save_tokenizer(tokenizer: Tokenizer, directory: Path, context_length: int) -> None:
    """Write tokenizer.json, its configuration as published Qwen3-VL repositories have it, and the chat template."""
    tokenizer.save(str(directory / "tokenizer.json"))
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token in CONTROL_TOKENS,
        }
        for token in (*CONTROL_TOKENS, *MARKUP_TOKENS)
    }
    settings: dict[str, Any] = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(CONTROL_TOKENS[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": context_length,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    template = _TEMPLATE.read_text(encoding="utf-8")
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    model = json.loads(tokenizer.to_str())["model"]  # its vocabulary is in the order of its ids
    (directory / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False) + "\n", encoding="utf-8")
    merges = "".join(" ".join(pair) + "\n" for pair in model["merges"])
    (directory / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
