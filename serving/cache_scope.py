"""The scope of a request's cache entries: requests of different scopes share nothing that is kept."""

from __future__ import annotations

from serving.errors import invalid

_MOST_CHARACTERS = 128


def check_cache_scope(given: str) -> str:
    """Check `cache_scope` of a message between the services.

    Args:
        given: The scope; empty without keys.

    Returns:
        The same.

    Raises:
        ServiceError: INVALID_ARGUMENT if it is too long or not printable ASCII.
    """
    if len(given) > _MOST_CHARACTERS or not (given.isascii() and given.isprintable()):
        raise invalid("cache_scope", f"must be at most {_MOST_CHARACTERS} printable ASCII characters")
    return given
