"""Names the fields that were ignored: to the client in a header, to the operator once in the log."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote

import structlog
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

log = structlog.get_logger()

IGNORED_HEADER = "x-triptych-ignored"

_MOST_NAMED = 16
_MOST_CHARACTERS = 64
_MOST_LOGGED = 256
"""Names come from clients: no header and no log grows with them."""


class IgnoredFields:
    """Names ignored fields, each kind once in the log."""

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def named(self, fields: Sequence[str], send: Send) -> Send:
        """`send` with a header that names the fields; the same `send` where there are none."""
        if not fields:
            return send
        # Blanks too: a value of a header must not end with one.
        names = [quote(field[:_MOST_CHARACTERS], safe=".[]!$&'()*+/:;=?@^`{|}~<>\"#") for field in fields[:_MOST_NAMED]]
        if len(fields) > _MOST_NAMED:
            names.append(f"and {len(fields) - _MOST_NAMED} more")
        self._log(names)
        value = ", ".join(names)

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[IGNORED_HEADER] = value
            await send(message)

        return send_named

    def _log(self, names: Sequence[str]) -> None:
        for name in names:
            kind = re.sub(r"\[\d+\]", "[]", name)
            if kind not in self._logged and len(self._logged) < _MOST_LOGGED:
                self._logged.add(kind)
                log.info("field of the request is ignored", field=kind)
