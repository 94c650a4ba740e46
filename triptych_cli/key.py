"""`triptych key`: makes, lists and revokes the API keys of a gateway, in the file that it reads."""

from __future__ import annotations

import argparse
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gateway.keys.file import KeysFileError, locked, read_keys, write_keys
from gateway.keys.key import Key, Role, hash_of, new_secret
from triptych_cli.arguments import positive
from triptych_cli.errors import CommandError

_FILE_VARIABLE = "GATEWAY_KEYS_FILE"
_UNITS = {"h": "hours", "d": "days"}


def add_parser(commands: Any) -> None:
    """Add `key` to the commands.

    Args:
        commands: The result of `ArgumentParser.add_subparsers`.
    """
    key = commands.add_parser("key", help="make, list and revoke API keys of a gateway", allow_abbrev=False)
    actions = key.add_subparsers(metavar="ACTION", required=True)

    new = actions.add_parser("new", help="make a key, and print it this once", allow_abbrev=False)
    new.add_argument("name", metavar="NAME", help="its name, in logs")
    new.add_argument("--tenant", metavar="T", help="keys of one tenant share caches (default: the key's name)")
    new.add_argument("--role", choices=[role.value for role in Role], default="user", help="default %(default)s")
    new.add_argument("--expires", type=moment, metavar="WHEN", help="90d, 12h, or a date or time such as 2027-01-31")
    new.add_argument("--max-requests", type=positive, metavar="N", help="most requests at once")
    new.add_argument("--requests-per-minute", type=positive, metavar="N", help="most requests in a minute")
    new.add_argument("--tokens-per-minute", type=positive, metavar="N", help="most tokens in a minute")
    _finish(new, _new)

    _finish(actions.add_parser("list", help="list the keys, without their secrets", allow_abbrev=False), _list)

    revoke = actions.add_parser("revoke", help="remove a key: it fails from the next request on", allow_abbrev=False)
    revoke.add_argument("name", metavar="NAME")
    _finish(revoke, _revoke)


def _finish(parser: argparse.ArgumentParser, command: Any) -> None:
    known = os.environ.get(_FILE_VARIABLE)
    parser.add_argument(
        "--file",
        type=Path,
        default=Path(known) if known else None,
        required=not known,
        metavar="PATH",
        help=f"the gateway's keys_file (default: {_FILE_VARIABLE} of the environment)",
    )
    parser.set_defaults(command=command)


def moment(text: str) -> datetime:
    """A moment in the future: a number of days or hours from now, or a date or time, of UTC if it names no zone."""
    now = datetime.now(UTC)
    try:
        if text[-1:] in _UNITS:
            when = now + timedelta(**{_UNITS[text[-1]]: int(text[:-1])})
        else:
            when = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time; write 90d, 12h, 2027-01-31 or 2027-01-31T18:00"
        ) from None
    when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
    if when <= now:
        raise argparse.ArgumentTypeError(f"{text} is in the past")
    return when.replace(microsecond=0)


def _new(options: argparse.Namespace) -> None:
    secret = new_secret()
    try:
        key = Key(
            name=options.name,
            sha256=hash_of(secret),
            tenant=options.tenant or options.name,
            role=Role(options.role),
            created=datetime.now(UTC).replace(microsecond=0),
            expires=options.expires,
            max_requests=options.max_requests,
            requests_per_minute=options.requests_per_minute,
            tokens_per_minute=options.tokens_per_minute,
        )
    except ValidationError as error:
        field = error.errors()[0]["loc"][0]
        raise CommandError(f"{field}: use 1 to 64 letters, digits, dots, hyphens and underscores") from None
    try:
        with locked(options.file):
            known = read_keys(options.file) if options.file.exists() else ()
            if any(other.name == key.name for other in known):
                raise CommandError(f"there is a key {key.name!r} already; revoke it, or choose another name")
            write_keys(options.file, [*known, key])
    except KeysFileError as error:
        raise CommandError(str(error)) from error
    print(secret)  # noqa: T201


def _list(options: argparse.Namespace) -> None:
    try:
        keys = read_keys(options.file)
    except KeysFileError as error:
        raise CommandError(str(error)) from error
    now = datetime.now(UTC)
    rows = [("NAME", "TENANT", "ROLE", "EXPIRES", "LIMITS")]
    for key in keys:
        limits = key.model_dump(include={"max_requests", "requests_per_minute", "tokens_per_minute"}, exclude_none=True)
        expires = "-" if key.expires is None else key.expires.isoformat() + (" (over)" if key.expired(now) else "")
        shown = " ".join(f"{name}={value}" for name, value in limits.items()) or "-"
        rows.append((key.name, key.tenant, key.role.value, expires, shown))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())  # noqa: T201


def _revoke(options: argparse.Namespace) -> None:
    try:
        with locked(options.file):
            keys = read_keys(options.file)
            kept = [key for key in keys if key.name != options.name]
            if len(kept) == len(keys):
                raise CommandError(f"there is no key {options.name!r}; `triptych key list` lists them")
            write_keys(options.file, kept)
    except KeysFileError as error:
        raise CommandError(str(error)) from error
