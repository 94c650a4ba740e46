"""What people import: the client library. The command line is `triptych.cli`.

>>> import triptych
>>> with triptych.Client("127.0.0.1:50051") as client:
...     for event in client.chat([triptych.user("What is in the picture?", triptych.Image.open("scene.png"))]):
...         if isinstance(event, triptych.Delta):
...             print(event.text, end="")
"""

from serving.errors import Code, Violation
from serving.errors import ServiceError as TriptychError
from triptych.client import AsyncClient, Client
from triptych.events import Answer, Delta, Event, Finished, PositionLogprobs, Started, Timings, TokenLogprob, Usage
from triptych.messages import Image, Message, Video, assistant, system, user

__all__ = [
    "Answer",
    "AsyncClient",
    "Client",
    "Code",
    "Delta",
    "Event",
    "Finished",
    "Image",
    "Message",
    "PositionLogprobs",
    "Started",
    "Timings",
    "TokenLogprob",
    "TriptychError",
    "Usage",
    "Video",
    "Violation",
    "assistant",
    "system",
    "user",
]
