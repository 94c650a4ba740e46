"""The demo model in production form: exported, served by the three services, called through the client."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from PIL import Image as PillowImage

import exporter
from demo.checkpoint import silence_deepstack
from demo.evaluate import Answer, Case
from demo.video import encode_clip
from triptych import Client, Image, Video, assistant, launcher, user
from triptych.messages import Message

T = TypeVar("T")

_LONGEST_ANSWER = 64


@dataclass(frozen=True)
class Variant:
    """A way to export and serve a checkpoint.

    Attributes:
        precision: Precision of the decoder's main graph.
        phases: The graphs of an INT4 bundle; None: the export's default.
        deepstack: Whether DeepStack features are used.
        encoder: Type in which the encoder computes.
    """

    precision: exporter.Precision
    phases: tuple[exporter.Phase, ...] | None = None
    deepstack: bool = True
    encoder: Literal["float32", "bfloat16", "int8"] = "float32"


VARIANTS = {
    "fp32": Variant("fp32"),
    "INT4": Variant("int4"),
    "INT4, encoder bf16": Variant("int4", encoder="bfloat16"),
    "INT4, encoder int8": Variant("int4", encoder="int8"),
    "INT4 alone": Variant("int4", phases=("int4",)),
    "INT4 without DeepStack": Variant("int4", deepstack=False),
}


def bundle_of(checkpoint: Path, variant: Variant, scratch: Path) -> Path:
    """The bundle of a checkpoint, made in a scratch directory."""
    if not variant.deepstack:
        checkpoint = silence_deepstack(checkpoint, scratch / "checkpoint")
    bundle = exporter.export(
        checkpoint,
        scratch / "bundle",
        precision=variant.precision,
        phases=variant.phases,
        measure=False,
        progress=False,
    )
    return bundle.root


def while_serving(bundle: Path, variant: Variant, work: Callable[[Answer], T]) -> T:
    """Start the whole system on a variant's bundle, call `work` with a function that answers cases, and stop.

    Raises:
        SystemExit: It cannot start, or it was interrupted; the message says which.
    """

    def ask(address: str) -> T:
        with Client(address) as client:
            return work(answer_through(client))

    plan = launcher.Plan(bundle=bundle, grpc_port=0, http_port=0, environment={"VISION_DTYPE": variant.encoder})
    try:
        return asyncio.run(launcher.run_while(plan, lambda addresses: asyncio.to_thread(ask, addresses.grpc)))
    except launcher.LaunchError as error:
        raise SystemExit(str(error)) from error


def answer_through(client: Client) -> Answer:
    """A function that answers a case with a running system."""

    def answer(case: Case) -> str:
        parts: list[Image | Video] = [Image(png(image)) for image in case.images]
        if case.clip is not None:
            parts.append(Video(encode_clip(case.clip, case.seconds)))
        return converse(client, parts, case.questions)[-1]

    return answer


def converse(client: Client, shown: Iterable[Image | Video], questions: Iterable[str]) -> list[str]:
    """Ask consecutive questions about the media of the first; returns the answers."""
    messages: list[Message] = []
    answers: list[str] = []
    parts = tuple(shown)
    for question in questions:
        messages.append(user(*parts, question))
        answers.append(client.answer(messages, max_tokens=_LONGEST_ANSWER).text)
        messages.append(assistant(answers[-1]))
        parts = ()
    return answers


def png(image: PillowImage.Image) -> bytes:
    """The image as a PNG file."""
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
