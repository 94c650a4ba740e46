"""llama.cpp's server as a peer with pictures. Loads a GGUF file.

`LLAMA_SERVER` names the program. It reads `LLAMA_ARG_*` variables itself: `LLAMA_ARG_MMPROJ` is the encoder's GGUF
file, `LLAMA_ARG_VIDEO_FPS` the frames sampled per second, `LLAMA_ARG_VIDEO_FFMPEG_DIR` the directory of ffmpeg.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence

from benchmarks.peers.protocol import CannotError, Counts, Options, Question, serve
from benchmarks.peers.server import ServedModel, free_port

_OWN_FPS = "4.0"  # if the variable is not set


class LlamaServer(ServedModel):
    """A server with a slot for each stream. See `PictureModel`.

    Args:
        options: Options of the model.

    Raises:
        RuntimeError: No program is named, or it exited before it was ready.
    """

    def __init__(self, options: Options) -> None:
        program = os.environ.get("LLAMA_SERVER")
        if not program:
            raise RuntimeError("LLAMA_SERVER must name the program llama-server")
        port = free_port()
        settings = {
            "model": options.model,
            "host": "127.0.0.1",
            "port": port,
            "threads": options.threads,
            "parallel": options.streams,
            # Divided between the slots.
            "ctx-size": options.streams * options.context,
            # Its own limits would make small pictures larger and large ones smaller.
            "image-min-tokens": 1,
            "image-max-tokens": options.context,
            # A later start would leave only one frame, and a patch needs two.
            "video-timestamp-interval": 0,
            # The cache of a slot is not copied when another conversation takes the slot.
            "cache-ram": 0,
        }
        flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        result = subprocess.run(  # noqa: S603  # from the race's file
            [program, "--version"], capture_output=True, text=True, check=True
        )
        super().__init__(
            [program, *flags, "--no-webui"],
            port,
            health="/health",
            versions={"llama.cpp": version(result.stdout + result.stderr)},
            environment={},
            fields={"ignore_eos": True},
            streams=options.streams,
        )

    def ask(self, questions: Sequence[Question], new_tokens: int) -> Counts:
        """See `PictureModel`."""
        for question in questions:
            if why := refusal(question, os.environ):
                raise CannotError(why)
        return super().ask(questions, new_tokens)


def version(output: str) -> str:
    """The version in the output of `--version`, without its label and the compiler.

    Raises:
        ValueError: There is none.
    """
    for line in output.splitlines():
        label, _, rest = line.partition(":")
        if label == "version":
            return rest.strip()
    raise ValueError(f"llama-server prints no version: {output.strip()!r}")


def refusal(question: Question, environment: Mapping[str, str]) -> str | None:
    """The reason why a server with these variables cannot answer a question, or None: it decodes clips at one rate."""
    if question.clip is None:
        return None
    where = environment.get("LLAMA_ARG_VIDEO_FFMPEG_DIR") or environment.get("PATH", os.defpath)
    if not all(shutil.which(name, path=where) for name in ("ffmpeg", "ffprobe")):
        return "it needs ffmpeg and ffprobe for a video"
    fps = float(environment.get("LLAMA_ARG_VIDEO_FPS", _OWN_FPS))
    if fps != question.fps:
        return f"it samples {fps:g} frames per second, not {question.fps:g}"
    return None


if __name__ == "__main__":
    serve(LlamaServer)
