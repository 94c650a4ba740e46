"""A network namespace for each process, and partitions between them that drop packets without a word."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence

_NOBODY = "02:00:00:00:00:00"
"""A hardware address that nobody has."""

CLIENTS = "clients"


class NetworkError(Exception):
    """The network cannot be made: the reason."""


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)  # noqa: S607  # on the PATH
    if done.returncode:
        raise NetworkError(f"ip {' '.join(words)}: {done.stderr.strip()}")


class Network:
    """Namespaces on one bridge. This process, with the clients, is on the bridge as well.

    A partition is made in the tables of neighbours: packets between the two sides get a hardware address that nobody
    has. Each side sends, and nothing comes back; all other pairs are as before. It needs no kernel module.

    Args:
        names: Of the namespaces.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._id = f"tf{os.getpid() % 100000}"
        self._subnet = f"10.231.{os.getpid() % 250}"
        self._bridge = f"{self._id}b"
        self._names = list(names)
        self.addresses = {CLIENTS: f"{self._subnet}.1"} | {
            name: f"{self._subnet}.{number}" for number, name in enumerate(names, 2)
        }

    def make(self) -> None:
        """Make it.

        Raises:
            NetworkError: It is not permitted, or `ip` is missing.
        """
        if os.geteuid() != 0:
            raise NetworkError("network namespaces need root")
        if shutil.which("ip") is None:
            raise NetworkError("there is no command `ip`")
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("addr", "add", f"{self.addresses[CLIENTS]}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        for name in self._names:
            space, outer = self._space(name), f"{self._id}v{self._names.index(name)}"
            _ip("netns", "add", space)
            _ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", outer, "master", self._bridge, "up")
            _ip("-n", space, "addr", "add", f"{self.addresses[name]}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
            _ip("-n", space, "link", "set", "lo", "up")

    def remove(self) -> None:
        """Remove what there is of it."""
        for name in self._names:
            with contextlib.suppress(NetworkError):
                _ip("netns", "del", self._space(name))
        with contextlib.suppress(NetworkError):
            _ip("link", "del", self._bridge)

    def _space(self, name: str) -> str:
        return f"{self._id}-{name}"

    def inside(self, name: str) -> list[str]:
        """Words before a command that is to run in a namespace."""
        return ["ip", "netns", "exec", self._space(name)]

    def cut(self, one: str, other: str) -> None:
        """Drop all packets between two."""
        for here, there in ((one, other), (other, one)):
            _ip(
                *self._in(here), "neigh", "replace", self.addresses[there], "lladdr", _NOBODY, "nud", "permanent",
                "dev", self._device(here),
            )  # fmt: skip

    def heal(self, one: str, other: str) -> None:
        """Drop them no more."""
        for here, there in ((one, other), (other, one)):
            _ip(*self._in(here), "neigh", "del", self.addresses[there], "dev", self._device(here))

    def _in(self, name: str) -> list[str]:
        return [] if name == CLIENTS else ["-n", self._space(name)]

    def _device(self, name: str) -> str:
        return self._bridge if name == CLIENTS else "eth0"


Hosts = Mapping[str, Sequence[tuple[str, Sequence[str]]]]


@contextlib.contextmanager
def network(tiers: Mapping[str, int]) -> Iterator[tuple[Network, Hosts]]:
    """A namespace for each replica of each tier.

    Args:
        tiers: Number of replicas by module.

    Yields:
        The network, and where each replica is to run: its address, and the words before its command.

    Raises:
        NetworkError: It cannot be made.
    """
    made = Network([space(module, number) for module, count in tiers.items() for number in range(count)])
    try:
        made.make()
        yield (
            made,
            {
                module: [
                    (made.addresses[space(module, number)], made.inside(space(module, number)))
                    for number in range(count)
                ]
                for module, count in tiers.items()
            },
        )
    finally:
        made.remove()


def space(module: str, number: int) -> str:
    """Name of a replica's namespace."""
    return f"{module.removesuffix('_service')}{number}"
