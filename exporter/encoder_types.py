"""What each type that the encoder can compute in costs a model, as `python -m exporter.encoder_types BUNDLE` tells it.

The bundle's own decoder answers behind float32 features, and is then led along the same tokens behind the features of
the other types. At each position the distributions of the next token are compared. Pictures and questions are always
the same. The export runs this in a process of its own (see `measuring`): whatever ends it leaves the export alone.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from decoder_service import chat
from decoder_service.families import registry as decoder_families
from decoder_service.families.family import Prompt
from decoder_service.request.prompt import PromptBuilder
from serving.bundle import Bundle
from serving.parent import end_with_parent
from vision_service.families import registry as vision_families
from vision_service.media import PreparedMedium
from vision_service.operators import Operators, OperatorsError

from .divergence import Asked, Graph, kl_divergence
from .pictures import KINDS
from .progress import quiet

TYPES = ("bfloat16", "int8")
"""The types that are measured."""

QUESTIONS = ("Describe the picture.", "What is in the picture?")
"""What is asked: one question about each picture, in turns."""

_OF_A_KIND = 2
_STEPS = 5  # tokens of an answer: one position more is compared

Features = list[NDArray[np.float32]]
Say = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Measured:
    """What was found.

    Attributes:
        types: divergence and positions of each type, as bundle.json has them.
        left_out: why a type is not among them.
    """

    types: Mapping[str, Mapping[str, float]]
    left_out: Mapping[str, str]


def measure_types(bundle: Bundle, say: Say) -> Measured:
    """Measure every type that this processor can compute.

    Args:
        bundle: complete but for what is measured.
        say: called with {"total": units} first, and with {"done": units} whenever some are done.
    """
    left_out = {name: why for name in TYPES if (why := missing(name)) is not None}
    names = [name for name in TYPES if name not in left_out]
    family = vision_families.family_of(bundle)
    media = [family.fit_picture(bundle, kind(index)) for kind in KINDS.values() for index in range(_OF_A_KIND)]
    say({"total": 2 * len(media) * (1 + len(names))})

    def counted(items: Sequence[Any]) -> Iterator[Any]:
        for item in items:
            yield item
            say({"done": 1})

    features = {name: list(encode(bundle, counted(media), name)) for name in ("float32", *names)}
    prompts = _prompts(bundle, media, features["float32"])
    longest = max(prompt.engine_token_ids.size for prompt in prompts)
    graph = Graph(bundle, bundle.decoder.precision, length=longest + _STEPS, repack=False)
    exact = [
        graph.greedy(Asked(prompt, rows), _STEPS)
        for prompt, rows in counted(list(zip(prompts, features["float32"], strict=True)))
    ]
    types = {}
    for name in names:
        asked = [Asked(prompt, rows) for prompt, rows in zip(prompts, features[name], strict=True)]
        values = np.concatenate(
            [
                kl_divergence(logits, graph.led(one, tokens))
                for one, (tokens, logits) in counted(list(zip(asked, exact, strict=True)))
            ]
        )
        if np.isfinite(values).all():
            types[name] = {"divergence": max(0.0, float(values.mean())), "positions": len(values)}
        else:
            left_out[name] = "the decoder gives no numbers behind its features"
    return Measured(types, left_out)


def missing(name: str) -> str | None:
    """Why this machine cannot compute a type."""
    if name == "int8":
        try:
            Operators()
        except OperatorsError as error:
            return str(error)
    return None


def encode(bundle: Bundle, media: Iterable[PreparedMedium], name: str) -> Iterator[NDArray[np.float32]]:
    """The features of each medium; the encoder is in memory for as long as this takes.

    Args:
        bundle: has the encoder.
        media: what is encoded.
        name: type to compute in.
    """
    encoder = vision_families.family_of(bundle).load_encoder(
        bundle.vision_dir,
        device=torch.device("cpu"),
        dtype=getattr(torch, name),
        out_dtype=torch.float32,
        operators=True,
    )
    for medium in media:
        yield encoder.encode([medium])[0].numpy()
    del encoder
    gc.collect()


def _prompts(bundle: Bundle, media: Sequence[PreparedMedium], features: Features) -> list[Prompt]:
    builder = PromptBuilder.load(bundle.decoder_dir, decoder_families.family_of(bundle))
    prompts = []
    for index, (medium, rows) in enumerate(zip(media, features, strict=True)):
        shown = chat.Medium(chat.MediaKind.IMAGE, str(index))
        question = chat.Text(QUESTIONS[index % len(QUESTIONS)])
        rendered = builder.render([chat.Message(chat.Role.USER, (shown, question))])
        prompts.append(builder.expand(rendered, [chat.Layout(shown, medium.grid, len(rows), ())]))
    return prompts


def main(root: str) -> None:
    """Measure, and write a line of JSON for each step and for what was found."""
    end_with_parent(os.getppid(), signal.SIGKILL)
    with contextlib.suppress(OSError):  # where memory runs out, this process is to end, not the export
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")
    out = sys.stdout

    def say(line: Mapping[str, Any]) -> None:
        print(json.dumps(line), file=out, flush=True)

    with quiet():
        found = measure_types(Bundle.open(root), say)
    say({"types": found.types, "left_out": found.left_out})


if __name__ == "__main__":
    main(sys.argv[1])
