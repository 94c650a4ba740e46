"""TLS on all ports of a deployment, and an API key for each client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.keys.file import write_keys
from gateway.keys.key import Key, hash_of, new_secret
from serving.transport import Credentials
from tests import certificates

_KEYS = 16
_TENANTS = 4


@dataclass(frozen=True)
class Security:
    """What the processes and the clients of a deployment need.

    Attributes:
        folder: Of the certificates.
        keys_file: Of the gateways.
        keys: Of the clients.
    """

    folder: Path
    keys_file: Path
    keys: Sequence[str]

    @property
    def ca(self) -> Path:
        """Has signed all certificates."""
        return self.folder / "ca.pem"

    @property
    def health(self) -> Credentials:
        """Of a client that may ask every service for its health: the tiers take no certificate but the gateway's."""
        return certificates.client(self.folder, "gateway")

    def flags(self, module: str) -> list[str]:
        """Of a service: the tiers require the gateway's certificate, and the gateway a key."""
        name = "door" if module == "gateway" else module.removesuffix("_service")
        own = ["--tls-cert", self._file(name, "cert"), "--tls-key", self._file(name, "key")]
        if module != "gateway":
            return [*own, "--tls-client-ca", str(self.ca), "--tls-client-names", "gateway"]
        pair = ["--tier-cert", self._file("gateway", "cert"), "--tier-key", self._file("gateway", "key")]
        return [*own, "--tier-ca", str(self.ca), *pair, "--keys-file", str(self.keys_file)]

    def _file(self, name: str, kind: str) -> str:
        return str(self.folder / name / f"{kind}.pem")


def secured(folder: Path) -> Security:
    """Make certificates and keys in a folder."""
    file = folder / "keys.json"
    return Security(certificates.make(folder), file, make_keys(file, _KEYS, tenants=_TENANTS))


def make_keys(at: Path, many: int, *, tenants: int) -> list[str]:
    """A file of keys, which belong to the tenants in turn. Returns the keys."""
    given = [new_secret() for _ in range(many)]
    write_keys(
        at,
        [Key(name=f"k{n}", sha256=hash_of(secret), tenant=f"t{n % tenants}") for n, secret in enumerate(given)],
    )
    return given
