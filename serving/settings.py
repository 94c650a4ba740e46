"""Settings of a server: a frozen value, from the environment and from flags of the same names."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from serving.connections import ConnectionLimits, within_descriptors

MIB = 1 << 20


class ServerSettings(BaseSettings):
    """Settings that every server has. A service adds its own fields and an `env_prefix`."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        env_ignore_empty=True,  # a compose file passes on variables that are not set
    )

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 or [::] in a container.")
    port: int = Field(0, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    max_message_bytes: int = Field(128 * MIB, ge=MIB, description="Largest gRPC message in either direction.")
    grace_seconds: float = Field(30.0, ge=0, description="Seconds that running calls may take after SIGTERM.")
    max_connection_age_seconds: float = Field(
        0.0,
        ge=0,
        description="Age at which connections are renewed, so that clients that resolve a name only when they connect "
        "find new replicas; 0: never. The gateway does not need it.",
    )
    max_concurrent_rpcs: int = Field(1024, ge=1, description="Calls at once; more are refused with RESOURCE_EXHAUSTED.")
    max_connections: int = Field(
        4096,
        ge=1,
        description="Most connections of each port at once, in each process; fewer where the limit of open files "
        "(`ulimit -n`) leaves less, after 512 for the service itself.",
    )
    handshake_timeout_seconds: float = Field(
        10.0,
        gt=0,
        description="Time for a new connection until its handshake is done (gRPC), and for the headers of an HTTP "
        "request.",
    )
    idle_timeout_seconds: float = Field(
        60.0, gt=0, description="Time after which a connection without a request is closed."
    )
    receive_timeout_seconds: float = Field(
        30.0,
        gt=0,
        description="Time for the body or message of a request, besides what its size allows: 1 s for each 64 KiB that "
        "have arrived (HTTP), or for each 256 KiB of `max_message_bytes` (gRPC). An HTTP body may pause for this time.",
    )
    send_timeout_seconds: float = Field(
        60.0, gt=0, description="Time for which a client may take nothing of its answer; then the request ends."
    )
    metrics_port: int | None = Field(None, ge=0, le=65535, description="Port of the Prometheus metrics; not set: none.")
    tls_cert: Path | None = Field(
        None,
        description="PEM file with the certificate chain of this server's ports; not set: plain text. A changed file "
        "is used for new connections, without a restart.",
    )
    tls_key: Path | None = Field(None, description="PEM file with its private key, without a passphrase.")
    tls_client_ca: Path | None = Field(
        None,
        description="PEM file with CA certificates: only clients with a certificate of theirs can connect (mTLS); "
        "not set: all can.",
    )
    tls_client_names: str = Field(
        "",
        description="Names of the client certificates that may call the gRPC port, separated by commas; empty: all of "
        "`tls_client_ca`.",
    )
    reflection: bool = Field(False, description="Offer gRPC server reflection, which describes the API to tools.")
    parent_pid: int | None = Field(None, ge=1, description="Process id of the launcher: the server ends with it.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level that is logged.")
    log_format: Literal["console", "json"] = Field("console", description="Lines for people, or JSON for collectors.")
    log_content: bool = Field(
        False,
        description="Also log the messages of refused requests and of unexpected exceptions, which may repeat parts of "
        "a prompt.",
    )

    @model_validator(mode="after")
    def _tls_is_complete(self) -> Self:
        require_pair(self, "tls_cert", "tls_key")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca needs tls_cert and tls_key")
        if self.tls_client_names and self.tls_client_ca is None:
            raise ValueError("tls_client_names needs tls_client_ca: without it clients present no certificate")
        return self

    @property
    def connection_limits(self) -> ConnectionLimits:
        """Limits of the connections of each port."""
        return ConnectionLimits(
            most=within_descriptors(self.max_connections),
            handshake_seconds=self.handshake_timeout_seconds,
            idle_seconds=self.idle_timeout_seconds,
            receive_seconds=self.receive_timeout_seconds,
            send_seconds=self.send_timeout_seconds,
        )

    @property
    def client_names(self) -> frozenset[str]:
        """The names of `tls_client_names`, one by one."""
        return frozenset(separated(self.tls_client_names))


def require_pair(settings: BaseSettings, cert: str, key: str) -> None:
    """Check that a certificate and its key are both set, or neither.

    Raises:
        ValueError: One of them is missing.
    """
    for one, other in ((cert, key), (key, cert)):
        if getattr(settings, one) is not None and getattr(settings, other) is None:
            raise ValueError(f"{one} needs {other}")


def separated(value: str) -> tuple[str, ...]:
    """The parts of a setting with commas between them."""
    return tuple(part.strip() for part in value.split(",") if part.strip())
