"""Generation options of a request, and the checkpoint's defaults."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decoder_service.engine import SamplingParams
from decoder_service.output.constraint import Form
from decoder_service.output.repetition import RepetitionLimits

MAX_TEMPERATURE = 2.0
MAX_STOPS = 16
MAX_STOP_LENGTH = 256
MAX_PENALTY = 2.0
MAX_LOGIT_BIAS = 100.0
MAX_BIASED_TOKENS = 1024
MAX_FORM_BYTES = 1 << 18
MAX_STOP_TOKENS = 64
MAX_CHOICES = 8


@dataclass(frozen=True)
class Generation:
    """Checked generation options of one request.

    Attributes:
        sampling: Sampling parameters.
        max_tokens: Most tokens to generate; None: the server's default, at most the free tokens of the context.
        stop: Strings before which the answer ends.
        return_prompt_token_ids: Whether the client wants the prompt's ids.
        form: The form that the answer must have, if any.
        repetition: Repetition that ends the answer; None: no detection.
        stop_token_ids: Tokens that end the answer, beside the model's end tokens.
        choices: Number of answers.
        ignore_eos: Whether the model's end tokens do not end the answer.
        clamp_max_tokens: Whether `max_tokens` is reduced to the free tokens of the context instead of refused.
    """

    sampling: SamplingParams
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    return_prompt_token_ids: bool = False
    form: Form | None = None
    repetition: RepetitionLimits | None = None
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    choices: int = 1
    clamp_max_tokens: bool = False

    @property
    def must_fit(self) -> int | None:
        """Tokens of the answer that must fit in the context, if any."""
        return None if self.clamp_max_tokens else self.max_tokens


@dataclass(frozen=True)
class RecommendedSampling:
    """Sampling parameters from the checkpoint's generation_config.json.

    Attributes:
        temperature: The checkpoint's; 0 if it recommends greedy sampling, or nothing.
        top_p: The checkpoint's, else 1.
        top_k: The checkpoint's, else 0.
        min_p: The checkpoint's, else 0.
        repetition_penalty: The checkpoint's, else 1. It also applies to greedy sampling, as in transformers.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @classmethod
    def load(cls, path: Path) -> RecommendedSampling:
        """Read generation_config.json; a missing file gives the fixed defaults.

        Raises:
            ValueError: A value is out of range, or the file is not JSON.
        """
        if not path.is_file():
            return cls()
        config = json.loads(path.read_text(encoding="utf-8"))
        # Explicit nulls mean absent, as in transformers.
        config = {name: value for name, value in config.items() if value is not None}
        temperature = _temperature(config)
        top_p = float(config.get("top_p", 1.0))
        top_k = int(config.get("top_k", 0))
        min_p = float(config.get("min_p", 0.0))
        repetition_penalty = float(config.get("repetition_penalty", 1.0))
        if not (
            0 <= temperature <= MAX_TEMPERATURE
            and 0 < top_p <= 1
            and top_k >= 0
            and 0 <= min_p <= 1
            and 0 < repetition_penalty < math.inf
        ):
            raise ValueError(
                f"{path.name} has temperature {temperature}, top_p {top_p}, top_k {top_k}, min_p {min_p}, "
                f"repetition_penalty {repetition_penalty}"
            )
        return cls(temperature, top_p, top_k, min_p, repetition_penalty)


def _temperature(config: Mapping[str, Any]) -> float:
    """The temperature of a generation_config. If it samples, the default of transformers is 1."""
    sample = config.get("do_sample", "temperature" in config)
    return float(config.get("temperature", 1.0)) if sample else 0.0


@dataclass(frozen=True)
class GenerationDefaults:
    """Defaults for generation options that a request does not set.

    Attributes:
        recommended: The checkpoint's. Its temperature is used only if `sample` is set: otherwise the default is greedy.
        sample: Whether to use the checkpoint's temperature.
        repetition: Repetition that ends the answer; None: no detection.
    """

    recommended: RecommendedSampling = RecommendedSampling()
    sample: bool = False
    repetition: RepetitionLimits | None = None
