"""The keys in force: those of a file, read again whenever it changes."""

from __future__ import annotations

from pathlib import Path

import structlog

from gateway.keys.file import KeysFileError, read_keys
from gateway.keys.key import Key, hash_of
from serving.files import signature

log = structlog.get_logger()

_LONGEST_SECRET = 256
"""Longer ones are not hashed."""


class KeyRing:
    """Finds keys by their secrets. The file is looked at for every request: a revoked key fails from then on.

    A file that disappears or breaks changes nothing: the last good one stays in force, and the log says so once.

    Args:
        path: The file.

    Raises:
        KeysFileError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version = signature(self._path)
        self._keys: dict[str, Key] = {}
        self._use(read_keys(path))

    def find(self, secret: str) -> Key | None:
        """The key with this secret; None if there is none.

        What is compared are hashes, by a table: the time tells nothing about a secret, since nobody can choose the hash
        of what he sends without knowing it whole.
        """
        self._renew()
        if not (len(secret) <= _LONGEST_SECRET and secret.isascii()):
            return None
        return self._keys.get(hash_of(secret))

    def _renew(self) -> None:
        version = signature(self._path)
        if version == self._version:
            return
        self._version = version  # also of a broken file: it is read again when it changes again
        try:
            keys = read_keys(self._path)
        except KeysFileError as error:
            log.error("the keys stay as they were", error=str(error))
            return
        self._use(keys)
        log.info("keys read", keys=len(keys))

    def _use(self, keys: tuple[Key, ...]) -> None:
        self._keys = {key.sha256: key for key in keys}
