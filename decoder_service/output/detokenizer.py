"""Incremental detokenization, in whole characters."""

from __future__ import annotations

import codecs

from tokenizers import Tokenizer


def _byte_of_letter() -> dict[str, int]:
    """The letters that byte-level BPE uses for the 256 bytes: printable ones as themselves, others from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    return letters | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_LETTER = _byte_of_letter()


class TokenBytes:
    """The bytes of the tokens of a byte-level BPE tokenizer, computed at first use.

    Args:
        tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, bytes] = {
            token_id: b"" if token.special else token.content.encode()
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
        }

    def __getitem__(self, token_id: int) -> bytes:
        """Bytes of a token. None for special tokens and for ids that are not in the tokenizer."""
        known = self._known.get(token_id)
        if known is None:
            letters = self._tokenizer.id_to_token(token_id) or ""
            known = bytes(_BYTE_OF_LETTER[letter] for letter in letters)
            self._known[token_id] = known
        return known

    def text(self, token_id: int) -> str:
        """Text of a single token; a control token's name; empty if its bytes are not whole characters."""
        raw = self[token_id]
        if not raw:
            return self._tokenizer.id_to_token(token_id) or ""
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return ""

    def shown(self, token_id: int) -> str:
        """As `text`; bytes that are not whole characters are escaped."""
        return self.text(token_id) or "".join(f"\\x{byte:02x}" for byte in self[token_id])


class Detokenizer:
    """Text of one answer. Bytes that are not UTF-8 become U+FFFD, as in `Tokenizer.decode`.

    Args:
        tokens: Bytes of the tokens.
    """

    def __init__(self, tokens: TokenBytes) -> None:
        self._tokens = tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The characters that this token completes."""
        return self._decoder.decode(self._tokens[token_id])

    def flush(self) -> str:
        """The rest at the end: U+FFFD for an incomplete character."""
        return self._decoder.decode(b"", final=True)
