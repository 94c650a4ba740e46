"""`triptych demo`: starts the system, asks about pictures and a clip, and stops it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from demo.pictures import CLIP, CONVERSATIONS, EXAMPLES
from triptych import launcher
from triptych.client import AsyncClient
from triptych.events import Delta, Finished
from triptych.media import Image, Video
from triptych.messages import Message, assistant, user


def run(bundle: Path) -> None:
    """Start the services on free ports, ask about the example files, print the streamed answers, stop everything.

    Args:
        bundle: The demo bundle.

    Raises:
        launcher.LaunchError: The services cannot start.
        ServiceError: A request fails.
    """
    print("starting the vision service, the decoder service and the gateway …", flush=True)  # noqa: T201
    # Settings for another system, such as certificates or a device, would keep the demo from starting.
    plan = launcher.Plan(bundle=bundle, grpc_port=0, http_port=0, default_settings=True)
    asyncio.run(launcher.run(plan, lambda addresses: _ask(addresses.grpc)))
    print("\nstopped")  # noqa: T201


async def _ask(address: str) -> None:
    print(f"ready at {address}", flush=True)  # noqa: T201
    async with AsyncClient(address) as client:
        for conversation in CONVERSATIONS:
            print("\n" + " and ".join(f"demo/examples/{name}" for name in conversation.files))  # noqa: T201
            messages: list[Message] = []
            shown: list[Image | Video] = [open_example(name) for name in conversation.files]
            for question, _ in conversation.turns:
                print(f"> {question}\n  ", end="", flush=True)  # noqa: T201
                messages.append(user(*shown, question))
                said = ""
                async for event in client.chat(messages):
                    match event:
                        case Delta():
                            said += event.text
                            print(event.text, end="", flush=True)  # noqa: T201
                        case Finished():
                            print(f"\n  {_summary(event)}", flush=True)  # noqa: T201
                messages.append(assistant(said))
                shown = []


def open_example(name: str) -> Image | Video:
    """A file of `demo/examples`."""
    return (Video if name == CLIP else Image).open(EXAMPLES / name)


def _summary(event: Finished) -> str:
    usage, timings = event.usage, event.timings
    return (
        f"[{usage.prompt_tokens} prompt tokens, {usage.media_tokens} of them for media; first token after "
        f"{timings.time_to_first_token_seconds * 1000:.0f} ms, {usage.completion_tokens} tokens in "
        f"{timings.decode_seconds * 1000:.0f} ms more]"
    )
