"""What the decoder tells Prometheus of requests, whichever engine answers them."""

from __future__ import annotations

from types import TracebackType

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Gauge(
    "triptych_requests",
    "Requests inside: waiting for features, a slot or the end of their prompt, or answering.",
    ["state"],
)
PARKED = Gauge(
    "triptych_parked_requests",
    "Requests that have been begun and wait for memory of the KV cache, parked so that older ones can go on.",
)
PARKS = Counter(
    "triptych_parks_total",
    "How often a request was parked, by what became of its keys and values: copied out, or dropped and computed again.",
    ["keys_and_values"],
)
PROMPT_TOKENS = Counter(
    "triptych_prompt_tokens_total", "Tokens of prompts, computed or found in the cache.", ["source"]
)
COMPLETION_TOKENS = Counter("triptych_completion_tokens_total", "Tokens of answers.")
QUEUE_SECONDS = Histogram(
    "triptych_queue_seconds",
    "From a request's coming to the engine to the start of its prompt, without waiting for features.",
    buckets=(0.001, 0.01, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
FIRST_TOKEN_SECONDS = Histogram(
    "triptych_time_to_first_token_seconds",
    "From the request's coming to the decoder to its first token.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160),
)
TOKEN_SECONDS = Histogram(
    "triptych_time_per_output_token_seconds",
    "Mean time between the tokens of a whole answer.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5),
)


class Progress:
    """Counts one request on its way: waiting, answering, and gone when the block is left, for whatever reason."""

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
        """The prompt has been read, so much of it from the cache."""
        REQUESTS.labels(self._state).dec()
        self._state = "answering"
        REQUESTS.labels(self._state).inc()
        PROMPT_TOKENS.labels("computed").inc(prompt_tokens - cached_tokens)
        PROMPT_TOKENS.labels("cache").inc(cached_tokens)
        QUEUE_SECONDS.observe(queue_seconds)

    def first_token(self, seconds: float) -> None:
        """The first token comes, so long after the request."""
        FIRST_TOKEN_SECONDS.observe(seconds)

    def token(self) -> None:
        """A token has come, be it the first one."""
        COMPLETION_TOKENS.inc()

    def finished(self, tokens: int, decode_seconds: float) -> None:
        """The answer is whole: so many tokens, and so long from the first of them to the last."""
        if tokens > 1:
            TOKEN_SECONDS.observe(decode_seconds / (tokens - 1))
