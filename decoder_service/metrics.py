"""Prometheus metrics of the decoder's requests, for both engines."""

from __future__ import annotations

from types import TracebackType

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Gauge(
    "triptych_requests",
    "Requests inside: waiting for features, for a slot or for the end of the prefill, or decoding.",
    ["state"],
)
PARKED = Gauge(
    "triptych_parked_requests",
    "Requests that have started and wait for KV-cache memory, which older requests use.",
)
PARKS = Counter(
    "triptych_parks_total",
    "How often a request was parked; its keys and values were copied, or dropped to be computed again.",
    ["keys_and_values"],
)
PROMPT_TOKENS = Counter(
    "triptych_prompt_tokens_total", "Tokens of prompts, computed or found in the prefix cache.", ["source"]
)
COMPLETION_TOKENS = Counter("triptych_completion_tokens_total", "Generated tokens.")
QUEUE_SECONDS = Histogram(
    "triptych_queue_seconds",
    "From a request's arrival in the engine to the start of its prefill, without waiting for features.",
    buckets=(0.001, 0.01, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
FIRST_TOKEN_SECONDS = Histogram(
    "triptych_time_to_first_token_seconds",
    "From the request's arrival in the decoder to its first token.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160),
)
TOKEN_SECONDS = Histogram(
    "triptych_time_per_output_token_seconds",
    "Mean time between the tokens of a whole answer.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5),
)


class Progress:
    """Counts one request as waiting, then as decoding, until the block is left."""

    def __init__(self) -> None:
        self._state = "waiting"

    def __enter__(self) -> Progress:
        REQUESTS.labels(self._state).inc()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        REQUESTS.labels(self._state).dec()

    def prefilled(self, prompt_tokens: int, cached_tokens: int, queue_seconds: float) -> None:
        """Record the end of the prefill."""
        REQUESTS.labels(self._state).dec()
        self._state = "answering"
        REQUESTS.labels(self._state).inc()
        PROMPT_TOKENS.labels("computed").inc(prompt_tokens - cached_tokens)
        PROMPT_TOKENS.labels("cache").inc(cached_tokens)
        QUEUE_SECONDS.observe(queue_seconds)

    def first_token(self, seconds: float) -> None:
        """Record the first token, `seconds` after the request."""
        FIRST_TOKEN_SECONDS.observe(seconds)

    def token(self) -> None:
        """Record a token, including the first."""
        COMPLETION_TOKENS.inc()

    def finished(self, tokens: int, decode_seconds: float) -> None:
        """Record the end of the answer; `decode_seconds` is the time from its first token to its last."""
        if tokens > 1:
            TOKEN_SECONDS.observe(decode_seconds / (tokens - 1))
