"""Finds the string of a JSON text that has half of a surrogate pair, which no UTF-8 can express.

The parser of the requests refuses such a text as a whole, and tells the column alone.
"""

from __future__ import annotations

import json
import re

_SURROGATE = re.compile("[\ud800-\udfff]")


def surrogate_in(text: bytes) -> str | None:
    """The path of the first string with a lone surrogate, such as `messages[0].content`.

    Args:
        text: JSON.

    Returns:
        The path, empty if the text is one string; None without such a string, or if the text is no JSON otherwise.
    """
    try:
        values: list[tuple[str, object]] = [("", json.loads(text))]
    except (ValueError, RecursionError):
        return None
    while values:
        path, value = values.pop()
        match value:
            case str() if _SURROGATE.search(value):
                return path
            case list():
                values += reversed([(f"{path}[{index}]", one) for index, one in enumerate(value)])
            case dict():
                for name, one in reversed(value.items()):
                    if _SURROGATE.search(name):
                        values.append((path, name))
                    else:
                        values.append((f"{path}.{name}" if path else name, one))
    return None
