"""LangChain's ChatOpenAI."""

from __future__ import annotations

from importlib.metadata import version

from common import (
    BASE_URL,
    COLOURS,
    ENDLESS,
    KEY,
    MODEL,
    RESULT,
    ROOM,
    SEEN,
    TOOL,
    cancelled,
    expect,
    image_parts,
    main,
)
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from shapes import Answer, Look, Shapes

PICTURE = [SystemMessage("You describe pictures."), HumanMessage(image_parts(), name="Ada")]


def chat(**options: object) -> ChatOpenAI:
    """A model, as its users make it."""
    return ChatOpenAI(base_url=BASE_URL, api_key=KEY, model=MODEL, max_retries=0, **{"max_tokens": ROOM, **options})


@tool(TOOL, args_schema=Look)
def look(colour: str) -> str:
    """Look up how many shapes of a colour there are."""
    return RESULT


def image() -> None:
    """A chat about the picture, streamed."""
    pieces = list(chat(temperature=0, stream_usage=True).stream(PICTURE[1:]))
    text = "".join(str(piece.content) for piece in pieces)
    expect(SEEN in text.lower(), text)
    expect(any(piece.usage_metadata for piece in pieces), "no usage")


def schema() -> None:
    """Answers in the form of a model."""
    for method in ("json_schema", "function_calling"):
        for model in (Answer, Shapes):
            got = chat().with_structured_output(model, method=method).invoke(PICTURE)
            expect(isinstance(got, model), (method, got))
    strict = chat().with_structured_output(Answer, method="json_schema", strict=True, include_raw=True)
    got = strict.invoke(PICTURE)
    expect(isinstance(got["parsed"], Answer), got)


def tools() -> None:
    """A call that must be made, its result, and the answer."""
    # Not strict, LangChain leaves out that there are no other arguments, and the demo model would go on inventing some.
    for choice, more in (("required", {}), ("any", {"parallel_tool_calls": False}), (TOOL, {})):
        first = chat().bind_tools([look], tool_choice=choice, strict=True, **more).invoke(PICTURE)
        expect(first.tool_calls and first.tool_calls[0]["args"]["colour"] in COLOURS, first)
        result = look.invoke(first.tool_calls[0])
        expect(isinstance(result, ToolMessage), result)
        last = chat().bind_tools([look], tool_choice="none").invoke([*PICTURE, first, result])
        expect(last.content, last)
    pieces = list(chat().bind_tools([look], tool_choice="required", strict=True).stream(PICTURE))
    whole = pieces[0]
    for piece in pieces[1:]:
        whole = whole + piece
    expect(whole.tool_calls and whole.tool_calls[0]["name"] == TOOL, whole)


def cancel() -> None:
    """A stream that the client leaves in the middle."""
    stream = chat(max_tokens=None, extra_body={"structured_outputs": ENDLESS}).stream(PICTURE)
    cancelled(stream, stream.close)


main(version("langchain-openai"), image=image, schema=schema, tools=tools, cancel=cancel)
