"""Run the decoder service: `python -m decoder_service --bundle DIR`."""

import sys

# The engine's child process imports this module again, under another name, and must not load the rest.
if __name__ == "__main__":
    from serving.memory import GIB, ending_without_memory, require_address_space
    from serving.parent import end_with_launcher

    end_with_launcher(sys.argv)  # before the imports that take time
    require_address_space("decoder_service", 2 * GIB)

    with ending_without_memory("decoder_service"):
        from decoder_service.service import DecoderService
        from decoder_service.settings import DecoderSettings
        from serving.main import main

        sys.exit(main("decoder_service", DecoderSettings, DecoderService))
