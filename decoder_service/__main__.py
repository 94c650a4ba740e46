"""Run the decoder service: `python -m decoder_service --bundle DIR`."""

import sys

# The engine's child process imports this module again, under another name, and must not load the rest.
if __name__ == "__main__":
    from decoder_service.service import DecoderService
    from decoder_service.settings import DecoderSettings
    from serving.main import main

    sys.exit(main("decoder_service", DecoderSettings, DecoderService))
