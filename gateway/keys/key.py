"""One API key, as the gateway keeps it: a name, the hash of the secret, and what the secret allows."""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

PREFIX = "tpk_"
_SECRET_BYTES = 32

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""Of a key or a tenant: 1 to 64 letters, digits, dots, hyphens and underscores, as it is logged."""

Count = Annotated[int, Field(ge=1)]


class Role(StrEnum):
    """What a key is for."""

    USER = "user"
    """Requests to the model, at both doors."""
    METRICS = "metrics"
    """The metrics, and nothing else."""
    ADMIN = "admin"
    """Everything, also gRPC's reflection."""


class Key(BaseModel):
    """An API key.

    Attributes:
        name: Its name, in logs; unique in a file.
        sha256: SHA-256 of the secret in hexadecimal digits.
        tenant: Keys of one tenant share what is kept of their requests; no other key does.
        role: What it is for.
        created: When it was made.
        expires: From when on it is refused; None: never.
        max_requests: Most requests at once; None: as the gateway's setting says. Likewise the others.
        requests_per_minute: Most requests in a minute.
        tokens_per_minute: Most tokens of prompts and answers in a minute.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    tenant: Name
    role: Role = Role.USER
    created: AwareDatetime | None = None
    expires: AwareDatetime | None = None
    max_requests: Count | None = None
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None

    def expired(self, now: datetime) -> bool:
        """Whether it has expired."""
        return self.expires is not None and now >= self.expires


def new_secret() -> str:
    """A secret of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(_SECRET_BYTES)


def hash_of(secret: str) -> str:
    """The hash under which a secret is kept.

    A fast hash is enough: a password's must be slow, since passwords can be guessed; 256 random bits cannot.
    """
    return hashlib.sha256(secret.encode()).hexdigest()
