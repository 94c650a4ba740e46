"""From the `source` of an export to a checkpoint directory: a local path, or a Hugging Face id that is downloaded."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from .errors import ExportError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_WANTED = ["*.json", "*.jinja", "*.safetensors"]


def resolve(source: str | Path, *, revision: str | None, show_progress: bool) -> Path:
    """Return the directory of the checkpoint that `source` names, downloading it first when it is a Hugging Face id.

    An interrupted download goes on where it stopped when it is asked for again.

    Raises:
        ExportError: there is no such directory, or the model could not be downloaded.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path.absolute()
    if path.exists():
        raise ExportError(f"{path} is a file: name the checkpoint's directory, the one that holds its config.json.")
    if isinstance(source, Path) or not _HUB_ID.fullmatch(source):
        raise ExportError(
            f"There is no directory {path}: name a checkpoint's directory or a Hugging Face id such as "
            "Qwen/Qwen3-VL-4B-Instruct."
        )
    return _download(source, revision, show_progress=show_progress)


def model_name(source: str | Path, root: Path) -> str:
    """The name a bundle gets by default: the last part of the Hugging Face id, or the directory's name."""
    text = str(source)
    if _HUB_ID.fullmatch(text) and not Path(text).is_dir():
        return text.rsplit("/", 1)[-1]
    return root.name or root.resolve().name


def _download(repo: str, revision: str | None, *, show_progress: bool) -> Path:
    which = repo if revision is None else f"{repo} at {revision}"
    try:
        with _progress_bars(shown=show_progress):
            return Path(huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=_WANTED))
    except GatedRepoError as error:
        raise ExportError(
            f"Hugging Face gives {repo} only to accounts that accepted its terms: accept them on its page, then run "
            "`hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise ExportError(f"{repo} has no revision {revision!r} on Hugging Face.") from error
    except RepositoryNotFoundError as error:
        raise ExportError(
            f"There is no directory {repo} here and no model {repo} on Hugging Face, unless a private one: then run "
            "`hf auth login`."
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, httpx2.HTTPError, ConnectionError) as error:
        raise ExportError(
            f"There is no directory {repo} here and Hugging Face could not be reached to download {which}: connect "
            "and run the command again (a download goes on where it stopped), or name a local checkpoint directory."
        ) from error
    except OSError as error:  # a full disk, most often
        raise ExportError(
            f"{which} could not be stored in Hugging Face's cache ({error.strerror or error}): make room, or set "
            "HF_HOME to a directory on another disk, and run the command again."
        ) from error


@contextmanager
def _progress_bars(*, shown: bool) -> Iterator[None]:
    were_disabled = are_progress_bars_disabled()
    (enable_progress_bars if shown else disable_progress_bars)()
    try:
        yield
    finally:
        (disable_progress_bars if were_disabled else enable_progress_bars)()
