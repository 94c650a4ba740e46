"""The settings of the decoder service."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from serving.cores import usable_cores
from serving.settings import MIB, ServerSettings

FLOAT_BYTES = 4


class FeatureLimits(NamedTuple):
    """Most bytes of features: of one request, of all running requests, and of the feature store."""

    request: int
    buffered: int
    cached: int


class DecoderSettings(ServerSettings):
    """Settings of the decoder service: `DECODER_*` in the environment, or flags of the same names.

    `provider=cuda` selects the CUDA execution provider of onnxruntime-genai, which needs the onnxruntime-genai-cuda
    package, and implies `engine=genai`. This project has not run it on a GPU.
    """

    model_config = SettingsConfigDict(env_prefix="DECODER_")

    port: int = Field(50062, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    bundle: Path = Field(description="Directory that `triptych export` wrote.")
    verify: bool = Field(
        True,
        description="Compare the decoder's files with their digests before loading them; off: a damaged file may give "
        "wrong answers.",
    )
    provider: Literal["cpu", "cuda"] = Field("cpu", description="Execution provider of the language model.")
    engine: Literal["batch", "genai"] = Field(
        "batch",
        description="Engine: `batch` processes several requests at once on ONNX Runtime; `genai` processes one at a "
        "time with onnxruntime-genai, and is always used with `provider=cuda`.",
    )
    threads: int = Field(0, ge=0, le=1024, description="Threads per operator; 0: all cores that this process may use.")
    context_length: int = Field(
        32768,
        ge=0,
        description="Most tokens of a prompt and its answer, at most the model's own limit; 0: the model's limit. "
        "KV-cache memory is reserved as prompt and answer grow.",
    )
    slots: int = Field(8, ge=1, le=256, description="Most requests that the batch engine processes at once.")
    kv_cache_bytes: int | None = Field(
        None,
        ge=MIB,
        description="KV-cache memory of the batch engine, for all requests and the prefix cache together. A request "
        "starts when the memory for its prompt and 256 tokens is free, and reserves 256 more each time its answer has "
        "filled them; if they are not free, the youngest request is parked until they are. The context is at most what "
        "fits here. Memory is allocated when it is first written. Not set: 4096 MiB, or as much as one request of "
        "`context_length` takes if that is more, but at most half of the memory that this process may use.",
    )
    kv_cache_dtype: Literal["auto", "int8", "float16"] = Field(
        "auto",
        description="Type in which Triptych's own attention stores keys and values. `int8` takes half the memory of "
        "`float16` and is read faster; `auto` is `int8`. ONNX Runtime's attention stores `float32`.",
    )
    kv_parking_bytes: int = Field(
        1024 * MIB,
        ge=0,
        description="Memory besides `kv_cache_bytes` for the keys and values of parked requests, allocated only while "
        "there are any. Keys and values that do not fit are computed again when the request resumes.",
    )
    cached_prompts: int = Field(
        8,
        ge=0,
        le=1024,
        description="Size of the batch engine's prefix cache: finished requests whose keys and values are kept, "
        "besides those in free slots, so that a prompt with a common prefix skips its prefill; 0: off.",
    )
    cached_answers: bool = Field(
        False,
        description="Also keep the keys and values of answers in the prefix cache, so that the next turn of a "
        "conversation does not prefill the last answer. They differ slightly from those of a prompt: the next answer "
        "may then depend on whether they are still cached, and so on the load.",
    )
    chunk_tokens: int = Field(
        512,
        ge=1,
        description="Most prompt tokens that the batch engine prefills in one step. It prefills fewer if they would "
        "take over a second, or while other requests decode.",
    )
    chunk_stall: float = Field(
        0.5,
        gt=0,
        description="Mean slowdown of decode steps for each prompt being prefilled, as a fraction; a step prefills for "
        "at most one second. Higher values shorten the TTFT of new requests and slow running ones down.",
    )
    read_ahead: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Whether the batch engine prefills a prompt as far as its features have arrived, while its later "
        "media are still being encoded; auto: if other processes leave most cores idle, as when the encoder runs on a "
        "GPU or on another machine.",
    )
    int8: bool = Field(
        True,
        description="Prefill with the bundle's INT8 graph, if it has one: faster than with its INT4 graph, which "
        "decodes, and more exact. The log shows the memory it adds.",
    )
    operators: bool = Field(
        True,
        description="Compute quantized matmuls, attention and rounding with Triptych's own operators, if the processor "
        "has AVX-512 VNNI; the log shows whether they are used. Otherwise ONNX Runtime's are used.",
    )
    cache_dir: Path = Field(
        Path("~/.cache/triptych"),
        description="Where the batch engine stores its measurements of this machine, if the bundle is not writable.",
    )
    default_max_tokens: int = Field(
        16384,
        ge=1,
        description="Most tokens of an answer if the request does not set `max_tokens`. The context or the deadline "
        "may end it earlier; `finish_limit` names the limit.",
    )
    generation_config: Literal["greedy", "auto"] = Field(
        "greedy",
        description="How to sample if the request sets no temperature: greedily, or (`auto`) with the temperature of "
        "the checkpoint's generation_config. Its other values are used in both cases. A request can override this "
        "(`recommended_sampling`). Use `auto` for models that think.",
    )
    repetition_detection: Literal["off", "on"] = Field(
        "off",
        description="End an answer that repeats itself: a pattern of 32 to 512 tokens, 4 times in a row. A request can "
        "override this.",
    )
    max_queue: int = Field(
        16, ge=0, description="Most requests that wait besides the running ones; more are refused with a retry delay."
    )
    max_prompt_media: int = Field(64, ge=0, description="Most images and videos in one conversation.")
    max_text_bytes: int = Field(2 * MIB, ge=1, description="Most text of one conversation, in UTF-8 bytes.")
    max_feature_bytes: int | None = Field(
        None,
        ge=1,
        description="Most features of one request, in bytes of float32: rows x width x 4; not set: 16384 rows, the "
        "largest picture of the published limits.",
    )
    max_buffered_feature_bytes: int | None = Field(
        None, ge=1, description="Most features of all requests, in bytes of float32; not set: 65536 rows."
    )
    feature_cache_bytes: int | None = Field(
        None,
        ge=0,
        description="Size of the cache of features for later requests about the same media, in bytes of float32, "
        "besides those of running requests; 0: off; not set: 8192 rows.",
    )
    media_timeout: float = Field(
        300.0,
        gt=0,
        description="Seconds to wait for the next message about requested features; while media are encoded, one "
        "is sent each second.",
    )

    @property
    def engine_name(self) -> Literal["batch", "genai"]:
        """The engine in use: CUDA implies genai."""
        return self.engine if self.provider == "cpu" else "genai"

    @property
    def thread_count(self) -> int:
        """Threads per operator, with 0 resolved."""
        return self.threads or usable_cores()

    @property
    def measurements_dir(self) -> Path | None:
        """`cache_dir` with the user's home resolved; None if the user has no home."""
        try:
            return self.cache_dir.expanduser()
        except RuntimeError:
            return None

    def feature_limits(self, width: int) -> FeatureLimits:
        """The limits of features in bytes, with defaults that depend on the width.

        Args:
            width: Width of a feature row.
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
            model_limit: The model's own limit.
        """
        return min(self.context_length or model_limit, model_limit)
