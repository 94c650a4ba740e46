"""The demo model as users meet it: exported, served by the three services, asked through the client."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image as PillowImage

import exporter
from demo.checkpoint import silence_deepstack
from demo.evaluate import Answer, Case
from triptych import Client, Image, user

_LONGEST_ANSWER = 64


@dataclass(frozen=True)
class Variant:
    """A way to export a checkpoint."""

    precision: Literal["fp32", "int4"]
    deepstack: bool = True


VARIANTS = {
    "fp32": Variant("fp32"),
    "INT4": Variant("int4"),
    "INT4 without DeepStack": Variant("int4", deepstack=False),
}


def bundle_of(checkpoint: Path, variant: Variant, scratch: Path) -> Path:
    """The bundle of a checkpoint, made in a scratch directory."""
    if not variant.deepstack:
        checkpoint = silence_deepstack(checkpoint, scratch / "checkpoint")
    return exporter.export(checkpoint, scratch / "bundle", precision=variant.precision, progress=False).root


@contextlib.contextmanager
def serving(bundle: Path) -> Iterator[Answer]:
    """The whole system on a bundle, started on free ports; gives what answers a case, and stops when it is left."""
    command = [sys.executable, "-m", "triptych", "up", "--bundle", str(bundle), "--grpc-port", "0", "--http-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603  # our own command
        assert process.stdout is not None  # noqa: S101  # narrows the type: it was asked for
        try:
            ready = re.match(r"ready grpc=(\S+)", process.stdout.readline())
            if ready is None:
                raise SystemExit("the services did not start")
            with Client(ready[1]) as client:
                yield answer_through(client)
        finally:
            process.send_signal(signal.SIGTERM)


def answer_through(client: Client) -> Answer:
    """What answers a case by asking a running system."""

    def answer(case: Case) -> str:
        parts = [Image(png(image)) for image in case.images]
        return client.answer([user(*parts, case.question)], max_tokens=_LONGEST_ANSWER).text

    return answer


def png(image: PillowImage.Image) -> bytes:
    """The image as a PNG file."""
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
