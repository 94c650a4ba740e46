"""The life cycle of the gateway: waits for the tiers, then opens its ports."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import grpc
import structlog

from gateway.conductor import Conductor
from gateway.errors import Tier
from gateway.http import HttpServer, create_app
from gateway.keys.access import Access
from gateway.keys.file import KeysFileError
from gateway.keys.interceptor import AccessInterceptor
from gateway.keys.ring import KeyRing
from gateway.ports import DecoderTier, Route, VisionTier
from gateway.replicas import Discovery, HealthPolicy, ReplicaSet, parse_target
from gateway.servicer import GatewayServicer
from gateway.settings import GatewaySettings
from gateway.tiers import GrpcDecoderTier, GrpcVisionTier
from serving.errors import Code, ServiceError
from serving.server import Service, StartError
from serving.tasks import cancel_and_wait
from serving.tls import ClientTls, KeyPair, PemFile, TlsError
from serving.transport import INSECURE, Credentials, PortError, is_loopback, open_channel, service_options
from vlm.v1 import chat_pb2, decoder_pb2_grpc, gateway_pb2, gateway_pb2_grpc, vision_pb2, vision_pb2_grpc

log = structlog.get_logger()

S = TypeVar("S")
T = TypeVar("T")

_ASK_SECONDS = 5.0
_PAUSE_SECONDS = 0.2
_SAY_SECONDS = 5.0
"""While waiting for a tier, in seconds: the timeout of a call, the delay between calls, and between log lines."""

_FREE_CONNECTIONS = 16
"""Of the HTTP port, that running requests leave for health checks."""

_NOT_YET = (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED)


class GatewayService(Service):
    """The gateway.

    It is SERVING from the first answer of both tiers until it stops. If a tier fails later, requests fail with
    UNAVAILABLE, but the gateway stays SERVING: a text-only request does not need the vision tier, and otherwise all
    replicas of the gateway would turn NOT_SERVING together, and clients would get no error with the cause.

    Args:
        settings: The settings.
    """

    name = "gateway"
    grpc_names = (gateway_pb2.DESCRIPTOR.services_by_name["Gateway"].full_name,)

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self.shares_port = settings.processes > 1
        self._resources = contextlib.AsyncExitStack()
        self._credentials = INSECURE
        self._conductor: Conductor | None = None
        self._http: HttpServer | None = None
        self._access: Access | None = None
        self.http_address: str | None = None
        """`host:port` of the HTTP port, once it is open."""

    async def start(self, set_serving: Callable[[bool], None]) -> None:
        """Wait for the tiers, check that their encoders match, and open the HTTP port.

        Raises:
            StartError: The encoders differ, `vision` does not suit the model, a target is another service, a
                certificate cannot be used, the HTTP port is taken, or there is no such file of keys.
        """
        self._credentials = self._read_credentials()
        access = self._access = self._open_access()
        async with contextlib.AsyncExitStack() as stack:
            vision = None
            if self._settings.vision is not None:
                vision = GrpcVisionTier(
                    await stack.enter_async_context(
                        self._replicas(Tier.VISION, self._settings.vision, vision_pb2_grpc.VisionEncoderStub)
                    )
                )
            decoder = GrpcDecoderTier(
                await stack.enter_async_context(
                    self._replicas(Tier.DECODER, self._settings.decoder, decoder_pb2_grpc.DecoderStub)
                )
            )
            encoder, model = await self._agree(vision, decoder)
            takes = [kind for kind, taken in (("image", model.images), ("video", model.video)) if taken]
            self._conductor = Conductor(
                vision, decoder, self._settings.limits, self._settings.policy, encoder, takes=takes
            )
            if self._settings.http_port is not None:
                limits = self._settings.connection_limits
                app = create_app(
                    self._conductor,
                    access=access,
                    seconds=self._settings.default_deadline_seconds,
                    max_body_bytes=self._settings.max_message_bytes,
                    max_requests=min(self._settings.max_concurrent_rpcs, max(1, limits.most - _FREE_CONNECTIONS)),
                    cors_origins=self._settings.allowed_origins,
                    metrics=self._settings.http_metrics,
                    max_buffered_body_bytes=self._settings.max_buffered_body_bytes,
                    receive_seconds=self._settings.receive_timeout_seconds,
                )
                http = HttpServer(
                    app, grace_seconds=self._settings.grace_seconds, credentials=self._credentials, limits=limits
                )
                try:
                    port = await http.start(self._settings.host, self._settings.http_port, shared=self.shares_port)
                except PortError as error:
                    raise StartError(str(error)) from error
                stack.push_async_callback(http.stop)
                self._http = http
                self.http_address = f"{self._settings.host}:{port}"
                log.info("serving http", address=self.http_address)
            self._resources = stack.pop_all()

    def _read_credentials(self) -> Credentials:
        """The credentials of the calls to the tiers, and of the HTTP port."""
        settings = self._settings
        channel = None
        if settings.tier_ca is not None:
            pair = None
            if settings.tier_cert is not None and settings.tier_key is not None:
                pair = KeyPair(PemFile("tier_cert", settings.tier_cert), PemFile("tier_key", settings.tier_key))
            try:
                channel = ClientTls(PemFile("tier_ca", settings.tier_ca), pair)
            except TlsError as error:
                raise StartError(str(error)) from error
        return Credentials(channel, self.tls)

    def _open_access(self) -> Access:
        settings = self._settings
        ring = None
        if settings.keys_file is not None:
            try:
                ring = KeyRing(settings.keys_file)
            except KeysFileError as error:
                raise StartError(f"keys_file: {error}; make one with `triptych key new`") from error
        elif not is_loopback(settings.host):
            log.warning("no keys_file: everybody who reaches this address may call", host=settings.host)
        return Access(ring, key_limits=settings.key_limits, address_limits=settings.address_limits)

    def interceptors(self) -> Sequence[grpc.aio.ServerInterceptor]:
        """The check of keys and limits."""
        if self._access is None:
            raise RuntimeError("start the service before its interceptors")
        return (AccessInterceptor(self._access),)

    def _replicas(self, tier: Tier, target: str, stub: Callable[[grpc.aio.Channel], S]) -> ReplicaSet[S]:
        return ReplicaSet(
            tier.value,
            Discovery(parse_target(target)),
            self._channel,
            stub,
            first_seconds=self._settings.first_message_seconds,
            health=HealthPolicy(lost=self._settings.replica_timeout_seconds),
        )

    def _channel(self, address: str, authority: str) -> grpc.aio.Channel:
        options = service_options(self._settings.max_message_bytes, authority=authority)
        return open_channel(address, options, credentials=self._credentials)

    async def _agree(
        self, vision: VisionTier | None, decoder: DecoderTier
    ) -> tuple[vision_pb2.EncoderInfo | None, chat_pb2.Model]:
        """Wait until the tiers answer, and compare their models. Returns the vision tier's settings and the model."""
        if vision is None:
            model = await self._model(decoder)
            log.info("the model takes text only, and media are refused", model=model.id)
            return None, model
        asked = asyncio.create_task(
            _answer(Tier.VISION, self._settings.vision, lambda: vision.encoder(seconds=_ASK_SECONDS, route=Route()))
        )
        asked_too = asyncio.create_task(self._model(decoder))
        try:
            encoder, model = await asyncio.gather(asked, asked_too)
        finally:
            await cancel_and_wait(asked, asked_too)
        if encoder.encoder_fingerprint != model.encoder_fingerprint:
            raise StartError(
                f"the vision service at {self._settings.vision} has the encoder of {encoder.model!r} "
                f"({encoder.encoder_fingerprint[:12]}) and the decoder service at {self._settings.decoder} needs that "
                f"of {model.id!r} ({model.encoder_fingerprint[:12]}): start both from the same bundle"
            )
        log.info(
            "tiers agree",
            model=model.id,
            encoder=encoder.encoder_fingerprint[:12],
            max_pixels=encoder.default_media.max_pixels,
            max_video_pixels=encoder.default_media.max_video_pixels,
            max_frames=encoder.default_media.max_frames,
        )
        return encoder, model

    async def _model(self, decoder: DecoderTier) -> chat_pb2.Model:
        """Wait until the decoder tier answers, and check whether its model needs a vision tier."""
        target = self._settings.decoder
        model = await _answer(Tier.DECODER, target, lambda: decoder.model(seconds=_ASK_SECONDS, route=Route()))
        if model.images != (self._settings.vision is not None):
            takes, value = ("images", "the address of its vision service") if model.images else ("text only", "off")
            raise StartError(
                f"the decoder service at {target} has {model.id!r}, which takes {takes}: set `vision` to {value}"
            )
        return model

    def register(self, server: grpc.aio.Server) -> None:
        """Add the Gateway service."""
        if self._conductor is None:
            raise RuntimeError("start the service before it is registered")
        servicer = GatewayServicer(
            self._conductor,
            default_seconds=self._settings.default_deadline_seconds,
            max_seconds=self._settings.max_deadline_seconds,
        )
        gateway_pb2_grpc.add_GatewayServicer_to_server(servicer, server)

    async def drain(self) -> None:
        """Close the HTTP port and let its requests finish within the grace period."""
        if self._http is not None:
            await self._http.stop()

    async def stop(self) -> None:
        """Close what is still open, and the channels."""
        await self._resources.aclose()


async def _answer(tier: Tier, target: str | None, ask: Callable[[], Awaitable[T]]) -> T:
    """Read the loaded model of a tier; waits for the tier without limit."""
    said = -_SAY_SECONDS
    while True:
        try:
            return await ask()
        except ServiceError as error:
            if error.code is Code.UNIMPLEMENTED:
                raise StartError(f"another service than the {tier.value} service answers at {target}") from error
            if error.code not in _NOT_YET:
                raise StartError(f"the {tier.value} service at {target} fails: {error.message}") from error
            if time.monotonic() - said >= _SAY_SECONDS:
                said = time.monotonic()
                log.info("waiting for a tier", tier=tier.value, target=target, error=error.message)
        await asyncio.sleep(_PAUSE_SECONDS)
