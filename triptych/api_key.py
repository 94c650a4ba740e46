"""The API key that a client sends with every call."""

from __future__ import annotations

import os

API_KEY_VARIABLE = "TRIPTYCH_API_KEY"
"""The environment variable that clients take their key of."""


def key_metadata(api_key: str | None) -> tuple[tuple[str, str], ...]:
    """The metadata of calls with a key; none without.

    Args:
        api_key: The key; None takes that of the environment; empty: none.

    Raises:
        ValueError: It cannot be sent. The message does not repeat it.
    """
    key = os.environ.get(API_KEY_VARIABLE, "").strip() if api_key is None else api_key
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ValueError(f"the API key (api_key or {API_KEY_VARIABLE}) must be printable ASCII without blanks")
    return (("authorization", f"Bearer {key}"),) if key else ()
