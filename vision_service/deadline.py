"""Refuses media that would not be encoded before their deadline, while that can still be mended."""

from __future__ import annotations

from serving.bundle import VisionInfo
from serving.errors import Code, ServiceError, Violation, too_large
from vision_service.media import PATH, Kind, Medium
from vision_service.scheduler import Estimate, Scheduler

_MARGIN = 1.2
"""How much longer than the time that is left an estimate must be for a refusal: estimates are a fifth off at times."""


class DeadlineCheck:
    """Compares what encoding would take, by the measured speed, with the time that is left.

    Args:
        scheduler: Knows the speed and what is encoded before.
        vision: For the size of a patch.
    """

    def __init__(self, scheduler: Scheduler, vision: VisionInfo) -> None:
        self._scheduler = scheduler
        self._vision = vision

    def __call__(self, medium: Medium, left: float) -> None:
        """Check a medium that would be encoded next.

        Args:
            medium: The medium.
            left: Seconds until nobody waits for it any more.

        Raises:
            ServiceError: RESOURCE_EXHAUSTED with reason ENCODING_TOO_SLOW and how many pixels would be encoded in time,
                or with reason ENCODER_BUSY and a delay where it is what comes before that takes too long.
        """
        estimate = self._scheduler.estimate(medium)
        if estimate is None or estimate.ahead + estimate.own <= _MARGIN * left:
            return
        seconds = max(left - estimate.ahead, 0.0) / _MARGIN
        pixels = self._scheduler.affordable_patches(seconds, medium.grid.t) * self._vision.patch_size**2
        if medium.kind == "video":
            pixels *= self._vision.temporal_patch_size
        raise _too_slow(medium.kind, medium.grid.patches, estimate, left=left, pixels=pixels - pixels % 1024)


def _too_slow(kind: Kind, patches: int, estimate: Estimate, *, left: float, pixels: int) -> ServiceError:
    description = (
        f"is {'an' if kind == 'image' else 'a'} {kind} of {patches} patches that would take about "
        f"{estimate.ahead + estimate.own:.0f} seconds to encode, {estimate.ahead:.0f} of them for what comes before "
        f"it, and the request has {left:.0f}"
    )
    if estimate.own <= _MARGIN * left:  # it is the queue that is too long
        description += "; try again later"
        return ServiceError(
            Code.RESOURCE_EXHAUSTED,
            "ENCODER_BUSY",
            f"{PATH}: {description}",
            violations=(Violation(PATH, description),),
            retry_after=max(estimate.ahead + estimate.own - left, 1.0),
        )
    option = "max_pixels" if kind == "image" else "max_video_pixels"
    lower = f"ask for at most {pixels} pixels ({option}), or give it more time" if pixels else "give it more time"
    return too_large(PATH, f"{description}; {lower}", reason="ENCODING_TOO_SLOW", limit=pixels)
