"""Memory for keys and values: taken as it is written, given back in whole pages."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import psutil
import pytest

from decoder_service.engine.batching.kv import KvCache, granule

MIB = 1 << 20


def cache(**shape: Any) -> KvCache:
    """Two layers of two heads of 128 numbers: 4 KiB for each token, in pages of eight."""
    return KvCache(**{"layers": 2, "slots": 3, "heads": 2, "length": 1000, "width": 128, "dtype": np.float32, **shape})


def filled(kv: KvCache, row: int, count: int, seed: int) -> None:
    """Write tokens that are known by their seed."""
    for n, buffer in enumerate(kv.buffers):
        buffer[row, :, :count] = known(buffer[row, :, :count].shape, seed, n)


def known(shape: tuple[int, ...], seed: int, layer: int) -> np.ndarray:
    """Numbers of one seed."""
    return np.random.default_rng([seed, layer]).random(shape, np.float32)


def holds(kv: KvCache, row: int, count: int, seed: int) -> bool:
    """Whether the tokens of a seed lie there."""
    return all(
        np.array_equal(buffer[row, :, :count], known(buffer[row, :, :count].shape, seed, n))
        for n, buffer in enumerate(kv.buffers)
    )


def test_sizes() -> None:
    """Rows are rounded up to whole pages; the bytes of a token are those of all layers."""
    kv = cache()
    assert kv.granule == granule(128, np.float32) == 8
    assert kv.length == 1000
    assert cache(length=1001).length == 1008
    assert kv.bytes_per_token == 2 * 2 * 2 * 128 * 4
    assert granule(96, np.float32) == 11
    assert cache(width=96).length == 1024  # 32 tokens fill three pages


def test_rows_that_do_not_fill_a_page_are_freed_without_their_neighbours() -> None:
    """Rows of 132 bytes, as 8-bit keys are: what is kept stays, and no other slot or head loses a byte."""
    kv = cache(width=132, dtype=np.int8)
    assert (kv.granule, kv.length) == (32, 1024)
    for row in range(3):
        for buffer in kv.buffers:
            buffer[row, :, :700] = row + 1
    saved = kv.save(1, 500)
    kv.release(1, 333)
    for buffer in kv.buffers:
        assert (buffer[1, :, :333] == 2).all()
        assert (buffer[1, :, 333 + 32 : 700] == 0).all()
        assert (buffer[0, :, :700] == 1).all()
        assert (buffer[2, :, :700] == 3).all()
    kv.restore(saved, 1)
    for buffer in kv.buffers:
        assert (buffer[1, :, :500] == 2).all()


def test_copies_and_exchanges() -> None:
    """Tokens arrive as they were, rows of other lengths change places, and the third is left alone."""
    kv = cache()
    for row, count in ((0, 20), (1, 100), (2, 50)):
        filled(kv, row, count, row)
    kv.swap(0, 1, lengths=(20, 100))
    assert holds(kv, 0, 100, 1)
    assert holds(kv, 1, 20, 0)
    kv.swap(0, 1, lengths=(100, 20))
    assert holds(kv, 0, 20, 0)
    assert holds(kv, 1, 100, 1)
    assert holds(kv, 2, 50, 2)
    expected = [buffer[1, :, :30].copy() for buffer in kv.buffers]
    kv.copy(1, 2, 30)
    for buffer, rows in zip(kv.buffers, expected, strict=True):
        np.testing.assert_array_equal(buffer[2, :, :30], rows)


def test_what_is_saved_comes_back_to_any_row() -> None:
    """The first tokens are kept bit for bit outside the cache, whatever becomes of their row."""
    kv = cache()
    filled(kv, 0, 20, 0)
    saved = kv.save(0, 17)
    assert sum(kept.nbytes for kept in saved) == 17 * kv.bytes_per_token
    filled(kv, 0, 20, 1)
    filled(kv, 2, 50, 2)
    expected = [buffer[2, :, 17:50].copy() for buffer in kv.buffers]
    kv.restore(saved, 2)
    for n, buffer in enumerate(kv.buffers):
        np.testing.assert_array_equal(buffer[2, :, :17], known(buffer[0, :, :20].shape, 0, n)[:, :17])
        np.testing.assert_array_equal(buffer[2, :, 17:50], expected[n])
    assert holds(kv, 0, 20, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="gives pages back on Linux alone")
def test_memory_is_that_of_what_is_written() -> None:
    """Most of a terabyte is reserved; resident is what is written, and what is released is gone."""
    process = psutil.Process()
    before = process.memory_info().rss
    kv = cache(length=1 << 26)
    assert process.memory_info().rss - before < 4 * MIB
    tokens = 16384
    size = tokens * kv.bytes_per_token
    for row in (0, 2):
        filled(kv, row, tokens, row)
    written = process.memory_info().rss - before
    assert 2 * size <= written < 2 * size + 32 * MIB
    kv.release(0, 1001)
    assert process.memory_info().rss - before < size + 32 * MIB
    assert [bool(buffer[0, :, 1008:1100].any()) for buffer in kv.buffers] == [False] * 4
    assert all(buffer[0, :, :1001].all() for buffer in kv.buffers)
    kv.release(2)
    assert process.memory_info().rss - before < 32 * MIB
