"""Settings of the gateway: addresses of the tiers, limits of a request, and its time."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from gateway.conductor import Policy
from gateway.keys.limits import Limits
from gateway.media import RequestLimits
from gateway.replicas import parse_target
from serving.settings import MIB, ServerSettings, require_pair, separated

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s,]+", re.IGNORECASE)


class GatewaySettings(ServerSettings):
    """Settings of the gateway: `GATEWAY_*` in the environment, and flags of the same names."""

    model_config = SettingsConfigDict(env_prefix="GATEWAY_")

    port: int = Field(50051, ge=0, le=65535, description="gRPC port; 0 takes a free one.")
    http_port: int | None = Field(
        8080,
        ge=0,
        le=65535,
        description="Port of the OpenAI-compatible HTTP API; 0 takes a free one, `off` disables it.",
    )
    processes: int = Field(
        1,
        ge=1,
        le=256,
        description="Processes that serve the two ports; each uses at most one core. Connections are distributed over "
        "them. `max_concurrent_rpcs` is divided among them; limits of connections, of bodies, of one client and of "
        "retries hold in each.",
    )
    cors_origins: str = Field(
        "",
        description="Web pages that may call the HTTP API from a browser: origins such as `http://localhost:3000`, "
        "separated by commas, or `*` for all; none by default.",
    )
    http_metrics: bool = Field(
        False,
        description="Serve the Prometheus metrics at `/metrics` of the HTTP API, too, to all who may call it. "
        "`metrics_port` has a port of their own.",
    )
    vision: str | None = Field(
        "127.0.0.1:50061",
        description="The vision tier: `host:port`, several with commas between them, or `dns:///name:port` for all "
        "addresses of a name, which is resolved every two seconds; `off`: none, for a model that takes text only.",
    )
    decoder: str = Field("127.0.0.1:50062", description="The decoder tier, in the same form.")
    tier_ca: Path | None = Field(
        None,
        description="PEM file with the CA certificates of the vision and decoder services, which are then called over "
        "TLS; not set: plain text.",
    )
    tier_cert: Path | None = Field(
        None, description="PEM file with the certificate that the gateway presents to them (mTLS)."
    )
    tier_key: Path | None = Field(None, description="PEM file with its private key, without a passphrase.")
    reflection: bool = Field(True, description="Offer gRPC server reflection, which describes the API to tools.")

    keys_file: Path | None = Field(
        None, description="File of API keys, from `triptych key new`; not set: everybody may call. See docs/keys.md."
    )
    max_requests_per_client: int | None = Field(
        None,
        ge=1,
        description="Requests at once of one API key, or of one client's address without keys. Not set: half of "
        "`max_concurrent_rpcs` for a key, so that none takes all places, and no limit for an address, which may be a "
        "proxy's.",
    )
    requests_per_minute_per_client: int | None = Field(
        None, ge=1, description="Requests in a minute of one key or address; not set: no limit."
    )
    tokens_per_minute_per_client: int | None = Field(
        None, ge=1, description="Tokens of prompts and answers in a minute of one key or address; not set: no limit."
    )

    max_messages: int = Field(1024, ge=1, description="Most messages in a request.")
    max_parts: int = Field(4096, ge=1, description="Most parts in a request, of all messages together.")
    max_media_per_request: int = Field(64, ge=0, description="Most images and videos in a request.")
    max_image_bytes: int = Field(32 * MIB, ge=1, description="Largest image file.")
    max_video_bytes: int = Field(64 * MIB, ge=1, description="Largest video file.")

    max_buffered_body_bytes: int = Field(
        1024 * MIB,
        ge=1,
        description="Most bytes of the HTTP bodies that each process receives at once; the first 64 KiB of each body "
        "do not count.",
    )

    default_deadline_seconds: float = Field(
        600.0, gt=0, description="Time limit of a request without a deadline, in seconds."
    )
    max_deadline_seconds: float = Field(3600.0, gt=0, description="Highest time limit of any request, in seconds.")
    encode_concurrency: int = Field(4, ge=1, description="Most media of one request that are encoded at the same time.")
    encode_attempts: int = Field(3, ge=1, description="Most attempts to encode a medium while the vision tier fails.")
    decode_attempts: int = Field(
        3, ge=1, description="Most attempts of a request while decoders fail before the first token."
    )
    retry_share: float = Field(
        0.2, ge=0, description="Retries at a tier for each request, as a fraction; further ones are not made."
    )
    retries_per_second: float = Field(
        10.0,
        ge=0.1,
        description="Retries at a tier for each second, besides `retry_share`; those of ten seconds may come together.",
    )
    replica_timeout_seconds: float = Field(
        5.0,
        gt=0,
        description="Seconds without an answer to health checks after which a replica counts as lost: its calls are "
        "moved to others, and answers that have begun end.",
    )
    first_message_seconds: float = Field(
        20.0, gt=0, description="Longest wait for the first message of a call to a replica; then another is tried."
    )

    @field_validator("http_port", "vision", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        # An environment variable cannot express "none" otherwise: an empty one counts as not set.
        return None if isinstance(value, str) and value.lower() in ("off", "none") else value

    @field_validator("vision", "decoder")
    @classmethod
    def _are_targets(cls, value: str | None) -> str | None:
        if value is not None:
            parse_target(value)
        return value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: str) -> str:
        for origin in separated(value):
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is no origin; write scheme, host and port, as http://localhost:3000")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        require_pair(self, "tier_cert", "tier_key")
        if self.tier_cert is not None and self.tier_ca is None:
            raise ValueError("tier_cert needs tier_ca: without it the services are called in plain text")
        if self.default_deadline_seconds > self.max_deadline_seconds:
            raise ValueError("default_deadline_seconds is over max_deadline_seconds")
        for name in ("max_image_bytes", "max_video_bytes"):
            if getattr(self, name) >= self.max_message_bytes:
                raise ValueError(f"{name} is not under max_message_bytes, so that such a file could never arrive")
        return self

    @property
    def allowed_origins(self) -> tuple[str, ...]:
        """The origins of `cors_origins`, one by one."""
        return separated(self.cors_origins)

    @property
    def address_limits(self) -> Limits:
        """Limits of one client address, without keys."""
        return Limits(
            self.max_requests_per_client, self.requests_per_minute_per_client, self.tokens_per_minute_per_client
        )

    @property
    def key_limits(self) -> Limits:
        """Limits of an API key that has none of its own."""
        share = self.max_requests_per_client or max(1, self.max_concurrent_rpcs // 2)
        return replace(self.address_limits, max_requests=share)

    @property
    def limits(self) -> RequestLimits:
        """Limits of one request."""
        return RequestLimits(
            messages=self.max_messages,
            parts=self.max_parts,
            media=self.max_media_per_request,
            image_bytes=self.max_image_bytes,
            video_bytes=self.max_video_bytes,
        )

    @property
    def policy(self) -> Policy:
        """Attempts and concurrency of calls to the tiers."""
        return Policy(
            encode_attempts=self.encode_attempts,
            decode_attempts=self.decode_attempts,
            encode_concurrency=self.encode_concurrency,
            retry_share=self.retry_share,
            retries_per_second=self.retries_per_second,
        )
