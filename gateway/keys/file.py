"""The file of keys: JSON, `{"keys": [...]}`, read by the gateway and written by `triptych key`."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from gateway.keys.key import Key
from serving import folder_lock
from serving.files import read_regular


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
        data = read_regular(path)
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
    """Replace a file of keys at once, so that a reader sees the old keys or the new ones.

    Only the owner may read a new file. One that exists keeps its owner and its mode: the gateway may run as another
    user, and if it could no longer read the file, a revoked key would stay in force.

    Raises:
        KeysFileError: It cannot be written, or its owner cannot be kept.
    """
    content = _Content(keys=list(keys)).model_dump_json(indent=2, exclude_none=True)
    target = path.resolve()  # a link stays one
    try:
        with tempfile.NamedTemporaryFile("w", dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
            try:
                if target.exists():
                    _keep_owner(file.fileno(), target)
                file.write(content + "\n")
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).replace(target)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise KeysFileError(f"{path} cannot be written: {error.strerror or error}") from error


def _keep_owner(new: int, old: Path) -> None:
    """Give a file, by its descriptor, the owner and the mode of another."""
    known, made = old.stat(), os.fstat(new)
    if (known.st_uid, known.st_gid) != (made.st_uid, made.st_gid):
        try:
            os.fchown(new, known.st_uid, known.st_gid)
        except PermissionError:
            raise KeysFileError(f"{old} belongs to user {known.st_uid}: run this as that user, or as root") from None
    os.fchmod(new, stat.S_IMODE(known.st_mode))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file of keys, so that two commands at once do not lose each other's change.

    Raises:
        KeysFileError: Its folder does not exist.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(folder_lock.locked(path.resolve().parent))
        except OSError as error:
            raise KeysFileError(f"{path} cannot be written: {error.strerror or error}") from error
        yield
