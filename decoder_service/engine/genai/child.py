"""The child of the genai engine: one process, one thread, one generator at a time.

onnxruntime-genai holds the interpreter's lock while it computes, so it runs in a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection

import numpy as np
import onnxruntime_genai as og
from numpy.typing import NDArray

from decoder_service.engine.genai.messages import (
    Cancel,
    CannotLoad,
    Ended,
    PromptPrefilled,
    Ready,
    Run,
    Shutdown,
    ToChild,
    Token,
    WorkerConfig,
)
from decoder_service.engine.interface import FinishReason, SamplingParams, TokenDrawn
from decoder_service.engine.sampler import NotDrawn, Sampler, draw
from serving.logs import trace
from serving.parent import end_with_parent

# Any tokens: in the first run the library allocates memory and starts its threads.
_WARM_UP_PROMPT = 8
_WARM_UP_TOKENS = 3


def main(connection: Connection, config: WorkerConfig, parent: int) -> None:
    """Run the child process.

    Args:
        connection: To the parent.
        config: What to load.
        parent: The parent's process id.
    """
    # On other systems than Linux the child notices between two tokens that the pipe is closed.
    end_with_parent(parent, signal.SIGKILL)
    # A terminal's Ctrl-C and SIGHUP and a supervisor's SIGTERM reach the whole process group. The parent drains, then
    # sends Shutdown.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # The parent has ended or closed the pipe.
    with contextlib.suppress(EOFError, OSError):
        _serve(connection, config)


def _serve(connection: Connection, config: WorkerConfig) -> None:
    started = time.perf_counter()
    try:
        model = _load(config)
        _warm_up(model, config)
    except Exception as error:  # noqa: BLE001  # the parent reports it
        connection.send(CannotLoad(str(error)))
        return
    connection.send(Ready(time.perf_counter() - started))
    while True:
        message: ToChild = connection.recv()
        if isinstance(message, Shutdown):
            return
        if isinstance(message, Run):
            features = _receive_features(connection, message, config.feature_width)
            try:
                ended = _answer(connection, model, message, features)
            except (EOFError, OSError):
                raise
            except Exception:  # noqa: BLE001  # a failure of one request must not end the child
                ended = Ended(message.job, error=trace())
            del features
            connection.send(ended)


def _load(config: WorkerConfig) -> og.Model:
    settings = og.Config(config.model_dir)
    # Overrides the bundle's own configuration, whose file stays unchanged.
    session = {"intra_op_num_threads": config.threads}
    settings.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    if config.provider != "cpu":
        settings.clear_providers()
        settings.append_provider(config.provider)
    return og.Model(settings)


def _warm_up(model: og.Model, config: WorkerConfig) -> None:
    generator = _prefill(
        model,
        np.zeros(_WARM_UP_PROMPT, np.int32),
        np.zeros((0, config.feature_width), np.float32),
        config.inputs,
        _WARM_UP_PROMPT + _WARM_UP_TOKENS,
    )
    sampler = Sampler(SamplingParams(), np.zeros(0, np.int32))
    for _ in range(_WARM_UP_TOKENS):
        generator.append_tokens(np.asarray([_draw(sampler, _last_logits(generator)).token_id], np.int32))


def _receive_features(connection: Connection, run: Run, width: int) -> NDArray[np.float32]:
    """The feature rows of all media in order, float32 [rows, width], received from the pipe without a copy."""
    features = np.empty((sum(run.feature_rows), width), np.float32)
    flat = features.reshape(-1).view(np.uint8)
    offset = 0
    for rows in run.feature_rows:
        size = rows * width * features.itemsize
        connection.recv_bytes_into(flat[offset : offset + size].data)
        offset += size
    return features


def _prefill(
    model: og.Model,
    token_ids: NDArray[np.int32],
    features: NDArray[np.float32],
    family_inputs: Mapping[str, NDArray[np.int64]],
    max_length: int,
) -> og.Generator:
    params = og.GeneratorParams(model)
    # The library allocates its KV cache for max_length at once: no more than this request may need.
    params.set_search_options(max_length=max_length)
    generator = og.Generator(model, params)
    inputs = og.NamedTensors()
    inputs["input_ids"] = token_ids[np.newaxis]
    inputs["pixel_values"] = features  # the bundle's vision graph passes them on unchanged
    for name, value in family_inputs.items():
        inputs[name] = value
    generator.set_inputs(inputs)
    return generator


def _last_logits(generator: og.Generator) -> NDArray[np.float32]:
    """Logits of the last position, float32 [vocab]; the graph may return one position or all."""
    logits: NDArray[np.float32] = np.asarray(generator.get_logits())
    last: NDArray[np.float32] = logits.reshape(-1, logits.shape[-1])[-1]
    return last


def _draw(sampler: Sampler, logits: NDArray[np.float32]) -> TokenDrawn:
    (drawn,) = draw([sampler], logits[np.newaxis].copy())  # `draw` writes to the logits, which the library owns
    if isinstance(drawn, NotDrawn):
        raise RuntimeError(drawn.why)
    return drawn


def _answer(connection: Connection, model: og.Model, run: Run, features: NDArray[np.float32]) -> Ended:
    if _cancelled(connection, run.job):
        return Ended(run.job)
    started = time.perf_counter()
    generator = _prefill(model, run.token_ids, features, run.inputs, run.token_ids.size + run.max_new_tokens)
    logits = _last_logits(generator)
    connection.send(PromptPrefilled(run.job, time.perf_counter() - started))
    sampler = Sampler(run.sampling, run.token_ids, stop_token_ids=run.stop_token_ids)
    for left in range(run.max_new_tokens - 1, -1, -1):
        if _cancelled(connection, run.job):
            return Ended(run.job)
        drawn = _draw(sampler, logits)
        token = drawn.token_id
        connection.send(Token(run.job, drawn))
        if token in run.stop_token_ids:
            return Ended(run.job, FinishReason.STOP)
        if left:
            generator.append_tokens(np.asarray([token], np.int32))
            logits = _last_logits(generator)
    return Ended(run.job, FinishReason.LENGTH)


def _cancelled(connection: Connection, job: int) -> bool:
    """Whether the parent has cancelled this request. Costs one system call if there is no message."""
    while connection.poll():
        message: ToChild = connection.recv()
        if isinstance(message, Shutdown):
            sys.exit(0)
        if isinstance(message, Cancel) and message.job == job:
            return True
    return False
