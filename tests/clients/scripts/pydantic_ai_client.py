"""Pydantic AI's agents."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import Literal

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
    all_gone,
    expect,
    main,
    running,
)
from pydantic_ai import Agent, BinaryContent, NativeOutput, RunContext, ToolDefinition, ToolOutput
from pydantic_ai.capabilities import PrepareOutputTools
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from shapes import Answer, Shapes

PICTURE = [QUESTION, BinaryContent.from_data_uri(IMAGE_URL)]


def model() -> OpenAIChatModel:
    """A model, as its users make it."""
    return OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=BASE_URL, api_key=KEY))


def image() -> None:
    """A chat about the picture, streamed."""

    async def ask() -> str:
        async with Agent(model()).run_stream(PICTURE, model_settings={"temperature": 0, "max_tokens": 40}) as result:
            return "".join([piece async for piece in result.stream_text(delta=True)])

    text = asyncio.run(ask())
    expect(SEEN in text.lower(), text)


def schema() -> None:
    """Answers in the form of a model."""
    for output in (Answer, Shapes):
        for way in (
            NativeOutput(output, strict=True),
            NativeOutput(output),
            ToolOutput(output),
            ToolOutput(output, strict=True),
        ):
            agent = Agent(model(), output_type=way, retries=0)
            got = agent.run_sync(PICTURE, model_settings={"max_tokens": ROOM}).output
            expect(isinstance(got, output), (way, got))


def tools() -> None:
    """A call that must be made, its result, and the answer."""
    asked: list[str] = []

    async def later(context: RunContext[None], definitions: list[ToolDefinition]) -> list[ToolDefinition]:
        return definitions if context.run_step > 1 else []

    # The output is a tool too. It comes in the second turn, so that the model must call the other one in the first.
    agent = Agent(
        model(), output_type=ToolOutput(Answer, name="answer"), capabilities=[PrepareOutputTools(later)], retries=3
    )

    @agent.tool_plain(name=TOOL)
    def look(colour: Literal["red", "blue", "yellow"]) -> str:
        """Look up how many shapes of a colour there are."""
        asked.append(colour)
        return RESULT

    done = agent.run_sync(PICTURE, model_settings={"max_tokens": ROOM})
    expect(isinstance(done.output, Answer) and asked and asked[0] in COLOURS, (asked, done))


def cancel() -> None:
    """A stream that the client leaves in the middle."""

    async def ask() -> None:
        settings = {"extra_body": {"structured_outputs": ENDLESS}}
        async with Agent(model()).run_stream(PICTURE, model_settings=settings) as result:
            async for _ in result.stream_text(delta=True, debounce_by=None):
                expect(running() == 1, f"{running():g} running in the middle of the answer")
                break
        all_gone()

    asyncio.run(ask())


main(version("pydantic-ai-slim"), image=image, schema=schema, tools=tools, cancel=cancel)
