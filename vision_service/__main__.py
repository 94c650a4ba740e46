"""Run the vision service: `python -m vision_service --bundle DIR`."""

import sys

from serving.main import main
from serving.server import Service
from vision_service.settings import VisionSettings


def make(settings: VisionSettings) -> Service:
    """Make the service; imported late, since PyTorch takes seconds to load."""
    from vision_service.service import VisionService  # noqa: PLC0415

    return VisionService(settings)


if __name__ == "__main__":
    sys.exit(main("vision_service", VisionSettings, make))
