"""The child of the genai engine: one process, one thread, one generator at a time.

onnxruntime-genai holds the interpreter's lock while it computes, so it has a process to itself.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection

import numpy as np
import onnxruntime_genai as og
from numpy.typing import NDArray

from decoder_service.engine.genai.messages import (
    Cancel,
    CannotLoad,
    Ended,
    PromptRead,
    Ready,
    Run,
    Shutdown,
    ToChild,
    Token,
    WorkerConfig,
)
from decoder_service.engine.interface import FinishReason, SamplingParams, TokenDrawn
from decoder_service.engine.sampler import NotDrawn, Sampler, draw
from serving.parent import end_with_parent

# Any tokens will do: the first run makes the library allocate and start its threads.
_WARM_UP_PROMPT = 8
_WARM_UP_TOKENS = 3


def main(connection: Connection, config: WorkerConfig, parent: int) -> None:
    """The whole life of the child.

    Args:
        connection: To the parent.
        config: What to load.
        parent: The parent's process id.
    """
    # Elsewhere than on Linux the child sees it between two tokens, by the pipe's end.
    end_with_parent(parent, signal.SIGKILL)
    # A terminal's Ctrl-C and a supervisor's SIGTERM reach the whole group. The parent drains, then says when to go.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # The parent is gone, or does not listen any more.
    with contextlib.suppress(EOFError, OSError):
        _serve(connection, config)


def _serve(connection: Connection, config: WorkerConfig) -> None:
    started = time.perf_counter()
    try:
        model = _load(config)
        _warm_up(model, config)
    except Exception as error:  # noqa: BLE001  # the parent turns it into a sentence
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
            except Exception:  # noqa: BLE001  # one request's failure is its own: the child goes on
                ended = Ended(message.job, error=traceback.format_exc())
            del features
            connection.send(ended)


def _load(config: WorkerConfig) -> og.Model:
    settings = og.Config(config.model_dir)
    # Laid over the bundle's own configuration: the bundle stays as it was exported.
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
    """All rows of all images, one after another, float32 [rows, width], read from the pipe into their place."""
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
    # Memory for keys and values is taken for max_length at once: no more than this request may need.
    params.set_search_options(max_length=max_length)
    generator = og.Generator(model, params)
    inputs = og.NamedTensors()
    inputs["input_ids"] = token_ids[np.newaxis]
    inputs["pixel_values"] = features  # the bundle's vision graph hands them on as they are
    for name, value in family_inputs.items():
        inputs[name] = value
    generator.set_inputs(inputs)
    return generator


def _last_logits(generator: og.Generator) -> NDArray[np.float32]:
    """Logits of the last position, float32 [vocab], whether the graph gives one position or all."""
    logits: NDArray[np.float32] = np.asarray(generator.get_logits())
    last: NDArray[np.float32] = logits.reshape(-1, logits.shape[-1])[-1]
    return last


def _draw(sampler: Sampler, logits: NDArray[np.float32]) -> TokenDrawn:
    (drawn,) = draw([sampler], logits[np.newaxis].copy())  # the library's own memory stays as it is
    if isinstance(drawn, NotDrawn):
        raise RuntimeError(drawn.why)
    return drawn


def _answer(connection: Connection, model: og.Model, run: Run, features: NDArray[np.float32]) -> Ended:
    if _cancelled(connection, run.job):
        return Ended(run.job)
    started = time.perf_counter()
    generator = _prefill(model, run.token_ids, features, run.inputs, run.token_ids.size + run.max_new_tokens)
    logits = _last_logits(generator)
    connection.send(PromptRead(run.job, time.perf_counter() - started))
    sampler = Sampler(run.sampling, run.token_ids)
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
    """Whether the parent has called this request off. Costs a system call where it said nothing."""
    while connection.poll():
        message: ToChild = connection.recv()
        if isinstance(message, Shutdown):
            sys.exit(0)
        if isinstance(message, Cancel) and message.job == job:
            return True
    return False
