"""Run the vision service: `python -m vision_service --bundle DIR`."""

import sys

if __name__ == "__main__":
    from serving.memory import GIB, ending_without_memory, require_address_space
    from serving.parent import end_with_launcher

    end_with_launcher(sys.argv)  # before the imports that take time
    require_address_space("vision_service", 2 * GIB)

    with ending_without_memory("vision_service"):
        from serving.main import main
        from serving.server import Service
        from vision_service.settings import VisionSettings

        def make(settings: VisionSettings) -> Service:
            """Make the service; imported late, since PyTorch takes seconds to load."""
            from vision_service.service import VisionService  # noqa: PLC0415

            return VisionService(settings)

        sys.exit(main("vision_service", VisionSettings, make))
