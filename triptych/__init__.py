"""The Python client library. The command line is `triptych_cli`.

>>> import triptych
>>> with triptych.Client("127.0.0.1:50051") as client:
...     for event in client.chat([triptych.user("What is in the picture?", triptych.Image.open("scene.png"))]):
...         if isinstance(event, triptych.Delta):
...             print(event.text, end="")
"""

from serving.errors import Code, Violation
from serving.errors import ServiceError as TriptychError
from triptych.client import AsyncClient, Client
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
    Usage,
)
from triptych.media import Image, Video
from triptych.messages import Message, assistant, system, user

__all__ = [
    "Accepted",
    "Answer",
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
    "Started",
    "Timings",
    "TokenCount",
    "TokenLogprob",
    "TriptychError",
    "Usage",
    "Video",
    "Violation",
    "assistant",
    "system",
    "user",
]
