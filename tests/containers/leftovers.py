"""Images that a run adds to the engine, and their removal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator

from tests.containers.engine import EngineError, docker, inspect, works

_OURS = "Triptych "  # how the title of every stage in deploy/docker begins


@contextlib.contextmanager
def removed_afterwards(tags: Iterable[str], base: str) -> Iterator[None]:
    """Pull the base image where it is missing; afterwards only images that were there before are left.

    An image without a name is removed only where its title says that it is a stage of ours: others may build at the
    same time.

    Args:
        tags: Names of the images that are built meanwhile.
        base: Name of the image that they are built on.
    """
    before = set(_unnamed())
    names = [*tags]
    if not works("docker", "image", "inspect", base):
        names.append(base)
    try:
        if base in names:
            docker("pull", base, seconds=600)
        yield
    finally:
        for name in names:
            _remove(name)
        # The container of a build that was interrupted holds its image until the engine has removed it.
        end = time.monotonic() + 30
        while (left := [image for image in _unnamed() if image not in before and _is_ours(image)]) and (
            time.monotonic() < end
        ):
            for image in left:
                _remove(image)
            time.sleep(1)


def _remove(image: str) -> None:
    """Remove an image, or leave it where that cannot be done; the removal of a large one takes its time."""
    with contextlib.suppress(EngineError):
        docker("image", "rm", image, seconds=600, check=False)


def _unnamed() -> list[str]:
    """Images without a name that no other image is built on: what a stage of a build comes to, or got to."""
    return docker("image", "ls", "--quiet", "--no-trunc", "--filter", "dangling=true").split()


def _is_ours(image: str) -> bool:
    if not works("docker", "image", "inspect", image):
        return False
    labels = inspect(image)["Config"]["Labels"] or {}
    return str(labels.get("org.opencontainers.image.title", "")).startswith(_OURS)
