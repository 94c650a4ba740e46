"""The file of keys: JSON, `{"keys": [...]}`, read by the gateway and written by `triptych key`."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from gateway.keys.key import Key


class KeysFileError(Exception):
    """A file of keys cannot be read or written. The message is one sentence that names it, without its content."""


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: list[Key]


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys of a file.

    Raises:
        KeysFileError: It cannot be read, or is no file of keys.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise KeysFileError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        keys = _Content.model_validate_json(data).keys
    except ValidationError as error:
        # Without the values: somebody may have put a secret where its hash belongs.
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise KeysFileError(f"{path} is no file of keys: {where and f'{where}: '}{first['msg']}") from None
    for what, values in (("name", [key.name for key in keys]), ("sha256", [key.sha256 for key in keys])):
        if len(set(values)) < len(values):
            raise KeysFileError(f"{path} has two keys with one {what}")
    return tuple(keys)


def write_keys(path: Path, keys: Sequence[Key]) -> None:
    """Replace a file of keys at once, so that a reader sees the old keys or the new ones. Only its owner may read it.

    Raises:
        KeysFileError: It cannot be written.
    """
    content = _Content(keys=list(keys)).model_dump_json(indent=2, exclude_none=True)
    target = path.resolve()  # a link stays one
    try:
        with tempfile.NamedTemporaryFile("w", dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
            try:
                os.fchmod(file.fileno(), 0o600)
                if target.exists():  # the gateway may be another user's, and the writer root
                    with contextlib.suppress(PermissionError):
                        os.fchown(file.fileno(), (known := target.stat()).st_uid, known.st_gid)
                file.write(content + "\n")
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).replace(target)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise KeysFileError(f"{path} cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file of keys, so that two commands at once do not lose each other's change.

    Raises:
        KeysFileError: Its folder does not exist.
    """
    try:
        folder = os.open(path.resolve().parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise KeysFileError(f"{path} cannot be written: {error.strerror or error}") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
