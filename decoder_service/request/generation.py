"""How an answer is drawn, and what the checkpoint says where the request is silent."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from decoder_service.engine import SamplingParams

MAX_TEMPERATURE = 2.0
MAX_STOPS = 16
MAX_STOP_LENGTH = 256
MAX_PENALTY = 2.0
MAX_LOGIT_BIAS = 100.0
MAX_BIASED_TOKENS = 1024


@dataclass(frozen=True)
class Generation:
    """How one answer is drawn.

    Attributes:
        sampling: How a token is chosen.
        max_tokens: Most tokens to write; None takes the server's default, cut to what the context leaves free.
        stop: Strings before which the answer ends.
        return_prompt_token_ids: Whether the client wants the prompt's ids.
        clamp_max_tokens: Whether `max_tokens` may be cut to what the context leaves free, and is not refused.
    """

    sampling: SamplingParams
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    return_prompt_token_ids: bool = False
    clamp_max_tokens: bool = False

    @property
    def must_fit(self) -> int | None:
        """Tokens of the answer that must fit the context behind the prompt, where there is such a demand."""
        return None if self.clamp_max_tokens else self.max_tokens


@dataclass(frozen=True)
class GenerationDefaults:
    """What generation_config.json of the checkpoint says of sampling.

    Its temperature is not among them: an answer is greedy unless the request asks for another.

    Attributes:
        top_p: The checkpoint's, else 1.
        top_k: The checkpoint's, else 0.
        min_p: The checkpoint's, else 0.
        repetition_penalty: The checkpoint's, else 1. It is applied to greedy answers, too, as transformers does.
    """

    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @classmethod
    def load(cls, path: Path) -> GenerationDefaults:
        """Read generation_config.json; a file that is not there says nothing.

        Raises:
            ValueError: A value is out of range, or the file is not JSON.
        """
        if not path.is_file():
            return cls()
        config = json.loads(path.read_text(encoding="utf-8"))
        # Explicit nulls mean absent, as in transformers.
        config = {name: value for name, value in config.items() if value is not None}
        top_p = float(config.get("top_p", 1.0))
        top_k = int(config.get("top_k", 0))
        min_p = float(config.get("min_p", 0.0))
        repetition_penalty = float(config.get("repetition_penalty", 1.0))
        if not (0 < top_p <= 1 and top_k >= 0 and 0 <= min_p <= 1 and 0 < repetition_penalty < math.inf):
            raise ValueError(
                f"{path.name} has top_p {top_p}, top_k {top_k}, min_p {min_p}, repetition_penalty {repetition_penalty}"
            )
        return cls(top_p, top_k, min_p, repetition_penalty)
