"""The operators' threads: they change nothing in what is computed, wait for no interrupted thread, and end."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from decoder_service.engine.onnx import operators
from tests.decoder_service.engine.onnx.operators.graphs import needs_avx512_vnni, session
from tests.decoder_service.engine.onnx.operators.test_matmul_nbits import one_matmul, run

pytestmark = needs_avx512_vnni

_K = 1024


def _ours(threads: int, n: int = 4112) -> ort.InferenceSession:
    """A matmul of ours with several items of work."""
    model = one_matmul(n, _K, 32)
    assert operators.substitute(model, head_size=32, threads=threads) == 1
    return session(model)


def _workers() -> list[int]:
    """Ids of the pool's threads."""
    tasks = Path("/proc/self/task").iterdir()
    return [int(task.name) for task in tasks if (task / "comm").read_text().strip() == "operators"]


@contextlib.contextmanager
def _no_workers_before() -> Iterator[None]:
    """Kernels that other tests left behind are gone."""
    gc.collect()
    if _workers():
        pytest.skip("another test of this process still holds operators")
    yield


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_threads_change_no_bit(threads: int) -> None:
    """For one row, a few, and so many that they are rounded by all threads."""
    alone, together = _ours(1), _ours(threads)
    rng = np.random.default_rng(threads)
    for rows in (1, 3, 8, 70):
        a = rng.normal(size=(1, rows, _K)).astype(np.float32)
        np.testing.assert_array_equal(run(together, a), run(alone, a))


def test_callers_at_once_compute_the_same() -> None:
    """One has the pool; the others compute alone."""
    sessions = [_ours(3, n) for n in (4112, 2064, 4112, 1040)]
    a = np.random.default_rng(1).normal(size=(1, 8, _K)).astype(np.float32)
    expected = [run(used, a) for used in sessions]
    with ThreadPoolExecutor(len(sessions)) as executor:
        for _ in range(20):
            for got, wanted in zip(executor.map(lambda used: run(used, a), sessions), expected, strict=True):
                np.testing.assert_array_equal(got, wanted)


def test_an_interrupted_thread_spoils_nothing() -> None:
    """Its items are taken over, and what it computes later, while other sections run, is dropped.

    The pool's threads share a core with other processes, so the kernel interrupts them again and again.
    """
    used, alone = _ours(3), _ours(1)
    core = min(os.sched_getaffinity(0))
    forever = f"import os\nos.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    others = [subprocess.Popen([sys.executable, "-c", forever]) for _ in range(3)]
    try:
        for worker in _workers():
            os.sched_setaffinity(worker, {core})
        rng = np.random.default_rng(2)
        asked = [rng.normal(size=(1, 8, _K)).astype(np.float32) for _ in range(8)]
        expected = [run(alone, a) for a in asked]
        output = np.empty_like(expected[0])
        binding = used.io_binding()
        binding.bind_output("y", "cpu", 0, np.float32, output.shape, output.ctypes.data)
        for _ in range(400):
            for a, wanted in zip(asked, expected, strict=True):
                binding.bind_cpu_input("a", a)
                used.run_with_iobinding(binding)
                np.testing.assert_array_equal(output, wanted)
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_all_threads_on_one_core_compute_the_same() -> None:
    """Where the workers cannot leave the caller's core, the caller computes alone."""
    used, alone = _ours(3), _ours(1)
    a = np.random.default_rng(4).normal(size=(1, 8, _K)).astype(np.float32)
    expected = run(alone, a)
    cores = os.sched_getaffinity(0)
    threads = [0, *_workers()]
    try:
        for thread in threads:
            os.sched_setaffinity(thread, {min(cores)})
        for _ in range(50):
            np.testing.assert_array_equal(run(used, a), expected)
    finally:
        for thread in threads:
            os.sched_setaffinity(thread, cores)


def test_the_threads_end_with_the_last_kernel() -> None:
    """And begin again with the next one. Every kernel's memory is its own until then."""
    with _no_workers_before():
        first, second = _ours(3), _ours(2)
        assert len(_workers()) == 2
        a = np.ones((1, 8, _K), np.float32)
        expected = run(first, a)
        del second
        gc.collect()
        np.testing.assert_array_equal(run(first, a), expected)
        del first
        gc.collect()
        assert _workers() == []
        again = _ours(2)
        np.testing.assert_array_equal(run(again, a), expected)


def test_sessions_come_and_go_while_another_runs() -> None:
    """A kernel is destroyed only when no thread reads its weights any more."""
    stays = _ours(2)
    a = np.random.default_rng(3).normal(size=(1, 8, _K)).astype(np.float32)
    expected = run(stays, a)
    ended = threading.Event()

    def come_and_go() -> None:
        for _ in range(10):
            np.testing.assert_array_equal(run(_ours(2), a), expected)
        ended.set()

    with ThreadPoolExecutor(1) as executor:
        others = executor.submit(come_and_go)
        while not (ended.is_set() or others.done()):
            np.testing.assert_array_equal(run(stays, a), expected)
        others.result()
