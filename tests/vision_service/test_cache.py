"""The cache keeps what was used last, within its bytes, and mixes nothing up."""

from __future__ import annotations

import random
from dataclasses import fields

import pytest
import torch

from vision_service.cache import Encoded, FeatureCache, Key, Layout
from vision_service.media import Grid, Kind, Options


def key(name: str) -> Key:
    """The key of an image of this digest."""
    return Key.of(name, "image", Options())


def entry(tokens: int) -> Encoded:
    """Features of a number of tokens, 8 bytes each."""
    return Encoded(Layout(Grid(1, 2, 2 * tokens), ()), torch.full((tokens, 2), float(tokens)))


def test_what_was_used_last_stays() -> None:
    """What makes room is what was neither put nor got for longest."""
    cache = FeatureCache(24)
    for name in "abc":
        cache.put(key(name), entry(1))
    assert cache.get(key("a")) is not None
    cache.put(key("d"), entry(1))
    assert [name for name in "abcd" if cache.get(key(name)) is not None] == ["a", "c", "d"]
    assert (cache.nbytes, len(cache)) == (24, 3)


def test_bytes_are_those_of_the_features() -> None:
    """After any puts the bytes counted are the sum of what is kept, and never over the bound."""
    draw, cache = random.Random(1), FeatureCache(400)
    for _ in range(500):
        cache.put(key(str(draw.randrange(40))), entry(draw.randint(1, 60)))
        kept = [one for name in range(40) if (one := cache._entries.get(key(str(name)))) is not None]
        assert cache.nbytes == sum(one.features.numel() * 4 for one in kept) <= 400
        assert len(cache) == len(kept)


def test_a_new_entry_replaces_the_old() -> None:
    """What is put again under a key counts once, and is what the key gives."""
    cache = FeatureCache(24)
    cache.put(key("a"), entry(1))
    cache.put(key("a"), newer := entry(2))
    assert cache.get(key("a")) is newer
    assert (cache.nbytes, len(cache)) == (16, 1)


def test_too_large_is_not_kept() -> None:
    """An entry over the bound is not kept and drives nothing else out; a bound of zero keeps nothing."""
    cache = FeatureCache(24)
    cache.put(key("a"), entry(1))
    cache.put(key("b"), entry(4))
    assert cache.get(key("b")) is None
    assert cache.get(key("a")) is not None
    nothing = FeatureCache(0)
    nothing.put(key("a"), entry(1))
    assert (nothing.get(key("a")), nothing.nbytes) == (None, 0)


def test_memory_behind_a_view_is_counted() -> None:
    """Features that are a view keep the whole tensor behind them alive, and count as that."""
    cache = FeatureCache(1000)
    cache.put(key("a"), Encoded(Layout(Grid(1, 2, 2), ()), torch.zeros(10, 2)[:1]))
    assert cache.nbytes == 80


_IMAGE = {"min_pixels", "max_pixels"}


@pytest.mark.parametrize("option", [one.name for one in fields(Options)])
def test_every_option_is_in_the_key(option: str) -> None:
    """Each option makes another key for the kind of media that it changes, and for no other."""
    kind, other = ("image", "video") if option in _IMAGE else ("video", "image")
    changed = Options(**{option: 7})
    assert Key.of("a", kind, changed) != Key.of("a", kind, Options())  # type: ignore[arg-type]
    assert Key.of("a", other, changed) == Key.of("a", other, Options())  # type: ignore[arg-type]


def test_digest_and_kind_are_in_the_key() -> None:
    """The same bytes as image and as video, other bytes, and those of another scope are different media."""
    kinds: tuple[Kind, ...] = ("image", "video")
    keys = {Key.of(digest, kind, Options(), scope) for digest in "ab" for kind in kinds for scope in ("", "s")}
    assert len(keys) == 8
