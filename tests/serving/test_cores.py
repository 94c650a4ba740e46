"""The processors that a process may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serving.cores import busy_seconds, cpu_name, lacks_vnni, usable_cores


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", None), ("100000 100000", 1), ("50000 100000", 1), ("9900000 100000", None)]
)
def test_a_quota_is_respected(tmp_path: Path, quota: str, expected: int | None) -> None:
    """A container's quota bounds the count, is rounded up, and never raises it."""
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert usable_cores(tmp_path / "cpu.max") == (expected or usable_cores(tmp_path / "nowhere"))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_affinity_is_respected(tmp_path: Path) -> None:
    """A process that is bound to one processor has one."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores(tmp_path / "nowhere") == 1
    finally:
        os.sched_setaffinity(0, before)


def test_the_processor_has_a_name(tmp_path: Path) -> None:
    """As Linux tells it, else as Python does."""
    told = tmp_path / "cpuinfo"
    told.write_text("processor : 0\nmodel name\t: A Processor 9\n")
    assert cpu_name(told) == "A Processor 9"
    assert cpu_name(tmp_path / "none")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("sse2 avx2", True), ("sse2 avx512_vnni", False), ("sse2 avx2 avx_vnni", False), ("asimd", False)],
)
def test_vnni_is_told_by_its_flags(tmp_path: Path, flags: str, expected: bool) -> None:
    """Either of its two forms counts; processors of other kinds, and silent systems, lack nothing."""
    told = tmp_path / "cpuinfo"
    told.write_text(f"processor : 0\nflags\t\t: fpu {flags} fma\n")
    assert lacks_vnni(told) is expected
    assert not lacks_vnni(tmp_path / "none")


def test_busy_time_is_that_of_the_cores_that_are_asked_about(tmp_path: Path) -> None:
    """Of all kinds but idle, waiting for a disk and low priority; None where a system tells nothing of them."""
    told = tmp_path / "stat"
    told.write_text("cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 50 2 1000 70 3 4 5 0 0\ncpu1 100 0 0 9 0 0 0 0 0 0\nintr 1 2\n\n")
    ticks = os.sysconf("SC_CLK_TCK")
    assert busy_seconds([0], told) == 15 / ticks
    assert busy_seconds([0, 1], told) == 115 / ticks
    assert busy_seconds([0, 2], told) is None
    assert busy_seconds([0], tmp_path / "nowhere") is None
    told.write_text("cpu0 0 0 0 0 0 0 0 0 0 0\n")
    assert busy_seconds([0], told) is None
