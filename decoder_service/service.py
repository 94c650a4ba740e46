"""The life cycle of the decoder service: load, warm up, serve, stop."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable

import grpc
import structlog
from tokenizers import decoders

from decoder_service.engine import Engine, EngineError, Limit
from decoder_service.families.family import Family
from decoder_service.families.registry import family_of
from decoder_service.output.constraint import Constraints
from decoder_service.output.detokenizer import TokenBytes
from decoder_service.output.repetition import USUAL
from decoder_service.request.admission import Admission, Limits
from decoder_service.request.decoder import Decoder, ModelFacts
from decoder_service.request.feature_store import FeatureStore
from decoder_service.request.generation import GenerationDefaults, RecommendedSampling
from decoder_service.request.prompt import PromptBuilder
from decoder_service.rpc.servicer import DecoderServicer
from decoder_service.settings import DecoderSettings
from serving.bundle import Bundle, BundleError
from serving.memory import usable_memory
from serving.server import Service, StartError
from vlm.v1 import decoder_pb2, decoder_pb2_grpc

log = structlog.get_logger()


class DecoderService(Service):
    """Serves the decoder of one bundle.

    Args:
        settings: The settings.
    """

    name = "decoder_service"
    grpc_names = (decoder_pb2.DESCRIPTOR.services_by_name["Decoder"].full_name,)
    internal = True

    def __init__(self, settings: DecoderSettings) -> None:
        self._settings = settings
        self._engine: Engine | None = None
        self._decoder: Decoder | None = None

    @property
    def decoder(self) -> Decoder:
        """The loaded model.

        Raises:
            RuntimeError: `start` has not finished.
        """
        if self._decoder is None:
            raise RuntimeError("start first")
        return self._decoder

    async def start(self, set_serving: Callable[[bool], None]) -> None:
        """Load the bundle, start the engine and warm it up.

        Args:
            set_serving: Called when the engine fails, and when it is ready again.

        Raises:
            StartError: The bundle or the engine cannot be loaded.
        """
        try:
            self._decoder = await self._load(set_serving)
        except BaseException as error:
            await self.stop()
            if isinstance(error, BundleError | EngineError):
                raise StartError(str(error)) from error
            if isinstance(error, OSError | ValueError):
                raise StartError(f"the bundle {self._settings.bundle} cannot be loaded: {error}") from error
            raise

    async def _load(self, set_serving: Callable[[bool], None]) -> Decoder:
        settings = self._settings
        bundle = await asyncio.to_thread(Bundle.open, settings.bundle, verify=settings.verify, folder="decoder")
        if bundle.decoder.precision == "int4":  # float32 weights stay in their mapped file
            usable = usable_memory()
            for name in ("int4", "int8") if settings.int8 else ("int4",):
                bundle.check_memory(f"decoder/{name}", usable)
        family = family_of(bundle)
        engine = self._engine = _engine(settings, bundle, family)
        # The engine loads in its own thread or process, so tokenizer and model load at the same time.
        prompts, _ = await asyncio.gather(
            asyncio.to_thread(PromptBuilder.load, bundle.decoder_dir, family), engine.start(set_serving)
        )
        if not isinstance(prompts.tokenizer.backend_tokenizer.decoder, decoders.ByteLevel):
            raise ValueError("its tokenizer is not a byte-level one, as the decoder service needs")
        if (thinking := prompts.thinking) is not None:
            log.info("the model thinks, by its chat template", **dataclasses.asdict(thinking))
        slots = engine.info.slots
        features = settings.feature_limits(bundle.feature_width)
        context_length = settings.context_limit(bundle.context_length)
        room = min(context_length, engine.info.max_tokens or context_length)
        constraints = Constraints(prompts.tokenizer, vocabulary=bundle.text.vocab_size, end_tokens=bundle.tokens.eos)
        if engine.info.constraints:
            constraints.prepare()
        return Decoder(
            model=ModelFacts(
                id=bundle.model.id,
                family=bundle.model.family,
                precision=bundle.decoder.precision,
                feature_width=bundle.feature_width,
                encoder_fingerprint=bundle.encoder_fingerprint,
                end_tokens=frozenset(bundle.tokens.eos),
                vocab_size=bundle.text.vocab_size,
            ),
            prompts=prompts,
            token_bytes=TokenBytes(prompts.tokenizer.backend_tokenizer),
            engine=engine,
            admission=Admission(slots + settings.max_queue, running=slots, max_bytes=features.buffered),
            limits=Limits(
                context_length=room,
                context_limit=Limit.CONTEXT if room == context_length else Limit.KV_CACHE,
                default_max_tokens=settings.default_max_tokens,
                max_prompt_media=settings.max_prompt_media,
                max_text_bytes=settings.max_text_bytes,
                max_feature_bytes=features.request,
                media_timeout=settings.media_timeout,
                positions=bundle.context_length,
                takes=frozenset(family.placeholders.values()),
            ),
            defaults=GenerationDefaults(
                recommended=RecommendedSampling.load(bundle.decoder_dir / "generation_config.json"),
                sample=settings.generation_config == "auto",
                repetition=USUAL if settings.repetition_detection == "on" else None,
            ),
            features=FeatureStore(features.cached),
            constraints=constraints,
        )

    def register(self, server: grpc.aio.Server) -> None:
        """Add the servicer."""
        decoder_pb2_grpc.add_DecoderServicer_to_server(DecoderServicer(self.decoder), server)

    async def stop(self) -> None:
        """Stop the engine."""
        if self._engine is not None:
            await self._engine.stop()
            self._engine = None


def _engine(settings: DecoderSettings, bundle: Bundle, family: Family) -> Engine:
    """The engine that the settings select. Each imports its own library only when it is used."""
    if settings.engine_name == "genai":
        from decoder_service.engine.genai.engine import GenaiEngine  # noqa: PLC0415  # see above
        from decoder_service.engine.genai.messages import WorkerConfig  # noqa: PLC0415  # see above

        return GenaiEngine(
            WorkerConfig(
                model_dir=str(bundle.decoder_dir),
                provider=settings.provider,
                threads=settings.thread_count,
                feature_width=bundle.feature_width,
                inputs=family.lay_out((), (), lambda _: ()).inputs or {},
            )
        )
    from decoder_service.engine.batching.engine import BatchEngine  # noqa: PLC0415  # see above
    from decoder_service.engine.batching.worker import BatchConfig  # noqa: PLC0415  # see above

    return BatchEngine(
        BatchConfig(
            bundle=bundle,
            threads=settings.thread_count,
            slots=settings.slots,
            context_length=settings.context_limit(bundle.context_length),
            kv_bytes=settings.kv_cache_bytes,
            kv_dtype="int8" if settings.kv_cache_dtype == "auto" else settings.kv_cache_dtype,
            parking_bytes=settings.kv_parking_bytes,
            chunk_tokens=settings.chunk_tokens,
            stall=settings.chunk_stall,
            read_ahead=settings.read_ahead,
            cached_prompts=settings.cached_prompts,
            int8=settings.int8,
            operators=settings.operators,
            cache_dir=settings.measurements_dir,
        )
    )
