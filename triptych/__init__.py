"""The Python client library. The command line is `triptych_cli`.

>>> import pathlib, triptych
>>> with triptych.Client("127.0.0.1:50051") as client:
...     for event in client.chat(triptych.user(pathlib.Path("scene.png"), "What is in the picture?")):
...         if isinstance(event, triptych.Delta):
...             print(event.text, end="")
"""

from serving.errors import Code, Violation
from triptych.client import AsyncClient, Client
from triptych.errors import AnswerError, TriptychError
from triptych.events import (
    Accepted,
    Answer,
    Delta,
    Event,
    Finished,
    MediaLayout,
    PositionLogprobs,
    Progress,
    Started,
    Timings,
    TokenCount,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from triptych.media import Image, Video
from triptych.messages import Message, assistant, system, tool, user
from triptych.prompts import Prompt
from triptych.tls import Tls
from triptych.tools import Tool, ToolCall

__all__ = [
    "Accepted",
    "Answer",
    "AnswerError",
    "AsyncClient",
    "Client",
    "Code",
    "Delta",
    "Event",
    "Finished",
    "Image",
    "MediaLayout",
    "Message",
    "PositionLogprobs",
    "Progress",
    "Prompt",
    "Started",
    "Timings",
    "Tls",
    "TokenCount",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "TriptychError",
    "Usage",
    "Video",
    "Violation",
    "assistant",
    "system",
    "tool",
    "user",
]
