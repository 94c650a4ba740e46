"""The main function of every service."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from serving import server
from serving.server import Service
from serving.settings import ServerSettings

S = TypeVar("S", bound=ServerSettings)


def main(
    name: str,
    settings_type: type[S],
    make: Callable[[S], Service],
    *,
    run: Callable[[Service, S], int] = server.run,
) -> int:
    """Read the settings from flags and environment, and run the service until a signal.

    Args:
        name: Name of the service on stderr.
        settings_type: Its settings.
        make: Makes the service. Called after the flags have been checked, so that slow imports can be made there.
        run: Runs the service as this process. Returns the exit code.

    Returns:
        0 after a clean stop, 1 if it could not start, 2 for wrong usage.
    """
    try:
        settings = CliApp.run(settings_type)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            where = ".".join(map(str, detail["loc"]))
            what = detail["msg"].removeprefix("Value error, ")
            print(f"{name}: {where}: {what}" if where else f"{name}: {what}", file=sys.stderr)  # noqa: T201
        return 2
    except SettingsError as error:
        print(f"{name}: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return run(make(settings), settings)
