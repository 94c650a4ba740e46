"""Converts values of the core to messages."""

from __future__ import annotations

from decoder_service.chat import Layout, MediaKind
from decoder_service.engine import FinishReason, Limit
from decoder_service.output.logprobs import ScoredToken
from decoder_service.output.pipeline import Delta
from decoder_service.output.tool_calls import ToolCallDelta
from decoder_service.request.decoder import Decoder, PromptCount
from decoder_service.request.layout import WIRE_KINDS
from decoder_service.request.session import Event, Stage, StageProgress, Started
from vlm.v1 import chat_pb2, decoder_pb2, media_pb2

_REASONS = {
    FinishReason.STOP: chat_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: chat_pb2.FINISH_REASON_LENGTH,
}

_LIMITS = {
    None: chat_pb2.FINISH_LIMIT_UNSPECIFIED,
    Limit.MAX_TOKENS: chat_pb2.FINISH_LIMIT_MAX_TOKENS,
    Limit.SERVER: chat_pb2.FINISH_LIMIT_SERVER,
    Limit.CONTEXT: chat_pb2.FINISH_LIMIT_CONTEXT,
    Limit.KV_CACHE: chat_pb2.FINISH_LIMIT_KV_CACHE,
    Limit.DEADLINE: chat_pb2.FINISH_LIMIT_DEADLINE,
    Limit.REPETITION: chat_pb2.FINISH_LIMIT_REPETITION,
}

_STAGES = {Stage.QUEUED: chat_pb2.STAGE_QUEUED, Stage.PREFILL: chat_pb2.STAGE_PREFILL}


def media_needed(indices: tuple[int, ...]) -> decoder_pb2.GenerateResponse:
    """The message that requests features."""
    return decoder_pb2.GenerateResponse(media_needed=decoder_pb2.MediaNeeded(media_indices=indices))


def event(value: Event) -> decoder_pb2.GenerateResponse:
    """The message of one event."""
    return decoder_pb2.GenerateResponse(event=_chat_event(value))


def _chat_event(value: Event) -> chat_pb2.ChatEvent:
    if isinstance(value, Delta):
        logprobs = [
            chat_pb2.PositionLogprobs(chosen=_scored(position.chosen), top=map(_scored, position.top))
            for position in value.logprobs
        ]
        delta = chat_pb2.Delta(text=value.text, token_ids=value.token_ids, logprobs=logprobs, reasoning=value.reasoning)
        return chat_pb2.ChatEvent(delta=delta, choice=value.choice)
    if isinstance(value, ToolCallDelta):
        called = chat_pb2.ToolCallDelta(index=value.index, id=value.id, name=value.name, arguments=value.arguments)
        return chat_pb2.ChatEvent(tool_call=called, choice=value.choice)
    if isinstance(value, Started):
        return chat_pb2.ChatEvent(
            started=chat_pb2.Started(
                request_id=value.request_id,
                model=value.model,
                prompt_tokens=value.prompt_tokens,
                media_tokens=value.media_tokens,
                prompt_token_ids=value.prompt_token_ids,
                media=map(_layout, value.layouts),
                max_tokens=value.max_tokens,
            )
        )
    if isinstance(value, StageProgress):
        progress = chat_pb2.Progress(stage=_STAGES[value.stage], done=value.done, total=value.total)
        return chat_pb2.ChatEvent(progress=progress)
    return chat_pb2.ChatEvent(
        choice=value.choice,
        finished=chat_pb2.Finished(
            reason=chat_pb2.FINISH_REASON_TOOL_CALLS if value.called else _REASONS[value.reason],
            limit=_LIMITS[value.limit],
            usage=chat_pb2.Usage(
                prompt_tokens=value.usage.prompt_tokens,
                completion_tokens=value.usage.completion_tokens,
                media_tokens=value.usage.media_tokens,
                cached_tokens=value.usage.cached_tokens,
                reasoning_tokens=value.usage.reasoning_tokens,
            ),
            timings=chat_pb2.Timings(
                queue_seconds=value.timings.queue,
                prefill_seconds=value.timings.prefill,
                decode_seconds=value.timings.decode,
                time_to_first_token_seconds=value.timings.time_to_first_token,
            ),
        ),
    )


def _layout(layout: Layout) -> media_pb2.MediaLayout:
    t, h, w = layout.grid
    sent = media_pb2.MediaLayout(
        kind=WIRE_KINDS[layout.medium.kind],
        digest=layout.medium.digest,
        grid_thw=media_pb2.GridThw(t=t, h=h, w=w),
        token_count=layout.token_count,
        timestamps=layout.timestamps,
        frame_times=layout.frame_times,
    )
    if all(layout.size_given) and all(layout.size_used):
        sent.size_given.width, sent.size_given.height = layout.size_given
        sent.size_used.width, sent.size_used.height = layout.size_used
    return sent


def _scored(token: ScoredToken) -> chat_pb2.TokenLogprob:
    return chat_pb2.TokenLogprob(token_id=token.token_id, text=token.text, logprob=token.logprob, raw=token.raw)


def count(value: PromptCount, context_length: int) -> decoder_pb2.CountPromptTokensResponse:
    """The message of a prompt's size."""
    return decoder_pb2.CountPromptTokensResponse(
        prompt_tokens=value.prompt_tokens,
        media_tokens=value.media_tokens,
        token_ids=value.token_ids,
        token_texts=value.token_texts,
        context_length=context_length,
    )


def model(decoder: Decoder) -> chat_pb2.Model:
    """The message of the loaded model."""
    thinking, sampling = decoder.prompts.thinking, decoder.defaults.recommended
    return chat_pb2.Model(
        id=decoder.model.id,
        family=decoder.model.family,
        context_length=decoder.limits.context_length,
        images=MediaKind.IMAGE in decoder.limits.takes,
        video=MediaKind.VIDEO in decoder.limits.takes,
        precision=decoder.model.precision,
        encoder_fingerprint=decoder.model.encoder_fingerprint,
        default_max_tokens=decoder.limits.default_max_tokens,
        thinks=thinking is not None,
        thinking_optional=thinking is not None and thinking.optional,
        recommended_sampling=chat_pb2.RecommendedSampling(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
        ),
    )
