"""What the decoder service is told."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from serving.cores import usable_cores
from serving.settings import MIB, ServerSettings

FLOAT_BYTES = 4


class FeatureLimits(NamedTuple):
    """Most bytes of features: of one request, of all that run, and of those that are kept."""

    request: int
    buffered: int
    cached: int


class DecoderSettings(ServerSettings):
    """Settings of the decoder service: `DECODER_*` in the environment, or flags of the same names.

    `provider=cuda` asks onnxruntime-genai for its CUDA execution provider, which needs the onnxruntime-genai-cuda
    package, and so takes `engine=genai`. It is passed on as it is and has not been run on a GPU by this project.
    """

    model_config = SettingsConfigDict(env_prefix="DECODER_")

    port: int = Field(50062, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    bundle: Path = Field(description="Directory that `triptych export` wrote.")
    verify: bool = Field(False, description="Compare every file of the bundle with its digest before loading it.")
    provider: Literal["cpu", "cuda"] = Field("cpu", description="Execution provider of the language model.")
    engine: Literal["batch", "genai"] = Field(
        "batch",
        description="What computes: `batch` answers several requests at once on ONNX Runtime; `genai` one after the "
        "other with onnxruntime-genai, and is what `provider=cuda` takes.",
    )
    threads: int = Field(0, ge=0, le=1024, description="Threads for one operator; 0: the cores this process may use.")
    context_length: int = Field(
        32768,
        ge=0,
        description="Most tokens of a prompt and its answer; never more than the model's own limit, which 0 takes. "
        "Memory for keys and values is taken per request, as much as its prompt and its answer may need.",
    )
    slots: int = Field(8, ge=1, le=256, description="Requests that the batch engine answers at the same time.")
    kv_cache_bytes: int = Field(
        4096 * MIB,
        ge=MIB,
        description="Memory for keys and values of the batch engine, of all requests and the prefix cache together. A "
        "request runs when all that it may need is free, and the context is never longer than what this holds. It is "
        "taken as it is written.",
    )
    cached_prompts: int = Field(
        8,
        ge=0,
        le=1024,
        description="The batch engine's prefix cache: finished requests whose keys and values are kept, beside those "
        "in free slots, so that a prompt that begins like one of them is not computed again; 0: off.",
    )
    chunk_tokens: int = Field(
        512,
        ge=1,
        description="Most tokens of prompts that the batch engine reads in one step. It reads fewer where they would "
        "take over a second, or while answers are running.",
    )
    chunk_stall: float = Field(
        0.5,
        gt=0,
        description="Maximum slowdown of a decode step for each prompt being prefilled, as a fraction; the whole step "
        "takes a second at most. More lets new requests begin sooner and running ones stutter.",
    )
    read_ahead: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Whether the batch engine reads a prompt while later media of it are still being encoded, as far "
        "as features have come; auto: where other processes leave most of this one's cores idle meanwhile, as they do "
        "where the encoder has a GPU or a machine of its own.",
    )
    int8: bool = Field(
        True,
        description="Use the bundle's int8 graph, too, where it has one: for wide steps and prompts, if it is faster "
        "there. The log tells what memory it adds. Without it a request is computed alike under any load.",
    )
    operators: bool = Field(
        True,
        description="Compute matmuls by weights in blocks, attention and rounding with Triptych's own operators, where the processor "
        "has AVX-512 VNNI; the log tells whether it does. Otherwise ONNX Runtime's are used.",
    )
    cache_dir: Path = Field(
        Path("~/.cache/triptych"),
        description="Where the batch engine keeps what it measured of this machine, if the bundle cannot be written.",
    )
    default_max_tokens: int = Field(1024, ge=1, description="Length of an answer where the request names none.")
    max_queue: int = Field(
        16, ge=0, description="Requests that may wait beside the running ones; more are refused with a retry delay."
    )
    max_prompt_media: int = Field(64, ge=0, description="Images and videos in one conversation.")
    max_text_bytes: int = Field(2 * MIB, ge=1, description="Text of one conversation, in UTF-8 bytes.")
    max_feature_bytes: int | None = Field(
        None,
        ge=1,
        description="Features of one request, in bytes of float32: rows x width x 4; not set: 16384 rows, the "
        "largest picture of the published limits, whatever the width.",
    )
    max_buffered_feature_bytes: int | None = Field(
        None, ge=1, description="Features of all requests together, in bytes of float32; not set: 65536 rows."
    )
    feature_cache_bytes: int | None = Field(
        None,
        ge=0,
        description="Features that are kept for later requests about the same media, in bytes of float32, beside those "
        "of running requests; 0 keeps none; not set: 8192 rows.",
    )
    media_timeout: float = Field(
        300.0,
        gt=0,
        description="Seconds to wait for the next message about media whose features have been asked for; while they "
        "are encoded, one comes each second.",
    )

    @property
    def engine_name(self) -> Literal["batch", "genai"]:
        """What computes, with what the provider takes resolved."""
        return self.engine if self.provider == "cpu" else "genai"

    @property
    def thread_count(self) -> int:
        """Threads for one operator, with 0 resolved."""
        return self.threads or usable_cores()

    @property
    def measurements_dir(self) -> Path | None:
        """`cache_dir` with the user's home resolved; None where a user without a home runs this."""
        try:
            return self.cache_dir.expanduser()
        except RuntimeError:
            return None

    def feature_limits(self, width: int) -> FeatureLimits:
        """The limits of features, with those that are not set in rows of the model's width.

        Args:
            width: Of a row of features.
        """

        def resolve(setting: int | None, rows: int) -> int:
            return rows * width * FLOAT_BYTES if setting is None else setting

        return FeatureLimits(
            request=resolve(self.max_feature_bytes, 16_384),
            buffered=resolve(self.max_buffered_feature_bytes, 65_536),
            cached=resolve(self.feature_cache_bytes, 8_192),
        )

    def context_limit(self, model_limit: int) -> int:
        """Most tokens of a prompt and its answer.

        Args:
            model_limit: What the model was made for.
        """
        return min(self.context_length or model_limit, model_limit)
