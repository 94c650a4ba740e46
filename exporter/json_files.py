"""JSON files of checkpoints and bundles."""

import json
from pathlib import Path
from typing import Any

from .errors import ExportError, ExportProblem


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ExportError: the file is missing or is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ExportError(ExportProblem.FILE_MISSING, root=path.parent, name=path.name) from error
    except (OSError, ValueError) as error:
        raise ExportError(ExportProblem.FILE_UNREADABLE, path=path, error=error) from error
    if not isinstance(value, dict):
        raise ExportError(ExportProblem.JSON_NO_OBJECT, path=path)
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object, indented."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
