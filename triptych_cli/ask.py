"""`triptych ask`: sends one question about images and videos to a running gateway."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serving.errors import ServiceError
from serving.media import LOW, MAX_FPS, MAX_FRAMES, MAX_PIXELS
from triptych.api_key import API_KEY_VARIABLE
from triptych.client import DEFAULT_ADDRESS, Client
from triptych.errors import GATEWAY_UNAVAILABLE, incomplete
from triptych.events import Accepted, Answer, Delta, Event, Finished, MediaLayout, Progress, Started, gather
from triptych.gateways import addresses_of
from triptych.media import DETAILS, Image, Video, in_bytes
from triptych.options import ChatOptions
from triptych.tls import Tls
from triptych_cli import question
from triptych_cli.arguments import add_tls, addresses, rate, text, tls_of, whole
from triptych_cli.errors import CommandError
from triptych_cli.progress_bar import ProgressBar, is_terminal
from triptych_cli.tls_probe import speaks_tls

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
    ask = commands.add_parser(
        "ask",
        help="ask a running gateway",
        allow_abbrev=False,
        usage="triptych ask QUESTION [--image PATH ...] [--video PATH ...] [options]",
    )
    ask.add_argument("question", nargs="?", metavar="QUESTION", help="`-` reads it from stdin")
    for kind in ("image", "video"):
        help_text = "one or more; `-` is stdin; may be repeated"
        ask.add_argument(f"--{kind}", action="append", nargs="+", default=[], metavar="PATH", help=help_text)
    ask.add_argument("--system", metavar="TEXT", help="system message")
    ask.add_argument(
        "--schema", type=Path, metavar="FILE", help="answer with JSON that the JSON schema in this file admits"
    )
    ask.add_argument(
        "--address",
        default=DEFAULT_ADDRESS,
        type=addresses,
        metavar="HOST:PORT[,HOST:PORT]",
        help="of the gateway, or of several of which one is called (default %(default)s)",
    )
    add_tls(ask)
    ask.add_argument(
        "--api-key",
        metavar="KEY",
        help=f"key of the gateway; better set {API_KEY_VARIABLE}: other users of this machine see a flag",
    )
    ask.add_argument("--max-tokens", type=whole(1, _MOST_TOKENS), metavar="N", help="most tokens to generate")
    ask.add_argument("--temperature", type=float, metavar="T", help="0 is greedy (the default)")
    ask.add_argument("--top-p", type=rate(1), metavar="P", help="the likeliest tokens that reach this probability")
    ask.add_argument("--top-k", type=whole(0, (1 << 32) - 1), metavar="K", help="the K likeliest tokens; 0: all")
    ask.add_argument(
        "--min-p", type=float, metavar="P", help="tokens at least this fraction as likely as the likeliest"
    )
    ask.add_argument("--seed", type=whole(0, (1 << 64) - 1), metavar="N", help="makes sampling repeatable")
    ask.add_argument(
        "--stop", action="append", type=text, metavar="TEXT", help="ends the answer before it; may be repeated"
    )
    ask.add_argument("--repetition-penalty", type=float, metavar="F", help="over 1 avoids tokens that have occurred")
    ask.add_argument("--presence-penalty", type=float, metavar="F", help="-2 to 2, for tokens of the answer")
    ask.add_argument("--frequency-penalty", type=float, metavar="F", help="-2 to 2, for each time that one occurred")
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
    question.complete(options)
    messages = question.read_messages(options)
    media = [part for part in messages[-1].parts if isinstance(part, Image | Video)]
    terminal = is_terminal(sys.stderr) and not options.json
    # Flags with the name of a chat option set that option.
    given = {name: value for name, value in vars(options).items() if name in ChatOptions.__annotations__}
    chat = ChatOptions(return_prompt_token_ids=options.json, report_progress=terminal, **given)  # type: ignore[typeddict-item]  # of that type
    if options.schema is not None:
        chat["response_format"] = question.read_schema(options.schema)
    tls = tls_of(options)
    with _client(options, tls) as client:
        try:
            events = client.chat(messages, **chat)
        except ValueError as error:  # such as bytes of the terminal that are no UTF-8
            raise CommandError(f"the request cannot be sent: {error}") from error
        try:
            if options.json:
                _print_json(gather(events)[0])
                return
            with ProgressBar(sys.stderr, enabled=terminal) as bar:
                size = sum(len(medium.data) for medium in media)
                bar.show(f"uploading {in_bytes(size)}" if size else "sending")
                printed = _JsonPrinted(bar) if options.schema is not None else _Printed(bar)
                layouts, end = _print_answer(events, bar, printed)
        except ServiceError as error:
            if error.reason == GATEWAY_UNAVAILABLE:
                raise CommandError(_unreached(error, options.address, over_tls=tls is not None)) from error
            raise CommandError(question.explained(error, messages, options)) from error
    if terminal:
        for medium, layout in zip(media, layouts, strict=False):
            if _shrunk_by_default(layout, options):
                print(f"\x1b[2m{_remark(medium.name, layout)}\x1b[0m", file=sys.stderr)  # noqa: T201
    if end.reason == "length":
        cut = _cut(end)
        if options.schema is not None:
            raise CommandError(f"the JSON is incomplete, {cut}")
        print(f"triptych: {cut}", file=sys.stderr)  # noqa: T201


def _client(options: argparse.Namespace, tls: Tls | None) -> Client:
    try:  # no retries: whoever sees the error decides
        return Client(options.address, retries=0, api_key=options.api_key, tls=tls)
    except ValueError as error:
        raise CommandError(str(error)) from error


def _unreached(error: ServiceError, address: str, *, over_tls: bool) -> str:
    for each in addresses_of(address):
        match speaks_tls(each):
            case False if over_tls:
                return f"the port at {each} does not speak TLS: leave out --tls and the flags of certificates"
            case True if not over_tls:
                return f"the port at {each} speaks TLS: add --tls, or --tls-ca FILE for a CA that is not public"
    if over_tls:  # the certificate may be the cause
        return f"no gateway answers over TLS at {address}: {error.message}"
    return f"no gateway answers at {address}; start one with `triptych up` or name another with --address"


def _print_json(answer: Answer) -> None:
    values = dataclasses.asdict(answer)
    del values["logprobs"]  # not requested
    del values["tool_calls"]  # no tools are offered
    print(json.dumps(values, ensure_ascii=False))  # noqa: T201


def _cut(end: Finished) -> str:
    cause = _CUT_BY.get(end.limit or "", "--max-tokens")
    return f"cut at {end.usage.completion_tokens} tokens: {cause}"


def _print_answer(
    events: Iterator[Event], bar: ProgressBar, printed: _Printed
) -> tuple[tuple[MediaLayout, ...], Finished]:
    """Print the answer while it is generated, with a progress bar before it.

    Args:
        events: The answer's events.
        bar: Shows what happens before the first token.
        printed: Prints the answer.

    Returns:
        The layouts of the media, and the last event.
    """
    layouts: tuple[MediaLayout, ...] = ()
    try:
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
                    printed.end()
                    return layouts, event
    except BaseException:
        printed.end_line()  # what is said on stderr begins a line of its own
        raise
    raise incomplete()


class _Printed:
    """What is printed of an answer. On a terminal that is what the model thinks, too, dimmed; else the answer alone.

    Args:
        bar: Erased when there is something to print.
    """

    def __init__(self, bar: ProgressBar) -> None:
        self._bar = bar
        self._shows_reasoning = is_terminal(sys.stdout)
        self._between = ""
        self._is_empty = True

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

    def end(self) -> None:
        """End the line of a complete answer."""
        self._print("\n")

    def end_line(self) -> None:
        """End the line of an answer that is not complete."""
        if not self._is_empty:
            print(flush=True)  # noqa: T201

    def _print(self, text: str) -> None:
        self._bar.close()
        self._is_empty = False
        print(text, end="", flush=True)  # noqa: T201


class _JsonPrinted(_Printed):
    """Prints JSON when it is complete, in one line."""

    def __init__(self, bar: ProgressBar) -> None:
        super().__init__(bar)
        self._text: list[str] = []

    def add(self, delta: Delta) -> None:
        """Keep more of it."""
        self._bar.show("thinking" if delta.reasoning else "answering")
        self._text.append(delta.text)

    def end(self) -> None:
        """Print it; as it is if it was cut."""
        text = "".join(self._text)
        with contextlib.suppress(ValueError):
            text = json.dumps(json.loads(text), ensure_ascii=False)
        self._print(f"{text}\n")


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


def _remark(path: str, layout: MediaLayout) -> str:
    given, used = (f"{width} x {height}" for width, height in (layout.size_given, layout.size_used))
    if layout.kind == "image":
        return f"{path}: {given} seen as {used} ({layout.tokens} tokens); --detail original or --max-pixels for more"
    seen = f"{path}: {given} seen as {used}, {len(layout.frame_times)} frames ({layout.tokens} tokens)"
    return f"{seen}; --detail original or a lower --max-frames for larger frames"
