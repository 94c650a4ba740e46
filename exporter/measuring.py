"""Measuring what the encoder's types cost in a process of its own, whose end is not the export's."""

import contextlib
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from serving.bundle import Bundle, BundleError

from .progress import Progress

_COMMAND = (sys.executable, "-m", "exporter.encoder_types")

_log = logging.getLogger(__name__)


class _NotMeasuredError(Exception):
    """The process ended before it had measured; the text is what it said last."""


def measure_apart(root: Path, progress: Progress) -> Mapping[str, Mapping[str, float]] | None:
    """Measure the types of a bundle's encoder.

    Args:
        root: the bundle, complete but for what is measured.
        progress: shows a bar.

    Returns:
        Divergence and positions of each type that this machine can compute, as bundle.json has them; None where
        measuring failed. The log says what is missing and why.
    """
    try:
        found = _run(root, progress)
        types: Mapping[str, Mapping[str, float]] = found["types"]
        for name, why in found["left_out"].items():
            _log.info("What the encoder costs in %s was not measured: %s.", name, why)
    except (_NotMeasuredError, BundleError, OSError, ValueError, LookupError, TypeError) as error:
        _log.warning("What the encoder costs in other types than float32 was not measured: %s.", error)
        return None
    return types


def _run(root: Path, progress: Progress) -> Mapping[str, Any]:
    """The last line that the process writes; the lines before move the bar."""
    needed, available = _memory(Bundle.open(root)), available_memory()
    if available is not None and available < needed:
        raise _NotMeasuredError(
            f"it takes {needed / 2**30:.1f} GiB of memory and {available / 2**30:.1f} are available"
        )
    with tempfile.TemporaryFile() as errors, _started(root, errors) as process:
        assert process.stdout is not None  # noqa: S101  # it is piped
        first = _read(process.stdout.readline())
        found: Mapping[str, Any] = {}
        with progress.bar("encoder types", total=int(first.get("total", 0)), unit="prompts") as advance:
            for line in process.stdout:
                found = _read(line)
                advance(int(found.get("done", 0)))
        if (code := process.wait()) != 0:
            errors.seek(0)
            said = errors.read().decode(errors="replace").split("\n")
            last = next((line.strip() for line in reversed(said) if line.strip()), "it said nothing")
            raise _NotMeasuredError(f"{last.rstrip('.')} (exit code {code})")
    return found


@contextlib.contextmanager
def _started(root: Path, errors: IO[bytes]) -> Iterator[subprocess.Popen[str]]:
    """The process, which is gone when the block ends."""
    command = [*_COMMAND, str(root)]
    with subprocess.Popen(  # noqa: S603  # it is our own
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _memory(bundle: Bundle) -> int:
    """What measuring takes, a little generously and without what the kernel may take back."""

    def size(folder: Path) -> int:
        return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())

    graph = size(bundle.graph_path(bundle.decoder.precision).parent)
    # float32 weights of the encoder, usually of a bfloat16 file; then INT4 weights in the order of the operators. A
    # float32 graph stays in its file, but where the file does not fit it would be read again for every token.
    return int(max(2.5 * size(bundle.vision_dir), graph * (1.5 if bundle.decoder.precision == "int4" else 1))) + 2**29


def available_memory() -> int | None:
    """Memory that the system has to give, in bytes; None where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _read(line: str) -> Mapping[str, Any]:
    """A line; nothing where the process wrote none."""
    value = json.loads(line) if line else {}
    if not isinstance(value, dict):
        raise _NotMeasuredError(f"it wrote {line.strip()!r}")
    return value
