"""LlamaIndex's OpenAILike."""

from __future__ import annotations

from importlib.metadata import version

from common import (
    BASE_URL,
    COLOURS,
    ENDLESS,
    IMAGE_URL,
    KEY,
    MODEL,
    QUESTION,
    RESULT,
    ROOM,
    SEEN,
    TOOL,
    cancelled,
    expect,
    main,
)
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole, TextBlock
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from shapes import Answer, Look, Shapes

PICTURE = ChatMessage(role=MessageRole.USER, blocks=[TextBlock(text=QUESTION), ImageBlock(url=IMAGE_URL)])


def chat(**options: object) -> OpenAILike:
    """A model, as its users make it."""
    return OpenAILike(
        model=MODEL,
        api_base=BASE_URL,
        api_key=KEY,
        is_chat_model=True,
        max_retries=0,
        **{"is_function_calling_model": True, "max_tokens": ROOM, **options},
    )


def look(colour: str) -> str:
    """Look up how many shapes of a colour there are."""
    return RESULT


def image() -> None:
    """A chat about the picture, streamed."""
    text = "".join(piece.delta or "" for piece in chat(temperature=0).stream_chat([PICTURE]))
    expect(SEEN in text.lower(), text)


def schema() -> None:
    """Answers in the form of a model."""
    for model in (Answer, Shapes):
        # With tools, as LlamaIndex does by itself, and by OpenAI's response_format.
        for options in ({}, {"should_use_structured_outputs": True}):
            got = chat(**options).as_structured_llm(model).chat([PICTURE]).raw
            expect(isinstance(got, model), (options, got))


def tools() -> None:
    """A call that must be made, its result, and the answer."""
    tool = FunctionTool.from_defaults(look, name=TOOL, fn_schema=Look)
    for more in ({"tool_required": True}, {"tool_choice": TOOL}):
        first = chat().chat_with_tools([tool], chat_history=[PICTURE], **more)
        calls = chat().get_tool_calls_from_response(first)
        expect(calls[0].tool_name == TOOL and calls[0].tool_kwargs["colour"] in COLOURS, first)
        result = tool(**calls[0].tool_kwargs)
        answer = ChatMessage(
            role=MessageRole.TOOL, content=str(result), additional_kwargs={"tool_call_id": calls[0].tool_id}
        )
        last = chat().chat_with_tools([tool], chat_history=[PICTURE, first.message, answer], tool_choice="none")
        expect(last.message.content, last)


def cancel() -> None:
    """A stream that the client leaves in the middle."""
    stream = chat(max_tokens=None).stream_chat([PICTURE], extra_body={"structured_outputs": ENDLESS})
    cancelled(stream, stream.close)


main(version("llama-index-llms-openai-like"), image=image, schema=schema, tools=tools, cancel=cancel)
