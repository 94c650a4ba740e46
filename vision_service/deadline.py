"""Refuses media that would not be encoded before their deadline, before they are encoded."""

from __future__ import annotations

from serving.errors import Reason, field_failure, too_large
from vision_service.family import Preprocessor
from vision_service.media import PATH, Kind, PreparedMedium
from vision_service.scheduler import Estimate, Scheduler

_MARGIN, _UNPROVEN_MARGIN = 1.2, 3.0
"""Ratio of estimate to remaining time from which on a medium is refused. Estimates are sometimes off by a fifth, and
more if the speed is known only from the start, when other processes may have used the cores."""

_SHARE = 0.6
"""Share of the remaining time for the recommended size: prefill and decode take time as well."""


class DeadlineCheck:
    """Compares the estimated time of encoding with the remaining time.

    Args:
        scheduler: Estimates the time, including the queue.
        preprocessor: Converts patches to pixels.
    """

    def __init__(self, scheduler: Scheduler, preprocessor: Preprocessor) -> None:
        self._scheduler = scheduler
        self._preprocessor = preprocessor

    def __call__(self, medium: PreparedMedium, left: float) -> None:
        """Check a medium before it is encoded.

        Args:
            medium: The medium.
            left: Seconds until the request's deadline.

        Raises:
            ServiceError: RESOURCE_EXHAUSTED with reason ENCODING_TOO_SLOW and the number of pixels that would be
                encoded in time, or with reason ENCODER_BUSY and a retry delay if only the queue is too long.
        """
        estimate = self._scheduler.estimate(medium)
        patience = (_MARGIN if self._scheduler.proven else _UNPROVEN_MARGIN) * left
        if estimate is None or estimate.ahead + estimate.own <= patience:
            return
        seconds = max(_SHARE * left - estimate.ahead, 0.0)
        affordable = self._scheduler.affordable_patches(seconds, medium.grid.t)
        pixels = self._preprocessor.pixels(medium.kind, affordable)
        description = _describe(medium.kind, medium.grid.patches, estimate, left)
        if estimate.own <= patience:  # the queue is too long
            raise field_failure(
                Reason.ENCODER_BUSY,
                PATH,
                f"{description}; try again later",
                retry_after=max(estimate.ahead + estimate.own - left, 1.0),
            )
        option = "max_pixels" if medium.kind == "image" else "max_video_pixels"
        pixels -= pixels % 1024
        lower = f"ask for at most {pixels} pixels ({option}), or allow more time" if pixels else "allow more time"
        raise too_large(PATH, f"{description}; {lower}", reason=Reason.ENCODING_TOO_SLOW, limit=pixels)


def _describe(kind: Kind, patches: int, estimate: Estimate, left: float) -> str:
    before = f", {_seconds(estimate.ahead)} of them for what comes before it" if estimate.ahead > 0 else ""
    whole = _seconds(estimate.ahead + estimate.own)
    return (
        f"is {'an' if kind == 'image' else 'a'} {kind} of {patches} patches that would take about {whole} seconds to "
        f"encode{before}, and the request has {_seconds(left)} left"
    )


def _seconds(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"
