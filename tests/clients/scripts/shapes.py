"""Models that the answers of Python clients must fit; for environments that have pydantic."""

from __future__ import annotations

from typing import Literal

import pydantic


class Exact(pydantic.BaseModel):
    """A model without other fields; the demo model would go on adding them where the schema lets it."""

    model_config = pydantic.ConfigDict(extra="forbid")


class Answer(Exact):
    """The answer to a question about a picture."""

    colour: Literal["red", "blue", "yellow"]
    count: Literal[1, 2, 3]


class Shape(Exact):
    """A shape of a picture."""

    colour: Literal["red", "blue", "yellow"]
    count: int = pydantic.Field(ge=0, le=9)


class Shapes(Exact):
    """The shapes of a picture; a model inside a model gives `$defs`."""

    shapes: list[Shape] = pydantic.Field(min_length=1, max_length=2)
    note: Literal["few", "many"] | None


class Look(Exact):
    """Look up how many shapes of a colour there are."""

    colour: Literal["red", "blue", "yellow"]
