"""The table of the stable reasons of failures, from `serving.errors.Reason`."""

from __future__ import annotations

from gateway.http.errors import status_of
from serving.errors import Reason, failure
from tools.docs.tables import table


def markdown() -> str:
    """Both tables: reasons for clients, and reasons only between the services."""
    clients = [
        (_name(reason), reason.code.value, _status(reason), info.raised_by, info.meaning, info.advice)
        for reason in Reason
        if not (info := reason.value).internal
    ]
    between = [
        (_name(reason), reason.code.value, info.raised_by, info.meaning, info.advice)
        for reason in Reason
        if (info := reason.value).internal
    ]
    return "\n\n".join(
        (
            table(("Reason", "Code", "HTTP", "From", "Meaning", "What to do"), clients),
            "Between the services only:",
            table(("Reason", "Code", "From", "Meaning", "What to do"), between),
        )
    )


def _name(reason: Reason) -> str:
    return f"`{reason.name}`"


def _status(reason: Reason) -> str:
    return str(status_of(failure(reason, "", retry_after=1.0 if reason.value.waits else None)))
