"""The scope in which the tiers keep what a request computes, made of its tenant and its salt."""

from __future__ import annotations

import hashlib


def cache_scope(tenant: str, salt: str = "") -> str:
    """The `cache_scope` of a request's messages to the tiers.

    Every gateway makes the same of the same tenant and salt, so it does not matter which of them a request reaches. It
    separates; it is no secret.

    Args:
        tenant: Name of the tenant; empty without keys.
        salt: The client's own `cache_salt`, any text.

    Returns:
        32 hexadecimal digits; empty if both are.
    """
    if not tenant and not salt:
        return ""
    # The length keeps the two apart.
    return hashlib.sha256(f"{len(tenant)}:{tenant}{salt}".encode()).hexdigest()[:32]
