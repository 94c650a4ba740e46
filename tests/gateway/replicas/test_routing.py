"""The choice of a replica: affinity, and its bound."""

from __future__ import annotations

from collections import Counter

from gateway.replicas.routing import BALANCE, choose, ranked

NAMES = [f"10.0.0.{i}:50062" for i in range(5)]
KEYS = [f"key {i}".encode() for i in range(1000)]


def test_a_key_keeps_its_order() -> None:
    """The order depends on the key and the names alone, not on how they are listed."""
    for key in KEYS[:20]:
        assert ranked(key, NAMES) == ranked(key, reversed(NAMES))
        assert sorted(ranked(key, NAMES)) == NAMES


def test_keys_are_spread_evenly() -> None:
    """Each replica is the first of about as many keys."""
    first = Counter(ranked(key, NAMES)[0] for key in KEYS)
    assert all(150 < first[name] < 250 for name in NAMES)


def test_a_replica_that_leaves_moves_only_its_keys() -> None:
    """The other keys stay, and its own are spread over all the others."""
    left = NAMES[1:]
    moved = [key for key in KEYS if ranked(key, NAMES)[0] != ranked(key, left)[0]]
    assert {ranked(key, NAMES)[0] for key in moved} == {NAMES[0]}
    assert len({ranked(key, left)[0] for key in moved}) == len(left)


def test_idle_replicas_are_used_first() -> None:
    """As many pieces of work as there are idle replicas use them all, whatever their keys: one each."""
    for start in range(200):
        loads = dict.fromkeys(NAMES, 0.0)
        for key in KEYS[start : start + len(NAMES)]:
            loads[choose(key, loads)] += 100
        assert set(loads.values()) == {100}


def test_affinity_never_overloads() -> None:
    """All work with one key: no replica has more than its share and one piece."""
    loads = dict.fromkeys(NAMES, 0.0)
    for count in range(1, 500):
        loads[choose(b"one key", loads)] += 1
        assert max(loads.values()) <= BALANCE * count / len(NAMES) + 1


def test_under_even_load_the_first_is_chosen() -> None:
    """While the replicas are about equally busy each key finds its own."""
    loads = dict.fromkeys(NAMES, 8.0) | {NAMES[0]: 9.0}
    for key in KEYS:
        assert choose(key, loads) == ranked(key, NAMES)[0]


def test_slack_keeps_a_key_at_a_busier_replica() -> None:
    """With slack the first replica may be over the bound by that much, and no more."""
    key = KEYS[0]
    first, second, *_ = ranked(key, NAMES)
    for load, expected in ((2.0, first), (3.0, second)):
        loads = dict.fromkeys(NAMES, 0.0) | {first: load}
        assert choose(key, loads, slack=2.0) == expected
    assert choose(key, dict.fromkeys(NAMES, 0.0) | {first: 1.0}) == second


def test_the_last_replica_of_a_key_comes_first() -> None:
    """It has the caches now; within the same bound, and if it is still there."""
    key = KEYS[0]
    *_, last = ranked(key, NAMES)
    loads = dict.fromkeys(NAMES, 4.0)
    assert choose(key, loads, 0.0, last) == last
    assert choose(key, loads | {last: 9.0}, 0.0, last) == ranked(key, NAMES)[0]
    assert choose(key, loads, 0.0, "gone") == ranked(key, NAMES)[0]


def test_the_least_loaded_is_always_within_the_bound() -> None:
    """Also where sums are rounded."""
    for name in NAMES[:1], NAMES[:3]:
        assert choose(b"key", dict.fromkeys(name, 0.1)) == ranked(b"key", name)[0]
