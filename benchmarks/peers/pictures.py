"""The race over pictures: `python -m benchmarks.peers.pictures RACE.toml`, in turns, on the same files, medians."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from benchmarks.peers import turns
from benchmarks.peers.clips import make_clip
from benchmarks.peers.protocol import Question
from benchmarks.peers.turns import Count, Heat, Race, Result, Results, Toml
from benchmarks.photo import Photos
from benchmarks.report import Table

_CELL = 32  # pixels along the edge of one token
_TEXT_TOKENS = 256  # room for questions, the template and a clip's times
_FIRST_ANSWER = 16
_QUESTION = "Describe it in detail."
_SECOND = "What is in its middle?"

# In whole tokens, so that every engine encodes all pixels.
Edge = Annotated[int, Field(ge=_CELL, multiple_of=_CELL)]


class Clip(Toml):
    """A clip with square frames, sampled at `fps` frames per second."""

    seconds: Annotated[float, Field(gt=0)]
    edge: Edge
    fps: Annotated[float, Field(gt=0)] = 2.0

    @property
    def frames(self) -> int:
        """Number of sampled frames: even, since two become one patch."""
        return max(2, 2 * round(self.seconds * self.fps / 2))

    @property
    def tokens(self) -> int:
        """Its tokens in the prompt, without timestamps."""
        return self.frames // 2 * _tokens(self.edge)


class Album(Toml):
    """Square pictures in one question."""

    pictures: Count
    edge: Edge


class Crowd(Toml):
    """Concurrent questions, each about its own square picture, with answers of `new` tokens."""

    streams: Count
    edge: Edge
    new: Count


class PictureRace(Race):
    """The whole race. It measures the TTFT, and for crowds the whole run.

    Attributes:
        sizes: Edges of single square pictures, in pixels.
        clips: Clips.
        albums: Several pictures in one question.
        crowds: Several questions at once.
        seen: Edges of square pictures with a second question, which is measured.
    """

    sizes: tuple[Edge, ...] = (256, 512, 1024, 2048)
    clips: tuple[Clip, ...] = (Clip(seconds=5, edge=384),)
    albums: tuple[Album, ...] = (Album(pictures=4, edge=512),)
    crowds: tuple[Crowd, ...] = (Crowd(streams=4, edge=512, new=32),)
    seen: tuple[Edge, ...] = (512,)

    @property
    def context(self) -> int:
        """Most tokens of a conversation."""
        media = [
            *map(_tokens, (*self.sizes, *self.seen)),
            *(clip.tokens for clip in self.clips),
            *(album.pictures * _tokens(album.edge) for album in self.albums),
            *(_tokens(crowd.edge) + crowd.new for crowd in self.crowds),
        ]
        return max([_tokens(256), *media]) + _TEXT_TOKENS

    @property
    def streams(self) -> int:
        """Most questions at once."""
        return max([1, *(crowd.streams for crowd in self.crowds)])

    def heats(self, turn: int) -> Iterator[Heat]:
        """See `Race`."""
        for edge in self.sizes:
            yield Heat(_square(edge), _ask(1, self._picture(turn, edge)), media_tokens=_tokens(edge))
        for clip in self.clips:
            name = f"clip of {clip.seconds:g} s, {_square(clip.edge)}"
            yield Heat(name, _ask(1, self._clip(turn, clip)), media_tokens=clip.tokens)
        for album in self.albums:
            count, edge = album.pictures, album.edge
            name = f"{count} pictures, {_square(edge)}"
            yield Heat(name, _ask(1, self._picture(turn, edge, count)), media_tokens=count * _tokens(edge))
        for crowd in self.crowds:
            count, edge = crowd.streams, crowd.edge
            questions = [self._picture(turn, edge, which=which) for which in range(count)]
            name = f"{count} at once, {_square(edge)}, {crowd.new} tokens each"
            yield Heat(name, _ask(crowd.new, *questions), count * crowd.new, media_tokens=count * _tokens(edge))
        for edge in self.seen:
            first = _ask(_FIRST_ANSWER, self._picture(turn, edge, which=-1))
            second = {"do": "follow", "text": _SECOND, "new_tokens": 1}
            yield Heat(f"second question, {_square(edge)}", second, before=first, media_tokens=_tokens(edge))

    def warm_up(self) -> Iterator[dict[str, Any]]:
        """Small media of each kind, which are in no heat."""
        yield _ask(4, self._picture(-1, 256))
        if self.clips:
            yield _ask(1, self._clip(-1, Clip(seconds=1, edge=128)))
        if self.streams > 1:
            yield _ask(4, *(self._picture(-1, 128, which=which) for which in range(2)))

    def _picture(self, turn: int, edge: int, count: int = 1, *, which: int = 0) -> Question:
        photos = Photos(self._seed(turn, edge, count, which))
        return Question(_QUESTION, tuple(photos.make((edge, edge)) for _ in range(count)))

    def _clip(self, turn: int, clip: Clip) -> Question:
        drawn = make_clip(self._seed(turn, clip.edge), clip.edge, clip.seconds)
        return Question(_QUESTION, clip=drawn, frames=clip.frames, fps=clip.fps)

    def _seed(self, turn: int, *what: int) -> int:
        """A seed for each file, so that a heat's files do not depend on the other heats of a run."""
        words = [self.seed, turn + 1, *(word + 1 for word in what)]
        return int(np.random.SeedSequence(words).generate_state(1)[0])


def _tokens(edge: int) -> int:
    """Tokens of a square picture."""
    return (edge // _CELL) ** 2


def _square(edge: int) -> str:
    return f"{edge} x {edge}"


def _ask(new_tokens: int, *questions: Question) -> dict[str, Any]:
    return {"do": "ask", "questions": [question.to_wire() for question in questions], "new_tokens": new_tokens}


def tables(race: PictureRace, results: Results) -> list[Table]:
    """Seconds, tokens of the prompts, and notes: a column for each peer."""
    names = [peer.name for peer in race.peers]
    media = {heat.name: heat.media_tokens for heat in race.heats(0)}
    found = {(result.heat, result.peer): result for result in results.results}
    rows = list(dict.fromkeys(result.heat for result in results.results))
    seconds = [[row, *(_seconds(found.get((row, name))) for name in names)] for row in rows]
    prompts = [[row, media[row], *(_prompt_tokens(found.get((row, name))) for name in names)] for row in rows]
    notes = [
        [result.heat, result.peer, note] for result in results.results if (note := _note(result, media[result.heat]))
    ]
    return [
        Table("TTFT in seconds, or duration of the whole run if answers are longer, medians", ["", *names], seconds),
        Table("Tokens of the prompts", ["", "media alone", *names], prompts),
        *([Table("Notes", ["", "peer", ""], notes)] if notes else []),
    ]


def _seconds(result: Result | None) -> object:
    if result is None:
        return ""
    return "\N{EN DASH}" if result.seconds is None else result.seconds.median


def _prompt_tokens(result: Result | None) -> object:
    return "" if result is None else result.prompt_tokens


def _note(result: Result, media_tokens: int | None) -> str | None:
    """A note on a result that the seconds do not show."""
    if result.cannot:
        return result.cannot
    if result.prompt_tokens is None or media_tokens is None:
        return None
    if result.prompt_tokens < media_tokens:
        return "it made the media smaller"
    # Questions and times take fewer tokens than that.
    return "it made the media larger" if result.prompt_tokens > 1.5 * media_tokens + _TEXT_TOKENS else None


def main(words: Sequence[str] | None = None) -> int:
    """Run a race from the command line; returns the exit code."""
    return turns.main(PictureRace, tables, words, module="benchmarks.peers.pictures")


if __name__ == "__main__":
    sys.exit(main())
