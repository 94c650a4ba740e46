"""`triptych ask`: sends one question about images and videos to a running gateway."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from serving.errors import Code, ServiceError
from serving.media import LOW, MAX_FPS, MAX_FRAMES, MAX_PIXELS
from triptych.client import DEFAULT_ADDRESS, ChatOptions, Client
from triptych.events import Accepted, Delta, Event, Finished, MediaLayout, Progress, Started, gather
from triptych.media import DETAILS, Image, Video
from triptych.messages import user
from triptych_cli.arguments import rate, whole
from triptych_cli.errors import CommandError
from triptych_cli.progress_bar import ProgressBar, is_terminal

_M = TypeVar("_M", Image, Video)

_MOST_TOKENS = (1 << 31) - 1
"""The largest value of the field; the server checks its own limit."""

_CUT_BY = {
    "server": "the server's longest answer without --max-tokens",
    "context": "question and answer fill the context",
    "kv_cache": "question and answer fill the server's memory for keys and values",
    "deadline": "the time for an answer was over",
    "repetition": "the answer repeated itself",
}
"""Limits other than the user's own, as sentences."""


def add_parser(commands: Any) -> None:
    """Add `ask` to the commands.

    Args:
        commands: The result of `ArgumentParser.add_subparsers`.
    """
    ask = commands.add_parser("ask", help="ask a running gateway", allow_abbrev=False)
    ask.add_argument("question")
    ask.add_argument("--image", type=Path, action="append", default=[], metavar="PATH", help="may be repeated")
    ask.add_argument("--video", type=Path, action="append", default=[], metavar="PATH", help="may be repeated")
    ask.add_argument("--address", default=DEFAULT_ADDRESS, metavar="HOST:PORT", help="default %(default)s")
    ask.add_argument("--max-tokens", type=whole(1, _MOST_TOKENS), metavar="N", help="most tokens to generate")
    ask.add_argument("--temperature", type=float, metavar="T", help="0 is greedy (the default)")
    ask.add_argument(
        "--recommended-sampling",
        action="store_true",
        default=None,
        help="sample as the checkpoint recommends; a model that thinks greedily may think in circles",
    )
    ask.add_argument(
        "--thinking",
        dest="enable_thinking",
        action=argparse.BooleanOptionalAction,
        help="whether the model is to think before it answers, where it has the choice",
    )
    pixels = whole(1, MAX_PIXELS)
    ask.add_argument("--max-pixels", type=pixels, metavar="N", help="greatest area of an image after resizing")
    ask.add_argument("--min-pixels", type=pixels, metavar="N", help="least area of an image after resizing")
    ask.add_argument("--fps", type=rate(MAX_FPS), metavar="F", help="frames sampled from a second of video")
    ask.add_argument("--max-frames", type=whole(1, MAX_FRAMES), metavar="N", help="most frames sampled from a video")
    ask.add_argument(
        "--detail", choices=DETAILS, help="budget of pixels and frames: small, the default, or the checkpoint's own"
    )
    ask.add_argument("--json", action="store_true", help="print one JSON object at the end instead")
    ask.set_defaults(command=_run, wrong_usage=ask.error)


def _run(options: argparse.Namespace) -> None:
    low, high = options.min_pixels, options.max_pixels
    if low is not None and high is not None and low > high:
        options.wrong_usage(f"argument --max-pixels: {high} is less than --min-pixels, which is {low}")
    media: list[Image | Video] = [_read(Image, path) for path in options.image]
    media += [_read(Video, path) for path in options.video]
    terminal = is_terminal(sys.stderr) and not options.json
    # Flags with the name of a chat option set that option.
    given = {name: value for name, value in vars(options).items() if name in ChatOptions.__annotations__}
    chat = ChatOptions(return_prompt_token_ids=options.json, report_progress=terminal, **given)  # type: ignore[typeddict-item]  # of that type
    with Client(options.address) as client:
        try:
            events = client.chat([user(*media, options.question)], **chat)
            if options.json:
                answer = dataclasses.asdict(gather(events))
                del answer["logprobs"]  # not requested
                print(json.dumps(answer, ensure_ascii=False))  # noqa: T201
                return
            layouts, limit = _print_answer(events, sum(len(medium.data) for medium in media), show_progress=terminal)
        except ServiceError as error:
            if error.code is Code.UNAVAILABLE and error.reason == "UNAVAILABLE":  # from the channel, not from a server
                hint = "start one with `triptych up` or name another with --address"
                raise CommandError(f"no gateway answers at {options.address}; {hint}") from error
            raise
    if terminal:
        if limit in _CUT_BY:
            print(f"\x1b[2mcut off: {_CUT_BY[limit]}\x1b[0m", file=sys.stderr)  # noqa: T201
        for path, layout in zip((*options.image, *options.video), layouts, strict=False):
            if _shrunk_by_default(layout, options):
                print(f"\x1b[2m{_remark(path, layout)}\x1b[0m", file=sys.stderr)  # noqa: T201


def _read(kind: type[_M], path: Path) -> _M:
    try:
        return kind.open(path)
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror or error}") from error


def _print_answer(
    events: Iterator[Event], size: int, *, show_progress: bool
) -> tuple[tuple[MediaLayout, ...], str | None]:
    """Print the answer while it is generated, with a progress bar before it.

    Args:
        events: The answer's events.
        size: Bytes of the media.
        show_progress: Whether to show a progress bar.

    Returns:
        The layouts of the media, and the limit that ended the answer, if any.
    """
    layouts: tuple[MediaLayout, ...] = ()
    limit: str | None = None
    with ProgressBar(sys.stderr, enabled=show_progress) as bar:
        printed = _Printed(bar)
        bar.show(f"uploading {_megabytes(size)}" if size else "sending")
        for event in events:
            match event:
                case Accepted():
                    bar.show("preparing")
                case Started():
                    layouts = event.media
                case Progress():
                    bar.show(event.stage, event.done, event.total)
                case Delta():
                    printed.add(event)
                case Finished():
                    limit = event.limit
    print(flush=True)  # noqa: T201
    return layouts, limit


class _Printed:
    """What is printed of an answer. On a terminal that is what the model thinks, too, dimmed; else the answer alone.

    Args:
        bar: Erased when there is something to print.
    """

    def __init__(self, bar: ProgressBar) -> None:
        self._bar = bar
        self._shows_reasoning = is_terminal(sys.stdout)
        self._between = ""

    def add(self, delta: Delta) -> None:
        """Print more of it."""
        if delta.reasoning and not self._shows_reasoning:
            self._bar.show("thinking")
        elif delta.reasoning:
            self._print(f"\x1b[2m{delta.reasoning}\x1b[0m")
            self._between = "\n\n"
        if delta.text:
            self._print(f"{self._between}{delta.text}")
            self._between = ""

    def _print(self, text: str) -> None:
        self._bar.close()
        print(text, end="", flush=True)  # noqa: T201


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"


def _shrunk_by_default(layout: MediaLayout, options: argparse.Namespace) -> bool:
    """Whether a medium lost pixels to the default budget, and not only by rounding its sides to whole tokens.

    No default budget is far below `LOW`. A smaller result is due to a limit of the checkpoint, as with the demo model.
    """
    image = layout.kind == "image"
    chosen = options.detail is not None or (image and options.max_pixels is not None)
    if chosen or not layout.tokens:
        return False
    patch = layout.size_used[0] // layout.grid[2]
    side = patch * math.isqrt(math.prod(layout.grid) // layout.tokens)  # edge of a token's square, in pixels
    shrunk = any(given - used >= side for given, used in zip(layout.size_given, layout.size_used, strict=True))
    pixels = math.prod(layout.size_used) * (1 if image else len(layout.frame_times))
    return shrunk and pixels >= (LOW.max_pixels if image else LOW.max_video_pixels) // 2


def _remark(path: Path, layout: MediaLayout) -> str:
    given, used = (f"{width} x {height}" for width, height in (layout.size_given, layout.size_used))
    if layout.kind == "image":
        return f"{path}: {given} seen as {used} ({layout.tokens} tokens); --detail original or --max-pixels for more"
    seen = f"{path}: {given} seen as {used}, {len(layout.frame_times)} frames ({layout.tokens} tokens)"
    return f"{seen}; --detail original or a lower --max-frames for larger frames"
