"""What both engines say when they fail, and how soon a lost one is tried again."""

from __future__ import annotations

from serving.errors import Reason, ServiceError, failure, unavailable

FIRST_BACKOFF_SECONDS = 0.5
LAST_BACKOFF_SECONDS = 30.0


def not_ready(retry_after: float = 1.0) -> ServiceError:
    """What a request gets while no engine is there."""
    return unavailable(Reason.ENGINE_NOT_READY, "the engine is being started again", retry_after=retry_after)


def failed() -> ServiceError:
    """What a request gets that failed by itself."""
    return failure(Reason.ENGINE_FAILED, "the engine failed on this request; the log says more")
