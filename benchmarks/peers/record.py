"""The measurements of a race, in memory and in a file with one JSON object per line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchError


@dataclass(frozen=True)
class Measured:
    """The measurement of one peer for one heat in one turn.

    Attributes:
        peer: Name of the peer.
        heat: Name of the heat.
        turn: Index of the turn.
        seconds: Duration; None if the peer does not support the heat.
        prompt_tokens: Tokens of all prompts, as counted by the peer; None if it does not count them.
        cannot: The reason why the peer does not support the heat, or None.
    """

    peer: str
    heat: str
    turn: int
    seconds: float | None = None
    prompt_tokens: int | None = None
    cannot: str | None = None


class Record:
    """All measurements of one race, including earlier runs of it.

    Args:
        plan: The requests of the race.
        path: File of the measurements; None: they are not stored.

    Raises:
        BenchError: The file belongs to a race with other requests, or cannot be read or written.
    """

    def __init__(self, plan: Mapping[str, Any], path: Path | None = None) -> None:
        self._path = path
        self._measured: list[Measured] = []
        self.versions: dict[str, dict[str, str]] = {}
        """Versions of each peer's libraries in the last run."""
        self.load_seconds: dict[str, float] = {}
        """Load time of each peer in the last run."""
        if path is not None and path.exists():
            self._read(path, plan)
        else:
            self._write({"plan": plan})

    def has(self, peer: str, heat: str, turn: int) -> bool:
        """Whether there is a result, or the reason why there is none."""
        return any((one.peer, one.heat, one.turn) == (peer, heat, turn) for one in self._measured)

    def of(self, peer: str, heat: str) -> list[Measured]:
        """The measurements of one peer for one heat, of all turns."""
        return [one for one in self._measured if (one.peer, one.heat) == (peer, heat)]

    def loaded(self, peer: str, versions: dict[str, str], seconds: float) -> None:
        """Add that a peer has loaded."""
        self.versions[peer], self.load_seconds[peer] = versions, seconds
        self._write({"loaded": peer, "versions": versions, "seconds": seconds})

    def add(self, measured: Measured) -> None:
        """Add a measurement."""
        self._measured.append(measured)
        self._write(asdict(measured))

    def _read(self, path: Path, plan: Mapping[str, Any]) -> None:
        try:
            first, *lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
            if first["plan"] != plan:
                raise BenchError(f"{path} is the record of another race, with other requests")
            for line in lines:
                if "loaded" in line:
                    self.versions[line["loaded"]] = line["versions"]
                    self.load_seconds[line["loaded"]] = line["seconds"]
                else:
                    self._measured.append(Measured(**line))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BenchError(f"{path} cannot be read as the record of a race: {error}") from error

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._path is None:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        except OSError as error:
            raise BenchError(f"{self._path} cannot be written: {error.strerror}") from error
