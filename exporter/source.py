"""From the `source` of an export to a checkpoint directory: a local path, or a Hugging Face id that is downloaded."""

import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2
import huggingface_hub
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    DryRunError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from .errors import ExportError, ExportProblem
from .formats import refuse_other_formats
from .writer import existing_parent, gib

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SMALL = ["*.json", "*.jinja"]
_WEIGHTS = ["*.safetensors"]
_NO_FOLDERS = ["*/*"]


@dataclass(frozen=True)
class Source:
    """A checkpoint that may still have to be downloaded, in parts: its config is there.

    Attributes:
        root: its directory, which the parts are added to.
        name: what the model is called where nobody says otherwise.
        repo: the Hugging Face id; None where all is here.
        show_progress: whether downloads show bars.
        folders: those of the repository that are needed beside the files at its top.
    """

    root: Path
    name: str
    repo: str | None = None
    show_progress: bool = False
    folders: tuple[str, ...] = ()

    def fetch_settings(self) -> None:
        """Download everything but the weights.

        Raises:
            ExportError: it could not be downloaded.
        """
        self._fetch(_SMALL)

    def check_room(self, out: Path, bundle: int) -> None:
        """Refuse to download what the disk cannot hold.

        Args:
            out: where the bundle is to be.
            bundle: how many bytes it will take.

        Raises:
            ExportError: the cache's disk has no room for the weights that are missing, or none for the bundle beside.
        """
        missing = self._missing()
        if not missing:
            return
        cache = existing_parent(Path(huggingface_hub.constants.HF_HUB_CACHE))
        beside = bundle if cache.stat().st_dev == existing_parent(out).stat().st_dev else 0
        free = shutil.disk_usage(cache).free
        if free < missing + beside:
            raise ExportError(
                ExportProblem.NO_ROOM_FOR_WEIGHTS,
                repo=self.repo,
                weights=gib(missing),
                bundle=f", the bundle {gib(beside)}" if beside else "",
                cache=cache,
                free=gib(free),
            )

    def fetch_weights(self) -> None:
        """Download the weights; an interrupted download goes on where it stopped.

        Raises:
            ExportError: they could not be downloaded.
        """
        self._fetch(_WEIGHTS)

    def _missing(self) -> int:
        """Bytes of the weights that are not here yet."""
        if self.repo is None:
            return 0
        with _explained(self.repo, self.root.name), _quiet_hub(bars=False):
            try:
                files = [
                    file
                    for allowed, ignored in self._wanted(_WEIGHTS)
                    for file in huggingface_hub.snapshot_download(
                        self.repo,
                        revision=self.root.name,
                        allow_patterns=allowed,
                        ignore_patterns=ignored,
                        dry_run=True,
                    )
                ]
            except DryRunError:  # the hub is out of reach: what is in the cache must do
                return 0
        return sum(file.file_size or 0 for file in files if file.will_download)

    def _fetch(self, patterns: Sequence[str]) -> None:
        if self.repo is None:
            return
        for allowed, ignored in self._wanted(patterns):
            # By the commit that was found first: the branch may move meanwhile.
            _download(self.repo, self.root.name, allowed, ignored, show_progress=self.show_progress)

    def _wanted(self, patterns: Sequence[str]) -> list[tuple[list[str], list[str]]]:
        """Patterns of the files to take and of those to leave: at the top of the repository, and in its folders."""
        inside = [f"{folder}/{pattern}" for folder in self.folders for pattern in patterns]
        return [(list(patterns), _NO_FOLDERS), *([(inside, [])] if inside else [])]


def locate(source: str | Path, *, revision: str | None, show_progress: bool) -> Source:
    """Find the checkpoint that `source` names; of a Hugging Face id, only `config.json` is downloaded.

    Raises:
        ExportError: there is no such directory, or the model cannot be downloaded, or is in another format.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        root = path.absolute()
        return Source(root, _cached_name(root) or root.name or root.resolve().name)
    if path.exists():
        refuse_other_formats(path, [path.name])
        raise ExportError(ExportProblem.SOURCE_IS_FILE, path=path)
    if isinstance(source, Path) or not _HUB_ID.fullmatch(source):
        raise ExportError(ExportProblem.NO_DIRECTORY, path=path)
    root = _download(source, revision, ["config.json"], _NO_FOLDERS, show_progress=False)
    if not (root / "config.json").is_file():
        with suppress(CachedRepoTreeNotFoundError):
            tree = huggingface_hub.get_cached_repo_tree(source, revision=root.name)
            refuse_other_formats(source, [file.path for file in tree])
        raise ExportError(ExportProblem.NO_CONFIG_ON_HUB, repo=source)
    return Source(root, source.rsplit("/", 1)[-1], source, show_progress)


def _cached_name(root: Path) -> str | None:
    """The name of the repository whose snapshot a directory is, in Hugging Face's cache; None for any other."""
    repository = root.parent.parent.name
    if root.parent.name != "snapshots" or not repository.startswith("models--"):
        return None
    return repository.removeprefix("models--").partition("--")[2] or repository.removeprefix("models--")


def _download(
    repo: str,
    revision: str | None,
    patterns: Sequence[str],
    ignored: Sequence[str],
    *,
    show_progress: bool,
) -> Path:
    with _explained(repo, revision), _quiet_hub(bars=show_progress):
        return Path(
            huggingface_hub.snapshot_download(
                repo, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(ignored)
            )
        )


@contextmanager
def _explained(repo: str, revision: str | None) -> Iterator[None]:
    """Turn the errors of a download into messages."""
    which = repo if revision is None else f"{repo} at {revision}"
    try:
        yield
    except GatedRepoError as error:
        raise ExportError(ExportProblem.GATED, repo=repo) from error
    except RevisionNotFoundError as error:
        raise ExportError(ExportProblem.NO_REVISION, repo=repo, revision=revision) from error
    except RepositoryNotFoundError as error:
        raise ExportError(ExportProblem.NO_REPOSITORY, repo=repo) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, httpx2.HTTPError, ConnectionError) as error:
        raise ExportError(ExportProblem.HUB_OUT_OF_REACH, repo=repo, which=which) from error
    except OSError as error:  # a full disk, most often
        raise ExportError(ExportProblem.NOT_CACHED, which=which, error=error.strerror or error) from error


@contextmanager
def _quiet_hub(*, bars: bool) -> Iterator[None]:
    """Let the hub's library show its bars or not, and keep its warnings to itself."""
    were_disabled, verbosity = are_progress_bars_disabled(), hub_logging.get_verbosity()
    (enable_progress_bars if bars else disable_progress_bars)()
    hub_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        hub_logging.set_verbosity(verbosity)
        (disable_progress_bars if were_disabled else enable_progress_bars)()
