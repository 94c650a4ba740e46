"""Freed memory is returned to the operating system, and limits are respected."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from serving.memory import ending_without_memory, usable_memory

_PROGRAM = """
import re
from pathlib import Path
from serving.memory import release_freed_memory

def resident():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10

before = resident()
blocks = [b"x" * 60_000 for _ in range(4_000)]  # small enough to lie on the heap: 229 MiB
kept = blocks[::100]
held = resident() - before
del blocks
freed = resident() - before
if not release_freed_memory():
    print("no glibc")
else:
    print(held, freed, resident() - before)
"""


def test_freed_memory_is_returned() -> None:
    """Also below blocks that are still used, where glibc itself returns nothing."""
    told = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True).stdout.strip()
    if told == "no glibc":
        pytest.skip("this C library is not glibc")
    held, freed, released = map(int, told.split())
    assert held > 200
    assert freed > 100  # glibc still holds it: else this test shows nothing
    assert released < 50


@pytest.mark.parametrize(("limit", "expected"), [("max", None), ("1048576", 1 << 20), (str(1 << 60), None)])
def test_a_limit_is_respected(tmp_path: Path, limit: str, expected: int | None) -> None:
    """A container's limit bounds the machine's memory, and never raises it."""
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    whole = usable_memory(tmp_path / "nowhere")
    assert usable_memory(tmp_path / "memory.max") == (expected or whole)
    assert whole == pytest.approx(psutil.virtual_memory().total, rel=0.01)


@pytest.mark.parametrize("module", ["vision_service", "decoder_service"])
def test_too_little_address_space_is_told_before_libraries_fail(module: str) -> None:
    """`ulimit -v` below what PyTorch or ONNX Runtime reserve: one sentence and 1, not a traceback and no abort."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        ["sh", "-c", 'ulimit -v 614400; exec "$@"', "sh", sys.executable, "-m", module, "--bundle", "b"],  # noqa: S607
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith(f"{module}: the address space is limited to 0.6 GiB (ulimit -v)")


def test_the_limit_of_the_address_space_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`ulimit -v` bounds the memory as a control group does."""
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1 << 20, 1 << 20))
    assert usable_memory(tmp_path / "none") == 1 << 20


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("can't start new thread"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes\nand more"),
        RuntimeError("std::bad_alloc"),
    ],
    ids=repr,
)
def test_a_start_without_memory_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    """Whichever library says it, the process ends with 1 and one sentence."""
    with pytest.raises(SystemExit) as caught, ending_without_memory("vision_service"):
        raise error
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("vision_service: there is not enough memory to start (")


def test_other_errors_of_a_start_are_not_hidden() -> None:
    """A bug keeps its traceback."""
    with pytest.raises(RuntimeError, match="bug"), ending_without_memory("gateway"):
        raise RuntimeError("bug")
