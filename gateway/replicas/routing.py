"""Chooses a replica by load and affinity. Pure functions: the same arguments give the same choice in every gateway."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping

Choose = Callable[[bytes, Mapping[str, float], float, str | None], str]
"""The signature of `choose`."""

BALANCE = 1.25
"""How far over the mean load the preferred replica of a key may be. Consistent hashing with bounded loads (Mirrokni et
al., 2018) calls it 1 + epsilon."""


def ranked(key: bytes, names: Iterable[str]) -> list[str]:
    """The names in the order in which a key prefers them: rendezvous hashing (Thaler and Ravishankar, 1998).

    If a name is added or removed, the order of the others stays, so only the keys of that name move.

    Args:
        key: What should find the same replica again.
        names: The replicas.
    """
    digest = hashlib.blake2b(key, digest_size=32).digest()
    return sorted(names, key=lambda name: (_score(digest, name), name), reverse=True)


def choose(key: bytes, loads: Mapping[str, float], slack: float = 0.0, last: str | None = None) -> str:
    """The first replica in the key's order whose load is within the bound.

    The bound is `BALANCE` times the mean load, or 0 while a replica is idle, and `slack`. The least loaded replica is
    never over it.

    Args:
        key: As for `ranked`.
        loads: Outstanding work of each replica; at least one.
        slack: Load over the bound that is accepted for the affinity.
        last: The replica that the key had last, which has its caches now: it comes first in the order. It differs from
            the key's own first if that was over the bound then.
    """
    least = min(loads.values())
    bound = max(least, BALANCE * sum(loads.values()) / len(loads) if least else 0.0) + slack
    order = ranked(key, loads)
    if last is not None and last in loads:
        order.insert(0, last)
    return next(name for name in order if loads[name] <= bound)


def _score(digest: bytes, name: str) -> bytes:
    return hashlib.blake2b(name.encode(), key=digest, digest_size=8).digest()
