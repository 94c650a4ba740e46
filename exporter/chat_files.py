"""The tokenizer and the chat template of a checkpoint."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from .errors import ExportError, ExportProblem, one_line
from .json_files import read_json

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def check_tokenizer(root: Path) -> None:
    """Check that the tokenizer of checkpoint directory `root` can be read.

    Raises:
        ExportError: it is missing or damaged.
    """
    path = root / "tokenizer.json"
    if not path.is_file():
        raise ExportError(ExportProblem.NO_TOKENIZER, root=root)
    try:
        Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises no narrower kind
        raise ExportError(ExportProblem.TOKENIZER_UNREADABLE, path=path, error=one_line(error)) from error
    read_json(root / "tokenizer_config.json")


def read_chat_template(root: Path) -> str:
    """Read the Jinja source of the chat template of checkpoint directory `root`, wherever it is kept.

    Raises:
        ExportError: there is none.
    """
    if (root / "chat_template.jinja").is_file():
        return (root / "chat_template.jinja").read_text(encoding="utf-8")
    template: Any = None
    if (root / "chat_template.json").is_file():
        template = read_json(root / "chat_template.json").get("chat_template")
    if template is None:
        template = read_json(root / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # several named templates
        template = next((entry.get("template") for entry in template if entry.get("name") == "default"), None)
    if not isinstance(template, str):
        raise ExportError(ExportProblem.NO_TEMPLATE, root=root)
    return template
