"""An engine in this process, made with the decoder service's settings."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from pydantic import ValidationError

from benchmarks.errors import BenchError
from decoder_service.request.decoder import Decoder
from decoder_service.service import DecoderService
from decoder_service.settings import DecoderSettings
from serving import logs
from serving.bundle import Bundle
from serving.server import StartError


@contextlib.asynccontextmanager
async def running(bundle: Bundle, **settings: Any) -> AsyncIterator[Decoder]:
    """Load the decoder of a bundle, and run it within the block. `DECODER_*` variables apply.

    Args:
        bundle: The model.
        settings: Settings of the decoder service, which override the variables.

    Raises:
        BenchError: It cannot be started, or a variable is invalid.
    """
    given: dict[str, Any] = {"bundle": bundle.root, **settings}
    try:
        chosen = DecoderSettings(**given)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        raise BenchError(f"DECODER_{'_'.join(map(str, detail['loc'])).upper()}: {detail['msg']}") from error
    logs.configure(chosen, "bench")  # by default the log would go to stdout, as the results do
    service = DecoderService(chosen)
    try:
        await service.start(lambda _: None)
    except StartError as error:
        raise BenchError(str(error)) from error
    try:
        yield service.decoder
    finally:
        await service.stop()
