"""The checks of `tests/gpu/run`, in the order in which they run."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.gpu.report import Report, say

NEEDED = ("torch", "transformers", "safetensors", "numpy")


def main() -> int:
    """Run the checks. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="tests/gpu/run", description="Checks the encoder on a GPU.")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default %(default)s)")
    parser.add_argument("--shape", choices=("4b", "small"), default="4b", help="of the encoder (default %(default)s)")
    parser.add_argument("--no-services", action="store_true", help="the encoder alone")
    options = parser.parse_args()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing or sys.version_info < (3, 11):
        say(f"{sys.executable} must be Python 3.11 or later with {', '.join(NEEDED)}: set PYTHON to another")
        return 1
    import torch  # it may be missing

    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        say("there is no GPU that this PyTorch can use: nothing was checked")
        return 1
    say(_machine(device))
    report, began, skipped = Report(), time.monotonic(), ""

    def encoder() -> None:
        from tests.gpu.encoder import check_encoder

        sizes = {"small": (16,), "4b": (16, 32) if device.type == "cpu" else (16, 32, 64, 128)}[options.shape]
        with tempfile.TemporaryDirectory() as folder:
            check_encoder(device, options.shape, sizes, Path(folder), report)

    _section("the encoder", encoder, report)
    if options.no_services:
        skipped = "the services were not asked for"
    else:
        try:
            from tests.gpu.services import check_services
        except ImportError as error:
            skipped = f"the services need what is not installed here ({error.name or error})"
        else:
            _section("the services", lambda: check_services(options.device, report), report)
    if skipped:
        say(f"SKIP  {skipped}")
    say(f"{report.passed} passed, {report.failed} failed  ({time.monotonic() - began:.0f} s)")
    return 1 if report.failed else 0


def _section(name: str, work: Callable[[], None], report: Report) -> None:
    """Do a part of the checks; an error in it is a failure, and the next part goes on."""
    try:
        work()
    except Exception as error:  # noqa: BLE001  # whatever went wrong is told
        traceback.print_exc()
        report.check(f"{name} could be checked to the end", passed=False, detail=f"{type(error).__name__}: {error}")


def _machine(device: object) -> str:
    import torch
    import transformers

    where = str(device)
    if where.startswith("cuda"):
        properties = torch.cuda.get_device_properties(where)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        where = f"{properties.name} ({memory}, capability {properties.major}.{properties.minor})"
    return f"{where}, PyTorch {torch.__version__}, transformers {transformers.__version__}"


if __name__ == "__main__":
    sys.exit(main())
